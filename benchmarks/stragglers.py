"""What a slow worker costs: `python -m benchmarks.stragglers [--quick] [--repeats N]`.

The `speech` task with its own optimizer, Adagrad, in batches of 128, one thread a worker. A slow worker computes what
the others do and sleeps for the rest of its step (see `slowing`), in every arm by the same law, of which the plain step
is measured first. Speeds are taken after a warm-up, times from the first step on.

1. Two workers that compute for real, one a core: one of them five times slower throughout, or both of lognormal speeds.
   With two workers the synchronous arm with one backup worker, `Buffered(1)`, is the asynchronous one. By arithmetic
   asynchronous workers come to 1 + 1/5 of a worker and synchronous ones to 2/5: all that is above 3 is other merit.
2. Four workers that are paced: a step takes five plain ones, of which four are slept, so that two cores carry all four.
   This is for what needs more workers: backup workers, `Buffered(3)`. By arithmetic the ratio is 3.2 / 0.8 = 4.
3. Time to the target under the first law, and its parts: examples/s × examples to the target. Our evaluations run
   beside training and take their part of the cores; DDP's clock stands while it evaluates. Both evaluate after the same
   number of examples on each eighth example of the validation set: ours the server's parameters, DDP's the model. A
   run that does not get there within the limit is censored: one of DDP's counts as the limit, one of ours as never.
   The learning rate is tuned for each arm over the same grid, a run each, of a seed of its own; the fewest examples to
   the target win. DDP's trials are not slowed: what a synchronous arm computes does not depend on it.

torchft (its fault-tolerant DistributedDataParallel over gloo, a replica group a worker) is measured where it is
installed: `pip install torchft`. Its servers listen on all interfaces while it runs.

A measurement that was interrupted goes on where it was. `benchmarks/results/stragglers.json` holds every run, and
`docs/stragglers.png` shows them.
"""

import importlib.metadata
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import distbelief as db
from benchmarks.journal import Journal
from benchmarks.measure import RESULTS, Comparison, interleave, machine, options, report
from benchmarks.networks import NETWORKS, RATE
from benchmarks.rivals import Assignment, Goal, Name, RivalFailed, train
from benchmarks.slowing import Law, slowed
from benchmarks.stragglers_figure import draw
from benchmarks.targets import History, best_rate, cost, never, speed
from distbelief.errors import Diverged

SLOW = 5.0
OURS, DDP, TORCHFT = "ours", "DDP, gloo", "torchft, gloo"
_BATCH = NETWORKS["speech"].batch_size
_TUNING_SEED = 1000
_WARM_UP_S = 2.0
Found = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How long everything takes."""

    seconds: float
    """Of a measurement of speed."""
    goal: Goal
    limit_s: float
    rates: tuple[float, ...]


FULL = Effort(5.0, Goal(accuracy=0.65, every=8192), 150.0, (0.0025, 0.005, 0.01, 0.02))
QUICK = Effort(1.5, Goal(accuracy=0.3, every=8192), 30.0, (0.005, 0.01))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Workers whose speeds follow a law. Its plain step is measured, its seed is the round's number."""

    what: str
    workers: int
    slow: float = 1.0
    sigma: float = 0.0
    pace: float = 1.0
    bar: float | None = None
    """Of our speed against DDP's."""

    def law(self, plain_s: float, turn: int) -> Law:
        """The law of a round."""
        return Law(plain_s=plain_s, slow=self.slow, sigma=self.sigma, pace=self.pace, seed=turn)


SETTINGS = {
    "sustained": Setting(what=f"2 workers, one {SLOW:g}× slower", workers=2, slow=SLOW, bar=4.0),
    "lognormal": Setting(what="2 workers of lognormal speeds", workers=2, sigma=1.0),
    "paced": Setting(what=f"4 paced workers, one {SLOW:g}× slower", workers=4, slow=SLOW, pace=5.0),
    "paced, lognormal": Setting(what="4 paced workers of lognormal speeds", workers=4, sigma=1.0, pace=5.0),
}


# Arms


