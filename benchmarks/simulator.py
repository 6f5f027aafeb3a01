"""The simulated engine: how fast it is, and whether what it says is true.

`python -m benchmarks.simulator [--quick] [--repeats N]`

1. The loop alone: 500 of the product's replicas, one shard, gradients of nothing; callbacks a second of one core.
2. A thousand replicas and ten shards: the digits network with real arithmetic, 10,000 pushes, in seconds of one core.
3. Calibration: batches take what they took in a run of the local engine with as many replicas, by its events. What the
   simulated engine says of another run is put beside that run. Of two replicas it is also said what comes of the times
   that one alone takes, which knows nothing of how two slow each other down.
"""

import asyncio
import resource
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import distbelief as db
from benchmarks.measure import Comparison, machine, options, report
from benchmarks.networks import NETWORKS, RATE
from distbelief.downpour.lease_client import LeaseClient
from distbelief.downpour.lease_server import LeaseServer
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.replica import DownpourReplica
from distbelief.engines.simulated.link import SimulatedLink, SimulatedRequests
from distbelief.engines.simulated.loop import VirtualLoop, simulate
from distbelief.engines.simulated.network import Wire
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Gradient, Outcome
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.client import Client
from distbelief.server.host import SMALL, Answer, ShardHost
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD
from distbelief.server.shard import Shard

_INSTANT = db.Network(latency=0.0, bandwidth=float("inf"))
"""Between processes on one machine: what fetches and pushes take is in the times of the batches."""


class Nothing:
    """`GradientSource` of gradients in which no parameter takes part; a batch takes a second."""

    def keep(self) -> None:
        """There is nothing to keep."""

    def undo(self) -> None:
        """There is nothing to put back."""

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """Wait, and compute nothing."""
        await asyncio.sleep(1.0)
        return Gradient([None], torch.zeros(()), 1)


class Desk:
    """A controller that does nothing but lease, over a wire that loses nothing."""

    def __init__(self, ledger: Ledger, replicas: int) -> None:
        self._server = LeaseServer(ledger, counts_living=False)
        self._waiting: dict[int, Answer] = {}
        for replica in range(replicas):
            self._server.open(replica, 1)

    def lease(self, replica: int, incarnation: int, number: int, answer: Answer) -> None:
        """A replica asks for work."""
        self._waiting[replica] = answer
        self._server.request(replica, incarnation, number)
        self._grant()

    def done(
        self, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome], answer: Answer
    ) -> None:
        """A replica accounts for a lease."""
        self._server.account(replica, incarnation, number, lease, outcomes)
        self._grant()
        answer(None, SMALL)

    def _grant(self) -> None:
        self._server.settle()
        for granted in self._server.take():
            self._waiting.pop(granted.replica)(granted.lease, SMALL)


def callbacks_per_second(pushes: int) -> float:
    """Of one core, with 500 replicas and gradients of nothing."""
    replicas, layout, trace = 500, Layout.of([("w", torch.zeros(16))], 1), Trace(Asynchronous())
    spec = ShardSpec(layout.length, torch.float32, SGD(0.1), Asynchronous(), replicas)
    shard = Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8))
    ledger = Ledger(examples=pushes, batch_size=1, replicas=replicas, epochs=1)

    async def main() -> int:
        host, wire = ShardHost(shard, 0, trace), Wire(lambda: 0.001)
        desk = Desk(ledger, replicas)
        async with asyncio.TaskGroup() as group:
            for number in range(replicas):
                links = [SimulatedLink(wire, f"replica {number}", host)]
                replica = DownpourReplica(
                    db.Downpour(optimizer=SGD(0.1)),
                    client=Client(layout, links, replica=number, incarnation=1),
                    source=Nothing(),
                    work=LeaseClient(SimulatedRequests(wire, desk, number, 1, None)),
                    parameters=torch.zeros(layout.length),
                )
                group.create_task(replica.run())
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.callbacks

    began = time.process_time()
    callbacks = simulate(main(), seed=0)
    return callbacks / (time.process_time() - began)


def thousand(pushes: int) -> float:
    """Seconds of one core for so many pushes of a thousand replicas to ten shards."""
    network = NETWORKS["digits"]
    method = db.Downpour(replicas=1000, shards=10, batch_size=network.batch_size, optimizer=db.Adagrad(RATE))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = db.train(
            network.task(),
            method,
            engine=db.Simulated(),
            until=db.Until(examples=pushes * network.batch_size),
            directory=Path(folder) / "run",
            progress=False,
        )
    assert run.summary["updates"] >= pushes
    return time.process_time() - began


