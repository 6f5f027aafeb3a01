"""Resuming: a run that was cut short goes on as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import distbelief as db
from distbelief.engines.server import Server
from distbelief.errors import DataError, DirectoryError, UsageError
from distbelief.run.prepare import prepare
from distbelief.task.gradients import FlatModule
from distbelief.training import _state_dict
from tests import problems
from tests.lives import launch

EXAMPLES = 640


def train(directory: Path, epochs: int, *, resume: bool = False, **changes: Any) -> db.Run:
    given: dict[str, Any] = {"replicas": 1, "batch_size": 16, "optimizer": db.Adagrad(0.05)}
    return db.train(
        problems.task(test=problems.points()),
        db.Downpour(**(given | changes)),
        until=db.Until(epochs=epochs),
        directory=directory,
        resume=resume,
        progress=False,
    )


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of one epoch, which many tests go on from."""
    return train(tmp_path_factory.mktemp("first") / "run", 1).directory


@pytest.fixture
def begun(first_epoch: Path, tmp_path: Path) -> Path:
    """A copy of it that is a test's own."""
    return Path(shutil.copytree(first_epoch, tmp_path / "run"))


def same(one: db.Run, other: db.Run) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": db.Adam(db.Cosine(0.01, 6 * EXAMPLES)), "clip_norm": 0.5},
        {"optimizer": db.SGD(db.Cosine(0.1, 6 * EXAMPLES), momentum=0.5)},
    ],
    ids=["adagrad", "adam-without-a-method", "momentum-and-schedule"],
)
def test_in_two_parts_it_is_the_same_run_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Data, rule state, schedule and step go on where they were; so do history and totals, over other shards too."""
    whole = train(tmp_path / "whole", 6, **changes)
    train(tmp_path / "parts", 2, **changes)
    if "clip_norm" in changes:
        # Without a method it is the run's own with every number of it, and not a task's or the default one.
        train(tmp_path / "parts", 4, resume=True, shards=3, **changes)
        parts = db.train(
            problems.task(test=problems.points()),
            until=db.Until(epochs=6),
            directory=tmp_path / "parts",
            resume=True,
            progress=False,
        )
    else:
        parts = train(tmp_path / "parts", 6, resume=True, shards=3, **changes)
    assert same(whole, parts)
    for field in ("examples", "updates", "account", "epochs"):
        assert parts.summary[field] == whole.summary[field], field
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"])
    assert [row["examples"] for row in parts.history][:1] <= [2 * EXAMPLES]
    assert len(json.dumps(parts.history)) > 0


def test_other_numbers_of_replicas(tmp_path: Path) -> None:
    train(tmp_path / "run", 2, replicas=2)
    run = train(tmp_path / "run", 5, resume=True, replicas=3, shards=2)
    assert run.summary["account"] == {"used": 5 * EXAMPLES, "refused": 0, "dropped": 0, "partial": 0}
    assert run.summary["updates"] == 5 * EXAMPLES / 16


def test_an_end_that_lies_before_the_run_is_its_end(tmp_path: Path) -> None:
    """What had been begun beyond it is not worked on."""
    before = db.train(
        problems.task(),
        db.Downpour(replicas=2, batch_size=16),
        until=db.Until(examples=3 * EXAMPLES + 200),
        directory=tmp_path / "run",
        progress=False,
    )
    for epochs in (2, 3):
        run = train(tmp_path / "run", epochs, resume=True)
        assert run.summary["examples"] == before.summary["examples"]


NOTHING: dict[str, Any] = {"fresh_state": [], "other_data": False, "earlier": None}


def resumptions(directory: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "resumed"]


def test_another_optimizer_goes_on_and_says_which_state_begins_anew(begun: Path) -> None:
    run = train(begun, 2, resume=True, optimizer=db.Adam(0.01))
    assert run.summary["resumed_at"] == EXAMPLES
    assert resumptions(begun)[0]["fresh_state"] == sorted(db.Adam(0.01).state)
    train(begun, 3, resume=True, optimizer=db.AdamW(0.01))
    assert resumptions(begun)[1]["fresh_state"] == []


def test_other_data_are_said(begun: Path) -> None:
    """Such as those that a script makes anew, without a seed, each time it is started."""
    train(begun, 2, resume=True)
    x, y = problems.points()
    other = problems.task(train=(x + 1, y))
    db.train(other, until=db.Until(epochs=3), directory=begun, resume=True, progress=False)
    assert [said["other_data"] for said in resumptions(begun)] == [False, True]


class Halved:
    """A schedule of the user's own."""

    def __call__(self, examples: int) -> float:
        return 0.05 if examples < EXAMPLES else 0.025