def measure_ours(workers: int, admission: db.Asynchronous | db.Buffered, seconds: float, law: Law) -> Found:
    """Examples a second of our replicas."""
    method = db.Downpour(replicas=workers, batch_size=_BATCH, optimizer=db.Adagrad(RATE), admission=admission)
    with tempfile.TemporaryDirectory() as folder:
        run = _run_ours("speech", method, law, folder, until=db.Until(seconds=_WARM_UP_S + seconds))
        events = [json.loads(line) for line in (run.directory / "events.jsonl").read_text().splitlines()]
    return {**steady(events), **{name: run.summary[name] for name in ("staleness", "account")}}


def steady(events: Iterable[Mapping[str, Any]]) -> Found:
    """Examples a second after the warm-up, of all replicas together, and of each, the slowest first."""
    told = [e for e in events if e["event"] == "progress" and e["seconds"] >= _WARM_UP_S]
    if len(told) < 2:
        raise ValueError("the run was too short, or the machine too busy, to take its speed")
    first, last = told[0], told[-1]
    each = zip(*([r["examples_per_second"] for r in e["replicas"]] for e in told[1:]), strict=True)
    return {
        "examples_per_second": (last["examples"] - first["examples"]) / (last["seconds"] - first["seconds"]),
        "each": sorted(statistics.median(speeds) for speeds in each),
    }


def pursue_ours(law: Law, effort: Effort, rate: float, seed: int) -> Found:
    """Two replicas' evaluations on the way to the goal."""
    method = db.Downpour(replicas=2, batch_size=_BATCH, optimizer=db.Adagrad(rate))
    until = db.Until(seconds=effort.limit_s, target={"accuracy": effort.goal.accuracy})
    every = db.Every(examples=effort.goal.every)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = _run_ours("speech, judged", method, law, folder, until=until, evaluate_every=every, seed=seed)
        except Diverged as error:
            # It never gets there, and has all the time there is to do so.
            return {"history": [{"seconds": effort.limit_s, "examples": 0, "accuracy": 0.0}], "error": str(error)}
    return {"history": _kept(run.history), "staleness": run.summary["staleness"]}


def _run_ours(network: str, method: db.Downpour, law: Law, folder: str, **options: Any) -> db.Run:
    task = slowed(NETWORKS[network].task(), law, folder, spared=os.getpid())
    directory = Path(folder) / "run"
    return db.train(task, method, engine=db.Local(threads=1), directory=directory, progress=False, **options)


def measure_rival(framework: Name, workers: int, seconds: float, law: Law | None) -> Found:
    """Examples a second of all ranks together."""
    outcome = train(Assignment(network="speech", framework=framework, ranks=workers, law=law, seconds=seconds))
    return {"examples_per_second": workers * _BATCH * outcome.steps_per_second}


def pursue_ddp(law: Law | None, effort: Effort, rate: float, seed: int) -> Found:
    """Two ranks' evaluations on the way to the goal."""
    one = Assignment(network="speech, judged", framework="ddp", ranks=2, law=law, seconds=effort.limit_s)
    return {"history": _kept(train(replace(one, rate=rate, seed=seed, goal=effort.goal)).history)}


def _kept(history: History) -> list[dict[str, float]]:
    """What is written down; losses may be infinite, and nobody looks at them."""
    fields = ("seconds", "examples", "accuracy", "test_accuracy")
    return [{name: row[name] for name in fields if name in row} for row in history]


def why_no_torchft() -> Found:
    """Why torchft cannot be measured here, or which torchft can."""
    try:
        version = importlib.metadata.version("torchft")
        measure_rival("torchft", 2, 1.0, None)
    except importlib.metadata.PackageNotFoundError:
        return {"torchft": "not measured, because it is not installed"}
    except RivalFailed as error:
        return {"torchft": f"not measured, because it failed: {error}"}
    return {"torchft": version}


