"""Whatever escapes from a run, what was reached is written first; a request to end is heard wherever the run stands."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import distbelief as db
from distbelief.engines.speeds import Speeds
from distbelief.errors import UserCodeError
from distbelief.run.checkpoint import newest
from tests import problems

ENGINES = [db.Local(), db.Simulated()]


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def raising(error: BaseException) -> Callable[..., float]:
    """A callback or metric that raises when it is called for the fifth time."""
    calls: list[int] = []

    def function(*_: object) -> float:
        calls.append(1)
        if len(calls) == 5:
            raise error
        return 0.5

    return function


def train(directory: Path, engine: Any, *, epochs: int = 500, metric: Any = None, **options: Any) -> db.Run:
    metrics = {} if metric is None else {"mine": metric}
    return db.train(
        problems.task(test=problems.points(), metrics=metrics),
        options.pop("method", db.Downpour(replicas=2, batch_size=16, optimizer=db.SGD(0.01))),
        engine=engine,
        until=db.Until(epochs=epochs),
        directory=directory,
        progress=False,
        **options,
    )


def check_written(run: Path, stopped_by: str) -> None:
    """All is there, and of one instant."""
    summary = json.loads((run / "summary.json").read_text())
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    found, complaints = newest(run / "checkpoints")
    assert (last["event"], last["stopped_by"], summary["stopped_by"]) == ("stopped", stopped_by, stopped_by)
    assert found is not None
    assert complaints == []
    assert found.examples == sum(summary["account"].values())
    assert (run / "model.safetensors").exists()


@pytest.mark.parametrize("engine", ENGINES, ids=["local", "simulated"])
def test_what_a_callback_exits_with(tmp_path: Path, engine: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        train(tmp_path / "run", engine, callbacks=[raising(SystemExit(3))])
    assert exit_.value.code == 3
    check_written(tmp_path / "run", "failure")


ERRORS: list[tuple[BaseException, type[BaseException], str]] = [
    (SystemExit(0), UserCodeError, r"SystemExit\(0\); what was reached is in .*\n\n.*test_escapes"),
    (KeyboardInterrupt(), KeyboardInterrupt, r"what was reached is in .*\n\n.*test_escapes"),
    (GeneratorExit(), UserCodeError, r"GeneratorExit\(\); what was reached is in .*\n\n.*test_escapes"),
    (NoText(), UserCodeError, r"NoText, which has no text[\s\S]*test_escapes"),
    (ValueError("mine"), UserCodeError, r"ValueError\('mine'\)[\s\S]*test_escapes"),
]


@pytest.mark.parametrize("where", ["callback", "metric"])
@pytest.mark.parametrize(("error", "kind", "told"), ERRORS, ids=[type(error).__name__ for error, *_ in ERRORS])
def test_what_the_users_code_raises(
    tmp_path: Path, where: str, error: BaseException, kind: type[BaseException], told: str
) -> None:
    options = {"callbacks": [raising(error)]} if where == "callback" else {"metric": raising(error)}
    with pytest.raises(kind, match=told):
        train(tmp_path / "run", db.Simulated(), **options)
    check_written(tmp_path / "run", "interrupted" if isinstance(error, KeyboardInterrupt) else "failure")


@pytest.mark.parametrize("engine", ENGINES, ids=["local", "simulated"])
def test_a_bug_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def plant(event: dict[str, Any], run: Any) -> None:
        if event["event"] == "evaluation":
            monkeypatch.setattr(Speeds, "update", None)

    with pytest.raises(TypeError, match="not callable") as raised:
        train(tmp_path / "run", engine, callbacks=[plant])
    assert "what was reached is in" in raised.value.__notes__[0]
    check_written(tmp_path / "run", "failure")
    monkeypatch.undo()
    assert train(tmp_path / "run", engine, epochs=30, resume=True).summary["examples"] == 30 * 640


def test_what_is_in_the_path_of_imports_need_not_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nowhere")])
    assert train(tmp_path / "run", db.Local(), epochs=1).summary["examples"] == 640


# Requests to end


@dataclass(frozen=True)
class Blocks:
    """A rule of the user's own that waits for something that never comes, inside the shard's lock.

    It has its controller asked to end, twice, once it holds the lock.
    """

    lr: float = 0.1
    state: ClassVar[dict[str, float]] = {}

    def update_(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: Any, step: Tensor, rate: float
    ) -> None:
        if step > 50:
            for _ in range(2):
                time.sleep(0.5)
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1000.0)
        torch._foreach_add_(list(parameters), list(gradients), alpha=-rate)


def request(*after_s: float) -> None:
    for seconds in after_s:
        threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGTERM]).start()


def waits(*_: object) -> float:
    """User code that takes far too long, and asks for an end."""
    request(0.1)
    time.sleep(100.0)
    return 0.0


@pytest.mark.parametrize("engine", ENGINES, ids=["local", "simulated"])
@pytest.mark.parametrize("where", ["callback", "metric"])
def test_a_request_is_heard_while_the_users_code_waits(tmp_path: Path, engine: Any, where: str) -> None:
    calls: list[int] = []

    def wait(*_: object) -> float:
        calls.append(1)
        return waits() if len(calls) == 6 else 0.0

    options = {"callbacks": [wait]} if where == "callback" else {"metric": wait}
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM: what was reached is in"):
        train(tmp_path / "run", engine, **options)
    assert time.monotonic() - began < 60
    check_written(tmp_path / "run", "terminated")


def test_a_request_is_heard_while_a_rule_holds_a_shard(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="SIGTERM: what was reached is in"):
        train(
            tmp_path / "run",
            db.Local(),
            method=db.Downpour(replicas=2, batch_size=16, optimizer=Blocks()),
            checkpoint_every=db.Every(seconds=0.1),
        )
    assert time.monotonic() - began < 60
    check_written(tmp_path / "run", "terminated")
