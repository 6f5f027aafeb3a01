"""Time and examples to a fixed accuracy against the number of replicas, as in the paper's figure 5, in simulated time.

`python -m benchmarks.figure5` takes up to two hours on two cores, and goes on where it was if it is interrupted.
`--replicas 5 20` takes fewer. It writes `benchmarks/results/figure5.json` and `docs/figure5.png`. Arms and settings are
those of `asynchrony.py`.
"""

import argparse
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
    SPEEDS,
    TARGET,
    WARM_EXAMPLES,
    Cell,
    Study,
    cost,
    facts,
    middle,
    show,
)
from benchmarks.measure import RESULTS

REPLICAS = (5, 20, 60, 200)
_TICKS = {"seconds": (40, 50, 70, 100, 150, 200), "examples": (20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)}


def cells(replicas: Sequence[int]) -> list[Cell]:
    """The arms that are compared; small numbers come first, so that much is there early."""
    alone = [Cell(ONE, 1, speeds) for speeds in SPEEDS]
    return alone + [Cell(arm, n, speeds) for n in replicas for speeds in SPEEDS for arm in ARMS if arm != ONE]


def draw(found: Mapping[Cell, Mapping[str, Any]], replicas: Sequence[int]) -> Figure:
    """A column a law of speeds; seconds above, examples below: lines are medians over the seeds, dots single runs."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    rows = figure.subplots(2, len(SPEEDS), sharex=True, sharey="row")
    for field, row in zip(("seconds", "examples"), rows, strict=True):
        for speeds, panel in zip(SPEEDS, row, strict=True):
            _draw_panel(panel, found, replicas, speeds, field)
            panel.set_title(speeds, fontsize=10)
        told = "simulated seconds" if field == "seconds" else "examples"
        row[0].set_ylabel(f"{told} to {100 * TARGET:.0f} %")
    for panel in rows[1]:
        panel.set_xlabel("replicas")
    rows[0][0].legend(fontsize=8)
    figure.suptitle("Simulated time: real gradients, given compute and network times", fontsize=11)
    return figure


def _draw_panel(
    panel: Axes, found: Mapping[Cell, Mapping[str, Any]], replicas: Sequence[int], speeds: str, field: str
) -> None:
    alone = found[Cell(ONE, 1, speeds)]["runs"]
    panel.axhline(middle(alone, field), color=COLORS[ONE], linestyle=":", label=ONE)
    warm = alone[0]["history"][WARM_EXAMPLES // EVERY - 1][field]
    panel.axhline(warm, color="0.7", linestyle="-.", label="end of the warm start")
    never = 0
    for number, arm in enumerate(arm for arm in ARMS if arm != ONE):
        runs = {count: found[Cell(arm, count, speeds)]["runs"] for count in replicas}
        panel.plot(replicas, [middle(runs[n], field) for n in replicas], marker="o", color=COLORS[arm], label=arm)
        dots = [(count * 1.03**number, cost(run, field)) for count in replicas for run in runs[count]]
        panel.plot(*zip(*dots, strict=True), linestyle="", marker=".", markersize=4, color=COLORS[arm], alpha=0.5)
        never += sum(math.isinf(seconds) for _, seconds in dots)
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(replicas, [str(count) for count in replicas])
    panel.set_yticks(_TICKS[field], [f"{tick:,}" for tick in _TICKS[field]])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    if never:
        panel.text(0.02, 0.02, f"{never} runs never got there", transform=panel.transAxes, fontsize=8)


def main() -> None:
    """Run what is missing, then print, draw and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=REPLICAS)
    replicas = parser.parse_args().replicas
    with tempfile.TemporaryDirectory() as folder:
        found = Study(Path(folder)).cells(cells(replicas))
    show(found)
    rows = [{**c._asdict(), **entry, "runs": [_costs(run) for run in entry["runs"]]} for c, entry in found.items()]
    (RESULTS / "figure5.json").write_text(json.dumps({**facts(), "cells": rows}, indent=1) + "\n")
    draw(found, replicas).savefig(PICTURES / "figure5.png", dpi=110)


def _costs(run: Mapping[str, Any]) -> dict[str, float | None]:
    """What a run took to the target, null where it never got there; and the examples that were dropped on the way."""
    costs = {field: cost(run, field) for field in ("seconds", "examples", "updates")}
    return {field: value if math.isfinite(value) else None for field, value in costs.items()} | {
        "dropped": run["dropped"]
    }


if __name__ == "__main__":
    main()