def arms_of(setting: Setting, seconds: float, *, torchft: bool) -> dict[str, Callable[[Law], Found]]:
    """What is compared in a setting, by the names that are shown; each is given the law of its round."""
    n = setting.workers
    arms: dict[str, Callable[[Law], Found]] = {OURS: partial(measure_ours, n, db.Asynchronous(), seconds)}
    arms[f"our synchronous arm, Buffered({n})"] = partial(measure_ours, n, db.Buffered(n), seconds)
    if n > 2:
        arms[f"with a backup worker, Buffered({n - 1})"] = partial(measure_ours, n, db.Buffered(n - 1), seconds)
    arms[DDP] = partial(measure_rival, "ddp", n, seconds)
    if n == 2 and torchft:
        arms[TORCHFT] = partial(measure_rival, "torchft", n, seconds)
    if n == 2:
        arms["one plain process, one core"] = lambda law: measure_rival("plain", 1, seconds, replace(law, slow=1.0))
    elif setting.slow > 1:
        arms[f"DDP of the {n - 1} fast ones"] = lambda law: measure_rival("ddp", n - 1, seconds, replace(law, slow=1.0))
    return arms


# Measuring


def measure(journal: Journal, effort: Effort, repeats: int) -> None:
    """Make every run that the journal does not hold."""
    for turn in range(repeats):
        journal.once(f"plain | one process | {turn}", lambda: measure_rival("plain", 1, effort.seconds, None))
    plain_s = plain_step_s(journal.runs)
    found = journal.once("torchft", why_no_torchft)["torchft"]
    print(f"a plain step takes {1e3 * plain_s:.1f} ms; torchft: {found}")
    for key, setting in SETTINGS.items():
        arms = arms_of(setting, effort.seconds, torchft=not found.startswith("not"))
        _in_turn(journal, key, arms, partial(setting.law, plain_s), repeats)
    sustained = SETTINGS["sustained"].law(plain_s, 0)
    for rate in effort.rates:
        journal.once(f"tuning | {OURS} | {rate}", partial(pursue_ours, sustained, effort, rate, _TUNING_SEED))
        journal.once(f"tuning | {DDP} | {rate}", partial(pursue_ddp, None, effort, rate, _TUNING_SEED))
    pursuits = {
        OURS: partial(pursue_ours, sustained, effort, tuned(journal.runs, OURS, effort)),
        DDP: partial(pursue_ddp, sustained, effort, tuned(journal.runs, DDP, effort)),
    }
    _in_turn(journal, "target", pursuits, lambda turn: turn, repeats)


def _in_turn(
    journal: Journal, key: str, arms: Mapping[str, Callable[[T], Found]], given: Callable[[int], T], repeats: int
) -> None:
    """Let arms take turns; what each is given in a round depends on the round's number."""

    def turns(name: str) -> Iterator[float]:
        for turn in count():
            journal.once(f"{key} | {name} | {turn}", partial(arms[name], given(turn)))
            yield turn

    interleave({name: turns(name).__next__ for name in arms}, repeats)


def plan(repeats: int, effort: Effort) -> int:
    """How many runs there will be, with torchft."""
    arms = sum(len(arms_of(setting, 0, torchft=True)) for setting in SETTINGS.values())
    return 1 + repeats * (1 + arms + 2) + 2 * len(effort.rates)


# What was found


def group(runs: Mapping[str, Found], key: str) -> dict[str, dict[str, Found]]:
    """The runs of a part of the measurement, by arm, and by round or learning rate."""
    found: dict[str, dict[str, Found]] = {}
    for name, run in runs.items():
        part, *rest = name.split(" | ")
        if part == key and rest:
            found.setdefault(rest[0], {})[rest[1]] = run
    return found


def speeds(arm: Mapping[str, Found]) -> list[float]:
    """Examples a second, round by round."""
    return [run["examples_per_second"] for run in arm.values()]


def plain_step_s(runs: Mapping[str, Found]) -> float:
    """Seconds of a plain step."""
    return _BATCH / statistics.median(speeds(group(runs, "plain")["one process"]))


def tuned(runs: Mapping[str, Found], arm: str, effort: Effort) -> float:
    """An arm's best learning rate."""
    trials = {float(rate): run["history"] for rate, run in group(runs, "tuning")[arm].items()}
    return best_rate(trials, effort.goal.accuracy, effort.limit_s)


def compare_speeds(runs: Mapping[str, Found]) -> list[Comparison]:
    """Ours beside every other arm of each setting."""
    rows = []
    for key, setting in SETTINGS.items():
        arms = group(runs, key)
        rows += [
            Comparison(
                what=setting.what,
                unit="examples/s",
                ours=speeds(arms[OURS]),
                rival=name,
                theirs=speeds(arm),
                bar=setting.bar if name == DDP else None,
            )
            for name, arm in arms.items()
            if name != OURS
        ]
    return rows


