"""Every implementation of `WorkSource`, and the double that stands for them where only replicas are looked at."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from distbelief.downpour.lease_client import LeaseClient
from distbelief.downpour.lease_server import LeaseServer
from distbelief.downpour.ledger import Ledger
from distbelief.engines.simulated.link import SimulatedRequests
from distbelief.engines.simulated.loop import simulate
from distbelief.engines.simulated.network import Network, Wire
from distbelief.engines.worker.channel import Channel
from distbelief.engines.worker.requests import ChannelRequests
from distbelief.ports import Outcome, Verdict, WorkSource
from distbelief.server.host import SMALL, Answer
from distbelief.server.patience import Patience
from tests.replicas import LedgerWork

T = TypeVar("T")
Scenario = Callable[[WorkSource], Awaitable[T]]
"""What a replica does with its source."""


class Source(Protocol):
    """Where a source of a ledger's work is made, and scenarios run."""

    def __call__(self, ledger: Ledger, scenario: Scenario[T]) -> T: ...


async def _with(work: LeaseClient, scenario: Scenario[T]) -> T:
    try:
        return await scenario(work)
    finally:
        work.close()


def straight(ledger: Ledger, scenario: Scenario[T]) -> T:
    """Straight on the ledger."""

    async def main() -> T:
        return await scenario(LedgerWork(ledger, 0))

    return simulate(main(), seed=0)


def over_a_channel(ledger: Ledger, scenario: Scenario[T]) -> T:
    """Over a worker's channel, with a controller at its other end that answers from a lease server."""
    ours, theirs = Channel.pair()
    controller = threading.Thread(target=_answer, args=(ours, LeaseServer(ledger, counts_living=False)))
    controller.start()

    async def main() -> T:
        return await _with(LeaseClient(ChannelRequests(theirs)), scenario)

    try:
        return asyncio.run(main())
    finally:
        theirs.close()
        controller.join()
        ours.close()


def _answer(channel: Channel, server: LeaseServer) -> None:
    server.open(0, 1)
    while (message := channel.receive()) is not None:
        number = message["number"]
        if message["kind"] == "lease":
            server.request(0, 1, number)
        else:
            outcomes = [Outcome(a, b, Verdict(v)) for a, b, v in message["outcomes"]]
            heard, new = server.account(0, 1, number, message["lease"], outcomes)
            assert heard, "a channel loses nothing and keeps the order"
            assert new
            channel.send("done", number=number)
        server.settle()
        for granted in server.take():
            channel.send("lease", number=granted.number, lease=granted.lease)


class Desk:
    """A controller in virtual time that does nothing but lease."""

    def __init__(self, ledger: Ledger) -> None:
        self.server = LeaseServer(ledger, counts_living=False)
        self.server.open(0, 1)
        self._waiting: dict[int, Answer] = {}

    def lease(self, replica: int, incarnation: int, number: int, answer: Answer) -> None:
        """A request has arrived."""
        self._waiting[number] = answer
        if (again := self.server.request(replica, incarnation, number)) is not None:
            answer(again.lease, SMALL)
        self._grant()

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: Answer
    ) -> None:
        """An account has arrived."""
        heard, _ = self.server.account(replica, incarnation, number, lease, outcomes)
        self._grant()
        if heard:
            answer(None, SMALL)

    def _grant(self) -> None:
        self.server.settle()
        for granted in self.server.take():
            self._waiting[granted.number](granted.lease, SMALL)


def simulated(*, loss: float = 0.0, disorder: float = 0.0, seed: int = 0) -> Source:
    """By messages in virtual time, of which some are lost, and some doubled and overtaken."""

    def source(ledger: Ledger, scenario: Scenario[Any]) -> Any:
        network = Network(loss=loss, duplication=disorder, reordering=disorder)
        chance = random.Random(seed)

        async def main() -> Any:
            wire = Wire(chance.random, network=network, chance=chance)
            patience = Patience(4.0, 60.0) if loss else None
            return await _with(LeaseClient(SimulatedRequests(wire, Desk(ledger), 0, 1, patience)), scenario)

        return simulate(main(), seed=seed)

    return source


SOURCES: dict[str, Source] = {
    "straight": straight,
    "over a channel": over_a_channel,
    "simulated": simulated(),
    "simulated, doubled and overtaken": simulated(disorder=0.5),
    **{f"simulated, with losses {seed}": simulated(loss=0.3, disorder=0.3, seed=seed) for seed in range(3)},
}


async def exhaust(work: WorkSource, verdict: Verdict = Verdict.APPLIED) -> list[tuple[int, int]]:
    """Take all there is; returns (epoch, batch) in the order of the leases."""
    seen = []
    while (lease := await work.lease()) is not None:
        seen += [(lease.epoch, batch) for batch in range(lease.start, lease.stop)]
        await asyncio.sleep(0)
        await work.done(lease, [Outcome(lease.start, lease.stop, verdict)])
    return seen
