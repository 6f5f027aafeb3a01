from pathlib import Path

import pytest

from benchmarks.journal import Journal


def fail() -> dict[str, int]:
    raise AssertionError("made again")


def test_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    settings = {"rates": (0.1, 0.2)}
    assert Journal(path, settings, 2).once("a", lambda: {"speed": 1}) == {"speed": 1}
    again = Journal(path, settings, 2)
    assert again.once("a", fail) == {"speed": 1}
    assert again.once("b", lambda: {"speed": 2}) == {"speed": 2}
    assert Journal(path, settings, 2).runs == {"a": {"speed": 1}, "b": {"speed": 2}}


def test_a_run_that_failed_is_not_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs.json", {}, 1)
    with pytest.raises(AssertionError):
        journal.once("a", fail)
    assert journal.runs == {}


def test_runs_of_other_settings_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    Journal(path, {"repeats": 1}, 1).once("a", lambda: {"speed": 1})
    assert Journal(path, {"repeats": 2}, 1).runs == {}


def test_a_complete_measurement_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    journal = Journal(path, {}, 1)
    journal.once("a", lambda: {"speed": 1})
    journal.close()
    assert list(tmp_path.iterdir()) == []
