"""Callbacks in whole runs, and alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import distbelief as db
from distbelief.errors import UsageError, UserCodeError
from distbelief.run.callbacks import Callbacks, LiveRun
from tests import problems

METHOD = db.Downpour(replicas=1, batch_size=16, optimizer=db.SGD(0.05))


def train(directory: Path, *callbacks: Any, epochs: int = 3) -> db.Run:
    return db.train(
        problems.task(test=problems.points()),
        METHOD,
        until=db.Until(epochs=epochs),
        directory=directory,
        callbacks=callbacks,
        progress=False,
    )


def test_they_are_told_what_the_log_says(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    train(tmp_path / "run", lambda event, run: told.append(event))
    log = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["seconds"]) for event in told] == [(line["event"], line["seconds"]) for line in log]
    assert {"started", "replica", "evaluation", "checkpoint", "stopped"} <= {event["event"] for event in told}


def test_they_see_the_run_and_its_model(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float], torch.Tensor]] = []

    def look(event: dict[str, Any], run: LiveRun) -> None:
        assert run.directory == tmp_path / "run"
        if event["event"] == "stopped":
            model = run.model()
            assert not model.training
            seen.append((len(run.history), run.metrics, next(model.parameters()).detach()))

    run = train(tmp_path / "run", look)
    ((evaluations, metrics, weights),) = seen
    assert evaluations == len(run.history)
    assert metrics == run.metrics
    assert torch.equal(weights, next(run.model().parameters()))


def test_stop_ends_the_run_as_a_limit_would(tmp_path: Path) -> None:
    def enough(event: dict[str, Any], run: LiveRun) -> None:
        if event["event"] == "evaluation":
            run.stop("loss is good enough")
            run.stop("another reason")

    run = train(tmp_path / "run", enough, epochs=10_000)
    assert run.summary["stopped_by"] == "loss is good enough"
    assert run.summary["account"]["used"] == run.summary["examples"]
    assert run.history
    assert run.history[-1]["examples"] == run.summary["examples"]


@pytest.mark.parametrize("when", ["started", "stopped"])
def test_one_that_raises_ends_the_run_and_loses_nothing(tmp_path: Path, when: str) -> None:
    calls: list[str] = []

    def broken(event: dict[str, Any], run: LiveRun) -> None:
        calls.append(event["event"])
        if event["event"] == when:
            raise KeyError("no such table")

    with pytest.raises(UserCodeError, match=rf"no such table.*'{when}'[\s\S]*test_callbacks.py"):
        train(tmp_path / "run", broken)
    assert calls.count(when) == 1
    assert calls[-1] == when
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["format"] == 1


@pytest.mark.parametrize("nonsense", ["print", 3, [print, "print"], print])
def test_what_is_no_list_of_functions_is_refused(tmp_path: Path, nonsense: Any) -> None:
    with pytest.raises(UsageError, match="callbacks must be a list of functions"):
        db.train(problems.task(), METHOD, callbacks=nonsense, directory=tmp_path / "run", progress=False)


def test_a_stop_without_a_reason_is_refused(tmp_path: Path) -> None:
    run = LiveRun(tmp_path, [], problems.network)
    for nonsense in ("", None, 3):
        with pytest.raises(UsageError, match="stop needs a reason"):
            run.stop(nonsense)  # type: ignore[arg-type]
    assert run.stopped_by is None
    assert run.metrics == {}


def test_they_are_told_each_thing_once_in_order_one_after_the_other(tmp_path: Path) -> None:
    told: list[str] = []
    callbacks = Callbacks(
        [lambda event, run: told.append(f"a {event['event']}"), lambda event, run: told.append(f"b {event['event']}")],
        LiveRun(tmp_path, [], problems.network),
    )
    callbacks.add({"event": "one"})
    callbacks.add({"event": "two"})
    callbacks.call()
    callbacks.call()
    assert told == ["a one", "b one", "a two", "b two"]
