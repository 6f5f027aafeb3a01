"""What asynchrony does to time-to-accuracy: the runs behind figures 4 and 5, in simulated time with real arithmetic.

The speech task with a small net, 440-64-64-201 rectified (45,449 parameters), batches of 32, three shards' worth of
network at 10 Gbit/s, 1 ms away. All arms begin with the same warm start, which is in every clock, and get the same
number of tuning trials: four, on a seed of their own. What is tuned is the learning rate; the arm with backup workers
spends its trials on two rates at each of two m.
"""

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import distbelief as db
from benchmarks.journal import Journal
from benchmarks.measure import RESULTS
from benchmarks.targets import reached
from distbelief.data import rows_of

TARGET = 0.46
"""Validation accuracy, of every eighth frame. Chosen before the first run of any arm but the warm start's."""
LIMIT = 192_000
"""Examples after which a run that is not there is censored."""
WARM_EXAMPLES = 9_600
BATCH = 32
EVERY = 3_200
SEEDS = range(5)
TUNING_SEED = 100
MEMORY = Path("/dev/shm")
NETWORK = db.Network(latency=0.001, bandwidth=1.25e9)
SPEEDS = {
    "equal speeds": db.Lognormal(0.1, 0.1),
    "stragglers": db.Spread(db.Lognormal(0.1, 0.3), 0.5),
}
"""Seconds a batch: all alike but for some jitter, or each of a speed of its own, one in ten half as fast."""


class Trial(NamedTuple):
    """A setting of an arm."""

    arm: str
    replicas: int
    speeds: str
    rate: float
    m: int = 1

    @property
    def method(self) -> db.Downpour:
        """As the product knows it."""
        adagrad = "Adagrad" in self.arm
        admission = db.StalenessScaled() if "scaled" in self.arm else db.Buffered(self.m)
        rule = db.Adagrad(self.rate) if adagrad else db.SGD(self.rate)
        return db.Downpour(replicas=self.replicas, shards=2, batch_size=BATCH, optimizer=rule, admission=admission)

    def name(self, seed: int) -> str:
        """Of one of its runs."""
        return f"{self.arm}, {self.replicas} replicas, {self.speeds}, rate {self.rate:g}, m {self.m}, seed {seed}"


ARMS: dict[str, tuple[float, ...]] = {
    "synchronous": (0.1, 0.3, 1.0, 3.0),
    "backup workers": (0.3, 1.0),
    "Downpour": (0.01, 0.03, 0.1, 0.3),
    "Downpour, Adagrad": (0.003, 0.01, 0.03, 0.1),
    "Downpour, Adagrad, scaled": (0.01, 0.03, 0.1, 0.3),
}
"""Learning rates that are tried. An update of the first two is the mean over many replicas, and bears a higher one."""
ONE = "one replica"


