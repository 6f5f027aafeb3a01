"""The page: what a run came to, its pictures and its settings; of several runs, first how they compare."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from distbelief.observe.report import curves, replicas
from distbelief.observe.report.document import document, gallery, several, table
from distbelief.observe.report.figures import came_to, settings_of
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import Record
from distbelief.observe.report.staleness import staleness_of

_DEATHS = 200
"""That are told of one by one."""
_LONGEST = 80
"""Letters of a file's name."""
_SHORT = 160
"""A setting that is longer is folded."""
_SO_FAR = "What follows is what its files tell so far."


@dataclass(frozen=True)
class Page:
    """A whole page, and the pictures that are in it, by the names of their files."""

    html: str
    pictures: Mapping[str, Picture]


def page_of(records: Sequence[Record], folder: str) -> Page:
    """The page about runs. `folder`: how the page calls the one in which its pictures lie as files."""
    alone = len(records) == 1
    head = f"{records[0].what()}: {records[0].name}" if alone else "Several runs compared"
    pictures: dict[str, Picture] = {}
    body = "" if alone else _comparison(records, pictures)
    for place, record in enumerate(records, start=1):
        called = f"{place}. {escape(record.name)}"
        title = "" if alone else f'<h2 id="run-{place}">{called}</h2><p>{escape(record.what())}</p>'
        told, drawn = _run(record)
        _name(pictures, drawn, "" if alone else f"{place}-{record.name}-")
        body += f"<section>{title}{told}</section>"
    body += f"<footer><p>Each picture is also a file in the folder {escape(folder)}, beside this page.</p></footer>"
    return Page(document(head, body), pictures)


def _name(pictures: dict[str, Picture], drawn: Iterable[Picture], prefix: str) -> None:
    """Give pictures names that any file system takes, and that only one of them has."""
    for picture in drawn:
        plain = re.sub(r"[^a-z0-9]+", "-", f"{prefix}{picture.name}".lower()).strip("-")[:_LONGEST]
        names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        pictures[next(f"{name}.png" for name in names if f"{name}.png" not in pictures)] = picture


# One run


def _run(record: Record) -> tuple[str, list[Picture]]:
    """What is told of a run, and its pictures."""
    warnings = {
        "Simulated time: seconds and speeds are those of a simulation, and of no machine.": record.simulated,
        f"This run has not ended: it is at work, or was killed. {_SO_FAR}": not record.summary,
        "This run ended with a failure.": record.summary.get("stopped_by") == "failure",
        f"Lines of events.jsonl that could not be read, and are left out: {record.log.unread:,}.": record.log.unread,
    }
    lines, left_out = curves.curves_of(record)
    staleness, speeds, timeline = staleness_of(record), replicas.speeds_of(record), replicas.timeline_of(record)
    missing = {
        "There is no curve: neither an evaluation nor progress was told of.": not lines,
        _too_many(left_out): left_out,
        "There is no histogram of staleness: it is written when a run ends, and counts used pushes.": not staleness,
        "There is no time line: of no replica is it told that it died, came late or was replaced.": not timeline,
        "There is no picture of speeds: progress was told of less than twice.": not speeds,
    }
    drawn = [picture for picture in (*lines, staleness, *speeds, timeline) if picture is not None]
    told = ((several("dt", [name]), several("dd", [figure])) for name, figure in came_to(record).items())
    figures = "".join(f"<div>{name}{figure}</div>" for name, figure in told)
    return (
        several('p class="note"', [sentence for sentence, holds in warnings.items() if holds])
        + "<h3>What it came to</h3>"
        + (f'<dl class="figures">{figures}</dl>' if figures else "<p>Nothing was told yet.</p>")
        + f"<h3>Pictures</h3>{gallery(drawn)}{several('p', [note for note, holds in missing.items() if holds])}"
        + f"{_lives(record)}{_deaths(record)}<h3>Settings</h3>{_settings(record)}"
    ), drawn


def _too_many(metrics: Sequence[str]) -> str:
    return f"Not drawn, since there are so many metrics: {', '.join(metrics)}."


def _lives(record: Record) -> str:
    """How a run went on, if it was resumed."""
    if len(record.log.lives) < 2:
        return ""
    rows = []
    for place, life in enumerate(record.log.lives, start=1):
        after = "" if life.resumed_after is None else f"{life.resumed_after:,.0f}"
        end = str(life.stopped.get("stopped_by")) if life.stopped else "did not end"
        rows.append([str(place), after, f"{life.began:,.1f}", f"{life.ended:,.1f}", end])
    head = ["life", "went on after examples", "from second", "to second", "stopped by"]
    what = "What a life told beyond the point that the next one went on from is left out of the curves."
    return f"<h3>Lives</h3><p>{what}</p>{table(head, rows)}"


def _deaths(record: Record) -> str:
    rows = []
    for place, life in enumerate(record.log.lives, start=1):
        for ended, process in sorted(life.deaths, key=lambda death: death[0]):
            heir = replicas.replacement(life, process)
            after = f"incarnation {heir.incarnation}, after {heir.began - ended:,.1f} s" if heir else "nobody"
            who = [f"{ended:,.2f}", f"#{process.replica}", str(process.incarnation), str(process.died_of), after]
            rows.append([str(place), *who])
    if not rows:
        return ""
    head = ["life", "at second", "replica", "incarnation", "died of", "replaced by"]
    # Of a single life, nobody needs to be told its number.
    first = len(record.log.lives) == 1
    more = f"<p>And {len(rows) - _DEATHS:,} more.</p>" if len(rows) > _DEATHS else ""
    return f"<h3>Deaths</h3>{table(head[first:], [row[first:] for row in rows[:_DEATHS]])}{more}"


def _settings(record: Record) -> str:
    rows = []
    for name, value in settings_of(record).items():
        cell = escape(value)
        if len(value) > _SHORT:
            cell = f"<details><summary>{escape(value[:_SHORT])}…</summary>{cell}</details>"
        rows.append(f"<tr><th>{escape(name)}</th><td>{cell}</td></tr>")
    return f'<table class="settings">{"".join(rows)}</table>'


# Several runs


def _comparison(records: Sequence[Record], pictures: dict[str, Picture]) -> str:
    """How runs compare, after links to each of them; `pictures` gets what is drawn of them together."""
    drawn, left_out = curves.overlays(records)
    _name(pictures, drawn, "comparison-")
    names = [f"{place}. {record.name}" for place, record in enumerate(records, start=1)]
    links = "".join(f'<li><a href="#run-{place}">{escape(name)}</a></li>' for place, name in enumerate(names, start=1))
    partly = {record.simulated for record in records} == {True, False}
    warning = "Some of these runs were simulated: do not compare their seconds with those of the others."
    warned = several('p class="note"', [warning] if partly else [])
    told, settings = [came_to(record) for record in records], [settings_of(record) for record in records]
    differing = [name for name in _names(settings) if len({each.get(name, "none") for each in settings}) > 1]
    figures = _names(told)
    rows = [
        [name, *(mine.get(which, "none") for which in differing), *(its.get(which, "") for which in figures)]
        for name, mine, its in zip(names, settings, told, strict=True)
    ]
    return (
        f"<nav><ul>{links}</ul></nav><section><h2>Compared</h2>{warned}"
        "<p>A row a run: first the settings in which they differ, then what each came to.</p>"
        f"{table(['run', *differing, *figures], rows)}<h3>Curves</h3>{gallery(drawn)}"
        f"{several('p', [_too_many(left_out)] if left_out else [])}</section>"
    )


def _names(tables: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))
