"""Servers and clients in one real event loop, and a server that is a process of its own."""

import asyncio
import multiprocessing.connection
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import torch

from distbelief.links.wire import Keys, WireClient, WireServer
from distbelief.server.admission import Buffered
from distbelief.server.host import ShardHost
from distbelief.server.rules import Adagrad
from distbelief.server.shard import Shard
from tests.shards import make_shard, set_living

T = TypeVar("T")
LONGEST_S = 40.0
"""So long no call of a test may take, on the slowest machine."""
SMALL, LARGE = 1000, 5_000_003
"""Elements of a shard of one frame, and of one of twenty."""


def shards(*elements: int) -> list[Shard]:
    """Shards of zeros."""
    return [make_shard(torch.zeros(count), Adagrad(1.0)) for count in elements]


@asynccontextmanager
async def serving(
    *served: Shard, keys: Keys | None = None, run: str = "", lost: bool = False
) -> AsyncIterator[WireServer]:
    """A server of shards, by their numbers. `lost`: they are to be restored first."""
    hosts = {number: ShardHost(shard, number) for number, shard in enumerate(served)}
    for host in hosts.values() if lost else ():
        host.await_restoration(0)
    server = WireServer(hosts, keys=keys, run=run)
    task = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def connected(server: WireServer, keys: Keys | None = None, run: str = "") -> AsyncIterator[WireClient]:
    """A client of a server."""
    client = WireClient(server.address, keys, run=run)
    try:
        yield client
    finally:
        client.close()


def play(scenario: Callable[[], Awaitable[T]]) -> T:
    """Run a scenario in a real loop, within a time that it never takes."""

    async def limited() -> T:
        async with asyncio.timeout(LONGEST_S):
            return await scenario()

    return asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is true."""
    while not condition():
        await asyncio.sleep(0.005)


def serve_rounds(ready: "multiprocessing.connection.Connection[str, Any]") -> None:
    """Be a server of a small shard whose rounds take two pushes; says its address."""
    shard = make_shard(torch.zeros(SMALL), Adagrad(1.0), Buffered(2))
    set_living(shard, [0, 1])

    async def main() -> None:
        hosts: Mapping[int, ShardHost] = {0: ShardHost(shard)}
        server = WireServer(hosts, keys=None)
        ready.send(server.address)
        await server.run()

    asyncio.run(main())
