"""Calls over the wire: how simulated replicas and the controller reach shards, and replicas the controller."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor

from distbelief.engines.simulated.network import Wire
from distbelief.ports import ORIGIN, Answer, Capture, Command, Lease, Outcome, Push, Reply, Version
from distbelief.server import host
from distbelief.server.host import SMALL, ShardHost, copy_vectors
from distbelief.server.patience import Patience, retry

CONTROLLER = "controller"
Serve = Callable[[host.Answer], object]
"""Has a message served, and is given what sends the answer back."""


async def call(wire: Wire, source: str, target: str, nbytes: int, serve: Serve) -> Any:
    """Send a message, have it served at the other machine, and wait for the answer.

    The message arrives even if the caller is dead by then; if it is lost, or the answer is, the caller waits for ever.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def deliver(value: Any) -> None:
        if not future.done():
            future.set_result(value)

    def answer(value: Any, size: int) -> None:
        wire.send(target, source, size, lambda: deliver(value))

    wire.send(source, target, nbytes, lambda: serve(answer))
    return await future


@final
@dataclass(eq=False)
class SimulatedLink:
    """`ShardLink` from a machine to a shard's host."""

    answers_at_once = False
    wire: Wire
    machine: str
    host: ShardHost

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        """Ask, wait, and copy what arrives."""
        version, copy = await self._call(SMALL, lambda answer: self.host.fetch(at_least, self.machine, answer))
        into.copy_(copy)
        return Version(*version)

    async def push(self, push: Push) -> Reply:
        """Send, and wait for the answer."""
        nbytes = sum(gradient.nbytes for gradient in push.gradients)
        reply: Reply = await self._call(nbytes, lambda answer: self.host.push(push, answer))
        return reply

    async def execute(self, command: Command) -> Answer:
        """Send, wait for the answer, and put what was captured into its place."""
        answer: Answer = await self._call(SMALL, lambda answer: self.host.execute(command, answer))
        return copy_vectors(answer, command) if isinstance(command, Capture) else answer

    def transferring(self) -> bool:
        """Whether bytes are on their way to the shard or back."""
        return self.wire.transferring(self.machine, machine_of(self.host))

    async def _call(self, nbytes: int, serve: Serve) -> Any:
        return await call(self.wire, self.machine, machine_of(self.host), nbytes, serve)


def machine_of(host: ShardHost) -> str:
    """The name of the machine that a shard's host is on."""
    return f"shard {host.number}"


class RequestListener(Protocol):
    """Hears requests on the controller's machine."""

    def lease(self, replica: int, incarnation: int, number: int, answer: host.Answer) -> None:
        """A replica asks for work."""

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: host.Answer
    ) -> None:
        """A replica accounts for a lease."""


@final
@dataclass(eq=False)
class SimulatedRequests:
    """`Requests` of one incarnation, by messages to the controller."""

    wire: Wire
    server: RequestListener
    replica: int
    incarnation: int
    patience: Patience | None

    def lease(self, number: int) -> asyncio.Task[Lease | None]:
        """Ask for work."""
        return self._call(lambda answer: self.server.lease(self.replica, self.incarnation, number, answer))

    def done(self, number: int, lease: int, outcomes: Sequence[Outcome]) -> asyncio.Task[None]:
        """Account for a lease."""
        who = self.replica, self.incarnation
        return self._call(lambda answer: self.server.done(*who, number, lease, outcomes, answer))

    def _call(self, serve: Serve) -> asyncio.Task[Any]:
        machine = f"replica {self.replica}"
        return asyncio.create_task(retry(self.patience, lambda: call(self.wire, machine, CONTROLLER, SMALL, serve)))