def check_slowness(runs: Mapping[str, Found]) -> list[Comparison]:
    """Whether each of our workers is as slow as it should be, and not slower."""
    rows = []
    for key, setting in SETTINGS.items():
        if setting.sigma:
            continue
        each = [run["each"] for run in group(runs, key)[OURS].values() if run["each"]]
        for name, which, factor in (("slow", 0, setting.slow * setting.pace), ("fastest", -1, setting.pace)):
            rows.append(
                Comparison(
                    what=f"{setting.what}: our {name} worker",
                    unit="examples/s",
                    ours=[workers[which] for workers in each],
                    rival=f"a plain process / {factor:g}",
                    theirs=[_BATCH / plain_step_s(runs) / factor],
                )
            )
    return rows


def compare_times(runs: Mapping[str, Found], effort: Effort) -> list[Comparison]:
    """Time to the target, and its parts."""
    limits = effort.goal.accuracy, effort.limit_s
    ours, theirs = ([run["history"] for run in group(runs, "target")[arm].values()] for arm in (OURS, DDP))
    what = f"to {effort.goal.accuracy:.0%}, 2 workers, one {SLOW:g}× slower"
    if censored := never(ours, *limits):
        what += f" ({censored} of ours never)"
    rival = f"{DDP}, lr {tuned(runs, DDP, effort)}; ours lr {tuned(runs, OURS, effort)}"
    if censored := never(theirs, *limits):
        rival += f" ({censored} censored at {effort.limit_s:g} s)"
    rows = [
        Comparison(
            what=f"{field} {what}",
            unit=unit,
            ours=[cost(history, field, *limits, ours=True) for history in ours],
            rival=rival,
            theirs=[cost(history, field, *limits, ours=False) for history in theirs],
            bar=bar,
            less_is_better=True,
        )
        for field, unit, bar in (("seconds", "s", 2.0), ("examples", "examples", None))
    ]
    on_the_way = [[speed(history, *limits) for history in arm] for arm in (ours, theirs)]
    return [
        *rows,
        Comparison(what="on the way", unit="examples/s", ours=on_the_way[0], rival=DDP, theirs=on_the_way[1]),
    ]


def show(runs: Mapping[str, Found], effort: Effort, picture: Path) -> None:
    """Draw the figure."""
    curves = {name: [run["history"] for run in arm.values()] for name, arm in group(runs, "target").items()}
    draw(
        picture,
        curves=curves,
        title=f"speech, {SETTINGS['sustained'].what}",
        accuracy=effort.goal.accuracy,
        bars={
            setting.what: {name: speeds(arm) for name, arm in group(runs, key).items()}
            for key, setting in SETTINGS.items()
        },
        note=f"{machine()['cores']} cores, one thread a worker; a slow worker computes as the others do, and sleeps. "
        "A step of a paced worker takes five plain ones, of which four are slept.",
    )


def main() -> None:
    """Measure everything, report and draw."""
    quick, repeats = options(__doc__, 5)
    effort = QUICK if quick else FULL
    facts = machine()
    settings = {"repeats": repeats, "cpu": facts["cpu"], "cores": facts["cores"], "effort": asdict(effort)}
    settings |= {key: asdict(setting) for key, setting in SETTINGS.items()}
    name = "stragglers-quick" if quick else "stragglers"
    journal = Journal(RESULTS / f"{name}.partial.json", settings, plan(repeats, effort))
    measure(journal, effort, repeats)
    facts |= {
        "torchft": journal.runs["torchft"]["torchft"],
        "plain_step_ms": round(1e3 * plain_step_s(journal.runs), 1),
    }
    runs = journal.runs
    rows = [*compare_speeds(runs), *check_slowness(runs), *compare_times(runs, effort)]
    title = "A slow worker: the ratio is our speed to theirs (speech, Adagrad, batch 128, one thread a worker)"
    report("stragglers", title, facts, rows, quick=quick, runs=runs)
    picture = RESULTS / "stragglers-quick.png" if quick else Path(__file__).parent.parent / "docs" / "stragglers.png"
    show(runs, effort, picture)
    journal.close()


if __name__ == "__main__":
    main()
