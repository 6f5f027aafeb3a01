"""Deaths of real replicas at named instants: the run goes on, and the account is exact."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import distbelief as db
from tests import problems
from tests.engines.local.faults import DyingAdmission, DyingLoss, DyingRule, Once
from tests.lives import launch

EXAMPLES, BATCH, EPOCHS, SHARDS = 640, 16, 4, 2


def train(tmp_path: Path, **changes: Any) -> db.Run:
    loss = changes.pop("loss", None)
    task = problems.task(**({} if loss is None else {"loss": loss}))
    given: dict[str, Any] = {"replicas": 2, "shards": SHARDS, "batch_size": BATCH, "optimizer": db.SGD(0.1)}
    until = changes.pop("until", db.Until(epochs=EPOCHS))
    return db.train(task, db.Downpour(**(given | changes)), until=until, directory=tmp_path / "run", progress=False)


def died(run: db.Run) -> list[dict[str, Any]]:
    lines = (run.directory / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "died"]


def is_exact(run: db.Run) -> bool:
    """Every example of every epoch is in one account, and a push is partial at most once a death."""
    account = run.summary["account"]
    return bool(sum(account.values()) == EPOCHS * EXAMPLES and account["partial"] <= BATCH * len(died(run)))


def test_before_the_hand_over(tmp_path: Path) -> None:
    """The batch in work was begun at no shard: it is leased again, and nothing is lost."""
    run = train(tmp_path, loss=DyingLoss(Once(tmp_path / "marker", after=7)))
    assert is_exact(run)
    assert run.summary["account"]["partial"] == 0
    assert run.summary["restarts"] == len(died(run)) == 1
    # Six batches were pushed by then; they and nothing else are accounted to the dead.
    assert died(run)[0]["account"]["used"] % (6 * BATCH) == 0
    assert run.summary["updates"] == EPOCHS * EXAMPLES / BATCH


def test_between_two_shards(tmp_path: Path) -> None:
    """One shard has the push, the other has not: it is spent, and counted as partial."""
    run = train(tmp_path, admission=DyingAdmission(Once(tmp_path / "marker", after=2 * SHARDS)))
    assert is_exact(run)
    assert run.summary["account"]["partial"] == BATCH
    assert died(run)[0]["account"] == {"used": BATCH, "refused": 0, "dropped": 0, "partial": BATCH, "poisoned": 0}
    assert run.summary["updates"] == EPOCHS * EXAMPLES / BATCH - 1


def test_at_the_first_shard(tmp_path: Path) -> None:
    """Nothing was changed at any shard: the batch is leased again."""
    run = train(tmp_path, admission=DyingAdmission(Once(tmp_path / "marker", after=2 * SHARDS + 1)))
    assert is_exact(run)
    assert run.summary["account"]["partial"] == 0
    assert run.summary["updates"] == EPOCHS * EXAMPLES / BATCH


@pytest.mark.parametrize("call", [1, 2])
def test_inside_the_kernel(tmp_path: Path, call: int) -> None:
    """The shard's lock is freed, the push is marked as torn, and no other push waits."""
    run = train(tmp_path, optimizer=DyingRule(Once(tmp_path / "marker", after=2 * SHARDS + call)))
    assert is_exact(run)
    assert run.summary["account"]["partial"] == BATCH
    assert run.summary["restarts"] == 1


def test_after_the_last_shard(tmp_path: Path) -> None:
    """With one replica every push is known: the batches before the one in work are used, exactly these."""
    run = train(tmp_path, replicas=1, loss=DyingLoss(Once(tmp_path / "marker", after=4)))
    assert is_exact(run)
    assert died(run)[0]["account"] == {"used": 3 * BATCH, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}


def test_synchronous_rounds_survive_a_death(tmp_path: Path) -> None:
    """A dead member of a round is no longer waited for."""
    run = train(tmp_path, admission=db.Buffered(2), loss=DyingLoss(Once(tmp_path / "marker", after=5)))
    assert is_exact(run)
    assert run.summary["restarts"] == 1


def test_a_stopped_holder_of_a_lock_is_killed(tmp_path: Path) -> None:
    """Stopped inside the kernel, it would stop everyone; after two seconds it is killed."""
    run = train(tmp_path, optimizer=DyingRule(Once(tmp_path / "marker", after=5, how=signal.SIGSTOP)))
    assert is_exact(run)
    assert died(run)[0]["status"] == -signal.SIGKILL


def test_accrued_batches_of_the_dead_are_leased_again(tmp_path: Path) -> None:
    """What was accrued and not pushed at a death is in no push."""
    run = train(tmp_path, replicas=1, n_push=4, n_fetch=4, loss=DyingLoss(Once(tmp_path / "marker", after=4)))
    assert is_exact(run)
    # The first push holds one batch; two more were accrued when the fourth died.
    assert died(run)[0]["account"]["used"] == BATCH


