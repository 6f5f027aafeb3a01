"""Curves: loss and metrics against seconds, examples and updates, of one run or of several in one picture."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from distbelief.observe.report import picture
from distbelief.observe.report.log import AXES, OF_TRAINING, Floats, Point, of_test, thinned
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import Record

MOST = 12
"""Metrics that are drawn."""
_TRAINING = "training loss"
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
    at: Floats
    values: Floats
    look: int | None
    """Its place in the order of looks; None for what stands in the background."""

    @property
    def told(self) -> str:
        """In words."""
        first, last = (f"{self.values[end]:.4g}" for end in (0, -1))
        return f"{self.label} {last}" if len(self.values) == 1 else f"{self.label} from {first} to {last}"


def curves_of(record: Record) -> tuple[list[Picture], list[str]]:
    """Every metric of a run, thrice, and the names of those that are too many to be drawn.

    The size of its steps is drawn against examples, which are what schedules go by.
    """
    points, losses = record.evaluations, record.log.losses
    metrics = sorted(_metrics([*points, *losses]), key=lambda name: name != "loss")
    pictures = []
    for name in metrics[:MOST]:
        curves = [_curve("training batches", losses, name, None)] if name in OF_TRAINING else []
        curves += [_curve(record.chosen_by, points, name, 0), _curve("test", points, f"test_{name}", 1)]
        axes = ("examples",) if name in OF_TRAINING and name != "loss" else AXES
        pictures += _against(axes, name, curves, record.tag, columns=3)
    return pictures, metrics[MOST:]


def overlays(records: Sequence[Record]) -> tuple[list[Picture], list[str]]:
    """Every metric that several runs have, thrice, and the names of those that are too many to be drawn."""
    simulated = [record.simulated for record in records]
    some = any(simulated) and not all(simulated)
    tag = "partly simulated time" if some else records[0].tag
    metrics = _metrics(point for record in records for point in record.evaluations)
    pictures = []
    for metric in (_TRAINING, *metrics[:MOST]):
        curves = []
        for look, record in enumerate(records):
            label = f"{look + 1}. {picture.short(record.name, _NAME)}{' (simulated)' * (some and record.simulated)}"
            told = (record.log.losses, "loss") if metric == _TRAINING else (record.evaluations, metric)
            curves.append(_curve(label, *told, look))
        pictures += _against(AXES, metric, curves, tag, columns=1)
    return pictures, metrics[MOST:]


def _metrics(points: Iterable[Point]) -> list[str]:
    """Those that were told of, by their first appearance; not those of the test set that are drawn with another one."""
    names = dict.fromkeys(name for point in points for name in point.values)
    return [name for name in names if not of_test(name, names)]


def _curve(label: str, points: Sequence[Point], name: str, look: int | None) -> Curve:
    found = [(point.at, point.values[name]) for point in points if name in point.values]
    at = np.array([at for at, _ in found], dtype=float).reshape(-1, len(AXES))
    return Curve(label, at, np.array([value for _, value in found], dtype=float), look)


def _against(axes: Sequence[str], metric: str, curves: Iterable[Curve], tag: str, *, columns: int) -> list[Picture]:
    """The curves that have points, against each of some axes. In one column they are of several runs."""
    curves = [curve for curve in curves if len(curve.values)]
    looks = [curve.look for curve in curves]
    if columns == 1:
        losses = {_TRAINING: "batches trained on", "loss": "evaluations"}
        how = f"Of the {losses[metric]}; lower is better. A line a run." if metric in losses else "A line a run."
    else:
        parts = {
            "Lower is better.": metric == "loss",
            "The grey line is of the batches trained on.": None in looks,
            "Lines with marks are of evaluations.": looks != [None],
        }
        how = " ".join(sentence for sentence, holds in parts.items() if holds)
    return [_picture(metric, axis, curves, tag, how, columns) for axis in axes if curves]


def _picture(metric: str, axis: str, curves: Sequence[Curve], tag: str, how: str, columns: int) -> Picture:
    figure, (panel,) = picture.sheet(metric, 2.9 + 0.17 * math.ceil(len(curves) / columns), tag=tag)
    size, unit = picture.unit_of(max(curve.at[-1, 0] for curve in curves)) if axis == "seconds" else (1.0, axis)
    for curve in curves:
        most = _POINTS if metric == _TRAINING or curve.look is None else None
        x, y = thinned(curve.at[:, AXES.index(axis)], curve.values, most)
        label = picture.shown(curve.label, longest=_NAME + len("99. (simulated)"))
        if curve.look is None:
            panel.plot(x / size, y, color=picture.GREY, linewidth=1.2, marker="" if len(x) > 1 else ".", label=label)
        else:
            # Where evaluations are many, few of them get a mark, which tells lines apart and hides nothing.
            every = 1 if len(x) <= _MARKED else len(x) // 8
            panel.plot(x / size, y, **picture.look(curve.look), markevery=every, label=label)
    panel.set_xlabel(unit)
    _scale(panel, metric, np.concatenate([curve.values for curve in curves]))
    picture.legend_below(figure, panel, columns=columns)
    title, told = f"{metric} against {axis}", ", ".join(curve.told for curve in curves)
    return Picture(f"{metric}-{axis}", title, how, f"Curves of {title}{picture.within(tag)}: {told}.", figure)


def _scale(panel: Axes, metric: str, values: Floats) -> None:
    least, most = values.min(), values.max()
    if metric in ("loss", _TRAINING) and least > 0 and most > _STEEP * least:
        panel.set_yscale("log")
        few = np.log10(most) - np.log10(least) < 3
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylabel("logarithmic scale")
    elif most >= 10_000 or least <= -10_000:
        panel.yaxis.set_major_formatter(picture.compact)