def test_a_run_with_a_rule_of_the_users_own_needs_it_again(tmp_path: Path) -> None:
    method = db.Downpour(replicas=1, batch_size=16, optimizer=db.SGD(Halved()))
    for epochs in (1, 2):
        run = db.train(
            problems.task(),
            method,
            until=db.Until(epochs=epochs),
            directory=tmp_path / "run",
            resume=epochs > 1,
            progress=False,
        )
    assert run.summary["examples"] == 2 * EXAMPLES
    with pytest.raises(DirectoryError, match="give the method again"):
        db.train(problems.task(), directory=tmp_path / "run", resume=True, progress=False)


def test_what_a_run_starts_from_is_not_shipped_with_the_vector(tmp_path: Path) -> None:
    """Small tensors travel inside the task; a view of the whole vector among them would bring all of it along."""
    state = problems.network().state_dict()
    prepared = prepare(
        problems.task(),
        db.Downpour(replicas=1, batch_size=16),
        until=db.Until(epochs=1),
        evaluate_every=None,
        seed=0,
        replicas=lambda: 1,
        start=state,
    )
    FlatModule(prepared.module, prepared.layout)
    shipped = prepared.task.build(0)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in shipped.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in shipped.state_dict().items())


def test_means_that_begin_anew_are_corrected_for_it(begun: Path) -> None:
    """Adam's first step is its rate; without the correction for means of zero it would be three times that."""
    before = db.load(begun, problems.task()).state_dict()
    run = db.train(
        problems.task(),
        db.Downpour(replicas=1, batch_size=16, optimizer=db.Adam(0.01)),
        until=db.Until(examples=EXAMPLES + 16),
        directory=begun,
        resume=True,
        progress=False,
    )
    assert run.summary["updates"] == EXAMPLES / 16 + 1
    moved = max(float((run.state_dict()[name] - tensor).abs().max()) for name, tensor in before.items())
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_a_run_without_checkpoints_begins_anew_and_its_files_are_kept_apart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, 2)
    (run / "notes.txt").write_text("mine")
    before = (run / "events.jsonl").read_text()
    for path in (run / "checkpoints").iterdir():
        if path.is_dir():
            (path / "state.json").write_text("damaged")
    train(run, 1, resume=True)
    (said,) = resumptions(run)
    assert (said["examples"], said["earlier"]) == (None, str(run / "earlier-1"))
    assert len(said["damaged"]) >= 1
    assert (run / "earlier-1" / "events.jsonl").read_text() == before
    assert json.loads((run / "earlier-1" / "summary.json").read_text())["examples"] == 2 * EXAMPLES
    assert (run / "earlier-1" / "checkpoints" / "best.safetensors").exists()
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == [f"{EXAMPLES:012}"]
    assert (run / "notes.txt").exists()


