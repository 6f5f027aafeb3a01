"""The page as a browser reads it."""

import base64
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distbelief.observe.report.log import Event
from distbelief.observe.report.page import Page, page_of
from distbelief.observe.report.record import read_records
from tests.observe.report.logs import begun, died, evaluation, progress, record, resumed, started, write

HOSTILE = "<script>alert(1)</script>\"'&<img src=http://evil.example/x>"


class Reader(HTMLParser):
    """What there is on a page, by kinds of elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(page: Page) -> Reader:
    """What holds of any page: it loads and runs nothing, and every picture is in it, with words for it."""
    reader = Reader(page.html)
    assert {name for name, _ in reader.elements}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in page.html
    assert "@import" not in page.html
    policy = {"http-equiv": "Content-Security-Policy"}
    assert {**policy, "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"} in reader.all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.all("meta")
    pictures = reader.all("img")
    embedded = [base64.b64decode((picture["src"] or "").partition(",")[2]) for picture in pictures]
    assert embedded == [picture.png for picture in page.pictures.values()]
    assert all(picture["alt"] for picture in pictures)
    assert len(reader.all("figcaption")) == len(pictures)
    links = [(link["href"] or "").removeprefix("#") for link in reader.all("a")]
    assert links == [heading["id"] for heading in reader.all("h2") if "id" in heading]
    return reader


def page(folder: Path, *events: Event, **files: object) -> Page:
    return page_of([record(folder, events, **files)], "report")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    events = [
        started(engine=HOSTILE, chosen_by=HOSTILE),
        begun(0, 1, 0.0),
        died(0, 1, 1.0, error=HOSTILE),
        evaluation(1, 10, **{HOSTILE: 0.5, "../../$up$": 0.5}),
        {"event": "stopped", "seconds": 2.0, "examples": 10, "updates": 1, "stopped_by": HOSTILE},
    ]
    files = {
        "method": {"format": 1, "kind": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}},
        "task": {"name": HOSTILE, "path": HOSTILE, "arguments": {HOSTILE: HOSTILE * 3}, "digest": HOSTILE},
        "summary": {"examples": 10, "updates": 1, "stopped_by": HOSTILE, "metrics": {HOSTILE: 1.0}},
    }
    folder = HOSTILE.replace("/", "")
    paths = [write(tmp_path / folder, events, **files), write(tmp_path / "other")]
    for made in (page_of(read_records(paths[:1]), folder), page_of(read_records(paths), folder)):
        reader = check(made)
        assert reader.text.count(HOSTILE) > 8
        assert all(re.fullmatch(r"[a-z0-9-]{1,90}\.png", name) for name in made.pictures)


def test_a_long_cell_is_told_whole_where_a_pointer_rests(tmp_path: Path) -> None:
    long = '"' + 40 * "x"
    html = page(tmp_path, started(), died(0, 1, 1.0, error=long), died(1, 1, 2.0, error="short")).html
    assert f'<td title="&#34;{40 * "x"}">&#34;{40 * "x"}</td>' in html
    assert "<td>short</td>" in html


def test_a_wide_table_scrolls_in_its_own_box(tmp_path: Path) -> None:
    html = page(tmp_path, started(), died(0, 1, 1.0)).html
    assert '<div class="wide" tabindex="0"><table>' in html
    assert ".wide { overflow-x: auto;" in html


def test_a_run_that_has_not_ended_is_said_not_to_have(tmp_path: Path) -> None:
    reader = check(page(tmp_path, started(), progress(1, 10), evaluation(1, 10, loss=0.5)))
    assert "This run has not ended" in reader.text
    assert "There is no histogram of staleness" in reader.text
    assert "There is no picture of speeds" in reader.text


@pytest.mark.parametrize("events", [[], [started()], [{"event": "progress"}]])
def test_a_run_that_has_told_nothing_has_a_page(tmp_path: Path, events: list[Event]) -> None:
    made = page(tmp_path, *events)
    reader = check(made)
    assert made.pictures == {}
    for what in ("curve", "histogram of staleness", "time line", "picture of speeds"):
        assert f"There is no {what}" in reader.text


def test_damaged_lines_are_told_of(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [started()])
    (folder / "events.jsonl").write_bytes(b"garbage\n\xff\n")
    reader = check(page_of(read_records([folder]), "report"))
    assert "could not be read, and are left out: 2." in reader.text


def test_how_it_ended_and_whether_time_was_simulated_is_said_first(tmp_path: Path) -> None:
    stopped = {"event": "stopped", "seconds": 2.0, "examples": 10, "updates": 1, "stopped_by": "failure"}
    summary = {"examples": 10, "updates": 1, "stopped_by": "failure"}
    reader = check(page(tmp_path, started(engine="simulated"), stopped, summary=summary))
    assert "This run ended with a failure." in reader.text
    assert "Simulated time: " in reader.text
    assert "has not ended" not in reader.text


def test_deaths_and_lives_are_tables(tmp_path: Path) -> None:
    first = [begun(0, 1, 0.0), begun(2, 1, 0.0), died(0, 1, 2.0, error="as planned"), begun(0, 2, 3.5), progress(9, 90)]
    first.append(died(2, 1, 1.0))
    second = [resumed(50, 5.0), started(5.0), begun(1, 1, 5.0), died(1, 1, 6.0, status=1)]
    reader = check(page(tmp_path, started(), *first, *second))
    assert reader.text.index("1.00#21SIGKILL") < reader.text.index("2.00#01as planned")
    assert "2.00#01as plannedincarnation 2, after 1.5 s" in reader.text
    assert "6.00#11exit code 1nobody" in reader.text
    assert "10.09.0did not end" in reader.text, "life 1: from second 0 to second 9"
    assert "2505.06.0did not end" in reader.text, "life 2: after 50 examples, from 5 to 6"


def test_of_very_many_deaths_some_are_counted(tmp_path: Path) -> None:
    reader = check(page(tmp_path, started(), *(died(r, 1, 1.0) for r in range(1234))))
    assert "And 1,034 more." in reader.text


def test_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    records = read_records(
        [
            write(
                tmp_path / name,
                [started(), evaluation(1, 10, loss=loss), evaluation(2, 20, loss=loss / 2)],
                method={"format": 1, "kind": "Downpour", "replicas": 2, "n_push": n_push},
            )
            for name, loss, n_push in (("a", 1.0, 1), ("b", 2.0, 5))
        ]
    )
    made = page_of(records, "report")
    reader = check(made)
    head = [
        cell for row in re.findall(r"<thead>(.*?)</thead>", made.html)[:1] for cell in re.findall("<th>(.*?)</th>", row)
    ]
    assert head == ["run", "examples", "updates", "seconds", "examples/s", "loss", "deaths", "n push"], "results first"
    assert "1. a2022100.501" in reader.text, "run a, 20 examples, 2 updates, 2 s, 10/s, loss 0.5, no deaths, n_push 1"
    assert "do not compare their seconds" not in reader.text
    assert [name for name in made.pictures if name.startswith("comparison-")] == [
        f"comparison-loss-{axis}.png" for axis in ("seconds", "examples", "updates")
    ]
    assert "2-b-loss-seconds.png" in made.pictures


def test_runs_of_other_clocks_are_warned_of(tmp_path: Path) -> None:
    records = [record(tmp_path / engine, [started(engine=engine)]) for engine in ("local", "simulated")]
    assert "do not compare their seconds" in check(page_of(records, "report")).text


def test_absurd_numbers_are_drawn_or_left_out(tmp_path: Path) -> None:
    """Axes that are asked for too much warn or raise in the midst of drawing; a warning is an error here."""
    rows = [(0, -1e99, -7), (1, 1e99, 10**30)]
    events = [
        started(),
        progress(-5, 10, *rows, loss=1e-308),
        progress(-1, 20, *rows, loss=1e90),
        evaluation(1e90, 30, loss=-1e300, accuracy=1e99),
        {"event": "stopped", "seconds": 2.0, "examples": 10, "updates": 1},
    ]
    summary = {"examples": 10, "updates": 1, "staleness_histogram": [[-5, 0], [3, 1e99], [0, 0]]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = page(tmp_path, *events, summary=summary)
        check(made)
    assert {
        "loss-seconds.png",
        "accuracy-updates.png",
        "staleness.png",
        "speed-per-replica.png",
    } <= made.pictures.keys()
