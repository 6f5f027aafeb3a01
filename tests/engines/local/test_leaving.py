"""Replicas that are told to leave, by SIGTERM: they finish their batch, give back what they hold, and are replaced."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import distbelief as db
from tests import problems
from tests.engines.local.faults import DyingLoss, Once

EXAMPLES, BATCH, EPOCHS = 640, 16, 4
NOTHING = {"used": 0, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}


def train(tmp_path: Path, loss: Any, **changes: Any) -> db.Run:
    given: dict[str, Any] = {"replicas": 2, "shards": 2, "batch_size": BATCH, "optimizer": db.SGD(0.1)}
    return db.train(
        problems.task(loss=loss),
        db.Downpour(**given | changes),
        until=db.Until(epochs=EPOCHS),
        directory=tmp_path / "run",
        progress=False,
    )


def events(run: db.Run, kind: str) -> list[dict[str, Any]]:
    lines = (run.directory / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@dataclass(frozen=True)
class Leaving:
    """A loss at whose seventh batch one replica is told to leave; `killed` before the end of that batch, or not.

    The others wait there until `processes` have begun, its replacement and the controller, which tries a batch, among
    them: so work is left for that one.
    """

    folder: Path
    processes: int
    killed: bool = False

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        told = self.folder / "told"
        (self.folder / f"began-{os.getpid()}").touch()
        loss = DyingLoss(Once(told, after=7, how=signal.SIGTERM))(prediction, target)
        if self.killed:
            DyingLoss(Once(self.folder / "killed", after=7))(prediction, target)
        # Who was told has taken the default action back.
        while told.exists() and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            if len(list(self.folder.glob("began-*"))) >= self.processes:
                break
            time.sleep(0.01)
        return loss


@pytest.mark.parametrize(
    "changes",
    [{"replicas": 1}, {"replicas": (1, 2)}, {"n_push": 3, "n_fetch": 2}, {"admission": db.Buffered(2)}],
    ids=str,
)
def test_who_is_told_to_leave_finishes_its_batch_and_is_replaced(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Nothing is lost: it has pushed what it had accrued, and given back the rest, the lease ahead included."""
    run = train(tmp_path, Leaving(tmp_path, 3 if changes.get("replicas") == 1 else 4), **changes)
    account = run.summary["account"]
    assert sum(account.values()) == EPOCHS * EXAMPLES
    assert "admission" in changes or account == NOTHING | {"used": EPOCHS * EXAMPLES}
    (left,) = events(run, "left")
    assert (left["status"], left["error"], left["account"]) == (0, None, NOTHING)
    assert events(run, "died") == []
    assert run.summary["restarts"] == 1
    assert [e["incarnation"] for e in events(run, "replica") if e["replica"] == left["replica"]] == [1, 2]


def test_who_is_killed_while_it_leaves_has_not_failed(tmp_path: Path) -> None:
    """The account is that of any death: the batch in work is leased again."""
    run = train(tmp_path, Leaving(tmp_path, 4, killed=True))
    assert run.summary["account"] == NOTHING | {"used": EPOCHS * EXAMPLES}
    (left,) = events(run, "left")
    assert left["status"] == -signal.SIGKILL
    assert left["account"] == NOTHING | {"used": 6 * BATCH}
    assert events(run, "died") == []
    assert run.summary["restarts"] == 1
