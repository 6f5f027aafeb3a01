"""A picture of a report: narrow enough for a phone, the same on every machine, and safe from what runs are named."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

MARK = "distbelief report"
"""Stands in every file of a report, so that one report replaces another, and nothing else."""
WIDTH_IN = 4.5
DPI = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart, without the yellow, which nobody sees on white."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DEATH = "#D55E00"
GREY = "#777777"
_LONGEST = 30
_UNITS = ((7200.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (-math.inf, 1.0, "seconds"))
"""From how many seconds on time is told in a unit, and how many seconds this has."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Picture:
    """A drawing, what it shows in a line for those who do not see it, and how it is read."""

    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    alt: str
    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The file: the same bytes for the same drawing."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": MARK})
        return buffer.getvalue()

    @property
    def pixels(self) -> tuple[int, int]:
        """Its width and height."""
        width, height = self.figure.get_size_inches()
        return round(width * DPI), round(height * DPI)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's own style, whatever the user's matplotlib is set to; that is left as it was."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def sheet(title: str, height_in: float, *, tag: str = "", rows: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many panels, one below the other, under a title. `tag` is said in it, at its right."""
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=engine, facecolor="white")
    panels = figure.subplots(rows, 1, squeeze=False, **grid)[:, 0].tolist()
    figure.suptitle(shown(title), x=0.02, ha="left", fontsize=10, fontweight="bold")
    if tag:
        top = 1 - 0.08 / height_in
        figure.text(0.98, top, tag, ha="right", va="top", fontstyle="italic", color=DEATH, in_layout=False)
    return figure, panels


def shown(text: str, longest: int = _LONGEST) -> str:
    """A text as it can be drawn: in one line, not too long, in letters that the font has, and no formula."""
    known = _letters()
    plain = "".join(letter if ord(letter) in known else "□" for letter in " ".join(text.split()))
    return short(plain, longest).replace("$", r"\$")


def short(text: str, longest: int) -> str:
    """A text without its middle, if it is too long."""
    head = longest // 2
    return text if len(text) <= longest else f"{text[:head]}…{text[head + 1 - longest :]}"


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def unit_of(seconds: float) -> tuple[float, str]:
    """What a span of time is best told in: seconds a unit, and its name."""
    return next((size, name) for least, size, name in _UNITS if seconds >= least)


def compact(value: float) -> str:
    """A number in a few letters: 20k, 1.5M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def compact_axis(axis: Any) -> None:
    """Tell an axis' numbers in a few letters."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def legend_below(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Say what the lines are, below the picture, where it hides none of them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))
