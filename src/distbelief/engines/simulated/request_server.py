"""Requests for work over the wire: a replica's side, and how they reach the controller and are answered."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

from distbelief.downpour.lease_server import Granted
from distbelief.engines.actions import Acknowledge
from distbelief.engines.controller import Controller
from distbelief.engines.simulated.link import CONTROLLER, call
from distbelief.engines.simulated.network import Wire
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Lease, Outcome
from distbelief.server.host import SMALL, Answer
from distbelief.server.patience import Patience, insist


class RequestListener(Protocol):
    """Hears requests on the controller's machine."""

    def lease(self, replica: int, incarnation: int, number: int, answer: Answer) -> None:
        """A replica asks for work."""

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: Answer
    ) -> None:
        """A replica accounts for a lease."""


@final
class RequestServer:
    """On the controller's machine. `carry` is called when the controller has heard a request."""

    def __init__(
        self, controller: Controller, trace: Trace, clock: Callable[[], float], carry: Callable[[], object]
    ) -> None:
        self._controller = controller
        self._trace = trace
        self._clock = clock
        self._carry = carry
        self._replies: dict[tuple[str, int, int, int], Answer] = {}
        """How to answer a request: by its kind, the replica, the incarnation, and its number."""

    def lease(self, replica: int, incarnation: int, number: int, answer: Answer) -> None:
        """A replica asks for work."""
        self._replies["lease", replica, incarnation, number] = answer
        self._controller.requested(self._clock(), replica, incarnation, number)
        self._carry()

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: Answer
    ) -> None:
        """A replica accounts for a lease."""
        self._replies["done", replica, incarnation, number] = answer
        told = (f"{start}-{stop} {verdict.name.lower()}" for start, stop, verdict in outcomes)
        self._trace.note_once("account", replica, incarnation, lease, *told)
        self._controller.accounted(self._clock(), replica, incarnation, number, lease, outcomes)
        self._carry()

    def reply(self, reply: Granted | Acknowledge) -> None:
        """Answer a request; one that has come twice meanwhile is answered once."""
        lease = reply.lease if isinstance(reply, Granted) else None
        kind = "lease" if isinstance(reply, Granted) else "done"
        if (answer := self._replies.pop((kind, reply.replica, reply.incarnation, reply.number), None)) is not None:
            answer(lease, SMALL)
        given = "none" if lease is None else str(lease.number)
        self._trace.note_once(kind, reply.replica, reply.incarnation, reply.number, given)


@final
class SimulatedRequests:
    """`Requests` of one incarnation, by messages to the controller."""

    def __init__(
        self, wire: Wire, server: RequestListener, replica: int, incarnation: int, patience: Patience | None
    ) -> None:
        self._wire = wire
        self._server = server
        self._who = replica, incarnation
        self._machine = f"replica {replica}"
        self._patience = patience

    def lease(self, number: int) -> asyncio.Task[Lease | None]:
        """Ask for work."""
        return self._call(lambda answer: self._server.lease(*self._who, number, answer))

    def done(self, number: int, lease: int, outcomes: Sequence[Outcome]) -> asyncio.Task[None]:
        """Account for a lease."""
        return self._call(lambda answer: self._server.done(*self._who, number, lease, outcomes, answer))

    def _call(self, serve: Callable[[Answer], object]) -> asyncio.Task[Any]:
        async def ask() -> Any:
            return await insist(self._patience, lambda: call(self._wire, self._machine, CONTROLLER, SMALL, serve))

        return asyncio.create_task(ask())
