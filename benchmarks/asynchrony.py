"""What asynchrony does to time-to-accuracy: the runs behind figures 4 and 5, in simulated time with real arithmetic.

The speech task with a small net, 440-128-128-201 rectified (98,889 parameters), batches of 32, two shards, a network of
10 Gbit/s and 1 ms. For each seed one replica makes a warm start with Adagrad; all arms resume from its checkpoint, with
what Adagrad had summed up if they use it, so that it is in every clock. Each arm gets four tuning trials on a seed of
their own: rates, and for the one with backup workers m too.
"""

import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import distbelief as db
from benchmarks.journal import Journal
from benchmarks.measure import RESULTS, machine
from benchmarks.targets import reached
from distbelief.errors import Diverged
from distbelief.task.data import rows_of

TARGET = 0.60
"""Validation accuracy, of every eighth frame: what one replica comes to after about 110,000 examples."""
LIMIT = 1_280_000
PATIENCE = 100
"""A run that is not there after so many examples, or so many evaluations without a better one, is censored."""
WARM_EXAMPLES = 12_800
BATCH = 32
EVERY = 3_200
SEEDS = range(5)
TUNING_SEED = 100
NETWORK = db.Network(latency=0.001, bandwidth=1.25e9)
PICTURES = Path(__file__).parent.parent / "docs"
SPEEDS: dict[str, db.Lognormal | db.Spread] = {
    "equal speeds": db.Lognormal(0.1, 0.1),
    "stragglers": db.Spread(db.Lognormal(0.1, 0.3), 0.5),
}
"""Seconds a batch: all alike but for some jitter, or each of a speed of its own, one in ten half as fast."""


class Setting(NamedTuple):
    """What an arm may choose."""

    rule: str
    rate: float
    part: float = 1.0
    """Of the replicas that a round waits for."""


ONE = "one replica"
ARMS: dict[str, tuple[Setting, ...]] = {
    ONE: (Setting("SGD", 0.05), Setting("SGD", 0.1), Setting("Adagrad", 0.01), Setting("Adagrad", 0.03)),
    "synchronous": tuple(Setting("Adagrad", rate) for rate in (0.03, 0.1, 0.2, 0.4)),
    "backup workers": (
        Setting("Adagrad", 0.2, 0.6),
        Setting("Adagrad", 0.1, 0.6),
        Setting("Adagrad", 0.1, 0.8),
        Setting("Adagrad", 0.1, 0.95),
    ),
    "Downpour": tuple(Setting("SGD", rate) for rate in (0.003, 0.01, 0.03, 0.1)),
    "Downpour, scaled": tuple(Setting("SGD", rate) for rate in (0.1, 0.3, 0.5, 1.0)),
    "Downpour, Adagrad": tuple(Setting("Adagrad", rate) for rate in (0.003, 0.01, 0.03, 0.06)),
}
"""Four settings each. An update of the synchronous arms is the mean over many replicas, and bears a higher rate."""
COLORS = dict(zip(ARMS, ["0.4", "#0072b2", "#56b4e9", "#e69f00", "#009e73", "#d55e00"], strict=True))
"""Of each arm, to be told apart by the colour-blind too."""


class Cell(NamedTuple):
    """What is compared."""

    arm: str
    replicas: int
    speeds: str


class Trial(NamedTuple):
    """A cell with a setting."""

    cell: Cell
    setting: Setting

    @property
    def m(self) -> int:
        """Pushes to an update."""
        synchronous = self.cell.arm in ("synchronous", "backup workers")
        return max(1, round(self.setting.part * self.cell.replicas)) if synchronous else 1

    @property
    def method(self) -> db.Downpour:
        """As the product knows it."""
        rule = {"SGD": db.SGD, "Adagrad": db.Adagrad}[self.setting.rule](self.setting.rate)
        admission = db.StalenessScaled() if "scaled" in self.cell.arm else db.Buffered(self.m)
        return db.Downpour(replicas=self.cell.replicas, shards=2, batch_size=BATCH, optimizer=rule, admission=admission)

    def name(self, seed: int) -> str:
        """Of one of its runs."""
        arm, replicas, speeds = self.cell
        return f"{arm}, {replicas} replicas, {speeds}, {self.told}, seed {seed}"

    @property
    def told(self) -> str:
        """What was chosen, in words."""
        return f"{self.setting.rule} {self.setting.rate:g}" + (f", m {self.m}" if self.m > 1 else "")


def trials(cell: Cell) -> list[Trial]:
    """The four settings that an arm may choose from."""
    return [Trial(cell, setting) for setting in ARMS[cell.arm]]


def task() -> db.Task:
    """Frames of two hours of speech; every eighth one of the validation set chooses."""
    whole = db.tasks.speech(width=128, layers=2, progress=False)
    rows = rows_of(whole.validation, "validation", None)[0]
    return db.Task(
        whole.model,
        nn.CrossEntropyLoss(),
        train=whole.train,
        validation=rows.batch(np.arange(0, len(rows), 8)),
        metrics={"accuracy": db.accuracy},
    )


