"""How stale the gradients were that each shard used: bars of a few shards, a map of many."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from distbelief.observe.report.log import number
from distbelief.observe.report.picture import COLOURS, Picture, compact, sheet
from distbelief.observe.report.record import Record

_MOST_BARS = 6
"""Shards that each get a panel of bars."""
_FEWEST = 8
"""Bars that there is room for, however few there are."""
_BINS = 48
_ROWS = 100
"""Of the map; where shards are more, some share a row."""
_WORDS = "Staleness is how many updates the shard had used since the gradient's parameters were fetched."


def staleness_of(record: Record) -> Picture | None:
    """The histogram of every shard; None where it was not written, as of a run that has not ended."""
    histograms = _histograms(record.summary.get("staleness_histogram"))
    if not histograms or not any(shard.sum() for shard in histograms):
        return None
    longest = max(len(shard) for shard in histograms)
    table = np.stack([np.pad(shard, (0, longest - len(shard))) for shard in histograms])
    edges = _edges(longest)
    binned = np.add.reduceat(table, edges[:-1], axis=1)
    draw = _bars if len(table) <= _MOST_BARS else _map
    return draw(binned, edges, record, _told(table.sum(0)))


def _histograms(found: object) -> list[NDArray[np.float64]]:
    rows = found if isinstance(found, list) else []
    return [
        np.array([max(0.0, number(count) or 0.0) for count in row] or [0.0]) for row in rows if isinstance(row, list)
    ]


def _edges(longest: int) -> NDArray[np.int64]:
    """Borders of bins: one value each while that is possible, else ever wider ones, as in a long tail few are left."""
    if longest <= _BINS:
        return np.arange(longest + 1)
    grown = np.geomspace(1, longest, _BINS).round().astype(np.int64)
    return np.unique(np.concatenate([[0], grown, [longest]]))


def _told(counts: NDArray[np.float64]) -> str:
    below = counts.cumsum() / counts.sum()
    median, p99 = (int(np.searchsorted(below, q)) for q in (0.5, 0.99))
    return f"median {median}, 99 % at or below {p99}, largest {int(counts.nonzero()[0].max())}"


def _places(edges: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[int]]:
    """Where bins begin when each is drawn equally wide, and which of the borders get a number."""
    bins = len(edges) - 1
    step = max(1, -(-bins // 7))
    return np.arange(bins + 1, dtype=float), list(range(0, bins, step))


def _bars(binned: NDArray[np.float64], edges: NDArray[np.int64], record: Record, told: str) -> Picture:
    shards = len(binned)
    height = 1.2 + shards * (1.8 if shards == 1 else 0.75)
    figure, panels = sheet("staleness per shard", height, tag=record.tag, rows=shards, sharex=True, sharey=True)
    places, numbered = _places(edges)
    for shard, (panel, counts) in enumerate(zip(panels, binned, strict=True)):
        panel.bar(places[:-1] + 0.5, counts, width=0.9, color=COLOURS[0])
        panel.set_ylim(0.7, 2 * binned.max())
        panel.set_yscale("log", nonpositive="clip")
        panel.grid(visible=False, axis="x")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        panel.text(1.01, 0.5, f"shard {shard}", transform=panel.transAxes, rotation=270, va="center")
    panels[-1].set_xticks([places[place] + 0.5 for place in numbered], [compact(edge) for edge in edges[numbered]])
    # A single bar would be as wide as the picture.
    panels[-1].set_xlim(-0.2, max(len(places) - 1, _FEWEST) + 0.2)
    panels[-1].set_xlabel("staleness (updates)")
    figure.supylabel("pushes (logarithmic scale)", fontsize=9)
    caption = f"{_WORDS} The height of a bar is how many pushes had it. {_widening(edges)}{_since(record)}"
    alt = f"Histograms of staleness of {_shards(shards)}{_in(record)}: {told}."
    return Picture("staleness", "staleness per shard", caption, alt, figure)


def _map(binned: NDArray[np.float64], edges: NDArray[np.int64], record: Record, told: str) -> Picture:
    shards = len(binned)
    together = -(-shards // _ROWS)
    rows = np.add.reduceat(binned, np.arange(0, shards, together), axis=0)
    shares = rows / np.maximum(rows.sum(1, keepdims=True), 1.0)
    figure, (panel,) = sheet("staleness per shard", 3.6, tag=record.tag)
    places, numbered = _places(edges)
    borders = np.minimum(np.arange(len(rows) + 1) * together, shards) - 0.5
    mesh = panel.pcolormesh(
        places,
        borders,
        np.ma.masked_equal(shares, 0.0),
        cmap="YlGnBu",
        norm=LogNorm(float(shares[shares > 0].min()), float(shares.max())),
    )
    panel.grid(visible=False)
    panel.invert_yaxis()
    panel.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    panel.set_ylabel("shard")
    panel.set_xticks([places[place] + 0.5 for place in numbered], [compact(edge) for edge in edges[numbered]])
    panel.set_xlabel("staleness (updates)")
    bar = figure.colorbar(mesh, ax=panel, format=FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    bar.set_label("of the shard's pushes")
    shared = f" A row is {together} shards together." if together > 1 else ""
    caption = f"{_WORDS} A row is a shard, and the darker, the more of its pushes.{shared} {_widening(edges)}"
    alt = f"A map of the staleness of {_shards(shards)}{_in(record)}: {told}."
    return Picture("staleness", "staleness per shard", f"{caption}{_since(record)}", alt, figure)


def _widening(edges: NDArray[np.int64]) -> str:
    return "The steps to the right are ever wider. " if len(edges) and np.diff(edges).max() > 1 else ""


def _since(record: Record) -> str:
    resumed = number(record.summary.get("resumed_at"))
    return "" if resumed is None else f"Counted since the run went on after {resumed:,.0f} examples."


def _in(record: Record) -> str:
    return f" in {record.tag}" if record.tag else ""


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}"
