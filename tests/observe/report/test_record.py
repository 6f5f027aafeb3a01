"""A run from its files, and what is said of files that are none of a run."""

import json
import shutil
from pathlib import Path

import pytest

from distbelief.errors import DirectoryError, UsageError
from distbelief.observe.report.record import read_records
from tests.observe.report.logs import evaluation, progress, record, resumed, started, write

STOPPED = {"event": "stopped", "seconds": 2.0, "examples": 200, "updates": 20, "stopped_by": "epochs"}
SUMMARY = {"format": 1, "examples": 200, "updates": 20, "stopped_by": "epochs", "history": []}


def wrong(path: Path) -> str:
    with pytest.raises(DirectoryError) as caught:
        read_records([path])
    return str(caught.value)


def test_nonsense_is_said_in_a_sentence(tmp_path: Path) -> None:
    assert "there is no directory" in wrong(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "there is no directory" in wrong(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "holds no run" in wrong(tmp_path / "empty")


@pytest.mark.parametrize("name", ["method", "task", "summary"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"format": ', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "cannot be read (Expected `object`, got `array`): mend it, or leave this run out"),
        ('{"format": 2}', "is of format 2, and this distbelief reads format 1: install a newer distbelief"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    path = write(tmp_path / "run", summary=SUMMARY)
    (path / f"{name}.json").write_text(content)
    assert f"{name}.json {sentence}" in wrong(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    (path / "task.json").write_bytes(b"\xff\xfe\xff")
    assert "task.json cannot be read" in wrong(path)
    (path / "task.json").unlink()
    (path / "events.jsonl").unlink()
    (path / "events.jsonl").mkdir()
    assert "events.jsonl cannot be read (Is a directory): make it readable" in wrong(path)


def test_a_run_that_was_killed_is_known_by_its_log(tmp_path: Path) -> None:
    found = record(tmp_path, [started(), evaluation(1, 100, loss=0.7, accuracy=0.5), progress(2, 200, loss=0.6)])
    assert found.summary == {}
    assert found.reached == {
        "examples": 200,
        "updates": 20,
        "seconds": 2.0,
        "examples_per_second": 100.0,
        "train_loss": 0.6,
        "metrics": {"loss": 0.7, "accuracy": 0.5},
        "deaths": 0,
    }


def test_the_summary_of_an_earlier_life_is_none_of_a_run_that_was_killed_later(tmp_path: Path) -> None:
    ended = [started(), STOPPED]
    assert record(tmp_path / "ended", ended, summary=SUMMARY).summary == SUMMARY
    again = [*ended, resumed(200, 2.0), started(2.0)]
    assert record(tmp_path / "killed", again, summary=SUMMARY).summary == {}
    unwritten = [*again, {**STOPPED, "examples": 300, "updates": 30}]
    assert record(tmp_path / "unwritten", unwritten, summary=SUMMARY).summary == {}


def test_a_run_whose_log_is_gone_has_its_history(tmp_path: Path) -> None:
    history = [{"epoch": 1.0, "examples": 100, "updates": 10, "seconds": 1.0, "loss": 0.5}, 7, {"loss": 1.0}]
    path = write(tmp_path / "run", summary={**SUMMARY, "history": history})
    (path / "events.jsonl").unlink()
    (found,) = read_records([path])
    assert [(p.at, p.values) for p in found.evaluations] == [((1.0, 100.0, 10.0), {"loss": 0.5})]


def test_the_test_set_is_told_of_once_where_it_chooses(tmp_path: Path) -> None:
    row = evaluation(1, 100, loss=0.5, test_loss=0.5)
    names = {
        chosen: list(record(tmp_path / chosen, [started(chosen_by=chosen), row]).evaluations[0].values)
        for chosen in ("test", "validation")
    }
    assert names == {"test": ["loss"], "validation": ["loss", "test_loss"]}


def test_it_is_known_whether_time_is_simulated(tmp_path: Path) -> None:
    assert record(tmp_path / "killed", [started(engine="simulated")]).tag == "simulated time"
    engine = {"kind": "Simulated"}
    assert record(tmp_path / "ended", [STOPPED], summary={**SUMMARY, "engine": engine}).simulated
    assert record(tmp_path / "local", [started(), STOPPED], summary=SUMMARY).tag == ""


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("a/run", "b/run", "b/other")]
    assert [found.name for found in read_records(paths)] == ["a/run", "b/run", "b/other"]
    assert [found.name for found in read_records(paths[1:])] == ["run", "other"]
    with pytest.raises(UsageError, match="is given twice"):
        read_records([paths[0], tmp_path / "b" / ".." / "a" / "run"])


def test_what_the_task_is(tmp_path: Path) -> None:
    def what(**task: object) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return record(tmp_path / "run", task={"format": 1, **task}).what()

    assert what(name="digits", path=None) == "digits"
    assert what(name="task", path="/home/me/my.py") == "/home/me/my.py:task"
    assert what() == "a task without a file"
    assert json.loads((tmp_path / "run" / "task.json").read_text()) == {"format": 1}
