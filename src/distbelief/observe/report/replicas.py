"""What the replicas did: their speed and staleness over time, and when each of them began and died."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from distbelief.observe.progress import count
from distbelief.observe.report.log import Beat, Life, Process, in_order
from distbelief.observe.report.picture import (
    COLOURS,
    DEATH,
    GREY,
    LINES,
    Picture,
    compact_axis,
    legend_below,
    sheet,
    unit_of,
)
from distbelief.observe.report.record import Record

_MOST_LINES = 8
"""Replicas that each get a line."""
_MOST_ROWS = 12
"""Replicas that are all on the time line, whatever happened to them."""
_NAMED = 40
"""Rows of the time line that each get a number."""
_TIMES_OF_LINES = 60
_TIMES = 120
"""At which speeds are drawn; each is the mean of its neighbours where more were told."""
_TALLEST_IN = 7.0


@dataclass(frozen=True)
class Course:
    """A number of every replica over time: `values` (times, replicas), NaN where nothing was told."""

    seconds: NDArray[np.float64]
    replicas: NDArray[np.int64]
    values: NDArray[np.float64]


def speeds_of(record: Record) -> list[Picture]:
    """The speed of every replica, and the staleness of its pushes, over time; nothing where they were told of once."""
    if len(record.log.beats) < 2:
        return []
    speeds, staleness = (course(record.log.beats, column) for column in (1, 2))
    return [
        _picture(record, speeds, "speed per replica", "examples/s", "Examples a second of each replica."),
        _picture(record, staleness, "latest staleness", "updates", "Staleness of each replica's latest push."),
    ]


def course(beats: Sequence[Beat], column: int) -> Course:
    """One column of what was told of all replicas, thinned by taking means."""
    replicas = np.unique(np.concatenate([beat.rows[:, 0] for beat in beats])).astype(np.int64)
    values = np.full((len(beats), len(replicas)), np.nan)
    for row, beat in zip(values, beats, strict=True):
        row[np.searchsorted(replicas, beat.rows[:, 0])] = beat.rows[:, column]
    seconds = np.array([beat.seconds for beat in beats])
    kept = in_order(seconds)
    seconds, values = seconds[kept], values[kept]
    most = _TIMES if len(replicas) > _MOST_LINES else _TIMES_OF_LINES
    if len(seconds) > most:
        cuts = np.linspace(0, len(seconds), most + 1).astype(int)
        told = np.isfinite(values)
        counts = np.add.reduceat(told.astype(float), cuts[:-1])
        sums = np.add.reduceat(np.where(told, values, 0.0), cuts[:-1])
        values = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)
        seconds = np.add.reduceat(seconds, cuts[:-1]) / np.diff(cuts)
    return Course(seconds, replicas, values)


def _picture(record: Record, found: Course, name: str, unit: str, what: str) -> Picture:
    many = len(found.replicas) > _MOST_LINES
    legend_rows = 1 if many else -(-len(found.replicas) // 4)
    height, panels = (4.6, 2) if many else (2.9 + 0.17 * legend_rows, 1)
    figure, axes = sheet(name, height, tag=record.tag, rows=panels, sharex=True)
    size, time = unit_of(float(found.seconds[-1]))
    if many:
        _bands(axes[0], found, size)
        _map(axes[1], found, size, unit)
        how = (
            "Above: half of the replicas lie in the dark band, nine of ten in the light one. Below: a row is a replica."
        )
    else:
        for place, values in enumerate(found.values.T):
            label = f"#{found.replicas[place]}"
            colour, line = COLOURS[place % len(COLOURS)], LINES[place % len(LINES)]
            axes[0].plot(found.seconds / size, values, color=colour, linestyle=line, linewidth=1.2, label=label)
        how = "A line a replica."
    axes[0].set_ylabel(unit)
    most = max(1.0, 1.05 * axes[0].get_ylim()[1])
    axes[0].set_ylim(-0.02 * most, most)
    compact_axis(axes[0].yaxis)
    axes[-1].set_xlabel(time)
    compact_axis(axes[-1].xaxis)
    legend_below(figure, axes[0], columns=4)
    middle = np.nanmedian(found.values) if np.isfinite(found.values).any() else 0.0
    where = f" in {record.tag}" if record.tag else ""
    alt = f"{name} of {count(len(found.replicas), 'replica')} over time{where}: half of what was told is above "
    return Picture(name, name, f"{what} {how}", f"{alt}{middle:.4g} {unit}.", figure)


def _bands(panel: Axes, found: Course, size: float) -> None:
    rows = np.isfinite(found.values).any(1)
    x, values = found.seconds[rows] / size, found.values[rows]
    if not len(x):
        return
    lowest, low, middle, high, highest = np.nanpercentile(values, (5, 25, 50, 75, 95), axis=1)
    panel.fill_between(x, lowest, highest, color=COLOURS[0], alpha=0.2, linewidth=0, label="nine of ten")
    panel.fill_between(x, low, high, color=COLOURS[0], alpha=0.45, linewidth=0, label="half")
    panel.plot(x, middle, color=COLOURS[0], label="median")


def _map(panel: Axes, found: Course, size: float, unit: str) -> None:
    x = found.seconds / size
    middles = (x[1:] + x[:-1]) / 2
    times = np.concatenate([[x[0]], middles, [x[-1]]]) if len(x) > 1 else np.array([0.0, x[0] or 1.0])
    # Replicas that were told of have numbers that need not be without gaps.
    rows = np.arange(len(found.replicas) + 1) - 0.5
    finite = found.values[np.isfinite(found.values)]
    most = float(np.percentile(finite, 99)) if len(finite) else 0.0
    mesh = panel.pcolormesh(times, rows, np.ma.masked_invalid(found.values.T), cmap="cividis", vmin=0, vmax=most or 1.0)
    panel.grid(visible=False)
    panel.invert_yaxis()
    panel.set_ylabel("replica")
    panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure = panel.figure
    figure.colorbar(mesh, ax=panel, label=unit, extend="max")


def timeline_of(record: Record) -> Picture | None:
    """When each process began and died, through all lives.

    Of many replicas, those are drawn to which something happened. None where there is none.
    """
    lives = [life for life in record.log.lives if life.processes]
    everyone = sorted({process.replica for life in lives for process in life.processes})
    eventful = {p.replica for life in lives for p in life.processes if p.died_of or p.replaces or life.late(p)}
    told = everyone if len(everyone) <= _MOST_ROWS else sorted(eventful)
    if not told:
        return None
    others = len(everyone) - len(told)
    height = min(_TALLEST_IN, 1.5 + 0.17 * max(3, len(told)))
    figure, (panel,) = sheet("replicas over time", height, tag=record.tag)
    size, unit = unit_of(lives[-1].ended + lives[-1].lost_before)
    rows = {replica: row for row, replica in enumerate(told)}
    thickness = min(7.0, max(1.0, 60 * (height - 1.2) / max(3, len(told))))
    for life in lives:
        _draw_life(panel, life, rows, size, thickness)
    away = [(outage, life) for life in record.log.lives for outage in life.outages]
    for outage, life in away:
        ends = life.ended if outage.ended is None else outage.ended
        panel.axvspan(
            (outage.began + life.lost_before) / size, (ends + life.lost_before) / size, color=DEATH, alpha=0.25
        )
    for life in record.log.lives[1:]:
        panel.axvline((life.began + life.lost_before) / size, color=GREY, linestyle="--")
    _number(panel, told)
    panel.set_xlabel(unit)
    compact_axis(panel.xaxis)
    _explain(panel, resumed=len(record.log.lives) > 1, outages=bool(away))
    return Picture("time-line", "replicas over time", *_words(record, lives, told, others), figure)


def _draw_life(panel: Axes, life: Life, rows: dict[int, int], size: float, thickness: float) -> None:
    shown = [process for process in life.processes if process.replica in rows]
    for first in (True, False):
        some = [process for process in shown if process.replaces != first]
        panel.hlines(
            [rows[p.replica] for p in some],
            [(p.began + life.lost_before) / size for p in some],
            [((life.ended if p.ended is None else p.ended) + life.lost_before) / size for p in some],
            colors=COLOURS[0] if first else COLOURS[5],
            linewidth=thickness,
        )
    deaths = [(p.ended, rows[p.replica]) for p in shown if p.died_of is not None and p.ended is not None]
    panel.plot(
        [(ended + life.lost_before) / size for ended, _ in deaths],
        [row for _, row in deaths],
        linestyle="",
        marker="x",
        color=DEATH,
        markersize=min(6.0, max(3.0, thickness + 1)),
        markeredgewidth=1.6 if thickness > 3 else 1.0,
    )


def _number(panel: Axes, told: Sequence[int]) -> None:
    """Say which row is which replica."""
    step = -(-len(told) // _NAMED)
    panel.set_yticks(range(0, len(told), step), [f"#{replica}" for replica in told[::step]])
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(len(told) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")


def _explain(panel: Axes, *, resumed: bool, outages: bool) -> None:
    marks = [
        Line2D([], [], color=COLOURS[0], linewidth=5, label="first process"),
        Line2D([], [], color=COLOURS[5], linewidth=5, label="replacement"),
        Line2D([], [], color=DEATH, marker="x", linestyle="", label="death"),
    ]
    if resumed:
        marks.append(Line2D([], [], color=GREY, linestyle="--", label="resumed"))
    if outages:
        marks.append(Line2D([], [], color=DEATH, alpha=0.25, linewidth=5, label="server dead"))
    panel.figure.legend(handles=marks, loc="outside lower center", ncols=3 if len(marks) in (3, 5) else 2)


def _words(record: Record, lives: Sequence[Life], told: Sequence[int], others: int) -> tuple[str, str]:
    """How the time line is read, and what it shows."""
    deaths = sum(process.died_of is not None for life in lives for process in life.processes)
    rest = f" Not drawn: {count(others, 'replica')} from the start to the end, without a death." if others else ""
    lost = " Time goes on where the run was resumed, so what was lost is counted." if len(record.log.lives) > 1 else ""
    caption = (
        f"A row is a replica, and a bar one process of it, from its beginning to its death or the end.{rest}{lost}"
    )
    gone = [outage for life in record.log.lives for outage in life.outages]
    if gone:
        named = ", ".join(dict.fromkeys(outage.machine for outage in gone))
        caption += f" Where the ground is coloured, a machine of the server was dead: {named}."
    where = f" in {record.tag}" if record.tag else ""
    return caption, f"Time line of {count(len(told), 'replica')}{where}: {count(deaths, 'death')}."


def replacement(life: Life, dead: Process) -> Process | None:
    """The process that took a dead one's place."""
    later = [p for p in life.processes if p.replica == dead.replica and p.incarnation > dead.incarnation]
    return min(later, key=lambda process: process.incarnation, default=None)
