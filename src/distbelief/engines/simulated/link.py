"""Calls over the wire: how simulated replicas and the controller reach shards."""

import asyncio
from collections.abc import Callable
from typing import Any, final

from torch import Tensor

from distbelief.engines.simulated.network import Wire
from distbelief.ports import ORIGIN, Answer, Capture, Command, Push, Reply, Version
from distbelief.server import host
from distbelief.server.host import SMALL, ShardHost, scatter

CONTROLLER = "controller"


async def call(wire: Wire, source: str, target: str, nbytes: int, serve: Callable[[host.Answer], object]) -> Any:
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
class SimulatedLink:
    """`ShardLink` from a machine to a shard's host."""

    answers_at_once = False

    def __init__(self, wire: Wire, machine: str, host: ShardHost) -> None:
        self._wire = wire
        self._machine = machine
        self._host = host
        self._target = machine_of(host)

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        """Ask, wait, and copy what arrives."""
        host, machine = self._host, self._machine
        version, copy = await self._call(SMALL, lambda answer: host.fetch(at_least, machine, answer))
        into.copy_(copy)
        return Version(*version)

    async def push(self, push: Push) -> Reply:
        """Send, and wait for the answer."""
        host, nbytes = self._host, sum(gradient.nbytes for gradient in push.gradients)
        reply: Reply = await self._call(nbytes, lambda answer: host.push(push, answer))
        return reply

    async def execute(self, command: Command) -> Answer:
        """Send, wait for the answer, and put what was captured into its place."""
        host = self._host
        answer: Answer = await self._call(SMALL, lambda answer: host.execute(command, answer))
        return scatter(answer, command) if isinstance(command, Capture) else answer

    def moving(self) -> bool:
        """Whether bytes are on their way to the shard or back."""
        return self._wire.moving(self._machine, self._target)

    async def _call(self, nbytes: int, serve: Callable[[host.Answer], object]) -> Any:
        return await call(self._wire, self._machine, self._target, nbytes, serve)


def machine_of(host: ShardHost) -> str:
    """The name of the machine that a shard's host is on."""
    return f"shard {host.number}"
