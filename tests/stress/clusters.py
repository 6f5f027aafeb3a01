"""Random clusters in virtual time: any policy, any network, any faults, and the checkers over all that happens.

`make stress`, or `python -m tests.stress.clusters [--seeds N] [--first SEED]`, runs as long as one likes; a failure
prints the one command that replays it. `--seed SEED` runs one, and `--trace` shows what happens in it, line by line.
"""

import argparse
import contextlib
import dataclasses
import itertools
import logging
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

import distbelief as db
from distbelief.engines.simulated.faults import Fault
from distbelief.engines.simulated.laws import Law
from distbelief.engines.simulated.loop import Deadlock
from distbelief.errors import UserCodeError, WorkerDied
from distbelief.server.admission import Admission
from distbelief.server.rules import Rule

T = TypeVar("T")
BATCH = 4
_POISON = 50.0
_LONGEST_S = 120
"""Of one seed. They take a fifth of a second."""


class Chooser(Protocol):
    """Where choices come from: a seed, or a search for the smallest one that fails."""

    def whole(self, least: int, most: int) -> int: ...

    def real(self, least: float, most: float) -> float: ...

    def pick(self, choices: Sequence[T]) -> T: ...


class Seeded:
    """Choices of a generator."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def whole(self, least: int, most: int) -> int:
        return self._chance.randint(least, most)

    def real(self, least: float, most: float) -> float:
        return round(self._chance.uniform(least, most), 3)

    def pick(self, choices: Sequence[T]) -> T:
        return self._chance.choice(choices)


class Cluster(NamedTuple):
    """What is run."""

    method: db.Downpour
    engine: db.Simulated
    examples: int
    epochs: int
    checkpoint_s: float
    seconds: float | None
    """Virtual ones after which the run is to stop, if it has not ended."""
    failing: frozenset[int]
    """Which batches, counted over all replicas, fail in the user's code."""
    poison: int | None
    """An example at which the user's code always fails; the method tolerates that, once an epoch."""

    @property
    def may_be_given_up(self) -> bool:
        """Whether replicas may die so often in a row that replacing them becomes pointless."""
        deaths = [fault for fault in self.engine.faults if isinstance(fault, db.Death | db.Pause | db.Cut)]
        return len(deaths) + len(self.failing) >= 5

    @property
    def may_end_early(self) -> bool:
        """Whether something that is needed dies for good."""
        deaths = [fault for fault in self.engine.faults if isinstance(fault, db.Death) and fault.back is None]
        gone = {death.machine for death in deaths}
        alone = {f"replica {replica}" for replica in range(self.method.most_replicas or 0)}
        return alone <= gone or any(not machine.startswith("replica") for machine in gone)


def _law(choose: Chooser, scale: float) -> Law:
    laws: list[Law] = [
        db.Constant(scale),
        db.Lognormal(scale, choose.real(0.0, 2.0)),
        db.Exponential(scale),
        db.Spread(db.Exponential(scale), choose.real(0.0, 2.0)),
        db.Measured((scale, scale, 20 * scale)),
    ]
    return choose.pick(laws)


def _fault(choose: Chooser, replicas: int, shards: int) -> Fault:
    replica, at = f"replica {choose.whole(0, replicas - 1)}", choose.real(0.0, 8.0)
    machine = choose.pick([replica, replica, f"shard {choose.whole(0, shards - 1)}", "controller"])
    back = choose.pick([None, 0.0, 0.05, choose.real(0.0, 5.0)]) if machine == replica else choose.real(0.0, 5.0)
    # Longer than a replica may say nothing, now and then.
    seconds = choose.pick([choose.real(0.01, 5.0), choose.real(0.01, 5.0), choose.real(20.0, 90.0)])
    faults: list[Fault] = [
        db.Death(machine, at, back),
        db.Death(replica, at, choose.real(0.0, 2.0), choose.pick([0.0, choose.real(0.0, 2.0)])),
        db.Pause(machine, at, seconds),
        db.Slow(replica, at, seconds, choose.real(0.1, 30.0)),
        db.Cut(at, seconds, (machine,)),
        db.Cut(at, seconds, (replica,), (f"shard {choose.whole(0, shards - 1)}",)),
        db.Join(replica, at),
    ]
    return choose.pick(faults)