def train(name: str, replicas: int, engine: db.Local | db.Simulated, until: db.Until, directory: Path) -> db.Run:
    """A run of a network, without evaluations or checkpoints on the way."""
    network, never = NETWORKS[name], db.Every(seconds=1e9)
    method = db.Downpour(replicas=replicas, shards=replicas, batch_size=network.batch_size, optimizer=db.Adagrad(RATE))
    return db.train(
        network.task(),
        method,
        engine=engine,
        until=until,
        checkpoint_every=never,
        directory=directory,
        progress=False,
    )


def staleness(run: db.Run) -> float:
    """Mean over all pushes and shards."""
    counts = torch.nn.utils.rnn.pad_sequence([torch.tensor(c) for c in run.summary["staleness_histogram"]]).sum(1)
    return float((counts * torch.arange(len(counts))).sum() / counts.sum())


class Calibration:
    """What is predicted of the local engine, beside what it does."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self.speeds: dict[str, list[float]] = {}
        self.staleness: dict[str, list[float]] = {}

    def turn(self) -> None:
        """Measure the times of batches, then another run, and predict that."""
        with tempfile.TemporaryDirectory() as folder:
            directory, local = Path(folder), db.Local(threads=1)
            until = db.Until(seconds=self._seconds)
            for replicas in (1, 2):
                train(self._name, replicas, local, until, directory / f"times-{replicas}")
                measured = train(self._name, replicas, local, until, directory / f"measured-{replicas}")
                self._keep(f"{replicas} measured", measured)
                for source in {1, replicas}:
                    law = db.Measured.of(directory / f"times-{source}")
                    engine = db.Simulated(compute=law, network=_INSTANT)
                    to_here = db.Until(examples=measured.summary["examples"])
                    predicted = train(self._name, replicas, engine, to_here, directory / f"{source}-{replicas}")
                    self._keep(f"{replicas} by {source}", predicted)

    def _keep(self, what: str, run: db.Run) -> None:
        self.speeds.setdefault(what, []).append(run.summary["examples_per_second"])
        self.staleness.setdefault(what, []).append(staleness(run))

    def comparisons(self) -> list[Comparison]:
        """Each prediction beside what was measured."""
        found = []
        for replicas, source, bar in ((1, 1, 0.85), (2, 2, 0.85), (2, 1, None)):
            what = f"{self._name}, {replicas} local replica{'s' * (replicas > 1)}"
            alone = ", by the times of one alone" if source < replicas else ""
            ours, theirs = self.speeds[f"{replicas} by {source}"], self.speeds[f"{replicas} measured"]
            predict = partial(Comparison, rival="measured", prediction=True)
            found.append(
                predict(what=f"predicted speed, {what}{alone}", unit="examples/s", ours=ours, theirs=theirs, bar=bar)
            )
            if replicas > 1:
                ours, theirs = self.staleness[f"{replicas} by {source}"], self.staleness[f"{replicas} measured"]
                found.append(predict(what=f"predicted staleness, {what}{alone}", unit="mean", ours=ours, theirs=theirs))
        return found


def main() -> None:
    """Measure, print and keep it."""
    quick, repeats = options(__doc__, 5)
    torch.set_num_threads(1)
    pushes = 10_000 // (10 if quick else 1)
    speeds = [callbacks_per_second(2 * pushes) for _ in range(repeats)]
    seconds = [thousand(pushes) for _ in range(repeats)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    calibrations = [Calibration(name, 2.0 if quick else 6.0) for name in ("digits", "speech")]
    for _ in range(repeats):
        for calibration in calibrations:
            calibration.turn()
    limit = partial(Comparison, rival="bar", bar=1.0)
    comparisons = [
        limit(what="the loop, 500 replicas", unit="callbacks/s", ours=speeds, theirs=[80_000]),
        limit(what="1000 × 10, digits", unit="s", ours=seconds, theirs=[120], less_is_better=True),
        limit(what="the same, peak memory", unit="GiB", ours=[memory], theirs=[4.0], less_is_better=True),
    ]
    comparisons += [comparison for calibration in calibrations for comparison in calibration.comparisons()]
    report("simulator", "The simulated engine", machine(), comparisons, quick=quick)


if __name__ == "__main__":
    main()
