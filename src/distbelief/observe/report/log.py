"""What a run's log of events tells, through all its lives.

1. A life begins with a `started` event. What follows, up to the next one, belongs to it.
2. `resumed` says after how many examples a new life goes on. What was told of training after these is superseded: it
   was lost with the life that told it. Where nothing was resumed, all of it is.
3. Who began and who died is kept of every life.

Nothing that a log may hold is an error: what has no meaning is left out, and lines that are not JSON are counted.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from distbelief.observe.events import STAMP, died_of

Event = dict[str, Any]
Floats = NDArray[np.float64]
AXES = ("seconds", "examples", "updates")
"""What a curve is drawn against."""
OF_TRAINING = ("loss", "learning_rate", "gradient_norm")
"""What is told of training from one evaluation to the next."""
_LARGEST = 1e100
"""Float32 ends far below; far above, the arithmetic of axes overflows."""
_MOST = 1 << 31
_LATE = 0.05
"""A process that begins after this part of its life was not there from the start."""


def number(value: object) -> float | None:
    """A value as a number that an axis has room for; None if it is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _LARGEST else None


def whole(value: object) -> int | None:
    """A value as the number of a replica or incarnation; None if it is something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None


def mapping(value: object) -> dict[str, Any]:
    """A value as an object of JSON; an empty one if it is something else."""
    return value if isinstance(value, dict) else {}


def of_test(name: str, names: Container[str]) -> bool:
    """Whether a metric is that of the test set beside one of these, of the set that chooses."""
    return name.startswith("test_") and name.removeprefix("test_") in names


@dataclass(frozen=True)
class Point:
    """Numbers, and where the run stood when they were told: `at` in the order of AXES."""

    at: tuple[float, ...]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Beat:
    """What was told of every replica at a time: rows of (replica, examples a second, staleness)."""

    seconds: float
    examples: float
    rows: Floats


@dataclass
class Process:
    """One incarnation of a replica. Times are the run's own."""

    replica: int
    incarnation: int
    began: float
    ended: float | None = None
    died_of: str | None = None
    """None for one that was there to the end of its life."""
    replaces: bool = False
    """Whether another of this replica was there before it, in the same life of the run."""


@dataclass
class Outage:
    """A time in which a shard's machine, or the controller's, was dead. Times are the run's own."""

    machine: str
    began: float
    ended: float | None = None


@dataclass
class Life:
    """One life of the controller. Times are the run's own, which go back where a run is resumed."""

    began: float
    ended: float
    resumed_after: float | None = None
    """Examples; None for a life that began from nothing."""
    stopped: Event | None = None
    started: Event = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    lost_before: float = 0.0
    """Seconds by which the lives before were ahead of this one's beginning, all together."""

    @property
    def deaths(self) -> list[Process]:
        """The processes that died, the first to die first."""
        return sorted((p for p in self.processes if p.ended is not None), key=lambda process: process.ended or 0.0)

    def heir(self, dead: Process) -> Process | None:
        """The process that took a dead one's place."""
        later = [p for p in self.processes if p.replica == dead.replica and p.incarnation > dead.incarnation]
        return min(later, key=lambda process: process.incarnation, default=None)

    def clock(self, seconds: float | None) -> float:
        """A time of this life, None for its end, on a clock that never goes back: what was lost is counted."""
        return (self.ended if seconds is None else seconds) + self.lost_before

    def late(self, process: Process) -> bool:
        """Whether a process came in the midst of this life."""
        return process.began - self.began > _LATE * (self.ended - self.began)