def trials(arm: str, replicas: int, speeds: str) -> list[Trial]:
    """The four settings that an arm may choose from."""
    if arm == ONE:
        return [Trial(arm, 1, speeds, rate) for rate in (0.03, 0.1, 0.2, 0.4)]
    rounds = {"synchronous": [replicas], "backup workers": [replicas * 4 // 5, replicas * 9 // 10]}.get(arm, [1])
    return [Trial(arm, replicas, speeds, rate, m) for m in rounds for rate in ARMS[arm]]


def task() -> db.Task:
    """Frames of one hour of speech; every eighth one of the validation set chooses."""
    whole = db.tasks.speech(hours=1, width=64, layers=2, progress=False)
    rows = rows_of(whole.validation, "validation", None)[0]
    return db.Task(
        whole.model,
        nn.CrossEntropyLoss(),
        train=whole.train,
        validation=rows.batch(np.arange(0, len(rows), 8)),
        metrics={"accuracy": db.accuracy},
    )


def warm_start(folder: Path) -> dict[str, Any]:
    """Train one replica for a while; its model is kept in `folder`."""
    run = db.train(
        task(),
        db.Downpour(replicas=1, shards=2, batch_size=BATCH, optimizer=db.SGD(0.1)),
        engine=db.Simulated(compute=SPEEDS["equal speeds"], network=NETWORK),
        until=db.Until(examples=WARM_EXAMPLES),
        directory=folder,
        progress=False,
    )
    return run.summary


def run(trial: Trial, seed: int, warm: Path) -> dict[str, Any]:
    """Train from the warm start to the target or the limit; what of it is drawn."""
    torch.set_num_threads(1)
    offset = json.loads((warm / "summary.json").read_text())
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        done = db.train(
            task(),
            trial.method,
            engine=db.Simulated(compute=SPEEDS[trial.speeds], network=NETWORK),
            start=warm,
            until=db.Until(examples=LIMIT, target={"accuracy": TARGET}),
            evaluate_every=db.Every(examples=EVERY),
            checkpoint_every=db.Every(seconds=1e9),
            directory=Path(folder) / "run",
            seed=seed,
            progress=False,
        )
    s = done.summary
    start = {"seconds": 0.0, "examples": 0, "updates": 0}
    history = [
        {
            "seconds": round(row["seconds"] + offset["seconds"], 3),
            "examples": row["examples"] + offset["examples"],
            "updates": row["updates"] + offset["updates"],
            "accuracy": round(row["accuracy"], 4),
        }
        for row in [{**start, "accuracy": offset["metrics"]["accuracy"]}, *done.history]
    ]
    return {
        "history": history,
        "staleness": np.sum(_padded(s["staleness_histogram"]), axis=0).tolist(),
        "dropped": s["account"]["dropped"],
        "bytes": s["bytes"],
    }


def _padded(histograms: Sequence[Sequence[int]]) -> list[list[int]]:
    longest = max(map(len, histograms))
    return [[*one, *[0] * (longest - len(one))] for one in histograms]


def seconds(found: dict[str, Any]) -> float:
    """To the target, the warm start included; infinite for a run that is censored."""
    row = reached(found["history"], TARGET, math.inf)
    return math.inf if row is None else float(row["seconds"])


def _merit(found: dict[str, Any]) -> tuple[float, float]:
    return -seconds(found), max(row["accuracy"] for row in found["history"])


class Study:
    """Runs, as they are needed, on all cores; those that have been made are kept, so that they can be interrupted."""

    def __init__(self, total: int) -> None:
        settings = {"target": TARGET, "limit": LIMIT, "warm": WARM_EXAMPLES, "arms": ARMS, "every": EVERY}
        self._journal = Journal(RESULTS / "asynchrony.partial.json", settings, total)
        self._warm = RESULTS / "asynchrony-warm"

    def cells(self, cells: Iterable[tuple[str, int, str]]) -> dict[tuple[str, int, str], dict[str, Any]]:
        """For each (arm, replicas, speeds): the best trial, what the others brought, and its runs of all seeds."""
        wanted = list(cells)
        if not (self._warm / "summary.json").exists():
            warm_start(self._warm)
        self._make((trial, TUNING_SEED) for cell in wanted for trial in trials(*cell))
        best = {cell: max(trials(*cell), key=lambda trial: _merit(self._found(trial, TUNING_SEED))) for cell in wanted}
        self._make((best[cell], seed) for cell in wanted for seed in SEEDS)
        return {
            cell: {
                "rate": best[cell].rate,
                "m": best[cell].m,
                "trials": {f"{t.rate:g}, m {t.m}": seconds(self._found(t, TUNING_SEED)) for t in trials(*cell)},
                "runs": [self._found(best[cell], seed) for seed in SEEDS],
            }
            for cell in wanted
        }

    def _found(self, trial: Trial, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = self._journal.runs[trial.name(seed)]
        return found

    def _make(self, runs: Iterator[tuple[Trial, int]]) -> None:
        missing = {trial.name(seed): (trial, seed) for trial, seed in runs}
        for name in self._journal.runs:
            missing.pop(name, None)
        with ProcessPoolExecutor() as pool:
            running = {name: pool.submit(run, trial, seed, self._warm) for name, (trial, seed) in missing.items()}
            for name, future in running.items():
                self._journal.once(name, future.result)
