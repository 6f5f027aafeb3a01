"""The page: what a run came to, its pictures and its settings; of several runs, first how they compare."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from distbelief.observe.report.curves import curves_of, overlays
from distbelief.observe.report.document import document, gallery, table
from distbelief.observe.report.figures import came_to, settings_of
from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import Record
from distbelief.observe.report.replicas import replacement, speeds_of, timeline_of
from distbelief.observe.report.staleness import staleness_of

_DEATHS = 200
"""That are told of one by one."""
_LONGEST = 80
"""Letters of a file's name."""
_SHORT = 160
"""A setting that is longer is folded."""


@dataclass(frozen=True)
class Page:
    """A whole page, and the pictures that are in it, by the names of their files."""

    html: str
    pictures: Mapping[str, Picture]


def page_of(records: Sequence[Record], folder: str) -> Page:
    """The page about runs. `folder`: how the page calls the one in which its pictures lie as files."""
    parts: list[str] = []
    pictures: dict[str, Picture] = {}
    if len(records) == 1:
        head = f"{records[0].what()}: {records[0].name}"
    else:
        head = "Several runs compared"
        compared, drawn = _comparison(records)
        parts += [_contents(records), compared]
        _name(pictures, drawn, "comparison-")
    for place, record in enumerate(records, start=1):
        drawn, notes = _drawings(record)
        title, prefix = "", ""
        if len(records) > 1:
            title = f'<h2 id="run-{place}">{place}. {escape(record.name)}</h2><p>{escape(record.what())}</p>'
            prefix = f"{place}-{record.name}-"
        parts.append(f"<section>{title}{_run(record, drawn, notes)}</section>")
        _name(pictures, drawn, prefix)
    foot = f"<footer><p>Each picture is also a file in the folder {escape(folder)}, beside this page.</p></footer>"
    return Page(document(head, "".join(parts) + foot), pictures)


def _name(pictures: dict[str, Picture], drawn: Iterable[Picture], prefix: str) -> None:
    """Give pictures names that any file system takes, and that only one of them has."""
    for picture in drawn:
        plain = re.sub(r"[^a-z0-9]+", "-", f"{prefix}{picture.name}".lower()).strip("-")[:_LONGEST]
        names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        pictures[next(f"{name}.png" for name in names if f"{name}.png" not in pictures)] = picture


def _contents(records: Sequence[Record]) -> str:
    links = "".join(
        f'<li><a href="#run-{place}">{place}. {escape(record.name)}</a></li>'
        for place, record in enumerate(records, start=1)
    )
    return f"<nav><ul>{links}</ul></nav>"


# One run


def _drawings(record: Record) -> tuple[list[Picture], list[str]]:
    """The pictures of a run, and a sentence for each that could not be drawn."""
    curves, left_out = curves_of(record)
    staleness, timeline = staleness_of(record), timeline_of(record)
    notes = []
    if not curves:
        notes.append("There is no curve: neither an evaluation nor progress was told of.")
    if left_out:
        notes.append(f"Not drawn, since there are so many metrics: {', '.join(left_out)}.")
    if staleness is None:
        notes.append("There is no histogram of staleness: it is written when a run ends, and counts used pushes.")
    if timeline is None:
        notes.append("There is no time line: of no replica is it told that it died, came late or was replaced.")
    speeds = speeds_of(record)
    if not speeds:
        notes.append("There is no picture of speeds: progress was told of less than twice.")
    drawn = [*curves, staleness, *speeds, timeline]
    return [picture for picture in drawn if picture is not None], notes


def _run(record: Record, pictures: Sequence[Picture], notes: Iterable[str]) -> str:
    said = "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in _warnings(record))
    missing = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"{said}<h3>What it came to</h3>{_figures(record)}"
        f"<h3>Pictures</h3>{gallery(pictures)}{missing}{_lives(record)}{_deaths(record)}"
        f"<h3>Settings</h3>{_settings(record)}"
    )


def _warnings(record: Record) -> list[str]:
    """What a person should know before looking at anything else."""
    said = []
    if record.simulated:
        said.append("Simulated time: seconds and speeds are those of a simulation, and of no machine.")
    if not record.summary:
        said.append("This run has not ended: it is at work, or was killed. What follows is what its files tell so far.")
    if record.summary.get("stopped_by") == "failure":
        said.append("This run ended with a failure.")
    if record.log.unread:
        said.append(f"Lines of events.jsonl that could not be read, and are left out: {record.log.unread:,}.")
    return said


def _figures(record: Record) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in came_to(record).items()
    )
    return f'<dl class="figures">{cells}</dl>' if cells else "<p>Nothing was told yet.</p>"


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
    several = len(record.log.lives) > 1
    rows = []
    for place, life in enumerate(record.log.lives, start=1):
        dead = [(p.ended, p.died_of, p) for p in life.processes if p.died_of is not None and p.ended is not None]
        for ended, cause, process in sorted(dead, key=lambda death: death[0]):
            heir = replacement(life, process)
            after = f"incarnation {heir.incarnation}, after {heir.began - ended:,.1f} s" if heir else "nobody"
            who = [f"{ended:,.2f}", f"#{process.replica}", str(process.incarnation), cause, after]
            rows.append([str(place), *who] if several else who)
    if not rows:
        return ""
    head = ["at second", "replica", "incarnation", "died of", "replaced by"]
    more = f"<p>And {len(rows) - _DEATHS:,} more.</p>" if len(rows) > _DEATHS else ""
    return f"<h3>Deaths</h3>{table(['life', *head] if several else head, rows[:_DEATHS])}{more}"


# Settings


def _settings(record: Record) -> str:
    rows = []
    for name, value in settings_of(record).items():
        cell = escape(value)
        if len(value) > _SHORT:
            cell = f"<details><summary>{escape(value[:_SHORT])}…</summary>{cell}</details>"
        rows.append(f"<tr><th>{escape(name)}</th><td>{cell}</td></tr>")
    return f'<table class="settings">{"".join(rows)}</table>'


# Several runs


def _comparison(records: Sequence[Record]) -> tuple[str, list[Picture]]:
    drawn, left_out = overlays(records)
    warning = ""
    if {record.simulated for record in records} == {True, False}:
        sentence = "Some of these runs were simulated: do not compare their seconds with those of the others."
        warning = f'<p class="note">{sentence}</p>'
    told = [came_to(record) for record in records]
    settings = [settings_of(record) for record in records]
    differing = [name for name in _names(settings) if len({each.get(name, "none") for each in settings}) > 1]
    figures = _names(told)
    rows = [
        [
            f"{place}. {record.name}",
            *(mine.get(name, "none") for name in differing),
            *(its.get(name, "") for name in figures),
        ]
        for place, (record, mine, its) in enumerate(zip(records, settings, told, strict=True), start=1)
    ]
    more = f"<p>Not drawn, since there are so many metrics: {escape(', '.join(left_out))}.</p>" if left_out else ""
    text = (
        f"<section><h2>Compared</h2>{warning}<p>A row a run: first the settings in which they differ, then what each "
        f"came to.</p>{table(['run', *differing, *figures], rows)}<h3>Curves</h3>{gallery(drawn)}{more}</section>"
    )
    return text, drawn


def _names(tables: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))
