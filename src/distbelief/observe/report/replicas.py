"""What the replicas did: their speed and staleness over time, and when each of them began and died."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from distbelief.observe.progress import count
from distbelief.observe.report import picture
from distbelief.observe.report.log import Beat, Floats, Life, Process, thinned
from distbelief.observe.report.picture import COLOURS, DEATH, GREY, Picture
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

    seconds: Floats
    replicas: NDArray[np.int64]
    values: Floats


def speeds_of(record: Record) -> list[Picture]:
    """The speed of every replica, and the staleness of its pushes, over time; nothing where they were told of once."""
    if len(record.log.beats) < 2:
        return []
    speeds, staleness = (_course(record.log.beats, column) for column in (1, 2))
    return [
        _picture(record.tag, speeds, "speed per replica", "examples/s", "Examples a second of each replica."),
        _picture(record.tag, staleness, "latest staleness", "updates", "Staleness of each replica's latest push."),
    ]


def _course(beats: Sequence[Beat], column: int) -> Course:
    """One column of what was told of all replicas, thinned by taking means."""
    replicas = np.unique(np.concatenate([beat.rows[:, 0] for beat in beats])).astype(np.int64)
    values = np.full((len(beats), len(replicas)), np.nan)
    for row, beat in zip(values, beats, strict=True):
        row[np.searchsorted(replicas, beat.rows[:, 0])] = beat.rows[:, column]
    most = _TIMES if len(replicas) > _MOST_LINES else _TIMES_OF_LINES
    seconds, values = thinned(np.array([beat.seconds for beat in beats]), values, most)
    return Course(seconds, replicas, values)


def _picture(tag: str, found: Course, name: str, unit: str, what: str) -> Picture:
    replicas = len(found.replicas)
    many = replicas > _MOST_LINES
    height = 4.6 if many else 2.9 + 0.17 * -(-replicas // 4)
    figure, panels = picture.sheet(name, height, tag=tag, rows=2 if many else 1, sharex=True)
    size, time = picture.unit_of(float(found.seconds[-1]))
    if many:
        bands = "half of the replicas lie in the dark band, nine of ten in the light one"
        how = f"Above: {bands}. Below: a row is a replica."
        _bands(panels[0], found, size)
        _map(panels[1], found, size, unit)
    else:
        how = "A line a replica."
        for place, (replica, values) in enumerate(zip(found.replicas, found.values.T, strict=True)):
            look = {**picture.look(place), "marker": "", "linewidth": 1.2}
            panels[0].plot(found.seconds / size, values, **look, label=f"#{replica}")
    panels[0].set_ylabel(unit)
    most = max(1.0, 1.05 * panels[0].get_ylim()[1])
    panels[0].set_ylim(-0.02 * most, most)
    panels[0].yaxis.set_major_formatter(picture.compact)
    panels[-1].set_xlabel(time)
    picture.legend_below(figure, panels[0], columns=4)
    middle = np.nanmedian(found.values) if np.isfinite(found.values).any() else 0.0
    alt = f"{name} of {count(replicas, 'replica')} over time{picture.within(tag)}: half of what was told is above "
    return Picture(name, name, f"{what} {how}", f"{alt}{middle:.4g} {unit}.", figure)


def _bands(panel: Axes, found: Course, size: float) -> None:
    rows = np.isfinite(found.values).any(1)
    if not rows.any():
        return
    x = found.seconds[rows] / size
    lowest, low, middle, high, highest = np.nanpercentile(found.values[rows], (5, 25, 50, 75, 95), axis=1)
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
    bar = {"label": unit, "extend": "max"}
    picture.heat(panel, times, rows, found.values.T, bar, cmap="cividis", vmin=0, vmax=most or 1.0)
    panel.set_ylabel("replica")


def timeline_of(record: Record) -> Picture | None:
    """When each process began and died, through all lives.

    Of many replicas, those are drawn to which something happened. None where there is none.
    """
    lives = record.log.lives
    processes = [(life, process) for life in lives for process in life.processes]
    everyone = {p.replica for _, p in processes}
    eventful = {p.replica for life, p in processes if p.died_of or p.replaces or life.late(p)}
    told = sorted(everyone if len(everyone) <= _MOST_ROWS else eventful)
    if not told:
        return None
    height = min(_TALLEST_IN, 1.5 + 0.17 * max(3, len(told)))
    figure, (panel,) = picture.sheet("replicas over time", height, tag=record.tag)
    size, unit = picture.unit_of(max(life.clock(None) for life in lives if life.processes))
    rows = {replica: row for row, replica in enumerate(told)}
    drawn = [(life, p) for life, p in processes if p.replica in rows]
    spans = [(rows[p.replica], life.clock(p.began) / size, life.clock(p.ended) / size, p) for life, p in drawn]
    _draw_processes(panel, spans, min(7.0, max(1.0, 60 * (height - 1.2) / max(3, len(told)))))
    for life in lives:
        for outage in life.outages:
            panel.axvspan(life.clock(outage.began) / size, life.clock(outage.ended) / size, color=DEATH, alpha=0.25)
    for life in lives[1:]:
        panel.axvline(life.clock(life.began) / size, color=GREY, linestyle="--")
    step = -(-len(told) // _NAMED)
    panel.set_yticks(range(0, len(told), step), [f"#{replica}" for replica in told[::step]])
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(len(told) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.set_xlabel(unit)
    _explain(panel, resumed=len(lives) > 1, outages=any(life.outages for life in lives))
    deaths = count(sum(len(life.deaths) for life in lives), "death")
    alt = f"Time line of {count(len(told), 'replica')}{picture.within(record.tag)}: {deaths}."
    return Picture("time-line", "replicas over time", _caption(lives, len(everyone) - len(told)), alt, figure)


def _draw_processes(panel: Axes, spans: Sequence[tuple[int, float, float, Process]], thickness: float) -> None:
    """A bar from the beginning to the end of each process, on its row, and a cross where it died."""
    rows, began, ended, processes = zip(*spans, strict=True)
    colours = [COLOURS[5 if process.replaces else 0] for process in processes]
    panel.hlines(rows, began, ended, colors=colours, linewidth=thickness)
    deaths = [(end, row) for row, _, end, process in spans if process.died_of is not None]
    (crosses,) = panel.plot(*np.reshape(deaths, (-1, 2)).T, linestyle="", marker="x", color=DEATH)
    crosses.set(markersize=min(6.0, max(3.0, thickness + 1)), markeredgewidth=1.6 if thickness > 3 else 1.0)


def _explain(panel: Axes, *, resumed: bool, outages: bool) -> None:
    looks: dict[str, dict[str, Any] | None] = {
        "first process": {"color": COLOURS[0], "linewidth": 5},
        "replacement": {"color": COLOURS[5], "linewidth": 5},
        "death": {"color": DEATH, "marker": "x", "linestyle": ""},
        "resumed": {"color": GREY, "linestyle": "--"} if resumed else None,
        "server dead": {"color": DEATH, "alpha": 0.25, "linewidth": 5} if outages else None,
    }
    marks = [Line2D([], [], **look, label=name) for name, look in looks.items() if look]
    panel.figure.legend(handles=marks, loc="outside lower center", ncols=3 if len(marks) in (3, 5) else 2)


def _caption(lives: Sequence[Life], others: int) -> str:
    """How the time line is read."""
    parts = ["A row is a replica, and a bar one process of it, from its beginning to its death or the end."]
    if others:
        parts.append(f"Not drawn: {count(others, 'replica')} from the start to the end, without a death.")
    if len(lives) > 1:
        parts.append("Time goes on where the run was resumed, so what was lost is counted.")
    if gone := ", ".join(dict.fromkeys(outage.machine for life in lives for outage in life.outages)):
        parts.append(f"Where the ground is coloured, a machine of the server was dead: {gone}.")
    return " ".join(parts)
