"""Calls over the wire: how a simulated replica reaches the shards and the controller."""

import asyncio
from collections.abc import Callable
from typing import Any, final

from torch import Tensor

from distbelief.engines.simulated.hosts import SMALL, Answer, ShardHost
from distbelief.engines.simulated.network import Wire
from distbelief.ports import Push, Reply


async def call(wire: Wire, source: str, target: str, nbytes: int, serve: Callable[[Answer], object]) -> Any:
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

    async def fetch(self, into: Tensor, at_least: int = 0) -> int:
        """Ask, wait, and copy what arrives."""
        host = self._host
        version, copy = await call(
            self._wire, self._machine, host.machine, SMALL, lambda answer: host.fetch(at_least, self._machine, answer)
        )
        into.copy_(copy)
        return int(version)

    async def push(self, push: Push) -> Reply:
        """Send, and wait for the answer."""
        host, nbytes = self._host, sum(gradient.nbytes for gradient in push.gradients)
        reply: Reply = await call(
            self._wire, self._machine, host.machine, nbytes, lambda answer: host.push(push, answer)
        )
        return reply
