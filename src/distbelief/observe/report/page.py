"""What is on the page: what a run came to, its pictures and its settings; of several runs, first how they compare.

The markup, and the sentences in it, are in `page.html`.
"""

import itertools
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from distbelief.observe.report import curves, replicas
from distbelief.observe.report.figures import came_to, settings_of
from distbelief.observe.report.output import MARK
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import Record
from distbelief.observe.report.staleness import staleness_of

_DEATHS = 200
"""That are told of one by one."""
_LONGEST = 80
"""Letters of a file's name."""


@dataclass(frozen=True)
class Page:
    """A whole page, and the pictures that are in it, by the names of their files."""

    html: str
    pictures: Mapping[str, Picture]


def page_of(records: Sequence[Record], folder: str) -> Page:
    """The page about runs. `folder`: how the page calls the one in which its pictures lie as files."""
    runs = [_run(place, record) for place, record in enumerate(records, start=1)]
    drawn = [("", picture) for picture in runs[0]["pictures"]]
    heading, compared = f"{records[0].what()}: {records[0].name}", None
    if len(runs) > 1:
        heading, compared = "Several runs compared", _compared(records, runs)
        drawn = [("comparison-", picture) for picture in compared["pictures"]]
        drawn += [(f"{run['called']}-", picture) for run in runs for picture in run["pictures"]]
    markup = Path(__file__).with_name("page.html").read_text()
    template = Template(markup, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    told = {"heading": heading, "compared": compared, "runs": runs, "folder": folder, "most_deaths": _DEATHS}
    return Page(template.render(told, mark=MARK, base64=lambda png: b64encode(png).decode()), _named(drawn))


def _run(place: int, record: Record) -> dict[str, Any]:
    """What is told of a run."""
    lines, left_out = curves.curves_of(record)
    staleness, speeds, timeline = staleness_of(record), replicas.speeds_of(record), replicas.timeline_of(record)
    return {
        "record": record,
        "called": f"{place}. {record.name}",
        "figures": came_to(record),
        "pictures": [picture for picture in (*lines, staleness, *speeds, timeline) if picture],
        "missing": {"curve": not lines, "histogram": not staleness, "time line": not timeline, "speeds": not speeds},
        "left_out": left_out,
        "deaths": [(number, life, dead) for number, life in enumerate(record.log.lives, 1) for dead in life.deaths],
        "settings": settings_of(record),
    }


def _compared(records: Sequence[Record], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is told of several runs together: curves, and the cells of a row a run."""
    pictures, left_out = curves.overlays(records)
    told, figures = (
        list(dict.fromkeys(name for run in runs for name in run[kind])) for kind in ("settings", "figures")
    )
    settings = [name for name in told if len({run["settings"].get(name, "none") for run in runs}) > 1]
    return {
        "pictures": pictures,
        "left_out": left_out,
        "partly_simulated": {record.simulated for record in records} == {True, False},
        "settings": settings,
        "figures": figures,
    }


def _named(drawn: Iterable[tuple[str, Picture]]) -> dict[str, Picture]:
    """Pictures, each with a prefix, by names that any file system takes, and that only one of them has."""
    pictures: dict[str, Picture] = {}
    for prefix, picture in drawn:
        plain = re.sub(r"[^a-z0-9]+", "-", f"{prefix}{picture.name}".lower()).strip("-")[:_LONGEST]
        names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        pictures[next(f"{name}.png" for name in names if f"{name}.png" not in pictures)] = picture
    return pictures
