"""Logs of events as runs write them, made by hand, and real runs to report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

import distbelief as db
from distbelief.engines.simulated.faults import Fault
from distbelief.observe.report.log import Event
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import Record, read_records
from tests import problems


def started(seconds: float = 0.0, **changes: Any) -> Event:
    given = {"engine": "local", "replicas": 2, "shards": 1, "seed": 0, "chosen_by": "validation"}
    return {"event": "started", "seconds": seconds, **given, **changes}


def resumed(examples: int | None, seconds: float) -> Event:
    return {"event": "resumed", "seconds": seconds, "examples": examples}


def progress(seconds: float, examples: int, *replicas: tuple[int, float, int], loss: float | None = 0.5) -> Event:
    rows = [{"replica": r, "examples_per_second": speed, "staleness": stale} for r, speed, stale in replicas]
    return {
        "event": "progress",
        "seconds": seconds,
        "examples": examples,
        "updates": examples // 10,
        "loss": loss,
        "replicas": rows,
    }


def evaluation(seconds: float, examples: int, **metrics: Any) -> Event:
    stamp = {"seconds": seconds, "examples": examples, "updates": examples // 10, "epoch": examples / 100}
    return {"event": "evaluation", **stamp, **metrics, "best": False}


def begun(replica: int, incarnation: int, seconds: float) -> Event:
    return {"event": "replica", "seconds": seconds, "replica": replica, "incarnation": incarnation, "pid": None}


def died(replica: int, incarnation: int, seconds: float, **how: Any) -> Event:
    who = {"replica": replica, "incarnation": incarnation}
    return {"event": "died", "seconds": seconds, **who, "status": -9, "error": None, **how}


def write(folder: Path, events: Sequence[Event] = (), **files: Any) -> Path:
    """The directory of a run that has told these events, and not ended unless a summary is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    files = {
        "method": {"format": 1, "kind": "Downpour", "replicas": 2},
        "task": {"format": 1, "name": "points"},
    } | files
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def record(folder: Path, events: Sequence[Event] = (), **files: Any) -> Record:
    (found,) = read_records([write(folder, events, **files)])
    return found


def simulate(folder: Path, *faults: Fault, epochs: int = 3, **options: Any) -> db.Run:
    return db.train(
        problems.task(validation=problems.points(64), test=problems.points(32)),
        db.Downpour(replicas=3, shards=2, optimizer=db.Adagrad(0.05)),
        engine=db.Simulated(faults=faults),
        until=db.Until(epochs=epochs),
        directory=folder,
        progress=False,
        **options,
    )


def texts(picture: Picture) -> list[str]:
    """Whatever is written in a picture."""
    return [text.get_text() for text in picture.figure.findobj(lambda artist: hasattr(artist, "get_text"))]  # type: ignore[attr-defined]


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata(), dtype=float)]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in np.asarray(line.get_ydata(), dtype=float)]


def backward(picture: Picture) -> list[str]:
    """The lines of a picture that go back on their axis."""
    lines = [line for panel in picture.figure.axes for line in panel.get_lines()]
    return [str(line.get_label()) for line in lines if xs(line) != sorted(xs(line))]
