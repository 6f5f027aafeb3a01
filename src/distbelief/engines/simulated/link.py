"""The simulated link: a shard's host across a network whose delays are given, in virtual time."""

import asyncio
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from distbelief.ports import Push, Reply
from distbelief.server.shard import Shard

Delay = Callable[[], float]
"""Seconds that the next message takes."""


@final
class ShardHost:
    """A shard with the fetches that wait for one of its versions."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._changed = asyncio.Condition()

    async def fetch(self, at_least: int) -> tuple[int, Tensor]:
        """The version and a copy of the parameters, once the version is reached."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.shard.version >= at_least)
            copy = torch.empty_like(self.shard.parameters)
            return self.shard.fetch(copy), copy

    async def push(self, push: Push) -> Reply:
        """Admit a push, and wake who waited for it."""
        async with self._changed:
            reply = self.shard.push(push)
            self._changed.notify_all()
            return reply

    async def set_living(self, replicas: int) -> None:
        """Tell the shard how many replicas hold leases, and wake who waited for the round that this closed."""
        async with self._changed:
            self.shard.set_living(replicas)
            self._changed.notify_all()


@final
class SimulatedLink:
    """`ShardLink` to a host, each way with a delay of its own."""

    answers_at_once = False

    def __init__(self, host: ShardHost, delay: Delay) -> None:
        self._host = host
        self._delay = delay

    async def fetch(self, into: Tensor, at_least: int = 0) -> int:
        """Ask, wait, and copy what arrives."""
        await asyncio.sleep(self._delay())
        version, copy = await self._host.fetch(at_least)
        await asyncio.sleep(self._delay())
        into.copy_(copy)
        return version

    async def push(self, push: Push) -> Reply:
        """Send, and wait for the answer."""
        await asyncio.sleep(self._delay())
        reply = await self._host.push(push)
        await asyncio.sleep(self._delay())
        return reply
