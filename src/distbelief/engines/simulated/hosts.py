"""Hosts: machines that answer messages for a shard, and for the controller's ledger."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Push
from distbelief.server.shard import Shard

Answer = Callable[[Any, int], object]
"""Sends an answer back, as a message of so many bytes."""
SMALL = 0
"""Bytes that a message without a vector is counted as."""


@final
class ShardHost:
    """A shard on a machine of its own, with the fetches that wait for it to come so far."""

    def __init__(self, shard: Shard, number: int = 0, trace: Trace | None = None) -> None:
        self.shard = shard
        self.machine = f"shard {number}"
        self.number = number
        self._trace = trace
        self.waiting: dict[str, tuple[int, Answer]] = {}
        """The fetches that wait, by the machine: for what. One that is made again takes the place of the first."""
        self._copy: tuple[int, Tensor] | None = None

    def fetch(self, at_least: int, who: str, answer: Answer) -> None:
        """Answer with the version and a copy of the parameters, once the shard has come so far."""
        if self.shard.reached < at_least:
            self.waiting[who] = at_least, answer
        else:
            self._answer(answer)

    def push(self, push: Push, answer: Answer) -> None:
        """Admit a push, answer, and look who waited for it."""
        reply = self.shard.push(push)
        if self._trace is not None:
            self._trace.pushed(self.number, push, reply)
        answer(reply, SMALL)
        self.look()

    def look(self) -> None:
        """Answer who has waited long enough; to be called when something else than a push has changed the shard."""
        if self.waiting:
            reached = self.shard.reached
            for who, (at_least, answer) in list(self.waiting.items()):
                if at_least <= reached:
                    del self.waiting[who]
                    self._answer(answer)

    def forget(self) -> None:
        """The host has died: who waited here waits in vain."""
        self.waiting.clear()
        self._copy = None

    def _answer(self, answer: Answer) -> None:
        # One copy for all who fetch the same version: in a synchronous round these are all replicas.
        if self._copy is None or self._copy[0] != self.shard.version:
            copy = torch.empty_like(self.shard.parameters)
            self._copy = self.shard.fetch(copy), copy
        if self._trace is not None:
            self._trace.saw(self.number, self._copy[0])
        answer(self._copy, self._copy[1].nbytes)
