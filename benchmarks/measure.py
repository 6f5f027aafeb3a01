"""Measuring honestly: arms take turns in one run, and the median of their ratios counts, with its spread."""

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


class Spread(NamedTuple):
    """The median of some figures, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one figure."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Our figures beside a rival's, or a limit's, taken in turn: the i-th of both belong together.

    A rival with one figure is a constant; one with none leaves our figures to stand alone. The ratio says how well we
    do, so that more is always better: ours / theirs, or theirs / ours where `less_is_better`. Where ours is a
    `prediction` of theirs, it is the lesser's to the greater.
    """

    what: str
    unit: str
    ours: Sequence[float]
    rival: str = ""
    theirs: Sequence[float] = ()
    bar: float | None = None
    less_is_better: bool = False
    prediction: bool = False

    @property
    def ratio(self) -> Spread | None:
        """Of the pairs."""
        if not self.theirs:
            return None
        theirs = list(self.theirs) * len(self.ours) if len(self.theirs) == 1 else self.theirs
        pairs = zip(self.ours, theirs, strict=True)
        ratios = [b / a if self.less_is_better else a / b for a, b in pairs]
        return Spread.of([min(ratio, 1 / ratio) for ratio in ratios] if self.prediction else ratios)

    @property
    def met(self) -> bool | None:
        """Whether the median of the ratios reaches the bar; None where there is none."""
        return None if self.bar is None or self.ratio is None else self.ratio.median >= self.bar


def interleave(arms: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Let arms take turns, each second round in the reverse order; returns each arm's figures, round by round."""
    figures: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats):
        for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
            figures[name].append(arms[name]())
    return figures


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        # Of the last minute before we began: what else the machine had to do.
        "load": round(os.getloadavg()[0], 2),
    }


def figure(value: float) -> str:
    """A number as a person wants it: three significant digits, thousands set apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def table(title: str, comparisons: Sequence[Comparison]) -> Table:
    """Comparisons for the eye."""
    shown = Table("what", "ours", "beside", "theirs", "unit", "ratio", "spread", "bar", "met", title=title)
    for column in shown.columns[1:]:
        column.justify = "right"
    shown.columns[2].justify = shown.columns[4].justify = "left"
    for c in comparisons:
        ratio = c.ratio
        shown.add_row(
            c.what,
            figure(statistics.median(c.ours)),
            c.rival,
            figure(statistics.median(c.theirs)) if c.theirs else "",
            c.unit,
            f"{ratio.median:.2f}" if ratio else "",
            f"{ratio.low:.2f} – {ratio.high:.2f}" if ratio else "",
            "" if c.bar is None else f"{c.bar:.2f}",
            {None: "", True: "yes", False: "[bold red]no"}[c.met],
        )
    return shown


def report(
    name: str,
    title: str,
    facts: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    *,
    quick: bool,
    runs: Mapping[str, Any] = {},
) -> None:
    """Print the table and write it, with every figure, to `results/<name>.json`, or `<name>-quick.json`.

    `runs`: what the figures were taken from, to be kept beside them. A figure that is infinite is written as null.
    """
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table(title, comparisons))
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), style="dim")
    rows = [
        {
            **asdict(c),
            "ours": [value if math.isfinite(value) else None for value in c.ours],
            "ratio": c.ratio and c.ratio._asdict(),
            "met": c.met,
        }
        for c in comparisons
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'-quick' * quick}.json"
    content = {"title": title, "facts": facts, "rows": rows, **({"runs": runs} if runs else {})}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def options(description: str | None, repeats: int) -> tuple[bool, int]:
    """Whether to be quick, and how many repeats, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="only see whether it works: few, short repeats")
    parser.add_argument("--repeats", type=int, help=f"turns of each arm (default: {repeats}, quick: 1)")
    given = parser.parse_args()
    return given.quick, given.repeats or (1 if given.quick else repeats)
