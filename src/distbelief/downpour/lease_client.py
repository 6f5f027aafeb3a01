"""The lease client: a replica's side of the lease server, over whatever carries its requests."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, final

from distbelief.ports import Lease, Outcome


class Requests(Protocol):
    """What carries requests to the lease server. A request leaves when the method is called, not when it is awaited."""

    def lease(self, number: int) -> Awaitable[Lease | None]:
        """Ask for work; the reply."""

    def done(self, number: int, lease: int, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        """Account for a lease; returns when that is acknowledged."""


@final
class LeaseClient:
    """`WorkSource` of one replica. One lease is asked for ahead, so that the replica need not wait for the next.

    `expect` is told of each lease before its batches are asked for.
    """

    def __init__(self, requests: Requests, expect: Callable[[Lease], object] = lambda lease: None) -> None:
        self._requests = requests
        self._expect = expect
        self._asked = 0
        self._told = 0
        self._ahead: Awaitable[Lease | None] | None = None

    async def lease(self) -> Lease | None:
        """The next portion; it was usually granted while the last was worked on."""
        lease = await (self._ahead or self._ask())
        self._ahead = None
        if lease is not None:
            self._ahead = self._ask()
            self._expect(lease)
        return lease

    def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        """Account for a lease."""
        self._told += 1
        return self._requests.done(self._told, lease.number, tuple(outcomes))

    def close(self) -> None:
        """Ask for nothing more: the replica has ended."""
        if isinstance(self._ahead, asyncio.Future):
            self._ahead.cancel()

    def _ask(self) -> Awaitable[Lease | None]:
        self._asked += 1
        return self._requests.lease(self._asked)