def test_a_failure_that_repeats_ends_the_run_once(tmp_path: Path) -> None:
    """The same exception from two replicas ends the run with the user's own frames."""

    def loss(prediction: Any, target: Any) -> Any:
        if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE":  # in a replica, and not in the try-out before it
            raise KeyError("a mistake of the user")
        return prediction.sum()

    with pytest.raises(db.DistBeliefError, match="a mistake of the user") as error:
        train(tmp_path, loss=loss)
    assert "in loss" in str(error.value)
    assert "distbelief/engines" not in str(error.value)
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """Its pushes are refused and counted, the server stays finite, and the sentence says what to do."""

    def loss(prediction: Any, target: Any) -> Any:
        return prediction.sum() * float("nan")

    with pytest.raises(db.DistBeliefError, match="Lower lr"):
        train(tmp_path, loss=loss)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rejected"] >= 20
    assert summary["updates"] == 0


def test_parameters_that_overflow_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(db.DistBeliefError, match=r"[Ll]ower lr"):
        train(tmp_path, optimizer=db.SGD(1e38))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"] >= 0


def test_an_evaluation_that_fails_ends_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    """It passed when it was tried; the run ends with the user's frames, and what was reached is written."""
    calls = []

    def metric(prediction: Any, target: Any) -> float:
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("a mistake in a metric")
        return 0.0

    task = problems.task(test=problems.points(16), metrics={"odd": metric})
    with pytest.raises(db.DistBeliefError, match="a mistake in a metric"):
        db.train(task, db.Downpour(replicas=1), until=db.Until(epochs=300), directory=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "model.safetensors").exists()


CONTROLLER = """
import sys
import distbelief as db
from tests import problems
db.train(problems.task(), db.Downpour(replicas=2), until=db.Until(seconds=600), directory=sys.argv[1], progress=False)
"""


def test_nothing_outlives_the_controller(tmp_path: Path) -> None:
    """Replicas end by themselves within five seconds of its death."""
    controller = launch(["-c", CONTROLLER, str(tmp_path / "run")])
    pids: list[int] = []
    deadline = time.monotonic() + 60
    while not _has_updates(tmp_path / "run" / "events.jsonl") and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    pids = [event["pid"] for event in map(json.loads, lines) if event["event"] == "replica"]
    assert len(pids) == 2
    controller.kill()
    controller.wait()
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _has_updates(log: Path) -> bool:
    return log.exists() and any(
        event["event"] == "progress" and event["updates"] > 0 for event in map(json.loads, log.read_text().splitlines())
    )


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Poisonous(torch.utils.data.Dataset[Any]):
    """Points of which one ends the process that reads it."""

    def __init__(self, how: str) -> None:
        self.x, self.y = problems.points(EXAMPLES)
        self.how = how

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> Any:
        # In a replica: the controller only tries the first batch.
        if index == POISON:
            if self.how == "raises":
                raise ValueError(f"cannot decode {object()!r}")
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.x[index], self.y[index]


POISON = 600


def test_a_poisonous_example_costs_its_batch_and_is_named(tmp_path: Path) -> None:
    run = poisoned(tmp_path, "kills", tolerate=1)
    assert run.summary["account"] == {"used": 624, "refused": 0, "dropped": 0, "partial": 0, "poisoned": BATCH}
    assert run.summary["poisoned"] == BATCH
    assert len(died(run)) == 3
    lines = (run.directory / "events.jsonl").read_text().splitlines()
    (event,) = [event for event in map(json.loads, lines) if event["event"] == "poisoned"]
    assert POISON in event["examples"]
    assert run.order(0)[event["batch"] * BATCH : (event["batch"] + 1) * BATCH].tolist() == event["examples"]


@pytest.mark.parametrize(("how", "error"), [("kills", "3 replicas died at batch"), ("raises", "failed twice at batch")])
def test_a_poisonous_example_ends_a_run_that_does_not_tolerate_it(tmp_path: Path, how: str, error: str) -> None:
    with pytest.raises(db.DistBeliefError, match=rf"{error} \d+ of epoch 0 \(examples .*\b{POISON}\b.*tolerate=1"):
        poisoned(tmp_path, how)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "failure"


def poisoned(tmp_path: Path, how: str, **options: Any) -> db.Run:
    method = db.Downpour(replicas=2, batch_size=BATCH, **options)
    until, task = db.Until(epochs=1), problems.task(train=Poisonous(how))
    return db.train(task, method, until=until, directory=tmp_path / "run", progress=False)