@final
@dataclass
class Log:
    """A log of events, read. `evaluations`, `losses` and `beats` are those that count; `unread` are damaged lines."""

    lives: list[Life] = field(default_factory=list)
    evaluations: list[Point] = field(default_factory=list)
    losses: list[Point] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)
    unread: int = 0
    _resumed_after: float | None = None
    """Of the life that begins next."""

    def add(self, event: Event) -> None:
        """Hear of what happened next."""
        kind, seconds = event.get("event"), number(event.get("seconds"))
        if kind == "resumed":
            self._supersede(event)
        elif kind == "started":
            self._begin(event, seconds or 0.0)
        if kind == "resumed" or seconds is None:
            return
        if not self.lives:
            self.lives.append(Life(0.0, 0.0))
        life = self.lives[-1]
        life.ended = max(life.ended, seconds)
        match kind:
            case "replica" | "died" | "left":
                _enter(life, event, seconds)
            case "machine":
                _note_machine(life, event, seconds)
            case "progress":
                self._progress(event, seconds)
            case "evaluation":
                _append(self.evaluations, event, {k: v for k, v in event.items() if k not in STAMP})
            case "stopped":
                life.stopped = event

    def _begin(self, event: Event, seconds: float) -> None:
        lost = self.lives[-1].lost_before + max(0.0, self.lives[-1].ended - seconds) if self.lives else 0.0
        self.lives.append(Life(seconds, seconds, self._resumed_after, started=event, lost_before=lost))
        self._resumed_after = None

    def _supersede(self, event: Event) -> None:
        seconds, examples = number(event.get("seconds")), number(event.get("examples"))
        self._resumed_after = examples

        def counts(at: Sequence[float]) -> bool:
            return examples is not None and at[1] <= examples and (seconds is None or at[0] <= seconds)

        self.evaluations = [point for point in self.evaluations if counts(point.at)]
        self.losses = [point for point in self.losses if counts(point.at)]
        self.beats = [beat for beat in self.beats if counts((beat.seconds, beat.examples))]

    def _progress(self, event: Event, seconds: float) -> None:
        _append(self.losses, event, {name: event.get(name) for name in OF_TRAINING})
        rows = event.get("replicas")
        if told := [found for row in (rows if isinstance(rows, list) else []) if (found := _row(row))]:
            self.beats.append(Beat(seconds, number(event.get("examples")) or 0.0, np.array(told)))


def read_log(path: Path) -> Log:
    """The log in a file. One that is not there tells nothing. Raises `OSError` where it cannot be read."""
    log = Log()
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                _read(line, log)
    return log


def _read(line: bytes, log: Log) -> None:
    try:
        event = msgspec.json.decode(line, type=Event)
    # Text that is no text, what is no object, numbers of thousands of digits, brackets in brackets in brackets.
    except (ValueError, RecursionError):
        # Half a line at the end is what a writer leaves that was killed, or is still at it.
        log.unread += line.endswith(b"\n") and not line.isspace()
    else:
        log.add(event)


def _row(row: object) -> list[float]:
    """What was told of one replica; nothing if it is not said of which."""
    if not isinstance(row, dict) or (replica := whole(row.get("replica"))) is None:
        return []
    found = (number(row.get(name)) for name in ("examples_per_second", "staleness"))
    return [replica, *(math.nan if value is None else value for value in found)]


def _append(points: list[Point], event: Event, values: Mapping[str, object]) -> None:
    at = tuple(found for axis in AXES if (found := number(event.get(axis))) is not None)
    told = {name: found for name, value in values.items() if (found := number(value)) is not None}
    if told and len(at) == len(AXES):
        points.append(Point(at, told))


def in_order(places: Floats) -> NDArray[np.bool_]:
    """Which of some places on an axis are kept so that it never goes back: those that no later one lies before.

    What is told later counts. A shard that begins again with what was written down takes updates back, too.
    """
    return places <= np.minimum.accumulate(places[::-1])[::-1]


def thinned(places: Floats, values: Floats, most: int | None) -> tuple[Floats, Floats]:
    """Places on an axis that never goes back, and values there, (places,) or (places, series); NaN is nothing.

    Of more than `most` places, means of neighbours are left.
    """
    kept = in_order(places)
    places, values = places[kept], values[kept]
    if most is None or len(places) <= most:
        return places, values
    cuts = np.linspace(0, len(places), most + 1).astype(int)[:-1]
    table = np.column_stack([places, values])
    told = np.isfinite(table)
    counts, sums = (np.add.reduceat(each, cuts) for each in (told.astype(float), np.where(told, table, 0.0)))
    means = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)
    return means[:, 0], means[:, 1:].reshape(-1, *values.shape[1:])


def _enter(life: Life, event: Event, seconds: float) -> None:
    """Write down that a process began, died, or left."""
    replica, incarnation = whole(event.get("replica")), whole(event.get("incarnation"))
    if replica is None or incarnation is None:
        return
    begins = event["event"] == "replica"
    same = [p for p in life.processes if (p.replica, p.incarnation) == (replica, incarnation)]
    # The beginning of one that died may have stood in a line that could not be read.
    if begins or not same:
        replaces = begins and any(process.replica == replica for process in life.processes)
        same = [Process(replica, incarnation, seconds if begins else life.began, replaces=replaces)]
        life.processes += same
    if not begins:
        same[-1].ended, same[-1].died_of = seconds, died_of(event) if event["event"] == "died" else None


def _note_machine(life: Life, event: Event, seconds: float) -> None:
    """Write down that a machine died, or is back."""
    machine = str(event.get("machine"))
    if event.get("there") is False:
        life.outages.append(Outage(machine, seconds))
    for outage in life.outages:
        if event.get("there") is True and outage.machine == machine and outage.ended is None:
            # What resumes a run has a clock that goes back.
            outage.ended = max(seconds, outage.began)
