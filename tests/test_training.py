"""`train`, end to end on real replicas: every kind of model and data, from every kind of place."""

import asyncio
import json
import math
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import distbelief as db
from distbelief.errors import DirectoryError, TaskError, UsageError
from tests import problems
from tests.lives import complete, events


def train(tmp_path: Path, task: db.Task, **changes: Any) -> db.Run:
    given: dict[str, Any] = {"replicas": 1, "optimizer": db.Adagrad(0.05)}
    until = changes.pop("until", db.Until(epochs=2))
    directory = tmp_path / changes.pop("name", "run")
    return db.train(task, db.Downpour(**(given | changes)), until=until, directory=directory, progress=False)


def test_two_replicas_learn_and_write_a_whole_run(tmp_path: Path) -> None:
    x, y = problems.points(1280)
    task = problems.task(train=(x[:1024], y[:1024]), validation=(x[1024:1152], y[1024:1152]), test=(x[1152:], y[1152:]))
    run = train(tmp_path, task, replicas=2, until=db.Until(epochs=20), batch_size=16, shards=2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == run.summary
    assert summary["metrics"].keys() == {"loss", "accuracy", "test_loss", "test_accuracy"}
    assert run.metrics["accuracy"] > 0.8
    assert summary["examples"] == summary["account"]["used"] == 20 * 1024
    assert summary["updates"] == 20 * 1024 / 16
    assert summary["bytes"]["pushed"] == summary["updates"] * 4 * summary["parameters"]
    assert summary["staleness"]["median"] <= summary["staleness"]["p99"] <= summary["staleness"]["max"]
    assert summary["stopped_by"] == "epochs"
    assert run.history[-1]["accuracy"] == run.metrics["accuracy"]
    assert {"epoch", "examples", "updates", "seconds", "loss", "accuracy"} <= run.history[0].keys()

    model = run.model()
    assert not model.training
    plain = problems.network()
    plain.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    assert torch.equal(plain(x), model(x))
    assert db.accuracy(model(x[1152:]), y[1152:]) == pytest.approx(run.metrics["test_accuracy"])
    assert torch.equal(run.order(3).sort().values, torch.arange(1024))


class Awkward(nn.Module):
    """Tied weights, a frozen parameter, buffers of both kinds, no bias, and a parameter of another float type."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16, bias=False)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(16)
        self.scale = nn.Parameter(torch.ones(16, dtype=torch.bfloat16))
        self.fixed = nn.Parameter(torch.full((16,), 2.0), requires_grad=False)
        self.out = nn.Linear(16, 4)
        self.unused = nn.Parameter(torch.full((3,), 7.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.out(self.norm(self.second(self.first(x))) * self.scale * self.fixed))


def test_an_awkward_model(tmp_path: Path) -> None:
    before = Awkward()
    kept = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    task = db.Task(before, nn.CrossEntropyLoss(), train=problems.points())
    run = train(tmp_path, task, replicas=2)
    after = run.model()
    state = after.state_dict()
    assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in kept.items()), (
        "the given module changed"
    )
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert not torch.equal(state["first.weight"], kept["first.weight"])
    assert state["scale"].dtype == torch.bfloat16
    assert not torch.equal(state["scale"], kept["scale"])
    assert torch.equal(state["fixed"], kept["fixed"])
    assert torch.equal(state["unused"], kept["unused"])
    assert not torch.equal(state["norm.running_mean"], kept["norm.running_mean"])
    assert 1 <= state["norm.num_batches_tracked"] <= 40


def test_buffers_of_replicas_that_never_worked_do_not_count(tmp_path: Path) -> None:
    """Of three replicas one works alone: the running means are its own, not a third of them."""
    x, y = problems.points()
    layers = nn.Sequential(nn.BatchNorm1d(16, momentum=None), nn.Linear(16, 4))
    task = db.Task(layers, nn.CrossEntropyLoss(), train=(x + 5, y))
    run = train(tmp_path, task, replicas=3, warmstart=640, until=db.Until(epochs=1))
    state = run.model().state_dict()
    assert torch.allclose(state["0.running_mean"], (x + 5).mean(0), atol=0.05)
    assert state["0.num_batches_tracked"] == 20


def test_double_precision(tmp_path: Path) -> None:
    x, y = problems.points()
    task = db.Task(lambda: problems.network().double(), nn.CrossEntropyLoss(), train=(x.double(), y))
    assert next(train(tmp_path, task).model().parameters()).dtype == torch.float64


def test_a_step_of_sums_and_weights(tmp_path: Path) -> None:
    """A batch of unequal weight adds up rightly in the evaluation, and its mean is what is trained on."""

    def step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses = nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return (losses * batch["w"]).sum(), batch["w"].sum()

    x, y = problems.points()
    data = {"x": x, "y": y, "w": torch.arange(len(x)).float()}
    task = db.Task(
        problems.network, train=data, test=data, step=step, metrics={"size": lambda model, batch: len(batch["x"])}
    )
    run = train(tmp_path, task)
    with torch.no_grad():
        total, weight = step(run.model(), data)
    assert run.metrics["loss"] == pytest.approx(float(total / weight), rel=1e-5)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        self.x, self.y = problems.points()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = problems.network()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.as_tensor(self.net(torch.cat([left, right], 1)))


def test_every_kind_of_data_gives_the_same_model(tmp_path: Path) -> None:
    """Tensors, arrays, memory-mapped files, Datasets and loaders of the same examples: the same bits."""
    x, y = problems.points()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    kinds: dict[str, Any] = {
        "tensors": (x, y),
        "arrays": (x.numpy(), y.numpy()),
        "mapped": (mapped, y.numpy()),
        "function": lambda: (x, y),
        "dataset": Pairs(),
        "loader": DataLoader(Pairs(), batch_size=32, shuffle=True, num_workers=2),
    }
    models = {
        name: train(tmp_path, problems.task(train=data), name=name, until=db.Until(epochs=1)).model().state_dict()
        for name, data in kinds.items()
    }
    for name, state in models.items():
        assert all(torch.equal(tensor, models["tensors"][key]) for key, tensor in state.items()), name


def test_inputs_by_position_and_by_name(tmp_path: Path) -> None:
    x, y = problems.points()
    left, right = x[:, :8], x[:, 8:]
    states = []
    for name, inputs in {"tuple": (left, right), "dict": {"left": left, "right": right}}.items():
        task = db.Task(TwoInputs, nn.CrossEntropyLoss(), train=(inputs, y), test=(inputs, y))
        states.append(train(tmp_path, task, name=name).model().state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_off_the_main_thread_and_inside_a_running_loop(tmp_path: Path) -> None:
    runs: list[db.Run] = []

    async def cell() -> None:
        runs.append(train(tmp_path, problems.task(), name="loop"))

    asyncio.run(cell())
    thread = threading.Thread(target=lambda: runs.append(train(tmp_path, problems.task(), name="thread")))
    thread.start()
    thread.join()
    assert [run.summary["examples"] for run in runs] == [1280, 1280]


SCRIPT = """
import torch
from torch import nn
import distbelief as db

class Local(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    def forward(self, x):
        return self.net(x)

def build():
    width = 8
    return lambda: Local(width)

print("executed")
x = torch.randn(256, 4)
run = db.train(
    db.Task(build(), lambda p, t: nn.functional.cross_entropy(p, t), train=(x, (x[:, 0] > 0).long())),
    db.Downpour(replicas=2), until=db.Until(epochs=3), progress=False,
)
print(run.summary["examples"])
"""


def test_a_script_without_a_guard_executes_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    # A file with the name of a module of the standard library lies beside it, as it does in many a user's folder.
    (tmp_path / "random.txt").write_text("")
    done = complete(["script.py"], cwd=tmp_path)
    assert done.stdout.split() == ["executed", "768"], done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").exists()


SPARSE = """
import resource
import torch
from torch import nn
import distbelief as db
from tests import problems

def peak(who):
    return resource.getrusage(who).ru_maxrss // 1024

x, y = problems.sparse_points()

def loss(prediction, target):
    return nn.functional.binary_cross_entropy_with_logits(prediction, target)

def right(prediction, target):
    return ((prediction > 0) == target).double().mean()

class Logistic(nn.Linear):
    def forward(self, x):
        assert x.layout is torch.sparse_csr
        return super().forward(x)

task = db.Task(
    lambda: Logistic(x.shape[1], 1), loss, train=(x, y), validation=(x[:1000], y[:1000]), metrics={"right": right},
    num_workers=1, sparse=True,
)
before = peak(resource.RUSAGE_SELF)
run = db.train(
    task, db.Downpour(replicas=2, batch_size=500, optimizer=db.Adagrad(0.1)), until=db.Until(epochs=10), progress=False,
)
predicted = run.predict(x)
assert predicted.shape == (2000, 1)
print(run.summary["examples"], run.metrics["right"], right(predicted, y).item(), run.evaluate((x, y))["right"])
print(peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN) - before)
"""


def test_csr_reaches_a_logistic_regression_and_is_nowhere_made_dense(tmp_path: Path) -> None:
    """Of 200,000 features, a batch of 500 rows would take 400 MB. Nor does a person see that torch's CSR is in beta."""
    done = complete(["-c", SPARSE], cwd=tmp_path)
    assert done.stderr == ""
    examples, *judged, grown, replicas_grown = map(float, done.stdout.split())
    assert examples == 10 * 2000
    assert min(judged) > 0.85
    assert grown < 200
    assert replicas_grown < 200


def test_in_a_notebook(tmp_path: Path) -> None:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

    cell: dict[str, Any] = {"cell_type": "code", "id": "a", "metadata": {}}
    cell["source"] = SCRIPT.replace("progress=False", "progress=True")
    cell |= {"outputs": [], "execution_count": None}
    cells = [NotebookNode(cell)]  # type: ignore[no-untyped-call]
    notebook = NotebookNode(nbformat=4, nbformat_minor=5, metadata={}, cells=cells)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[0].outputs if output.get("name") == "stdout")
    assert printed.split() == ["executed", "768"]
    # The progress is one display that is replaced, and no new line every few seconds.
    displays = [o.data["text/plain"] for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert len(displays) == 1
    assert "examples/s" in displays[0]


@pytest.mark.parametrize(
    ("until", "examples"),
    [(db.Until(examples=100), 100), (db.Until(examples=97), 100), (db.Until(epochs=1, examples=10**9), 640)],
)
def test_the_end_by_examples(tmp_path: Path, until: db.Until, examples: int) -> None:
    """A run takes whole batches until it has the examples that were asked for."""
    run = train(tmp_path, problems.task(), until=until, batch_size=10)
    assert run.summary["examples"] == examples


def test_the_end_by_seconds(tmp_path: Path) -> None:
    run = train(tmp_path, problems.task(), until=db.Until(seconds=0.5))
    assert run.summary["stopped_by"] == "seconds"
    assert run.summary["examples"] == run.summary["account"]["used"] > 0


def test_a_warm_start_is_one_replica_alone(tmp_path: Path) -> None:
    run = train(tmp_path, problems.task(), replicas=2, warmstart=1280, until=db.Until(epochs=2))
    assert run.summary["staleness"]["max"] == 0
    assert run.summary["examples"] == 1280


def test_gradients_that_are_summed_and_fetches_that_are_rare(tmp_path: Path) -> None:
    run = train(tmp_path, problems.task(), replicas=2, n_push=3, n_fetch=5, overlap=1, until=db.Until(epochs=3))
    assert run.summary["examples"] == 3 * 640
    assert run.summary["updates"] < 3 * 640 / 32


@pytest.mark.parametrize("wait", [False, True])
def test_evaluations_are_made_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], wait: bool) -> None:
    def slow(prediction: Tensor, target: Tensor) -> float:
        time.sleep(0.05)
        return 1.0

    run = db.train(
        problems.task(test=problems.points(64), metrics={"slow": slow}),
        db.Downpour(replicas=2),
        until=db.Until(epochs=20),
        directory=tmp_path / "run",
        wait_for_evaluations=wait,
    )
    left_out = run.summary["evaluations_left_out"]
    assert len(run.history) + left_out == 20
    assert (left_out == 0) == wait
    assert ("evaluations left out since" in capsys.readouterr().err) == (not wait)
    if wait:
        assert [row["epoch"] for row in run.history] == list(range(1, 21)), "and each at the end of its epoch"
        with pytest.raises(UsageError, match="at the end of each epoch: leave evaluate_every out"):
            db.train(problems.task(), evaluate_every=db.Every(examples=64), wait_for_evaluations=True)


