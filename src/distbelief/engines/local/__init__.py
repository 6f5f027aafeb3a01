"""The local engine: replicas are processes, shards are shared memory, and there is no server process."""

import os
from dataclasses import dataclass
from typing import Literal, final

from distbelief.checks import check_whole
from distbelief.errors import UsageError


@final
@dataclass(frozen=True, kw_only=True)
class Local:
    """Train on this machine.

    `device`: where replicas compute; "auto" is the CPU. `threads`: of each replica; None shares out the cores, so that
    replicas do not fight for them.
    """

    device: Literal["auto", "cpu"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise UsageError(f'device must be "auto" or "cpu", not {self.device!r}')
        if self.threads is not None:
            check_whole("threads", self.threads)

    @property
    def replicas(self) -> int:
        """How many replicas "auto" stands for: one a core, 4 at most."""
        return min(4, cores())

    def threads_each(self, replicas: int) -> int:
        """Threads of each of several replicas."""
        return self.threads or max(1, cores() // replicas)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
