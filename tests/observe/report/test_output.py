"""A report on the disk."""

import sys
from pathlib import Path

import pytest

import distbelief as db
from distbelief.errors import DirectoryError, UsageError
from distbelief.observe.report.output import write_report
from tests import problems
from tests.observe.report.logs import evaluation, progress, simulate, started, write
from tests.observe.report.test_page import Reader
from tests.observe.report.test_picture import chunks


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run that is drawn in a moment."""
    return write(tmp_path / "small", [started()])


def test_a_run_is_reported_in_its_own_directory(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run", db.Death("replica 1", at=0.5))
    before = {path.name for path in run.directory.iterdir()}
    assert write_report([run.directory]) == run.directory / "report.html"
    assert {path.name for path in run.directory.iterdir()} == before | {"report.html", "report"}
    html = (run.directory / "report.html").read_text()
    files = {path.name: path.read_bytes() for path in (run.directory / "report").iterdir()}
    assert len(files) == len(Reader(html).all("img")) == 12
    for png in files.values():
        assert b"IDAT" in chunks(png)
    # Reported again, and gone on with: nothing of it is in a run's way.
    assert write_report([run.directory]).read_text() == html
    again = simulate(run.directory, epochs=4, resume=True)
    assert again.summary["resumed_at"] == run.summary["examples"]


def test_runs_are_reported_together_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = db.train(
        problems.task(test=problems.points()),
        db.Downpour(replicas=1),
        until=db.Until(epochs=2),
        directory=tmp_path / "local",
        progress=False,
    )
    killed = write(tmp_path / "killed", [started(), progress(1, 10), evaluation(1, 10, loss=0.5)])
    monkeypatch.chdir(tmp_path)
    assert write_report([local.directory, killed]) == Path("report.html")
    names = {path.name for path in Path("report").iterdir()}
    assert {"comparison-loss-seconds.png", "1-local-staleness.png", "2-killed-loss-updates.png"} <= names
    assert not (local.directory / "report.html").exists()


def test_the_page_and_its_folder_are_called_what_they_are_to_be_called(small: Path, tmp_path: Path) -> None:
    assert write_report([small], tmp_path / "mine.v1.html") == tmp_path / "mine.v1.html"
    assert (tmp_path / "mine.v1").is_dir()
    assert "the folder mine.v1, beside this page" in (tmp_path / "mine.v1.html").read_text()


def test_what_is_no_report_is_never_replaced(small: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>years of work</p>")
    with pytest.raises(UsageError, match="is there already, and no part of a report"):
        write_report([small], mine)
    assert mine.read_text() == "<p>years of work</p>"
    drawn = write(tmp_path / "drawn", [started(), progress(1, 10)])
    (drawn / "report").mkdir()
    photograph = drawn / "report" / "loss-seconds.png"
    photograph.write_bytes(b"\x89PNG of my cat")
    with pytest.raises(UsageError, match=r"loss-seconds\.png is there already"):
        write_report([drawn])
    assert photograph.read_bytes() == b"\x89PNG of my cat"
    assert not (drawn / "report.html").exists()


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("none/report.html", "there is no folder .*none to write report.html to"),
        ("folder.html", "folder.html is a folder: name a file in it"),
        ("report.txt", "must end in .html"),
        ("report", "must end in .html"),
        ("file.html", "would go to the folder .*file, which is a file"),
        ("/proc/self/report.html", "cannot write /proc/self/report: .*; name another place with --output"),
    ],
)
def test_a_place_that_cannot_be_is_said_in_a_sentence(small: Path, tmp_path: Path, output: str, sentence: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=sentence):
        write_report([small], tmp_path / output)


def test_where_there_is_no_run_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError):
        write_report([tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_says_what_to_install(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install matplotlib jinja2"):
        write_report([small])