def _faults(choose: Chooser, replicas: int, shards: int) -> tuple[Fault, ...]:
    """Faults that do not contradict each other; now and then something needed dies for good."""
    faults: tuple[Fault, ...] = ()
    for _ in range(choose.whole(0, 6)):
        try:
            more = (*faults, _fault(choose, replicas, shards))
            db.Simulated(faults=more)
        except db.DistBeliefError:
            continue
        faults = more
    if choose.whole(0, 5) == 0:
        at, count = choose.real(0.0, 8.0), choose.whole(1, replicas)
        told = choose.pick([0.0, 0.0, choose.real(0.0, 2.0)])
        together = tuple(db.Death(f"replica {replica}", at, choose.real(0.0, 2.0), told) for replica in range(count))
        with contextlib.suppress(db.DistBeliefError):
            faults = tuple(db.Simulated(faults=(*faults, *together)).faults)
    if choose.whole(0, 7) == 0:
        with contextlib.suppress(db.DistBeliefError):
            faults = tuple(db.Simulated(faults=(*faults, *_again_and_again(choose, shards))).faults)
    if choose.whole(0, 20) == 0:
        with_end = (*faults, db.Death(choose.pick(["shard 0", "controller"]), 100.0 * choose.real(0.0, 1.0), None))
        try:
            return db.Simulated(faults=with_end).faults  # type: ignore[return-value]
        except db.DistBeliefError:
            return faults
    return faults


def _again_and_again(choose: Chooser, shards: int) -> list[Fault]:
    """Hosts of shards die, and again soon after they are back: as where each wants more memory than there is."""
    deaths: list[Fault] = []
    for shard in range(shards):
        at = choose.real(0.0, 2.0)
        for _ in range(choose.whole(0, 3)):
            back = choose.real(0.0, 0.3)
            deaths.append(db.Death(f"shard {shard}", at, back))
            at += back + choose.real(0.05, 1.0)
    return deaths


def cluster(choose: Chooser) -> Cluster:
    """A cluster, of what can be chosen."""
    replicas, shards = choose.whole(1, 6), choose.whole(1, 4)
    policies: list[Admission] = [
        db.Asynchronous(),
        db.StalenessScaled(),
        db.Bounded(choose.whole(0, 6)),
        db.Paced(choose.whole(0, 4)),
        db.Buffered(choose.pick([replicas, choose.whole(1, replicas)])),
    ]
    admission = choose.pick(policies)
    rules: list[Rule] = [db.SGD(0.01), db.Adagrad(0.01), db.Adam(0.001)]
    rounds = admission.round > 1
    batches = choose.whole(1, 40)
    method = db.Downpour(
        replicas=choose.pick([replicas, replicas, (choose.whole(1, replicas), replicas)]),
        shards=shards,
        batch_size=BATCH,
        optimizer=choose.pick(rules),
        n_fetch=1 if rounds else choose.whole(1, 3),
        n_push=choose.whole(1, 3),
        warmstart=choose.pick([0, 0, BATCH * choose.whole(1, 10)]),
        admission=admission,
        overlap=0 if rounds else choose.pick([0, 1]),
    )
    disturbed = choose.pick([False, False, True])
    network = db.Network(
        latency=_law(choose, choose.pick([0.0005, 0.01, 0.3])),
        bandwidth=choose.pick([float("inf"), 1e3, 1e6]),
        loss=choose.real(0.0, 0.3) if disturbed else 0.0,
        duplication=choose.real(0.0, 0.5) if disturbed else 0.0,
        reordering=choose.real(0.0, 0.5) if disturbed else 0.0,
    )
    engine = db.Simulated(
        seed=choose.whole(0, 10**6),
        compute=_law(choose, 0.1),
        network=network,
        faults=_faults(choose, replicas, shards),
    )
    seconds = choose.pick([None, None, choose.real(0.1, 6.0)])
    examples = batches * BATCH - choose.whole(0, 2)
    failing = frozenset(choose.whole(1, 60) for _ in range(choose.pick([0, 0, 1, 2])))
    epochs, checkpoint_s = choose.whole(1, 3), choose.real(0.2, 5.0)
    poison = choose.pick([None, None, choose.whole(0, examples - 1)])
    if poison is not None:
        # Failures at other batches may come to be two at one, and a shard that is restored or a controller that
        # comes back has batches done again.
        method = dataclasses.replace(method, tolerate=100)
    return Cluster(method, engine, examples, epochs, checkpoint_s, seconds, failing, poison)


