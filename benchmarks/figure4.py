"""Accuracy against time, examples and updates, as in the paper's figure 4, and the staleness behind it: simulated time.

`python -m benchmarks.figure4` takes about an hour on two cores, less after `benchmarks.figure5`, whose runs it shares,
and goes on where it was if it is interrupted. It writes `benchmarks/results/figure4.json`, and in `docs/`
`figure4-stragglers.png`, `figure4-equal-speeds.png` and `figure4-staleness.png`. Arms and settings are those of
`asynchrony.py`.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.asynchrony import (
    ARMS,
    COLORS,
    EVERY,
    ONE,
    PICTURES,
    SEEDS,
    SPEEDS,
    TARGET,
    WARM_EXAMPLES,
    Cell,
    Study,
    facts,
    show,
)
from benchmarks.measure import RESULTS
from benchmarks.targets import reached

REPLICAS = (20, 200)
_SEED = SEEDS[0]
"""Whose runs are drawn: of all arms the same one, so that they begin alike."""
_ROWS = 60
"""Evaluations that are kept of a run, about so many, besides those of the warm start."""
Found = Mapping[Cell, Mapping[str, Any]]


def cells() -> list[Cell]:
    """What is compared."""
    alone = [Cell(ONE, 1, speeds) for speeds in SPEEDS]
    return alone + [Cell(arm, n, speeds) for n in REPLICAS for speeds in SPEEDS for arm in ARMS if arm != ONE]


def read(written: Mapping[str, Any]) -> dict[Cell, dict[str, Any]]:
    """What `figure4.json` holds, by what was compared."""
    return {Cell(entry["arm"], entry["replicas"], entry["speeds"]): entry for entry in written["cells"]}


def thinned(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with fewer evaluations: those of the warm start, some, and the one that came to the target."""
    history, warm = run["history"], WARM_EXAMPLES // EVERY
    end = reached(history, TARGET, math.inf) or history[-1]
    before = history[warm : history.index(end)]
    return {**run, "history": [*history[:warm], *before[:: max(1, len(before) // _ROWS)], end]}


def draw_curves(found: Found, speeds: str) -> Figure:
    """A row a number of replicas: accuracy against seconds, examples and updates, of one seed."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    rows = figure.subplots(len(REPLICAS), 3, sharey=True, sharex="col")
    for replicas, row in zip(REPLICAS, rows, strict=True):
        for panel, field in zip(row, ("seconds", "examples", "updates"), strict=True):
            for arm in ARMS:
                cell = Cell(arm, 1 if arm == ONE else replicas, speeds)
                history = thinned(found[cell]["runs"][_SEED])["history"]
                xs, ys = [e[field] for e in history], [100 * e["accuracy"] for e in history]
                panel.plot(xs, ys, color=COLORS[arm], label=f"{arm}: {found[cell]['chosen']}", linewidth=1.4)
            panel.axhline(100 * TARGET, color="0.7", linewidth=0.8, linestyle="--")
            timed = field == "seconds"
            panel.set(xscale="linear" if timed else "log", xlabel="simulated seconds" if timed else field)
            panel.grid(alpha=0.3)
        row[0].set_ylabel("validation accuracy, %")
        row[1].set_title(f"{replicas} replicas", fontsize=11)
        row[2].legend(fontsize=7, loc="lower right")
    figure.suptitle(f"{speeds}, simulated time: real gradients, given compute and network times", fontsize=11)
    return figure


def draw_staleness(found: Found) -> Figure:
    """How stale pushes were, over all shards and seeds; a panel a number of replicas and law of speeds."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(len(REPLICAS), len(SPEEDS), sharex="row")
    for replicas, row in zip(REPLICAS, panels, strict=True):
        for speeds, panel in zip(SPEEDS, row, strict=True):
            for arm in ARMS:
                if arm != ONE:
                    _draw_histogram(panel, found[Cell(arm, replicas, speeds)]["runs"], arm, most=4 * replicas)
            panel.set(xlabel="staleness, updates", ylabel="part of the pushes", yscale="log")
            panel.set_title(f"{replicas} replicas, {speeds}", fontsize=10)
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.suptitle("Staleness at the shards, simulated time", fontsize=11)
    return figure


def _draw_histogram(panel: Axes, runs: Sequence[Mapping[str, Any]], arm: str, *, most: int) -> None:
    total = [0.0] * (most + 1)
    for run in runs:
        for staleness, count in enumerate(run["staleness"]):
            total[min(staleness, most)] += count
    pushes, width = sum(total), max(1, most // 40)
    bins = [sum(total[start : start + width]) / pushes for start in range(0, most + 1, width)]
    edges = [start - 0.5 for start in range(0, most + 1 + width, width)]
    panel.stairs(bins, edges[: len(bins) + 1], color=COLORS[arm], label=arm, linewidth=1.4)


def main() -> None:
    """Run what is missing, then print, draw and keep it."""
    with tempfile.TemporaryDirectory() as folder:
        found = Study(Path(folder)).cells(cells())
    show(found)
    rows = [{**c._asdict(), **entry, "runs": [thinned(run) for run in entry["runs"]]} for c, entry in found.items()]
    (RESULTS / "figure4.json").write_text(json.dumps({**facts(), "cells": rows}) + "\n")
    for speeds in SPEEDS:
        draw_curves(found, speeds).savefig(PICTURES / f"figure4-{speeds.replace(' ', '-')}.png", dpi=110)
    draw_staleness(found).savefig(PICTURES / "figure4-staleness.png", dpi=110)


if __name__ == "__main__":
    main()