def test_evaluations_by_examples(tmp_path: Path) -> None:
    task = problems.task(test=problems.points())
    given = db.Downpour(replicas=1)
    every = db.Every(examples=10**9)
    run = db.train(
        task, given, until=db.Until(epochs=3), evaluate_every=every, directory=tmp_path / "run", progress=False
    )
    assert len(run.history) == 1
    assert all(math.isfinite(value) for value in run.metrics.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3,), "task must be of type Task, not 3"),
        ((problems.task(), db.Adagrad(0.1)), "method must be of type Downpour"),
    ],
)
def test_what_is_no_task_or_method(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(db.DistBeliefError, match=sentence):
        db.train(*arguments)


def test_too_little_memory_is_said_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is needed, part by part; nothing is started, and the directory can be used again."""
    monkeypatch.setattr("distbelief.engines.local.local_driver.available", lambda: 40_000)
    with pytest.raises(UsageError, match=r"parameters and optimizer state .*models and gradients of 2 .*but 40 kB"):
        db.train(problems.task(), db.Downpour(replicas=2), directory=tmp_path / "run", progress=False)
    monkeypatch.undo()
    db.train(problems.task(), db.Downpour(replicas=1), until=db.Until(epochs=1), directory=tmp_path / "run")


def test_a_metric_that_is_no_number_is_never_best_and_counts_neither_for_nor_against_patience(tmp_path: Path) -> None:
    # The first value is that of the try-out before the run.
    values = iter([0.0, math.nan, 0.1, 0.2, math.nan, 0.3, 0.2, math.nan, 0.1, 0.0])
    run = db.train(
        problems.task(metrics={"f1": lambda prediction, target: next(values, 0.0)}, test=problems.points(32)),
        db.Downpour(replicas=1, batch_size=32),
        engine=db.Simulated(),
        until=db.Until(epochs=30, patience=3),
        directory=tmp_path / "run",
        progress=False,
    )
    assert run.summary["stopped_by"] == "patience"
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    rows = [event for line in lines if (event := json.loads(line))["event"] == "evaluation"]
    assert [row["best"] for row in rows][:9] == [False, True, True, False, True, False, False, False, False]


# Which examples


def drawn_from(run: db.Run, seen: Path) -> None:
    """Check that the batches that were trained on are those of the run's order."""
    size, used = run.summary["batch_size"], run.summary["examples_per_epoch"]
    # What was tried before is no part of the run: the first batch, and one that is smaller.
    tried = 2 if used % size else 1
    batches = [[int(i) for i in line.split()] for line in seen.read_text().splitlines()[tried:]]
    expected = []
    for epoch in range(2):
        order = run.order(epoch).tolist()
        assert len(order) == used
        expected += [order[start : start + size] for start in range(0, used, size)]
    assert sorted(batches) == sorted(expected)


@pytest.mark.parametrize("engine", [None, db.Simulated()], ids=["local", "simulated"])
@pytest.mark.parametrize("how", ["weighted", "dropped", "sequential"])
def test_each_epoch_uses_the_examples_of_its_order(tmp_path: Path, engine: Any, how: str) -> None:
    numbers, seen = torch.arange(203), tmp_path / "seen"
    x = torch.ones(203, 1)

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        numbers, x = batch
        with seen.open("a") as file:
            file.write(" ".join(map(str, numbers.tolist())) + "\n")
        return torch.as_tensor(model(x).square().mean())

    data = TensorDataset(numbers, x)
    options: dict[str, dict[str, Any]] = {
        "weighted": {"train": data, "weights": [0.0] * 100 + [1.0] * 103},
        "dropped": {"train": DataLoader(data, batch_size=10, shuffle=True, drop_last=True)},
        "sequential": {"train": DataLoader(data, batch_size=10)},
    }
    task = db.Task(lambda: nn.Linear(1, 1), step=step, **options[how])
    run = db.train(
        task,
        db.Downpour(replicas=2, batch_size=10),
        engine=engine,
        until=db.Until(epochs=2),
        directory=tmp_path / "run",
        progress=False,
    )
    examples = 200 if how == "dropped" else 203
    assert run.summary["account"] == {"used": 2 * examples, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}
    assert (run.summary["examples_per_epoch"], run.summary["training_examples"]) == (examples, 203)
    assert run.summary["epochs"] == 2
    assert run.summary["order"] == {"dropped": "shuffled"}.get(how, how)
    drawn_from(run, seen)
    if how == "weighted":
        assert int(run.order(0).min()) >= 100
        assert torch.equal(db.load(run.directory, task).order(1), run.order(1))
        for other in (None, [1.0] * 203):
            with pytest.raises(TaskError, match="by weights that this task does not have"):
                db.load(run.directory, db.Task(task.model, step=step, train=data, weights=other)).order(0)


class Table(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows of a database, opened where the Dataset is made."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.connection.execute("select x, y from rows where rowid = ?", (index + 1,)).fetchone()
        return torch.tensor(row[:1]), torch.tensor(row[1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_handle_is_opened_by_each_process_that_uses_it(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "rows"
    with sqlite3.connect(path) as connection:
        connection.execute("create table rows (x real, y real)")
        connection.executemany("insert into rows values (?, ?)", [(i / 50 - 1, i / 50 - 1) for i in range(100)])

    def given(data: Any) -> db.Task:
        return db.Task(lambda: nn.Linear(1, 1), nn.MSELoss(), train=data, validation=data, num_workers=workers)

    method = db.Downpour(replicas=2, batch_size=8, optimizer=db.SGD(0.3))
    with pytest.raises(TaskError, match=r"cannot pickle 'sqlite3.Connection' object.*: give a function that opens it"):
        db.train(given(Table(path)), method, directory=tmp_path / "refused", progress=False)
    assert not (tmp_path / "refused").exists()
    run = db.train(
        given(lambda: Table(path)), method, until=db.Until(epochs=5), directory=tmp_path / "run", progress=False
    )
    assert run.summary["account"]["used"] == 500
    assert run.metrics["loss"] < 0.05


# What is judged


def test_a_metric_of_the_set_and_what_a_step_shows_are_in_every_row(tmp_path: Path) -> None:
    x, y = problems.points()
    task = problems.task(
        validation=(x, y), metrics={"spread": db.Metric(lambda p, t: p.argmax(1).unique().numel(), over="set")}
    )
    method = db.Downpour(replicas=1, batch_size=16)
    run = db.train(task, method, until=db.Until(epochs=2), directory=tmp_path / "set", progress=False)
    assert [row["spread"] for row in run.history][-1] == run.predict(x).argmax(1).unique().numel()

    def step(model: nn.Module, batch: Any) -> Any:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return loss, {"half": loss / 2}

    task = problems.task(loss=None, step=step, test=(x, y), metrics={})
    run = db.train(task, method, until=db.Until(epochs=2), directory=tmp_path / "shown", progress=False)
    for row in run.history:
        assert row["half"] == pytest.approx(row["loss"] / 2)
    assert run.metrics["test_half"] == run.metrics["half"]


def test_a_run_without_any_finite_metric_ends_as_it_was_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = problems.task(metrics={"f1": lambda prediction, target: math.nan}, validation=problems.points(32))
    until = db.Until(epochs=3, patience=1, target={"f1": 0.5})
    run = db.train(task, db.Downpour(replicas=1), until=until, directory=tmp_path / "run")
    assert run.summary["stopped_by"] == "epochs"
    assert {row["f1"] for row in run.history} == {None}
    assert run.metrics["f1"] is None
    assert "f1 not finite" in repr(run)
    said = capsys.readouterr().err
    assert "the metric f1 is nan on the first examples of validation: where it is not a number on a batch" in said
    assert "f1 not finite" in said
    with pytest.raises(DirectoryError, match="what it is judged by was never a finite number"):
        run.model("best")


BY_NAME = """
import functools, sys
import torch
import distbelief as db
from tests import problems

class Table:
    def __reduce__(self):
        return "TABLE"

TABLE = Table()

@functools.cache
def scale(n):
    return torch.linspace(0.5, 1.5, n)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.linear(x * scale(16))

def loss(prediction, target, table=TABLE if sys.argv[2] == "refused" else None):
    return torch.nn.functional.cross_entropy(prediction, target)

db.train(problems.task(model=Model, loss=loss), db.Downpour(replicas=1),
         until=db.Until(epochs=1), directory=sys.argv[1], progress=False)
"""


def test_what_other_processes_cannot_receive_is_said_before_anything_begins(tmp_path: Path) -> None:
    done = complete(["-c", BY_NAME, str(tmp_path / "run"), "fine"])
    assert done.returncode == 0, done.stderr
    done = complete(["-c", BY_NAME, str(tmp_path / "refused"), "refused"])
    assert done.returncode == 1
    assert "TaskError: the task cannot be received by other processes" in done.stderr
    assert "'TABLE'" in done.stderr
    assert not (tmp_path / "refused").exists()


# Models that change themselves


def simulate(tmp_path: Path, model: Any, **changes: Any) -> db.Run:
    """Train on points in virtual time, which is quick, with validation."""
    x, y = problems.points(256)
    given: dict[str, Any] = {"train": (x, y), "validation": (x[:64], y[:64])}
    task = problems.task(model=model, **(given | changes))
    method = db.Downpour(replicas=2, batch_size=16, optimizer=db.SGD(0.1))
    engine, until = db.Simulated(), db.Until(epochs=3)
    return db.train(task, method, engine=engine, until=until, directory=tmp_path / "run", progress=False)


class MaxNorm(nn.Linear):
    """A constraint as EEGNet writes it: it cuts the weight loose from any other view of it."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


def test_a_constraint_in_forward_is_trained_and_evaluated_at_the_server_s_parameters(tmp_path: Path) -> None:
    x, y = problems.points(256)
    task = problems.task(
        model=lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), MaxNorm(32, 4)), train=(x, y), validation=(x, y)
    )
    run = train(tmp_path, task, optimizer=db.SGD(0.3), batch_size=16, until=db.Until(epochs=6))
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < 0.7 * losses[0]
    tensors = load_file(max((run.directory / "checkpoints").glob("0*")) / "tensors.safetensors")
    assert torch.equal(tensors["parameters/2.weight"], run.state_dict()["2.weight"])
    assert run.evaluate((x, y))["loss"] == pytest.approx(losses[-1])


def test_models_that_differ_from_process_to_process_are_refused_by_name(tmp_path: Path) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            own = np.random.default_rng(os.getpid())
            self.features = nn.Buffer(torch.from_numpy(own.normal(size=(16, 8))).float(), persistent=False)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(x @ self.features)
            return result

    with pytest.raises(TaskError, match=r"does not always begin with the same features.*fixed seed"):
        train(tmp_path, problems.task(model=Features))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["examples"] == 0


def test_buffers_of_the_first_forward_pass(tmp_path: Path) -> None:
    """Filled, made, enlarged and lazy ones; the model that was trained is found again by its file."""

    class Caches(nn.Module):
        filled: Tensor | None
        grown: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = problems.network()
            self.register_buffer("filled", None)
            self.register_buffer("grown", torch.ones(4))
            self.norm = nn.LazyBatchNorm1d(affine=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.filled is None:
                self.filled = torch.ones(x.shape[1])
            if not hasattr(self, "made"):
                self.register_buffer("made", torch.ones(x.shape[1]), persistent=False)
            if len(self.grown) < x.shape[1]:
                self.grown = torch.ones(x.shape[1])
            result: Tensor = self.net(self.norm(x) * self.filled * self.made * self.grown)
            return result

    run = simulate(tmp_path, Caches)
    assert run.state_dict()["norm.running_mean"].shape == (16,)
    assert run.state_dict()["norm.num_batches_tracked"] > 0
    x, y = problems.points(256)
    again = db.load(tmp_path / "run", task=problems.task(model=Caches, validation=(x[:64], y[:64])))
    assert again.evaluate("validation")["loss"] == pytest.approx(run.metrics["loss"])
    go_on = problems.task(model=Caches, train=(x, y), validation=(x[:64], y[:64]))
    method = db.Downpour(replicas=1, batch_size=16, optimizer=db.SGD(0.1))
    until, engine = db.Until(epochs=4), db.Simulated()
    resumed = db.train(go_on, method, engine=engine, until=until, directory=run.directory, resume=True, progress=False)
    assert resumed.summary["examples"] == 4 * 256


def test_a_buffer_whose_shape_follows_the_batch_harms_nothing(tmp_path: Path) -> None:
    class Stateful(nn.Module):
        state: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 4)
            self.register_buffer("state", torch.zeros(16, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x)
            self.state = y.detach()
            return y

    x, y = problems.points(250)
    assert simulate(tmp_path, Stateful, train=(x, y)).summary["examples"] == 750


def test_a_buffer_that_grows_with_every_batch_is_said_to_be_left_out(tmp_path: Path) -> None:
    class History(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 4)
            self.register_buffer("seen", torch.zeros(0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = torch.cat([self.seen, x[:, 0]])
            result: Tensor = self.net(x)
            return result

    assert simulate(tmp_path, History).summary["examples"] == 768
    (started,) = [e for e in events(tmp_path / "run") if e["event"] == "started"]
    assert started["remarks"][0].startswith("seen has another shape after each batch")


def test_a_parameter_that_follows_the_trained_ones_is_in_the_model(tmp_path: Path) -> None:
    """A teacher that is not trained, and moves all the same."""

    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Linear(16, 4)
            self.teacher = nn.Linear(16, 4).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    slow.data.lerp_(fast.data, 0.2)
            result: Tensor = self.student(x)
            return result

    state = simulate(tmp_path, Taught).state_dict()
    torch.testing.assert_close(state["teacher.weight"], state["student.weight"], rtol=0.2, atol=0.1)


def test_a_refused_batch_leaves_nothing_behind_in_buffers(tmp_path: Path) -> None:
    x, y = problems.points(256)
    x[100, 3] = float("inf")
    run = simulate(tmp_path, lambda: nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 4)), train=(x, y))
    assert run.summary["rejected"] == 3
    assert all(tensor.isfinite().all() for tensor in run.state_dict().values())
    assert run.state_dict()["0.num_batches_tracked"] <= 3 * 15
