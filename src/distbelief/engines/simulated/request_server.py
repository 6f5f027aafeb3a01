"""Requests for work on the controller's machine: how they reach the controller, and are answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

from distbelief.downpour.lease_server import LeaseReply
from distbelief.engines.actions import Acknowledge
from distbelief.engines.controller import Controller
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Outcome
from distbelief.server.host import SMALL, Answer


@final
@dataclass(eq=False)
class RequestServer:
    """On the controller's machine. `carry` is called when the controller has heard a request."""

    controller: Controller
    trace: Trace
    clock: Callable[[], float]
    carry: Callable[[], object]
    _replies: dict[tuple[str, int, int, int], Answer] = field(default_factory=dict)
    """How to answer a request: by its kind, the replica, the incarnation, and its number."""

    def lease(self, replica: int, incarnation: int, number: int, answer: Answer) -> None:
        """A replica asks for work."""
        self._replies["lease", replica, incarnation, number] = answer
        self.controller.requested(self.clock(), replica, incarnation, number)
        self.carry()

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: Answer
    ) -> None:
        """A replica accounts for a lease."""
        self._replies["done", replica, incarnation, number] = answer
        told = (f"{start}-{stop} {verdict.name.lower()}" for start, stop, verdict in outcomes)
        self.trace.note_once("account", replica, incarnation, lease, *told)
        self.controller.accounted(self.clock(), replica, incarnation, number, lease, outcomes)
        self.carry()

    def reply(self, reply: LeaseReply | Acknowledge) -> None:
        """Answer a request; one that has come twice meanwhile is answered once."""
        lease = reply.lease if isinstance(reply, LeaseReply) else None
        kind = "lease" if isinstance(reply, LeaseReply) else "done"
        if (answer := self._replies.pop((kind, reply.replica, reply.incarnation, reply.number), None)) is not None:
            answer(lease, SMALL)
        given = "none" if lease is None else str(lease.number)
        self.trace.note_once(kind, reply.replica, reply.incarnation, reply.number, given)