def network() -> nn.Module:
    """A model with a buffer that training changes, and more parameters than a shard of several."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.1), nn.Tanh(), nn.Linear(8, 3))


def task(examples: int, failing: frozenset[int], poison: int | None) -> db.Task:
    """A task of so many examples, whose code fails at some of the batches that it is given, each time otherwise.

    It fails at all batches that hold the example `poison`, but when they are tried out.
    """
    generator = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, 4, generator=generator)
    if poison is not None:
        x[poison] = _POISON
    count = itertools.count()
    # The first batch, and one that is smaller, before anything begins.
    tried = 2 if examples > BATCH and examples % BATCH else 1

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        number = next(count)
        if number >= tried and (number in failing or (batch[0] == _POISON).any()):
            raise RuntimeError(f"batch {number} fails")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return db.Task(network, step=step, train=(x, x.argmax(1).clamp(max=2)))


def run(what: Cluster) -> dict[str, Any] | None:
    """Run a cluster to its end; its summary, or None where it ended since no progress was possible.

    Raises whatever is wrong: the checkers' findings among it.
    """
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir="/dev/shm"))
    try:
        done = db.train(
            task(what.examples, what.failing, what.poison),
            what.method,
            engine=what.engine,
            until=db.Until(epochs=what.epochs, seconds=what.seconds),
            directory=directory / "run",
            checkpoint_every=db.Every(seconds=what.checkpoint_s),
            progress=False,
        )
    except Deadlock:
        if not what.may_end_early:
            raise
        return None
    except WorkerDied:
        if not what.may_be_given_up:
            raise
        return None
    except UserCodeError:
        # Two at one batch.
        if len(what.failing) < 2 or what.method.tolerate:
            raise
        return None
    finally:
        shutil.rmtree(directory)
    total = sum(done.summary["account"].values())
    wanted = what.examples * what.epochs
    stopped = done.summary["stopped_by"] == "seconds"
    poisoned = done.summary["poisoned"]
    assert stopped or what.failing or bool(poisoned) == (what.poison is not None), f"{poisoned} examples are set aside"
    assert total <= wanted if stopped else total == wanted, f"{total} examples are accounted for"
    return done.summary


def attempt(seed: int) -> str | None:
    """Run the cluster of a seed, some of them twice; None, or what went wrong."""
    torch.set_num_threads(1)
    what = cluster(Seeded(seed))
    try:
        first = run(what)
        if seed % 10 == 0:
            again = run(what)
            assert (first or {}).get("trace_digest") == (again or {}).get("trace_digest"), (
                "the same seed, another trace"
            )
    # Whatever it is, it is this seed's failure, and the next ones are to be run.
    except (Exception, BaseExceptionGroup, TooLongError):  # noqa: BLE001
        return traceback.format_exc()
    return None


def tell(seeds: Sequence[int], outcomes: Iterable[str | None]) -> int:
    """Print what comes of seeds as it comes; returns how many failed."""
    failed = 0
    for done, seed, failure in zip(itertools.count(1), seeds, outcomes):
        if failure is not None:
            failed += 1
            print(f"{failure}\nreplay with: python -m tests.stress.clusters --seed {seed} --trace\n", flush=True)
        if done % 500 == 0 or done == len(seeds):
            print(f"{done} clusters, {failed} failed", flush=True)
    return failed


def replay(seed: int, *, trace: bool) -> bool:
    """Run the cluster of one seed, and say what it is; whether it passed."""
    if trace:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s", stream=sys.stdout)
    what = cluster(Seeded(seed))
    for field, value in what._asdict().items():
        print(f"{field}: {value}")
    failure = attempt(seed)
    print(failure or "passed")
    return failure is None


def _guarded(seed: int) -> str | None:
    """`attempt`, and a failure too if it takes for ever: nobody waits for a loop that never ends."""
    signal.alarm(_LONGEST_S)
    try:
        return attempt(seed)
    finally:
        signal.alarm(0)


class TooLongError(BaseException):
    """What nobody on the way takes for an error that can be mended."""


def too_long(*_: object) -> None:
    """Raise what ends a cluster that takes for ever."""
    raise TooLongError(f"no end after {_LONGEST_S} s")


def main() -> int:
    """Run seeds one after the other, on all cores; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="one alone")
    parser.add_argument("--trace", action="store_true", help="show what happens in it")
    given = parser.parse_args()
    if given.seed is not None:
        return int(not replay(given.seed, trace=given.trace))
    seeds = range(given.first, given.first + given.seeds)
    with ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGALRM, too_long)) as pool:
        return int(tell(seeds, pool.map(_guarded, seeds, chunksize=10)) > 0)


if __name__ == "__main__":
    sys.exit(main())
