"""A shard behind messages: a host answers for it, and keeps the fetches that wait for it to come so far."""

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from torch import Tensor

from distbelief.ports import Capture, Command, Push, Reply, Restore, Snapshot, Version
from distbelief.server.shard import Shard

Answer = Callable[[Any, int], object]
"""Sends an answer back, as a message of so many bytes."""
SMALL = 0
"""Bytes that a message without a vector is counted as."""


class HostObserver(Protocol):
    """Is told what a host answers."""

    def pushed(self, shard: int, push: Push, reply: Reply) -> None:
        """A push was answered."""

    def saw(self, shard: int, version: Version) -> None:
        """A version was told to a replica."""

    def obeyed(self, shard: int, command: Command, living: int) -> None:
        """A command was obeyed; the shard then counts so many living."""


@final
class ShardHost:
    """One shard's host. A host that has lost its shard answers nothing but `Restore`: who asks will ask again."""

    def __init__(self, shard: Shard, number: int = 0, observer: HostObserver | None = None) -> None:
        self.shard = shard
        self.number = number
        self._observer = observer
        self._lost = False
        self.waiting: dict[str, tuple[Version, Answer]] = {}
        """The fetches that wait, by the machine: for what. One that is made again takes the place of the first."""
        self._copy: tuple[Version, Tensor] | None = None

    def fetch(self, at_least: Version, machine: str, answer: Answer) -> None:
        """Answer with the version and a copy of the parameters, once the shard has come so far."""
        if self._lost:
            return
        if self.shard.reached < at_least:
            self.waiting[machine] = at_least, answer
        else:
            self._answer(answer)

    def push(self, push: Push, answer: Answer) -> None:
        """Admit a push, answer, and let go the fetches that waited for it."""
        if self._lost:
            return
        reply = self.shard.push(push)
        if self._observer is not None:
            self._observer.pushed(self.number, push, reply)
        answer(reply, SMALL)
        self._let_go()

    def execute(self, command: Command, answer: Answer) -> None:
        """Obey a command of the controller's, answer, and let go the fetches that waited for it."""
        if self._lost and not isinstance(command, Restore):
            return
        self._lost = False
        if isinstance(command, Capture):
            snapshot = self.shard.snapshot()
            answer(snapshot, sum(vector.nbytes for vector in snapshot.vectors.values()))
        else:
            answer(self.shard.execute(command), SMALL)
        if self._observer is not None:
            self._observer.obeyed(self.number, command, self.shard.living)
        self._let_go()

    def lose(self) -> None:
        """The machine has died: the fetches that waited wait in vain, and the shard must be restored."""
        self.waiting.clear()
        self._copy = None
        self._lost = True

    def _let_go(self) -> None:
        if self.waiting:
            reached = self.shard.reached
            for machine, (at_least, answer) in list(self.waiting.items()):
                if at_least <= reached:
                    del self.waiting[machine]
                    self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        # One copy for all who fetch the same version: in a synchronous round these are all replicas.
        if self._copy is None or self._copy[0] != self.shard.version:
            copy = torch.empty_like(self.shard.parameters)
            self._copy = self.shard.fetch(copy), copy
        if self._observer is not None:
            self._observer.saw(self.number, self._copy[0])
        answer(self._copy, self._copy[1].nbytes)


def scatter(snapshot: Any, command: Capture) -> Snapshot:
    """Copy the vectors that a host has answered a capture with to where it wants them; returns the integers alone."""
    for name, targets in command.into.items():
        for part, target in targets:
            target.copy_(snapshot.vectors[name][part.start : part.stop])
    return Snapshot(snapshot.numbers, {})
