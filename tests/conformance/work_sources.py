"""Every implementation of `WorkSource`, and the double that stands for them where only replicas are looked at."""

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from distbelief.engines.simulated.ledger import LedgerHost, SimulatedWork

from distbelief.downpour.ledger import Ledger, Reason
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.worker import LeasedWork
from distbelief.engines.simulated.network import Network, Wire
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Outcome, Verdict, WorkSource
from distbelief.server.admission import Asynchronous
from distbelief.server.patience import Patience
from distbelief.task.data import ArrayRows, Batches
from tests.replicas import LedgerWork


@contextmanager
def straight(ledger: Ledger) -> Iterator[WorkSource]:
    """Straight on the ledger."""
    yield LedgerWork(ledger, 0)


@contextmanager
def over_a_channel(ledger: Ledger) -> Iterator[WorkSource]:
    """Over a worker's channel, with a controller at its other end that answers from the ledger."""
    ours, theirs = Channel.pair()
    controller = threading.Thread(target=_answer, args=(ours, ledger))
    controller.start()
    try:
        rows = ArrayRows(torch.zeros(ledger.examples), "train")
        yield LeasedWork(theirs, Batches(rows, ledger.batch_size, 0), lambda: None)
    finally:
        theirs.close()
        controller.join()
        ours.close()


def _answer(channel: Channel, ledger: Ledger) -> None:
    waiting = False
    while (message := channel.receive()) is not None:
        if message["kind"] == "done":
            ledger.done(message["lease"], [Outcome(a, b, Verdict(v)) for a, b, v in message["outcomes"]])
        waiting = waiting or message["kind"] == "lease"
        if waiting:
            lease, reason = ledger.lease(0)
            if lease is not None or reason is Reason.FINISHED:
                waiting = not channel.send("lease", lease=lease)


class Kept:
    """Books that hold a ledger alone."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def leased(self) -> None: ...

    def done(self, lease: int, outcomes: Sequence[Outcome]) -> None:
        self.ledger.done(lease, outcomes)


@contextmanager
def simulated(ledger: Ledger, *, loss: float = 0.0) -> Iterator[WorkSource]:
    """By messages in virtual time, of which some are lost, doubled and overtaken if any are lost."""
    network = Network(loss=loss, duplication=loss, reordering=loss)
    chance = random.Random(0)
    host = LedgerHost(Kept(ledger), Trace(Asynchronous()), lambda: None)
    host.open(0, 1)
    wire = Wire(chance.random, network=network, chance=chance)
    yield SimulatedWork(wire, host, 0, 1, Patience(4.0, 60.0) if loss else None)


SOURCES = {
    "straight": straight,
    "over a channel": over_a_channel,
    "simulated": simulated,
    "simulated, with losses": partial(simulated, loss=0.3),
}


async def exhaust(work: WorkSource, verdict: Verdict = Verdict.APPLIED) -> list[tuple[int, int]]:
    """Take all there is; returns (epoch, batch) in the order of the leases."""
    seen = []
    while (lease := await work.lease()) is not None:
        seen += [(lease.epoch, batch) for batch in range(lease.start, lease.stop)]
        await asyncio.sleep(0)
        await work.done(lease, [Outcome(lease.start, lease.stop, verdict)])
    return seen
