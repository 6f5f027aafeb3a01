"""How stale the gradients were that each shard used: bars of a few shards, a map of many."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from distbelief.observe.progress import count
from distbelief.observe.report.log import Floats, number
from distbelief.observe.report.picture import COLOURS, Picture, compact, heat, sheet, within
from distbelief.observe.report.record import Record

_MOST_BARS = 6
"""Shards that each get a panel of bars."""
_FEWEST = 8
"""Bars that there is room for, however few there are."""
_BINS = 48
_ROWS = 100
"""Of the map; where shards are more, some share a row."""


def staleness_of(record: Record) -> Picture | None:
    """The histogram of every shard; None where it was not written, as of a run that has not ended."""
    histograms = _histograms(record.summary.get("staleness_histogram"))
    if not any(shard.sum() for shard in histograms):
        return None
    longest = max(len(shard) for shard in histograms)
    table = np.stack([np.pad(shard, (0, longest - len(shard))) for shard in histograms])
    edges = _edges(longest)
    binned = np.add.reduceat(table, edges[:-1], axis=1)
    shards, few = len(table), len(table) <= _MOST_BARS
    height = (3.0 if shards == 1 else 1.2 + 0.75 * shards) if few else 3.6
    title, kind = "staleness per shard", "Histograms of staleness" if few else "A map of the staleness"
    figure, panels = sheet(title, height, tag=record.tag, rows=shards if few else 1, sharex=True, sharey=True)
    how = _bars(panels, binned) if few else _map(panels[0], binned)
    # Each bin is drawn equally wide, and a few of the borders get a number.
    numbered = np.arange(0, len(edges) - 1, max(1, -(-(len(edges) - 1) // 7)))
    panels[-1].set_xticks(numbered + 0.5, [compact(edge) for edge in edges[numbered]])
    panels[-1].set_xlabel("staleness (updates)")
    words = "Staleness is how many updates the shard had used since the gradient's parameters were fetched."
    wider = "The steps to the right are ever wider. " if np.diff(edges).max() > 1 else ""
    resumed = number(record.summary.get("resumed_at"))
    since = "" if resumed is None else f"Counted since the run went on after {resumed:,.0f} examples."
    alt = f"{kind} of {count(shards, 'shard')}{within(record.tag)}: {_told(table.sum(0))}."
    return Picture("staleness", title, f"{words} {how} {wider}{since}", alt, figure)


def _histograms(found: object) -> list[Floats]:
    rows = [row for row in found if isinstance(row, list)] if isinstance(found, list) else []
    return [np.array([max(0.0, number(pushes) or 0.0) for pushes in row] or [0.0]) for row in rows]


def _edges(longest: int) -> NDArray[np.int64]:
    """Borders of bins: one value each while that is possible, else ever wider ones, as in a long tail few are left."""
    if longest <= _BINS:
        return np.arange(longest + 1)
    grown = np.geomspace(1, longest, _BINS).round().astype(np.int64)
    return np.unique(np.concatenate([[0], grown, [longest]]))


def _told(counts: Floats) -> str:
    below = counts.cumsum() / counts.sum()
    median, p99 = (int(np.searchsorted(below, q)) for q in (0.5, 0.99))
    return f"median {median}, 99 % at or below {p99}, largest {int(counts.nonzero()[0].max())}"


def _bars(panels: list[Axes], binned: Floats) -> str:
    """A panel a shard. Returns how they are read."""
    bins = binned.shape[1]
    for shard, (panel, counts) in enumerate(zip(panels, binned, strict=True)):
        panel.bar(np.arange(bins) + 0.5, counts, width=0.9, color=COLOURS[0])
        panel.set_ylim(0.7, 2 * binned.max())
        panel.set_yscale("log", nonpositive="clip")
        panel.grid(visible=False, axis="x")
        panel.yaxis.set_major_formatter(compact)
        panel.text(1.01, 0.5, f"shard {shard}", transform=panel.transAxes, rotation=270, va="center")
    # A single bar would be as wide as the picture.
    panels[-1].set_xlim(-0.2, max(bins, _FEWEST) + 0.2)
    panels[-1].figure.supylabel("pushes (logarithmic scale)", fontsize=9)
    return "The height of a bar is how many pushes had it."


def _map(panel: Axes, binned: Floats) -> str:
    """A row a shard, or a few of them. Returns how it is read."""
    shards, bins = binned.shape
    together = -(-shards // _ROWS)
    rows = np.add.reduceat(binned, np.arange(0, shards, together), axis=0)
    shares = rows / np.maximum(rows.sum(1, keepdims=True), 1.0)
    shares[shares == 0] = np.nan
    borders = np.minimum(np.arange(len(rows) + 1) * together, shards) - 0.5
    bar = {"label": "of the shard's pushes", "format": lambda value, _: f"{100 * value:g} %"}
    norm = LogNorm(float(np.nanmin(shares)), float(np.nanmax(shares)))
    heat(panel, np.arange(bins + 1.0), borders, shares, bar, cmap="YlGnBu", norm=norm)
    panel.set_ylabel("shard")
    shared = f" A row is {together} shards together." if together > 1 else ""
    return f"A row is a shard, and the darker, the more of its pushes.{shared}"
