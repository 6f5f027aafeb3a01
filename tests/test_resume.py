"""Resuming: a run that was cut short goes on as if it had not been."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distbelief as db
from distbelief.errors import DataError, DirectoryError, TaskError, UsageError
from distbelief.ports import Answer, Capture, Command
from distbelief.run.checkpoint import newest
from distbelief.run.prepare import Asked, prepare
from distbelief.server.shard import Shard
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


def layers(frozen: Sequence[int] = ()) -> nn.Module:
    """The problems' network, some of its layers frozen."""
    module = problems.network()
    for layer in frozen:
        module.get_submodule(str(layer)).requires_grad_(False)
    return module


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
    assert run.summary["account"] == {"used": 5 * EXAMPLES, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}
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


NOTHING: dict[str, Any] = {
    "fresh_state": [],
    "newly_frozen": [],
    "newly_trained": [],
    "other_data": False,
    "earlier": None,
}


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
        problems.task(model=lambda: layers(frozen=(0,))),
        db.Downpour(replicas=1, batch_size=16),
        Asked(until=db.Until(epochs=1)),
        replicas=lambda: 1,
        start=state,
    )
    FlatModule(prepared.module, prepared.layout)
    shipped, begun = prepared.task.values, prepared.origin.values
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in [*shipped.values(), *begun.values()])
    assert shipped.keys() == {"0.weight", "0.bias"}, "the others are fetched"
    assert all(torch.equal(tensor, state[name]) for name, tensor in begun.items())
    assert begun.keys() == state.keys()


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
    execute = Shard.execute

    def slowly(shard: Shard, command: Command) -> Answer:
        if isinstance(command, Capture):
            time.sleep(0.2)
        return execute(shard, command)

    monkeypatch.setattr(Shard, "execute", slowly)
    run = db.train(
        problems.task(),
        db.Downpour(replicas=2, batch_size=1),
        until=db.Until(epochs=2),
        directory=tmp_path / "run",
        checkpoint_every=db.Every(examples=1),
        progress=False,
    )
    assert run.summary["account"] == {"used": 2 * EXAMPLES, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}


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


# A checkpoint is the whole run


def go(directory: Path, epochs: int, model: Any, *, resume: bool = False, **options: Any) -> db.Run:
    """Train a model of one's own on the problem, by one replica."""
    return db.train(
        problems.task(model=model),
        db.Downpour(replicas=1, batch_size=16, optimizer=options.pop("optimizer", db.Adagrad(0.05))),
        until=db.Until(epochs=epochs),
        directory=directory,
        resume=resume,
        progress=False,
        **options,
    )


def weights(run: db.Run, layer: int) -> list[Tensor]:
    state = run.state_dict()
    return [state[f"{layer}.weight"], state[f"{layer}.bias"]]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def test_what_is_frozen_or_trained_may_change_and_is_said(tmp_path: Path) -> None:
    """What is frozen keeps its last values, through a life after it too; what is trained begins fresh rule state."""
    run = tmp_path / "run"
    models = [lambda: layers(frozen=(2,)), lambda: layers(frozen=(0,)), layers, layers]
    reached = []
    for life, model in enumerate(models):
        ended = go(run, life + 1, model, resume=life > 0)
        reached.append({layer: weights(ended, layer) for layer in (0, 2)})
    moved = [{layer: not all(equal(now[layer], before[layer])) for layer in now} for before, now in pairwise(reached)]
    assert moved == [{0: False, 2: True}, {0: True, 2: True}, {0: True, 2: True}]
    assert ended.summary["examples"] == 4 * EXAMPLES
    said = [(event["fresh_state"], event["newly_frozen"], event["newly_trained"]) for event in resumptions(run)]
    first_layer, last_layer = (["0.weight", "0.bias"], ["2.weight", "2.bias"])
    assert said == [([], first_layer, last_layer), ([], [], first_layer), ([], [], [])]


