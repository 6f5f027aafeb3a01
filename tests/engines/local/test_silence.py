"""What the controller notices without being told: replicas that are stopped, and deaths that are one event."""

import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.engines import replica_slot
from tests import problems

EPOCHS = 4


def slowly(model: nn.Module, batch: Any) -> torch.Tensor:
    """A batch takes long enough that a signal comes in the midst of the run."""
    time.sleep(0.005)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def run_with(count: int, number: signal.Signals, victims: int) -> tuple[db.Run, list[dict[str, Any]]]:
    """Train with `count` replicas, and send a signal to some of them at one instant; returns the deaths too."""
    pids: dict[int, int] = {}
    deaths: list[dict[str, Any]] = []

    def meddle(event: dict[str, Any], run: object) -> None:
        if event["event"] == "replica":
            pids[event["replica"]] = event["pid"]
        if event["event"] == "died":
            deaths.append(event)
        if event["event"] == "progress" and event["examples"] and not deaths and len(pids) == count:
            for replica in range(victims):
                os.kill(pids.pop(replica), number)

    x, y = problems.points()
    run = db.train(
        db.Task(problems.network, step=slowly, train=(x, y)),
        db.Downpour(replicas=count, batch_size=4),
        until=db.Until(epochs=EPOCHS),
        callbacks=[meddle],
        progress=False,
    )
    assert sum(run.summary["account"].values()) == EPOCHS * len(x)
    return run, deaths


def test_a_replica_that_stays_stopped_outside_a_lock_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Where all data are leased, the run would wait for it for ever."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replica_slot, "_SILENCE_S", 1.0)
    run, deaths = run_with(2, signal.SIGSTOP, 1)
    assert [death["status"] for death in deaths] == [-signal.SIGKILL]
    assert run.summary["restarts"] == 1


def test_all_replicas_killed_at_one_instant_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Six deaths without any work between them would end the run, but they are one event."""
    monkeypatch.chdir(tmp_path)
    run, deaths = run_with(6, signal.SIGKILL, 6)
    assert len(deaths) == 6
    assert run.summary["restarts"] == 6
