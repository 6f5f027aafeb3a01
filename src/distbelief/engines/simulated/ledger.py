"""Work over the wire: how simulated replicas get their portions of the data, and account for them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

from distbelief.downpour.ledger import Ledger, Reason
from distbelief.engines.simulated.hosts import SMALL, Answer
from distbelief.engines.simulated.link import call
from distbelief.engines.simulated.network import Wire
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Lease, Outcome
from distbelief.server.patience import Patience, insist

CONTROLLER = "controller"


class Bookkeeper(Protocol):
    """Who owns the ledger, and is told what becomes of it: the books of the run."""

    ledger: Ledger

    def leased(self) -> None:
        """A replica is given work."""

    def done(self, lease: int, outcomes: Sequence[Outcome]) -> None:
        """A replica accounts for a lease."""


class _Desk:
    """What one replica has asked and told, and the last lease it was given, in case that the answer was lost."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.asked = 0
        self.told = 0
        self.lease: Lease | None = None


@final
class LedgerHost:
    """Answers for the ledger, on the controller's machine.

    Requests are numbered by the replica; one that comes again, or late, has no second effect. `changed` is called when
    leases have come or gone, before anybody is told of it.
    """

    def __init__(self, books: Bookkeeper, trace: Trace, changed: Callable[[], None]) -> None:
        self._books = books
        self._trace = trace
        self._changed = changed
        self._desks: dict[int, _Desk] = {}
        self._waiting: dict[int, Answer] = {}
        """Whom to answer as soon as there is work, by the replica; who asked first comes first."""

    def open(self, replica: int, incarnation: int) -> None:
        """A replica begins; what the one before it asked is forgotten."""
        self._desks[replica] = _Desk(incarnation)

    def shut(self, replica: int) -> None:
        """A replica is dead: what is still under way from it is not heard."""
        self._desks.pop(replica, None)
        self._waiting.pop(replica, None)

    def waits(self, replica: int) -> bool:
        """Whether a replica waits for work."""
        return replica in self._waiting

    def lease(self, replica: int, incarnation: int, number: int, answer: Answer) -> None:
        """A replica asks for work."""
        desk = self._desk(replica, incarnation)
        if desk is None or number < desk.asked:
            return
        if number == desk.asked and replica not in self._waiting:
            answer(desk.lease, SMALL)
            return
        desk.asked = number
        self._books.ledger.ask(replica)
        self._waiting[replica] = answer
        self.answer_waiting()

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: Answer
    ) -> None:
        """A replica accounts for a lease."""
        desk = self._desk(replica, incarnation)
        if desk is None or number < desk.told:
            return
        if number > desk.told:
            desk.told = number
            told = (f"{start}-{stop} {verdict.name.lower()}" for start, stop, verdict in outcomes)
            self._trace.note("done", replica, incarnation, lease, *told)
            self._books.done(lease, outcomes)
            self._changed()
            self.answer_waiting()
        answer(None, SMALL)

    def answer_waiting(self) -> None:
        """Answer all requests for work that can be answered now."""
        granted: list[tuple[int, Lease | None]] = []
        for replica in self._waiting:
            lease, reason = self._books.ledger.lease(replica)
            if lease is not None or reason is Reason.FINISHED:
                granted.append((replica, lease))
            elif reason is Reason.OUTSTANDING:
                # So it is for everybody else.
                break
        # Before any of them can push: a round counts the holders of leases.
        self._changed()
        for replica, lease in granted:
            desk = self._desks[replica]
            self._trace.note("lease", replica, desk.incarnation, lease.number if lease else "none")
            if lease is not None:
                self._books.leased()
            desk.lease = lease
            self._waiting.pop(replica)(lease, SMALL)

    def _desk(self, replica: int, incarnation: int) -> _Desk | None:
        """The desk of a replica, unless it is dead."""
        desk = self._desks.get(replica)
        return None if desk is None or desk.incarnation != incarnation else desk


@final
class SimulatedWork:
    """`WorkSource` of one replica, by messages to the controller.

    One lease is asked for ahead, so that a replica need not wait for the next, nor leaves a round between two.
    """

    def __init__(
        self, wire: Wire, host: LedgerHost, replica: int, incarnation: int, patience: Patience | None = None
    ) -> None:
        self._wire = wire
        self._host = host
        self._replica = replica
        self._incarnation = incarnation
        self._patience = patience
        self._asked = 0
        self._told = 0
        self._ahead: asyncio.Task[Lease | None] | None = None

    async def lease(self) -> Lease | None:
        """The next portion."""
        lease = await (self._ahead or self._next())
        self._ahead = None if lease is None else self._next()
        return lease

    async def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> None:
        """Account for a lease."""
        self._told += 1
        who, number, account = (self._replica, self._incarnation), self._told, tuple(outcomes)
        await self._ask(lambda answer: self._host.done(*who, number, lease.number, account, answer))

    def close(self) -> None:
        """Ask for nothing more: the replica is dead."""
        if self._ahead is not None:
            self._ahead.cancel()

    def _next(self) -> asyncio.Task[Lease | None]:
        """Ask for a lease."""
        self._asked += 1
        who, number = (self._replica, self._incarnation), self._asked
        return asyncio.create_task(self._ask(lambda answer: self._host.lease(*who, number, answer)))

    async def _ask(self, serve: Callable[[Answer], object]) -> Any:
        machine = f"replica {self._replica}"
        return await insist(self._patience, lambda: call(self._wire, machine, CONTROLLER, SMALL, serve))