def test_rule_state_that_begins_anew_is_that_of_a_first_step(tmp_path: Path) -> None:
    """Adagrad's first step is its rate, in every coordinate that has a gradient."""
    first = go(tmp_path / "run", 1, lambda: layers(frozen=(2,)))
    before = weights(first, 0), weights(first, 2)
    run = db.train(
        problems.task(model=layers),
        db.Downpour(replicas=1, batch_size=16, optimizer=db.Adagrad(0.05)),
        until=db.Until(examples=EXAMPLES + 16),
        directory=tmp_path / "run",
        resume=True,
        progress=False,
    )
    old, new = (
        [(a - b).abs() for a, b in zip(weights(run, layer), was, strict=True)]
        for layer, was in zip((0, 2), before, strict=True)
    )
    assert all(torch.allclose(step, torch.tensor(0.05), rtol=1e-3) for step in new)
    assert all(0 < float(step.max()) < 0.04 for step in old)


@pytest.mark.parametrize("again", [False, True], ids=["without start", "with another start"])
def test_a_run_that_started_from_another_goes_on_with_what_it_brought(tmp_path: Path, again: bool) -> None:
    """Replicas too: another backbone would give other gradients."""

    def model() -> nn.Module:
        return layers(frozen=(0,))

    pretrained = go(tmp_path / "pretrained", 2, layers)
    whole = go(tmp_path / "whole", 3, model, start=pretrained)
    go(tmp_path / "parts", 1, model, start=pretrained)
    other = {name: torch.zeros_like(tensor) for name, tensor in pretrained.state_dict().items()}
    parts = go(tmp_path / "parts", 3, model, resume=True, start=other if again else None)
    assert equal(weights(parts, 0), weights(pretrained, 0)) == [True, True]
    assert same(whole, parts)
    assert equal(list(parts.model().parameters()), list(whole.model().parameters())) == [True] * 4


