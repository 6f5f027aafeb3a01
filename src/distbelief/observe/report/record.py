"""A run as its files tell it: one that has ended, one that is at work, or one that was killed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import msgspec

from distbelief.errors import DirectoryError, UsageError
from distbelief.observe.report.log import Event, Log, Point, mapping, number, of_test, read_log
from distbelief.run.run import FORMAT
from distbelief.run.store import place, reading

Fields = dict[str, Any]
_READ = ("method.json", "task.json", "summary.json", "events.jsonl")


@dataclass(frozen=True)
class Record:
    """What is known of a run. `summary` is that of its present life, and empty where this has not ended."""

    directory: Path | str
    name: str
    method: Fields
    task: Fields
    summary: Fields
    log: Log

    @property
    def started(self) -> Event:
        """What the present life said of itself at its beginning."""
        return self.log.lives[-1].started if self.log.lives else {}

    @property
    def simulated(self) -> bool:
        """Whether its times are virtual."""
        kind = mapping(self.summary.get("engine")).get("kind")
        return kind == "Simulated" or any(life.started.get("engine") == "simulated" for life in self.log.lives)

    @property
    def tag(self) -> str:
        """What every picture of it says in itself."""
        return "simulated time" if self.simulated else ""

    @property
    def chosen_by(self) -> str:
        """The set that the bare names of metrics are of."""
        name = self.started.get("chosen_by")
        return name if isinstance(name, str) else "validation"

    @property
    def reached(self) -> Fields:
        """The summary, or as much of it as the log tells."""
        if self.summary:
            return self.summary
        told: Fields = {"deaths": sum(len(life.deaths) for life in self.log.lives)}
        evaluated, trained = (
            self.log.evaluations[-1:],
            [point for point in self.log.losses if "loss" in point.values][-1:],
        )
        if evaluated or trained:
            seconds, examples, updates = max(point.at for point in evaluated + trained)
            told |= {"examples": int(examples), "updates": int(updates), "seconds": seconds}
            told["examples_per_second"] = round(examples / seconds, 1) if seconds else None
        if trained:
            told["train_loss"] = trained[0].values["loss"]
        if evaluated:
            told["metrics"] = dict(evaluated[0].values)
        return told

    @cached_property
    def evaluations(self) -> list[Point]:
        """Those that count, without figures of the test set that only repeat those of the set that chooses."""
        points = self.log.evaluations or _history(self.summary)
        if self.chosen_by != "test":
            return points
        return [Point(p.at, {n: v for n, v in p.values.items() if not of_test(n, p.values)}) for p in points]

    def what(self) -> str:
        """The task, as a person calls it."""
        name, path = self.task.get("name"), self.task.get("path")
        if not isinstance(name, str):
            return "a task without a file"
        return f"{path}:{name}" if isinstance(path, str) else name


def read_records(directories: Sequence[str | Path]) -> list[Record]:
    """The runs in directories, each under the shortest name that tells it from the others.

    Raises `DirectoryError` where there is no run, or a file of it is damaged or of a format that is not known.
    """
    found = [place(directory) for directory in directories]
    places = [PurePath(at) if isinstance(at, str) else at.resolve() for at in found]
    for directory, path in zip(directories, places, strict=True):
        if places.count(path) > 1:
            raise UsageError(f"{directory} is given twice: give each run once")
    return [_read(directory, name) for directory, name in zip(directories, _names(places), strict=True)]


def _read(directory: str | Path, name: str) -> Record:
    with reading(directory, _READ) as folder:
        if not folder.is_dir():
            raise DirectoryError(
                f"there is no directory {directory}: give that of a run, as is told where the run ends"
            )
        if not (folder / "method.json").is_file():
            raise DirectoryError(f"{directory} holds no run: give the directory that is told where a run ends")
        method, task, summary = (_object(folder / file) for file in _READ[:3])
        events = folder / _READ[3]
        try:
            log = read_log(events)
        except OSError as error:
            raise DirectoryError(f"{events} cannot be read ({error.strerror}): make it readable") from error
        at = folder if isinstance(place(directory), Path) else str(directory)
        return Record(at, name, method, task, summary if _is_of(summary, log) else {}, log)


def _is_of(summary: Fields, log: Log) -> bool:
    """Whether a summary is that of the log's last life: a run that was resumed and killed leaves an earlier one."""
    if not log.lives:
        return True
    stopped = log.lives[-1].stopped
    return stopped is not None and all(stopped.get(name) == summary.get(name) for name in ("examples", "updates"))


def _object(file: Path) -> Fields:
    """The object in a file; an empty one if there is no such file."""
    if not file.exists():
        return {}
    try:
        content = msgspec.json.decode(file.read_bytes(), type=Fields)
    except (OSError, ValueError, RecursionError) as error:
        raise DirectoryError(f"{file} cannot be read ({error}): mend it, or leave this run out") from error
    version = number(content.get("format"))
    if version is not None and version > FORMAT:
        raise DirectoryError(
            f"{file} is of format {version:g}, and this distbelief reads format {FORMAT}: install a newer distbelief"
        )
    return content


def _history(summary: Fields) -> list[Point]:
    """The evaluations of a run whose log is gone."""
    log, rows = Log(), summary.get("history")
    for row in rows if isinstance(rows, list) else []:
        log.add({**mapping(row), "event": "evaluation"})
    return log.evaluations


def _names(places: Sequence[PurePath]) -> list[str]:
    """The shortest ends of paths by which these differ, one length for all."""
    ends = (["/".join(place.parts[-length:]) for place in places] for length in itertools.count(1))
    return next(names for names in ends if len(set(names)) == len(names))
