"""The figure of the stragglers: accuracy against time, and examples a second."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.measure import Spread, figure
from benchmarks.targets import History

_COLOURS = tuple(f"tab:{name}" for name in "blue red green orange purple brown cyan gray pink olive".split())


def draw(
    path: Path,
    *,
    curves: Mapping[str, Sequence[History]],
    title: str,
    accuracy: float,
    bars: Mapping[str, Mapping[str, Sequence[float]]],
    note: str,
) -> None:
    """Write the figure: `curves` by arm, one a run; `bars` by setting and arm, one speed a round."""
    picture = plt.figure(figsize=(13, 1.6 + 1.5 * len(bars)))
    grid = picture.add_gridspec(len(bars), 2, width_ratios=(1.1, 1))
    _draw_curves(picture.add_subplot(grid[:, 0]), curves, title, accuracy)
    # An arm has one colour, in all panels.
    names = list(dict.fromkeys([*curves, *(name for arms in bars.values() for name in arms)]))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    for row, (setting, arms) in enumerate(bars.items()):
        _draw_bars(picture.add_subplot(grid[row, 1]), setting, arms, colours)
    picture.text(0.5, 0.005, note, ha="center", fontsize=9)
    picture.tight_layout(rect=(0, 0.03, 1, 1))
    path.parent.mkdir(exist_ok=True)
    picture.savefig(path, dpi=110)
    plt.close(picture)


def _draw_curves(axis: Axes, curves: Mapping[str, Sequence[History]], title: str, accuracy: float) -> None:
    for colour, (name, histories) in zip(_COLOURS, curves.items(), strict=False):
        for number, history in enumerate(histories):
            axis.plot(
                [row["seconds"] for row in history],
                [100 * row["accuracy"] for row in history],
                color=colour,
                alpha=0.7,
                linewidth=1.2,
                marker=".",
                markersize=4,
                label=f"{name}, {len(histories)} runs" if number == 0 else None,
            )
    axis.axhline(100 * accuracy, color="black", linestyle="--", linewidth=1)
    axis.annotate(f" target {accuracy:.0%}", (0, 100 * accuracy), va="bottom")
    axis.set(xlabel="seconds of training", ylabel="accuracy on the validation set, %", title=title)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)


def _draw_bars(axis: Axes, setting: str, arms: Mapping[str, Sequence[float]], colours: Mapping[str, Any]) -> None:
    found = [Spread.of(values) for values in arms.values()]
    places = range(len(found))
    axis.barh(
        places,
        [f.median for f in found],
        xerr=[[f.median - f.low for f in found], [f.high - f.median for f in found]],
        color=[colours[name] for name in arms],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    for place, spread in zip(places, found, strict=True):
        axis.text(spread.high * 1.01, place, f" {figure(spread.median)}", va="center", fontsize=8)
    axis.set_yticks(places, list(arms), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(right=1.15 * max(f.high for f in found))
    axis.set_title(f"{setting}: examples/s, median and spread", fontsize=10)
    axis.tick_params(axis="x", labelsize=8)