class Buffered(nn.Module):
    """Every kind of buffer that training changes, and of those that it does not, each with chance in it."""

    seen: Tensor
    any: Tensor
    turned: Tensor
    turned_wide: Tensor
    left_scalar: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(16), problems.network())
        chance = torch.rand(3)
        still: dict[str, Tensor] = {
            "float": chance,
            "double": chance.double(),
            "half": chance.half(),
            "int": (chance * 1000).long() + 2**53,
            "byte": (chance * 200).byte(),
            "bool": chance > 0.5,
            "complex": torch.complex(chance, 2 * chance),
            "scalar": chance[0].clone(),
            "empty": chance[:0].clone(),
        }
        for name, value in still.items():
            self.register_buffer(f"still_{name}", value, persistent=name != "complex")
            self.register_buffer(f"left_{name}", value.clone(), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int32))
        self.register_buffer("any", torch.zeros(2, dtype=torch.bool), persistent=False)
        self.register_buffer("turned", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("turned_wide", torch.zeros(1, 2, dtype=torch.complex128), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.any |= True
            self.turned += 1 + 2j
            self.turned_wide += x.mean().double() * 1j
        y: Tensor = self.net(x * self.left_scalar)
        return y


def test_every_kind_of_buffer_goes_on(tmp_path: Path) -> None:
    """Also without the seed that they came from: what is built on resume has others, and none of it is used."""
    whole = go(tmp_path / "whole", 2, Buffered)
    begun = dict(go(tmp_path / "parts", 1, Buffered).model().named_buffers())
    torch.manual_seed(99)
    other = Buffered()
    parts = go(tmp_path / "parts", 2, other, resume=True)
    assert same(whole, parts)
    ended = dict(parts.model().named_buffers())
    for name, tensor in begun.items():
        if "still" in name or "left" in name:
            assert torch.equal(ended[name], tensor), name
            assert ended[name].dtype == tensor.dtype
    batches = 2 * EXAMPLES // 16
    assert torch.equal(ended["turned"], torch.full((2,), batches * (1 + 2j), dtype=torch.complex64))
    assert int(ended["seen"]) == batches


def test_lives_incarnations_and_leases_go_on_counting(tmp_path: Path) -> None:
    """Also those of a replica that a life between did not have."""
    lives = [
        (train(tmp_path / "run", n + 1, resume=n > 0, replicas=r), newest(tmp_path / "run" / "checkpoints")[0])
        for n, r in enumerate((3, 1, 2))
    ]
    states = [found.state for _, found in lives if found is not None]
    assert [state.term for state in states] == [1, 2, 3]
    assert [state.incarnations for state in states] == [(1, 1, 1), (2, 1, 1), (3, 2, 1)]
    leases = [state.method.next_lease for state in states]
    assert leases == sorted(set(leases))
    assert [run.summary["restarts"] for run, _ in lives] == [0, 0, 0]


def test_a_checkpoint_of_another_format_is_not_begun_over(tmp_path: Path) -> None:
    train(tmp_path / "run", 1)
    path = tmp_path / "run" / "checkpoints" / f"{EXAMPLES:012}" / "state.json"
    text = json.dumps({"format": 2, "tensors": 0, "state": {}})
    path.write_text(json.dumps({"checksum": hashlib.sha256(text.encode()).hexdigest(), "content": text}))
    with pytest.raises(DirectoryError, match=r"is of format 2, .* begin another run with its model"):
        train(tmp_path / "run", 2, resume=True)
    assert not (tmp_path / "run" / "earlier-1").exists()


@pytest.mark.parametrize(
    ("buffer", "sentence"),
    [
        (
            torch.eye(3).to_sparse(),
            "of torch.float32, torch.sparse_coo, which checkpoints cannot hold: keep",
        ),
        (
            torch.zeros(2, dtype=torch.complex128),
            "of torch.complex128, which files of models cannot hold: keep",
        ),
    ],
    ids=["sparse", "complex128"],
)
def test_a_buffer_that_cannot_be_written_is_refused_before_training(buffer: Tensor, sentence: str) -> None:
    module = problems.network()
    module.register_buffer("mask", buffer)
    with pytest.raises(TaskError, match=sentence):
        db.train(problems.task(model=module), progress=False)


# Other batches, weights and metrics


def test_a_run_goes_on_with_batches_of_another_size(begun: Path) -> None:
    """At the end of an epoch any size will do, and the data are said to be what they were."""
    run = train(begun, 2, resume=True, batch_size=50)
    assert run.summary["account"]["used"] == 2 * EXAMPLES
    assert run.summary["batch_size"] == 50
    run = train(begun, 3, resume=True, batch_size=7)
    assert run.summary["account"]["used"] == 3 * EXAMPLES
    assert [said["other_data"] for said in resumptions(begun)] == [False, False]


def test_inside_an_epoch_only_sizes_that_cut_no_batch_go_on(begun: Path) -> None:
    db.train(
        problems.task(test=problems.points()),
        db.Downpour(replicas=1, batch_size=16, optimizer=db.Adagrad(0.05)),
        until=db.Until(examples=EXAMPLES + 160),
        directory=begun,
        resume=True,
        progress=False,
    )
    with pytest.raises(UsageError, match=r"batches of 48 examples: it stopped inside an epoch .* that divides 160$"):
        train(begun, 2, resume=True, batch_size=48)
    run = train(begun, 2, resume=True, batch_size=40)
    assert run.summary["account"] == {"used": 2 * EXAMPLES, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}


def test_weights_draw_the_same_examples_after_a_resumption(tmp_path: Path) -> None:
    weights = torch.rand(EXAMPLES, generator=torch.Generator().manual_seed(0))
    runs = []
    for name, lives in (("whole", (4,)), ("parts", (1, 4))):
        for life in lives:
            run = db.train(
                problems.task(weights=weights),
                db.Downpour(replicas=1, batch_size=16, optimizer=db.Adagrad(0.05)),
                until=db.Until(epochs=life),
                directory=tmp_path / name,
                resume=True,
                progress=False,
            )
        runs.append(run)
    assert same(*runs)


@pytest.mark.parametrize(
    "until", [db.Until(epochs=3, patience=1), db.Until(epochs=3, target={"accuracy": 2.0})], ids=["patience", "target"]
)
def test_a_run_goes_on_with_other_metrics(begun: Path, until: db.Until) -> None:
    x, y = problems.points()
    task = problems.task(
        test=(x, y), metrics={"accuracy": db.accuracy, "error": db.Metric(lambda p, t: 1 - db.accuracy(p, t), "min")}
    )
    bare = db.train(
        problems.task(test=(x, y), metrics={}), until=db.Until(epochs=2), directory=begun, resume=True, progress=False
    )
    assert "accuracy" not in bare.metrics
    run = db.train(task, until=until, directory=begun, resume=True, progress=False)
    assert run.summary["epochs"] == 3
    assert run.metrics["error"] == pytest.approx(1 - run.metrics["accuracy"])
    assert "error" not in run.history[0]


# Schedules, groups and metrics over several lives


def live(directory: Path, until: db.Until, *, resume: bool = False, **method: Any) -> db.Run:
    """A life of a run in simulated time; without a method it is that of the life before."""
    given = db.Downpour(replicas=1, batch_size=16, **method) if method else None
    task = problems.task(test=problems.points())
    return db.train(task, given, engine=db.Simulated(), until=until, directory=directory, resume=resume, progress=False)


def rates(run: db.Run) -> list[float]:
    events = map(json.loads, (run.directory / "events.jsonl").read_text().splitlines())
    return [event["learning_rate"] for event in events if event["event"] == "progress"]


def test_a_schedule_that_ends_with_the_run_follows_its_new_end(tmp_path: Path) -> None:
    rule = db.AdamW(db.Linear(0.1), groups={"*.bias": {"weight_decay": 0, "lr": db.Cosine(0.01)}})
    first = live(tmp_path / "run", db.Until(epochs=2), optimizer=rule)
    assert rates(first)[0] == pytest.approx(0.1, abs=0.01)
    assert rates(first)[-1] < 0.02
    method = json.loads((first.directory / "method.json").read_text())
    assert method["optimizer"]["lr"]["examples"] is None
    before = len(rates(first))
    second = live(tmp_path / "run", db.Until(epochs=8), resume=True)
    assert rates(second)[before] > 0.06
    assert json.loads((second.directory / "method.json").read_text())["optimizer"] == method["optimizer"]


def test_a_groups_rate_is_its_own_and_the_norm_is_told(tmp_path: Path) -> None:
    rule = db.SGD(0.1, groups={"2.*": {"lr": 1e-30}})
    run = live(tmp_path / "run", db.Until(epochs=1), optimizer=rule)
    begun, ended = problems.task().build(0).state_dict(), run.state_dict()
    assert not torch.equal(begun["0.weight"], ended["0.weight"])
    assert torch.equal(begun["2.weight"], ended["2.weight"])
    events = map(json.loads, (run.directory / "events.jsonl").read_text().splitlines())
    progress = [event for event in events if event["event"] == "progress"]
    assert all(event["learning_rate"] == 0.1 for event in progress)
    assert progress[-1]["gradient_norm"] > 0


def test_a_metric_that_was_not_there_before_judges_from_then_on(tmp_path: Path) -> None:
    live(tmp_path / "run", db.Until(epochs=1), optimizer=db.SGD(0.1))
    until = db.Until(epochs=2, target={"average_accuracy": 2.0}, monitor="average_loss", patience=50)
    run = live(tmp_path / "run", until, resume=True, optimizer=db.SGD(0.1), average=0.9)
    assert run.summary["stopped_by"] == "epochs"
