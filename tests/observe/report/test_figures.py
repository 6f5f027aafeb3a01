"""A run in words and figures."""

from pathlib import Path
from typing import Any

import pytest

from distbelief.observe.report.figures import came_to, settings_of, worded
from distbelief.observe.report.record import read_records
from tests.observe.report.logs import begun, died, progress, record, simulate, started


def test_what_a_run_came_to_is_its_summary(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run")
    told = came_to(*read_records([run.directory]))
    assert told["stopped by"] == "epochs"
    assert told["examples"] == told["examples used"] == "1,920"
    assert told["updates"] == str(run.summary["updates"])
    assert told["accuracy"] == f"{run.metrics['accuracy']:.4g}"
    assert told["test_accuracy"] == f"{run.metrics['test_accuracy']:.4g}"
    assert told["staleness, p99"] == str(run.summary["staleness"]["p99"])
    assert told["pushed"].endswith(" kB")
    assert {"virtual seconds", "training loss", "replicas replaced", "pushes rejected", "fetched"} <= told.keys()


def test_of_a_run_that_was_killed_what_is_known_is_told(tmp_path: Path) -> None:
    events = [started(), begun(0, 1, 0.0), died(0, 1, 1.0), progress(2, 300)]
    assert came_to(record(tmp_path, events)) == {
        "examples": "300",
        "updates": "30",
        "seconds": "2",
        "examples/s": "150",
        "training loss": "0.5",
        "deaths": "1",
    }


def test_odd_figures_are_told_as_they_are(tmp_path: Path) -> None:
    summary = {"examples": [1], "metrics": {"loss": None, "top5": "high"}, "staleness": 3, "bytes": {"fetched": "x"}}
    told = came_to(record(tmp_path, summary={"format": 1, **summary}))
    assert told == {"examples": "[1]", "top5": "high"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "SGD", "lr": 0.1, "nesterov": False}, "SGD(lr 0.1, nesterov no)"),
        ({"kind": "Asynchronous"}, "Asynchronous"),
        ({"kind": "Steps", "rates": {"0": 0.1, "100": 0.01}}, "Steps(rates (0 0.1, 100 0.01))"),
        ({"rows": 100}, "rows 100"),
        ([0.9, {"kind": "Death"}, []], "[0.9, Death, []]"),
        (None, "none"),
        (True, "yes"),
        (1e-8, "1e-08"),
    ],
)
def test_settings_are_told_in_words(value: Any, words: str) -> None:
    assert worded(value) == words


def test_a_setting_without_bottom_is_told_so_far() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    assert worded(deep) == "[" * 9 + "…" + "]" * 9


def test_every_field_of_the_method_is_told_and_what_auto_came_to(tmp_path: Path) -> None:
    method = {"format": 1, "kind": "Downpour", "replicas": "auto", "shards": 1, "clip_norm": None}
    events = [started(replicas=4, epochs=3, seconds_limit=60.0)]
    task = {"name": "points", "arguments": {"rows": 10}, "digest": "abc", "tensors": {"w": "float32 (2,)"}}
    told = settings_of(record(tmp_path, events, method=method, task=task))
    assert told == {
        "task": "points",
        "method": "Downpour",
        "replicas": "auto",
        "shards": "1",
        "clip norm": "none",
        "engine": "local",
        "replicas, decided": "4",
        "seed": "0",
        "chosen by": "validation",
        "limit: epochs": "3",
        "limit: seconds": "60",
        "arguments": "rows 10",
        "digest of the model": "abc",
        "tensors of the model": "w float32 (2,)",
    }


def test_a_simulated_run_tells_its_laws_and_its_trace(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run")
    told = settings_of(*read_records([run.directory]))
    assert told["trace digest"] == run.summary["trace_digest"]
    assert told["engine"].startswith("Simulated(seed ")
