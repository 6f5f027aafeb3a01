"""Curves: loss and metrics against seconds, examples and updates, of one run or of several in one picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from distbelief.observe.report.log import AXES, Point, in_order
from distbelief.observe.report.picture import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    Picture,
    compact,
    compact_axis,
    legend_below,
    sheet,
    short,
    shown,
    unit_of,
)
from distbelief.observe.report.record import Record

MOST = 12
"""Metrics that are drawn."""
_TRAINING = "training loss"
_BATCHES = "training batches"
_NAME = 34
"""Letters of a run's name in a legend."""
_POINTS = 200
"""Of a training loss; each is the mean of its neighbours where more were told."""
_MARKED = 40
"""Evaluations that each get a dot."""
_STEEP = 30.0
"""A loss that falls by more than this factor is drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Curve:
    """One line: its name, its points along the three axes, their values, and how it looks."""

    label: str
    at: NDArray[np.float64]
    values: NDArray[np.float64]
    look: int | None
    """Its place in the order of colours, lines and marks; None for what stands in the background."""

    @property
    def told(self) -> str:
        """In words."""
        first, last = self.values[0], self.values[-1]
        course = f"{last:.4g}" if len(self.values) == 1 else f"from {first:.4g} to {last:.4g}"
        return f"{self.label} {course}"


def curves_of(record: Record) -> tuple[list[Picture], list[str]]:
    """Every metric of a run, thrice, and the names of those that are too many to be drawn."""
    evaluations = record.evaluations
    names = _names(evaluations)
    families = sorted({_family(name, names) for name in names}, key=lambda name: (name != "loss", names.index(name)))
    if record.log.losses and "loss" not in families:
        families.insert(0, "loss")
    pictures = []
    for family in families[:MOST]:
        curves = [
            _curve(record.chosen_by, evaluations, family, 0),
            _curve("test", evaluations, f"test_{family}", 1),
        ]
        if family == "loss":
            curves.insert(0, _curve(_BATCHES, record.log.losses, "loss", None))
        curves = [curve for curve in curves if len(curve.values)]
        pictures += [_picture(family, axis, curves, record.tag, _how(family, curves), columns=3) for axis in AXES]
    return pictures, families[MOST:]


def overlays(records: Sequence[Record]) -> tuple[list[Picture], list[str]]:
    """Every metric that several runs have, thrice, and the names of those that are too many to be drawn."""
    tags = {record.tag for record in records}
    tag = "" if tags == {""} else "simulated time" if "" not in tags else "partly simulated time"
    every = {record.name: record.evaluations for record in records}
    names = list(dict.fromkeys(name for points in every.values() for name in _names(points)))
    names = [name for name in names if _family(name, names) == name]
    pictures = []
    for metric in (_TRAINING, *names[:MOST]):
        curves = []
        for look, record in enumerate(records):
            label = f"{look + 1}. {short(record.name, _NAME)}"
            if record.simulated and tag.startswith("partly"):
                label += " (simulated)"
            if metric == _TRAINING:
                curves.append(_curve(label, record.log.losses, "loss", look))
            else:
                curves.append(_curve(label, every[record.name], metric, look))
        curves = [curve for curve in curves if len(curve.values)]
        if curves:
            pictures += [_picture(metric, axis, curves, tag, _how_compared(metric), columns=1) for axis in AXES]
    return pictures, names[MOST:]


def _names(points: Sequence[Point]) -> list[str]:
    """Of the metrics that were told of, in the order of their first appearance."""
    return list(dict.fromkeys(name for point in points for name in point.values))


def _family(name: str, names: Sequence[str]) -> str:
    """The metric that is drawn with another one, of the test set."""
    bare = name.removeprefix("test_")
    return bare if bare in names else name


def _curve(label: str, points: Sequence[Point], name: str, look: int | None) -> Curve:
    found = [(point.at, point.values[name]) for point in points if name in point.values]
    at = np.array([at for at, _ in found], dtype=float).reshape(-1, len(AXES))
    return Curve(label, at, np.array([value for _, value in found], dtype=float), look)


def _line(curve: Curve, axis: str, *, thin: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve's points along an axis; of very many, if it is to be thinned, means of neighbours."""
    x = curve.at[:, AXES.index(axis)]
    kept = in_order(x)
    x, y = x[kept], curve.values[kept]
    if not thin or len(x) <= _POINTS:
        return x, y
    cuts = np.linspace(0, len(x), _POINTS + 1).astype(int)
    means = np.add.reduceat(np.stack([x, y]), cuts[:-1], axis=1) / np.diff(cuts)
    return means[0], means[1]


def _how(family: str, curves: Sequence[Curve]) -> str:
    parts = ["Lower is better."] if family == "loss" else []
    if any(curve.look is None for curve in curves):
        parts.append("The grey line is of the batches trained on.")
    if any(curve.look is not None for curve in curves):
        parts.append("Lines with marks are of evaluations.")
    return " ".join(parts)


def _how_compared(metric: str) -> str:
    if metric == _TRAINING:
        return "Of the batches trained on; lower is better. A line a run."
    return "Of the evaluations; lower is better. A line a run." if metric == "loss" else "A line a run."


def _picture(metric: str, axis: str, curves: Sequence[Curve], tag: str, how: str, *, columns: int) -> Picture:
    rows = math.ceil(len(curves) / columns)
    figure, (panel,) = sheet(metric, 2.9 + 0.17 * rows, tag=tag)
    size, unit = unit_of(max(float(curve.at[-1, 0]) for curve in curves)) if axis == "seconds" else (1.0, axis)
    for curve in curves:
        x, y = _line(curve, axis, thin=metric == _TRAINING or curve.look is None)
        _draw(panel, curve, x / size, y)
    panel.set_xlabel(unit)
    compact_axis(panel.xaxis)
    _scale(panel, metric, np.concatenate([curve.values for curve in curves]))
    legend_below(figure, panel, columns=columns)
    told = ", ".join(curve.told for curve in curves)
    where = f" in {tag}" if tag else ""
    alt = f"Curves of {metric} against {axis}{where}: {told}."
    return Picture(f"{metric}-{axis}", f"{metric} against {axis}", how, alt, figure)


def _draw(panel: Axes, curve: Curve, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    label = shown(curve.label, longest=_NAME + len("99. (simulated)"))
    if curve.look is None:
        panel.plot(x, y, color=GREY, linewidth=1.2, marker="" if len(x) > 1 else ".", label=label)
        return
    look = curve.look
    panel.plot(
        x,
        y,
        color=COLOURS[look % len(COLOURS)],
        linestyle=LINES[look % len(LINES)],
        marker=MARKERS[look % len(MARKERS)],
        # Where evaluations are many, few of them get a mark, which tells lines apart and hides nothing.
        markevery=1 if len(x) <= _MARKED else max(1, len(x) // 8),
        label=label,
    )


def _scale(panel: Axes, metric: str, values: NDArray[np.float64]) -> None:
    if metric in ("loss", _TRAINING) and values.min() > 0 and values.max() > _STEEP * values.min():
        panel.set_yscale("log")
        decades = np.log10(values.max()) - np.log10(values.min())
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylabel("logarithmic scale")
    elif values.max() >= 10_000 or values.min() <= -10_000:
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
