"""A host serves one shard over messages. It queues a fetch until the shard reaches the version it waits for."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor

from distbelief.ports import Capture, Command, Push, Reply, Restore, Snapshot, Version
from distbelief.server import block
from distbelief.server.shard import Shard

Answer = Callable[[Any, int], object]
"""Callback that sends an answer back. Arguments: the answer, and the size of its vectors in bytes."""
BEFORE_ALL_TERMS = -1
SMALL = 0
"""Size in bytes that is reported for an answer without vectors."""


class HostObserver(Protocol):
    """Observer of a host. The host calls one method for each request that it serves."""

    def pushed(self, shard: int, push: Push, reply: Reply) -> None:
        """A push was answered."""

    def saw(self, shard: int, version: Version) -> None:
        """The host answers a fetch with this version."""

    def asked(self, shard: int, machine: str, at_least: Version) -> None:
        """A machine fetches, and waits for this version if the shard has not reached it."""

    def obeyed(self, shard: int, command: Command, living: int, fenced: Sequence[int]) -> None:
        """The shard has executed a command. `living`: number of living replicas after it; `fenced`: `Shard.fenced`."""


@final
class ShardHost:
    """Serves one shard. After `lose`, it ignores all requests until a `Restore`; the clients' retries succeed later."""

    def __init__(self, shard: Shard, number: int = 0, observer: HostObserver | None = None) -> None:
        self.shard = shard
        self.number = number
        self._observer = observer
        self._awaits: float | None = None
        """The least term of the restoration that is awaited; None: the host hears all requests."""
        self.waiting: dict[str, tuple[Version, Callable[[], object]]] = {}
        """Waiting fetches by caller: the version to wait for, and the callback. A retry replaces the earlier entry."""
        self._copy: tuple[Version, Tensor] | None = None

    def fetch(self, at_least: Version, machine: str, answer: Answer) -> None:
        """Answer with the version and a copy of the parameters, once the shard has reached `at_least`."""
        if self._awaits is not None:
            return
        if self._observer is not None:
            self._observer.asked(self.number, machine, at_least)
        self.wait(at_least, machine, lambda: self._answer(answer))

    def wait(self, at_least: Version, caller: str, ready: Callable[[], object]) -> None:
        """Call `ready` once the shard has reached `at_least`: at once, in `look`, or never after `forget`."""
        if self.shard.reached < at_least:
            self.waiting[caller] = at_least, ready
        else:
            ready()

    def look(self) -> None:
        """Answer the waiting fetches that can proceed. Others may push through mapped memory."""
        if self.waiting:
            reached = self.shard.reached
            for caller, (at_least, ready) in list(self.waiting.items()):
                # An answer that fails may have made others be forgotten.
                if at_least <= reached and self.waiting.pop(caller, None) is not None:
                    ready()

    def forget(self, caller: str) -> None:
        """Drop the waiting fetch of a caller that has gone."""
        self.waiting.pop(caller, None)

    def hears(self, request: Push | Command) -> bool:
        """Whether to pass a request to the shard. A `Restore` that is awaited ends the silence."""
        if self._awaits is not None and isinstance(request, Restore) and request.term >= self._awaits:
            self._awaits = None
        return self._awaits is None

    def push(self, push: Push, answer: Answer) -> None:
        """Pass a push to the shard, answer it, and answer the waiting fetches that can now proceed."""
        if not self.hears(push):
            return
        reply = self.shard.push(push)
        if self._observer is not None:
            self._observer.pushed(self.number, push, reply)
        answer(reply, SMALL)
        self.look()

    def execute(self, command: Command, answer: Answer) -> None:
        """Execute a controller command, answer it, and answer the waiting fetches that can now proceed."""
        if not self.hears(command):
            return
        if isinstance(command, Capture):
            snapshot = self.shard.snapshot()
            answer(snapshot, sum(vector.nbytes for vector in snapshot.vectors.values()))
        else:
            answer(self.shard.execute(command), SMALL)
        if self._observer is not None:
            self._observer.obeyed(self.number, command, self.shard.living, self.shard.fenced)
        self.look()

    def lose(self) -> None:
        """Handle the death of the machine: drop the waiting fetches, and hear no request from now on."""
        self.waiting.clear()
        self._copy = None
        self._awaits = math.inf

    def await_restoration(self, term: int) -> None:
        """Hear nothing but a `Restore` of this term or a later one. Who maps the shard's memory waits for it, too.

        One of an earlier term was meant for a machine that has died since. If it were obeyed, the shard would obey what
        is told to all shards, and forget it with the restoration that is to come.
        """
        self._awaits = term
        self.shard.numbers[block.TERM] = BEFORE_ALL_TERMS

    def _answer(self, answer: Answer) -> None:
        # All fetches of the same version share one copy. In a synchronous round, all replicas fetch the same version.
        if self._copy is None or self._copy[0] != self.shard.version:
            copy = torch.empty_like(self.shard.parameters)
            self._copy = self.shard.fetch(copy), copy
        if self._observer is not None:
            self._observer.saw(self.number, self._copy[0])
        answer(self._copy, self._copy[1].nbytes)


def copy_vectors(snapshot: Any, command: Capture) -> Snapshot:
    """Copy the vectors of a host's answer into the targets of `command`; return a snapshot without vectors."""
    for name, targets in command.into.items():
        for part, target in targets:
            target.copy_(snapshot.vectors[name][part.start : part.stop])
    return Snapshot(snapshot.numbers, {})