def test_a_checkpoint_that_takes_long_knows_of_all_that_ended_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas end the portion that they are in, and the one that they hold ahead, before the shards are copied."""
    copy_out = Server.copy_out

    def slowly(server: Server, into: Any) -> Any:
        time.sleep(0.2)
        return copy_out(server, into)

    monkeypatch.setattr(Server, "copy_out", slowly)
    run = db.train(
        problems.task(),
        db.Downpour(replicas=2, batch_size=1),
        until=db.Until(epochs=2),
        directory=tmp_path / "run",
        checkpoint_every=db.Every(examples=1),
        progress=False,
    )
    assert run.summary["account"] == {"used": 2 * EXAMPLES, "refused": 0, "dropped": 0, "partial": 0}


def test_nothing_to_resume_begins_and_says_so(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 1, resume=True)
    assert run.summary["examples"] == EXAMPLES
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert {"event": "resumed", "seconds": 0.0, "examples": None, "damaged": []} | NOTHING in events


CONTROLLER = """
import sys
import distbelief as db
from tests import problems
db.train(
    problems.task(), db.Downpour(replicas=2, batch_size=16, optimizer=db.SGD(0.05)),
    until=db.Until(epochs=int(sys.argv[2])), directory=sys.argv[1], resume=True,
    checkpoint_every=db.Every(seconds=0.2), progress=False,
)
"""


def controller(directory: Path, epochs: int) -> subprocess.Popen[str]:
    return launch(["-c", CONTROLLER, str(directory), str(epochs)])


def wait_for_checkpoints(directory: Path, count: int) -> None:
    log = directory / "events.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().count('"checkpoint"') >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint was written")


def test_after_kill_9_of_the_controller_every_account_is_exact(tmp_path: Path) -> None:
    """At most the work since the last checkpoint is lost; every epoch's account is exact over both lives of the run.

    tests/stress/kills.py kills many lives of many runs.
    """
    run = tmp_path / "run"
    process = controller(run, 1_000_000)
    wait_for_checkpoints(run, 2)
    process.kill()
    process.wait()
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    epochs = newest // EXAMPLES + 3
    assert controller(run, epochs).wait(timeout=60) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert sum(summary["account"].values()) == epochs * EXAMPLES
    # A checkpoint can fall between two shards' copies of a push, as a death can fall between the pushes.
    assert summary["account"]["partial"] <= 2 * 2 * 16
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_directory_in_use_is_refused_and_sigterm_writes_a_checkpoint(tmp_path: Path) -> None:
    process = controller(tmp_path / "run", 1_000_000)
    wait_for_checkpoints(tmp_path / "run", 1)
    with pytest.raises(DirectoryError, match="in use by a run that is at work"):
        train(tmp_path / "run", 3, resume=True)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=10) != 0
    assert time.monotonic() - asked < 10
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "terminated"
    newest = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert newest == summary["examples"]


def test_a_directory_of_another_run_is_refused(begun: Path) -> None:
    with pytest.raises(DirectoryError, match="holds a run already"):
        train(begun, 3)
    with pytest.raises(UsageError, match="batches of 16 examples"):
        train(begun, 3, resume=True, batch_size=32)
    fewer = problems.task(train=problems.points(EXAMPLES - 1))
    with pytest.raises(DataError, match="has 640 examples to train on, and cannot go on with 639"):
        db.train(fewer, directory=begun, resume=True, progress=False)
    other = db.Task(lambda: torch.nn.Linear(16, 4), torch.nn.CrossEntropyLoss(), train=problems.points())
    with pytest.raises(DirectoryError, match=r"another model \(.*weight.*\): choose"):
        db.train(other, db.Downpour(batch_size=16), directory=begun, resume=True, progress=False)


def test_damaged_checkpoints(begun: Path) -> None:
    """The one before is used, and it is said."""
    train(begun, 2, resume=True)
    folder = begun / "checkpoints"
    victim = folder / f"{2 * EXAMPLES:012}" / "tensors.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    run = train(begun, 3, resume=True)
    assert sum(run.summary["account"].values()) == 3 * EXAMPLES
    resumed = resumptions(begun)[-1]
    assert resumed["examples"] == EXAMPLES
    assert f"{victim.parent} is damaged" in resumed["damaged"][0]


def test_a_directory_goes_on_wherever_it_is(begun: Path, tmp_path: Path) -> None:
    """Nothing in it knows where it lies; a copy and the original go their own ways."""
    shutil.copytree(begun, tmp_path / "copy")
    begun.rename(tmp_path / "moved")
    runs = [train(tmp_path / name, 2, resume=True) for name in ("copy", "moved")]
    assert same(*runs)
    assert [run.summary["examples"] for run in runs] == [2 * EXAMPLES] * 2
    assert not begun.exists()


def test_resume_needs_a_directory() -> None:
    with pytest.raises(UsageError, match="resume needs the directory"):
        db.train(problems.task(), resume=True)


def test_starting_from_another_run(first_epoch: Path, tmp_path: Path) -> None:
    first = db.load(first_epoch, problems.task(test=problems.points()))
    for start in (first, first_epoch, str(first_epoch), first.state_dict()):
        found = _state_dict(start)
        assert all(torch.equal(tensor, found[name]) for name, tensor in first.state_dict().items())
    run = db.train(
        problems.task(test=problems.points()),
        db.Downpour(replicas=1, optimizer=db.SGD(1e-9)),
        until=db.Until(epochs=1),
        directory=tmp_path / "second",
        start=first,
        progress=False,
    )
    assert run.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=1e-3)


def test_the_best_model_is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 6)
    best = max(row["accuracy"] for row in run.history)
    x, y = problems.points()
    assert db.accuracy(run.model("best")(x), y) == pytest.approx(best)


@pytest.mark.parametrize(
    ("until", "why"),
    [
        (db.Until(target={"accuracy": 0.5}, epochs=1000), "target"),
        (db.Until(target={"loss": 1.2}, epochs=1000), "target"),
        (db.Until(patience=2, epochs=100_000), "patience"),
    ],
)
def test_targets_and_patience(tmp_path: Path, until: db.Until, why: str) -> None:
    run = db.train(
        problems.task(test=problems.points()),
        db.Downpour(replicas=1, batch_size=16, optimizer=db.Adagrad(0.1)),
        until=until,
        directory=tmp_path / "run",
        progress=False,
    )
    assert run.summary["stopped_by"] == why
    for name, value in (until.target or {}).items():
        assert run.metrics[name] >= value if name == "accuracy" else run.metrics[name] <= value


def test_a_target_that_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the target is speed, which is no metric"):
        db.train(problems.task(), until=db.Until(target={"speed": 1}), directory=tmp_path, progress=False)
    with pytest.raises(UsageError, match="need validation or test data"):
        db.train(problems.task(), until=db.Until(patience=1), directory=tmp_path, progress=False)
