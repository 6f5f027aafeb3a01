"""A picture of a report: narrow enough for a phone, the same on every machine, and safe from what runs are named."""

import io
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import matplotlib.style as mpl_style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from distbelief.observe.report.log import Floats
from distbelief.observe.report.output import MARK

WIDTH_IN = 4.5
DPI = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart, without the yellow, which nobody sees on white."""
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DEATH = "#D55E00"
GREY = "#777777"
_LONGEST = 30
_UNITS = ((7200.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (-math.inf, 1.0, "seconds"))
"""From how many seconds on time is told in a unit, and how many seconds this has."""
_SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


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


def style() -> AbstractContextManager[None]:
    """Draw in the report's own style, whatever the user's matplotlib is set to; that is left as it was."""
    return mpl_style.context(Path(__file__).with_name("report.mplstyle"), after_reset=True)


def sheet(title: str, height_in: float, *, tag: str = "", rows: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many panels, one below the other, under a title. `tag` is said in it, at its right."""
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=engine, facecolor="white")
    panels = figure.subplots(rows, 1, squeeze=False, **grid)[:, 0].tolist()
    for panel in panels:
        panel.xaxis.set_major_formatter(compact)
    figure.suptitle(shown(title), x=0.02, ha="left", fontsize=10, fontweight="bold")
    if tag:
        top = 1 - 0.08 / height_in
        figure.text(0.98, top, tag, ha="right", va="top", fontstyle="italic", color=DEATH, in_layout=False)
    return figure, panels


def within(tag: str) -> str:
    """The tag of a picture as a part of a sentence about it."""
    return f" in {tag}" if tag else ""


def look(place: int) -> dict[str, Any]:
    """How one of several lines is drawn, so that it differs from the others by more than colour."""
    looks = {"color": COLOURS, "linestyle": _LINES, "marker": _MARKERS}
    return {name: kinds[place % len(kinds)] for name, kinds in looks.items()}


def heat(panel: Axes, places: Any, rows: Any, values: Floats, bar: dict[str, Any], **colours: Any) -> None:
    """A map: `values` (rows, places) as colours between borders, the first row on top; `bar` says what these mean."""
    mesh = panel.pcolormesh(places, rows, np.ma.masked_invalid(values), **colours)
    panel.grid(visible=False)
    panel.invert_yaxis()
    panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.figure.colorbar(mesh, ax=panel, **bar)


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


def compact(value: float, _: object = None, *, gap: str = "") -> str:
    """A number in a few letters: 20k, 1.5M. As matplotlib calls what writes the numbers of an axis."""
    size, letter = next(((size, letter) for size, letter in _SIZES if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g}{gap}{letter}"


def legend_below(figure: Figure, axes: Axes, *, columns: int) -> None:
    """Say what the lines are, below the picture, where it hides none of them."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))
