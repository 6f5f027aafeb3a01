"""The local engine: replicas are processes, shards are shared memory, and there is no server process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from distbelief.checks import check_whole
from distbelief.errors import UsageError

if TYPE_CHECKING:
    from distbelief.engines.local.session import LocalSession

_MOST_REPLICAS = 4


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """Train on this machine.

    `device`: where replicas compute: "cpu"; "cuda", all visible GPUs in turn, several replicas to a GPU if need be;
    "cuda:1", one of them; "auto", the GPUs if there are any. Shards are in the machine's memory in any case.
    `threads`: of each replica; None shares out the cores, so that replicas do not fight for them.
    """

    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f'device must be "auto", "cpu", "cuda" or one GPU, such as "cuda:0", not {self.device!r}')
        if self.threads is not None:
            check_whole("threads", self.threads)

    @property
    def devices(self) -> tuple[str, ...]:
        """Where replicas compute, in turn. Raises `UsageError` where a GPU is asked for that torch does not see."""
        if self.device == "cpu":
            return ("cpu",)
        import torch

        found = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if self.device == "auto":
            return found or ("cpu",)
        if not found:
            built = "" if torch.version.cuda else "; this torch was built without CUDA"
            raise UsageError(f'device="{self.device}": torch sees no GPU{built}: use device="cpu"')
        if self.device == "cuda":
            return found
        if self.device not in found:
            raise UsageError(f'device="{self.device}": torch sees {", ".join(found)}: choose one of these')
        return (self.device,)

    @property
    def replicas(self) -> int:
        """How many replicas "auto" stands for: one a GPU, or one a core, 4 at most."""
        devices = self.devices
        return min(_MOST_REPLICAS, cores()) if devices == ("cpu",) else len(devices)

    @property
    def overlap(self) -> int:
        """A step waits for its fetch and its push."""
        return 0

    @property
    def in_this_process(self) -> bool:
        """Replicas are processes of their own."""
        return False

    def open(self) -> LocalSession:
        """Begin a session, whose workers may be started before torch is imported here."""
        from distbelief.engines.local.session import LocalSession

        return LocalSession(self)

    def threads_each(self, replicas: int) -> int:
        """Threads of each of several replicas."""
        return self.threads or max(1, cores() // replicas)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
