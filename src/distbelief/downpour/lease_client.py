"""The lease client: a replica's side of the lease protocol, independent of the transport."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, final

from distbelief.ports import Lease, Outcome


class Requests(Protocol):
    """Transport to the lease server. It sends a request when the method is called, not when the result is awaited."""

    def lease(self, number: int) -> Awaitable[Lease | None]:
        """Request a lease, and return it; None: there is no more work. `number` lets the server recognise a retry."""

    def done(self, number: int, lease: int, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        """Report the outcomes of a lease, and return when the server has acknowledged the report."""


@final
class LeaseClient:
    """`WorkSource` of one replica. It prefetches one lease, so that the replica need not wait for the next.

    It calls `expect` with each lease before the replica asks for the batches of that lease. Once `leaving` returns
    True, it requests nothing more, and returns the lease that it has requested before, for the replica to hand back.
    """

    def __init__(
        self,
        requests: Requests,
        expect: Callable[[Lease], object] = lambda lease: None,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._requests = requests
        self._expect = expect
        self._leaving = leaving
        self._asked = 0
        self._told = 0
        self._prefetched: Awaitable[Lease | None] | None = None

    async def lease(self) -> Lease | None:
        """Return the next lease, usually prefetched while the replica worked on the last one; None: no more work."""
        requested = self._prefetched or self._ask()
        lease, self._prefetched = None if requested is None else await requested, None
        if lease is not None:
            self._prefetched = self._ask()
            self._expect(lease)
        return lease

    def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        """Report the outcomes of a lease, and return when the server has acknowledged the report."""
        self._told += 1
        return self._requests.done(self._told, lease.number, tuple(outcomes))

    def close(self) -> None:
        """Cancel the prefetch: the replica has ended."""
        if isinstance(self._prefetched, asyncio.Future):
            self._prefetched.cancel()

    def _ask(self) -> Awaitable[Lease | None] | None:
        if self._leaving():
            return None
        self._asked += 1
        return self._requests.lease(self._asked)