def _train(method: db.Downpour, speeds: str, seed: int, until: db.Until, directory: Path) -> db.Run:
    return db.train(
        task(),
        method,
        engine=db.Simulated(compute=SPEEDS[speeds], network=NETWORK),
        until=until,
        evaluate_every=db.Every(examples=EVERY),
        checkpoint_every=db.Every(seconds=1e9),
        directory=directory,
        resume=True,
        seed=seed,
        progress=False,
    )


def warm_start(seed: int, directory: Path) -> None:
    """Train one replica for a while; what it comes to is kept in a directory that can be resumed."""
    method = db.Downpour(replicas=1, shards=2, batch_size=BATCH, optimizer=db.Adagrad(0.01))
    _train(method, "equal speeds", seed, db.Until(examples=WARM_EXAMPLES), directory)


def run(trial: Trial, seed: int, warm: Path) -> dict[str, Any]:
    """Train from a warm start to the target or the limit; what of it is drawn. What diverges is censored there."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        shutil.copytree(warm, directory)
        summary = json.loads((warm / "summary.json").read_text())
        until = db.Until(examples=LIMIT, target={"accuracy": TARGET}, patience=PATIENCE)
        try:
            summary = _train(trial.method, trial.cell.speeds, seed, until, directory).summary
        except Diverged:
            summary |= {"staleness_histogram": [[0]]}
    history = [
        {name: round(row[name], 4) for name in ("seconds", "examples", "updates", "accuracy")}
        for row in summary["history"]
    ]
    return {
        "history": history,
        "staleness": _summed(summary["staleness_histogram"]),
        "dropped": summary["account"]["dropped"],
    }


def _summed(histograms: Sequence[Sequence[int]]) -> list[int]:
    total = np.zeros(max(map(len, histograms)), dtype=np.int64)
    for histogram in histograms:
        total[: len(histogram)] += histogram
    return [int(count) for count in total]


def cost(found: Mapping[str, Any], field: str = "seconds") -> float:
    """To the target, the warm start included: seconds, examples or updates; infinite for a run that is censored."""
    row = reached(found["history"], TARGET, math.inf)
    return math.inf if row is None else float(row[field])


def middle(runs: Sequence[Mapping[str, Any]], field: str = "seconds") -> float:
    """Median of what it took to the target; infinite where most runs are censored."""
    return statistics.median(cost(run, field) for run in runs)


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    ends = {"target": TARGET, "limit": LIMIT, "patience": PATIENCE, "warm_examples": WARM_EXAMPLES}
    return {"machine": machine(), **ends, "seeds": len(SEEDS)}


def show(found: Mapping[Cell, Mapping[str, Any]]) -> None:
    """A row a cell."""
    table = Table("arm", "replicas", "speeds", "chosen", "seconds: median", "least", "most", "examples", "never")
    for cell, entry in found.items():
        times = [cost(run) for run in entry["runs"]]
        never = sum(math.isinf(time) for time in times)
        row = [f"{time:.1f}" for time in (statistics.median(times), min(times), max(times))]
        examples = f"{middle(entry['runs'], 'examples'):,.0f}"
        table.add_row(*map(str, cell), entry["chosen"], *row, examples, f"{never} of {len(times)}")
    Console(width=140).print(table)


def _merit(found: dict[str, Any]) -> tuple[float, float]:
    return -cost(found), max(row["accuracy"] for row in found["history"])


@final
class Study:
    """Runs, as they are needed, on all cores; those that have been made are kept, so that they can be interrupted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for seed in (*SEEDS, TUNING_SEED):
            warm_start(seed, folder / str(seed))

    def cells(self, wanted: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
        """For each: what its best trial chose, what the others brought, and its runs of all seeds."""
        settings = {"target": TARGET, "ends": [LIMIT, PATIENCE], "warm": WARM_EXAMPLES, "every": EVERY, "arms": ARMS}
        settings |= {"batch": BATCH, "speeds": str(SPEEDS), "network": str(NETWORK), "tuning": TUNING_SEED}
        total = sum(len(trials(cell)) + len(SEEDS) for cell in wanted)
        self._journal = Journal(RESULTS / "asynchrony.partial.json", settings, total)
        self._make((trial, TUNING_SEED) for cell in wanted for trial in trials(cell))
        best = {cell: max(trials(cell), key=lambda trial: _merit(self._found(trial, TUNING_SEED))) for cell in wanted}
        self._make((best[cell], seed) for cell in wanted for seed in SEEDS)
        return {
            cell: {
                "chosen": best[cell].told,
                "trials": {trial.told: cost(self._found(trial, TUNING_SEED)) for trial in trials(cell)},
                "runs": [self._found(best[cell], seed) for seed in SEEDS],
            }
            for cell in wanted
        }

    def _found(self, trial: Trial, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = self._journal.runs[trial.name(seed)]
        return found

    def _make(self, runs: Iterable[tuple[Trial, int]]) -> None:
        missing = {trial.name(seed): (trial, seed) for trial, seed in runs}
        for name in self._journal.runs:
            missing.pop(name, None)
        with ProcessPoolExecutor() as pool:
            names = {
                pool.submit(run, trial, seed, self._folder / str(seed)): name for name, (trial, seed) in missing.items()
            }
            for future in as_completed(names):
                self._journal.keep(names[future], future.result())
