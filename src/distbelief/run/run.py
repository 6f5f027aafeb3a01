"""A run that has ended: what can be done with it, loading it from its directory, and how its model is known again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from distbelief.errors import DataError, DirectoryError, TaskError, UsageError
from distbelief.run import written
from distbelief.run.evaluation import EVALUATED_AT_ONCE, WithoutGradients, evaluate
from distbelief.run.result import refusals
from distbelief.run.store import place, reading
from distbelief.task import taskfile
from distbelief.task.data import ArrayRows, rows_of
from distbelief.task.nested import shapes
from distbelief.task.order import Order, digest_of
from distbelief.task.task import Task, predict
from distbelief.task.tensors import make_room_

FORMAT = 1
_SETS = ("test", "validation", "train")
_MODELS = {
    "last": ("model.safetensors", "the file has been removed"),
    "best": (
        "checkpoints/best.safetensors",
        "the run was never evaluated, or what it is judged by was never a finite number",
    ),
    "average": ("model-average.safetensors", "the run kept none; ask for it with Downpour(average=0.999)"),
}
"""The file of each model, and why it may not be there."""
_TOLD = 3
"""Differences between two models that are told of."""


@final
class Run:
    """A run that has ended.

    `summary`, `history` (one dict an evaluation) and `directory`, a `Path` or the text of a URL, are as written; models
    are read from there each time. `metrics` are those of the last evaluation: bare names for the set that chooses
    (validation; the test set where there is no other), "test_…". One that was not a finite number is None.
    """

    def __init__(self, directory: Path | Any, task: Task, summary: dict[str, Any]) -> None:
        self.directory = directory
        self.summary = summary
        self.history: list[dict[str, Any]] = summary["history"]
        self.metrics: dict[str, Any] = summary["metrics"]
        self._task = task

    def model(self, which: Literal["last", "best", "average"] = "last") -> nn.Module:
        """A fresh module, on the CPU, in eval mode, holding the server's parameters; the caller owns it.

        "last": as the run ended. "best": as at its best evaluation. "average": the moving average of its parameters,
        where the method kept one, with the buffers of the last.
        """
        module = self._task.build(self.summary["seed"])
        state = self.state_dict(which)
        make_room_(module, state)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            wrong = f"the {which} model of {self.directory} is another one than the task's: {error}"
            raise DirectoryError(wrong) from error
        return module.eval()

    def state_dict(self, which: Literal["last", "best", "average"] = "last") -> dict[str, Tensor]:
        """The tensors of that model by name."""
        if which not in _MODELS:
            raise UsageError(f"which must be one of {', '.join(map(repr, _MODELS))}, not {which!r}")
        name, missing = _MODELS[which]
        with reading(self.directory, [name]) as folder:
            if not (file := folder / name).exists():
                raise DirectoryError(f"there is no {which} model in {self.directory}: {missing}")
            return written.tensors(file)

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """The loss and metrics of the last model on data of any kind that a task takes.

        "test", "validation" and "train" are the task's own; None is its test set, or its validation set where it has
        no other. Raises `DataError` where the task has no such data.
        """
        if data is None or isinstance(data, str):
            name = self.judged_by if data is None else data
            if name not in _SETS or getattr(self._task, name) is None:
                raise DataError(f"the task has no {name} data: it has {', '.join(self._sets)}")
            data = getattr(self._task, name)
            source = rows_of(data, name, self._task.collate_fn, sparse=self._task.sparse)
        else:
            source = rows_of(data, "data", self._task.collate_fn, sparse=self._task.sparse)
            source.check_whole("data")
        return evaluate(self._task, self.model(), source.rows, source.loading.batch_size or EVALUATED_AT_ONCE)

    @property
    def judged_by(self) -> str:
        """The name of the data that `evaluate` takes if it is given none."""
        if self._sets[0] == "train":
            raise DataError('the task has neither test nor validation data: give some, or say "train"')
        return self._sets[0]

    @property
    def _sets(self) -> list[str]:
        return [name for name in _SETS if getattr(self._task, name) is not None]

    def predict(self, x: Any) -> Any:
        """What the last model says of inputs: a tensor or array, a tuple or dict of them; by parts, joined.

        Raises `DataError` where the model fails on inputs that are not like those it was trained on, else what it
        raises itself.
        """
        rows = ArrayRows(x, "x", sparse=self._task.sparse)
        if not len(rows):
            raise DataError("x holds no rows to predict from: give at least one")
        model, call = self.model(), WithoutGradients()
        try:
            parts = [
                call(predict, model, rows.batch(indices))
                for indices in np.array_split(np.arange(len(rows)), -(-len(rows) // EVALUATED_AT_ONCE))
            ]
        except Exception as error:
            if (why := self._unlike(rows)) is not None:
                raise DataError(why) from error
            raise
        return torch.cat(parts) if isinstance(parts[0], Tensor) else parts

    def _unlike(self, rows: ArrayRows) -> str | None:
        """What distinguishes rows that the model failed on from those it was trained on; None if nothing is seen."""
        if self._task.loss is None:
            return (
                "the model cannot be called with these rows alone, and how to call it is what the task's step knows: "
                "call run.model() in Python as step does"
            )
        one = np.arange(1)
        rows_trained = rows_of(self._task.train, "train", self._task.collate_fn, sparse=self._task.sparse)[0]
        trained = shapes(rows_trained.batch(one)[0], of_each=True)
        given = shapes(rows.batch(one), of_each=True)
        return (
            None
            if given == trained
            else f"each row of x is {given}, but the model was trained on rows of {trained}: give x as those"
        )

    def order(self, epoch: int) -> Tensor:
        """The order in which an epoch used its examples: batch b is `order[b * batch_size : (b + 1) * batch_size]`.

        Raises `TaskError` where they were drawn by weights that are not those of the task at hand.
        """
        summary, weights = self.summary, self._task.weights
        if summary.get("weights") != digest_of(weights):
            raise TaskError(
                "the run drew its examples by weights that this task does not have: give the task with its own"
            )
        used = summary["examples_per_epoch"]
        examples, kind = summary.get("training_examples", used), summary.get("order", "shuffled")
        return Order.of(summary["seed"], kind, examples, used, weights)(epoch)

    def __repr__(self) -> str:
        told = {name: "not finite" if value is None else f"{value:.4g}" for name, value in self.metrics.items()}
        metrics = ", ".join(f"{name} {value}" for name, value in told.items())
        refused = refusals(self.summary["account"]["refused"], self.summary["train_loss"])
        parts = [f"{self.summary['examples']:,} examples", *filter(None, [metrics, refused])]
        return f"Run({str(self.directory)!r}: {', '.join(parts)})"


def load(directory: str | Path, task: Task | None = None) -> Run:
    """The run in a directory. A task that came from a file or a name is found again; any other must be given.

    A file that lies in the directory itself is not executed: it could be anybody's.

    Raises `DirectoryError` where there is no run that has ended, `TaskError` where the task is missing or another one.
    """
    names = ["summary.json", "task.json", "model.safetensors"]
    with reading(directory, names) as folder:
        summary_file, task_file, model = (folder / name for name in names)
        if not folder.is_dir():
            raise DirectoryError(
                f"there is no directory {directory}: give that of a run, as is told where the run ends"
            )
        if not task_file.is_file():
            raise DirectoryError(f"{directory} holds no run: give the directory that is told where a run ends")
        if not summary_file.is_file():
            raise DirectoryError(
                f"{directory} holds no run that has ended: wait for it, or go on with it (resume=True)"
            )
        summary, origin = written.content(summary_file), written.content(task_file)
        if task is None:
            task = taskfile.find(*written.task_of(origin, folder))
        module = task.build(summary["seed"])
        if model.is_file():
            make_room_(module, written.tensors(model))
        if differences := change(origin, module):
            raise TaskError(
                f"the model of this task is another one than that of {directory} ({differences}): give the run's task"
            )
        return Run(folder if isinstance(place(directory), Path) else directory, task, summary)


def identity(module: nn.Module) -> dict[str, Any]:
    """What is written of a model, so that another one is known as such."""
    return {"digest": digest(module), "tensors": outline(module)}


def digest(module: nn.Module) -> str:
    """What a model is, as a short name: its parameters' and buffers' names, shapes and kinds."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()]
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest()


def outline(module: nn.Module) -> dict[str, str]:
    """A model's parameters and buffers by name, each as kind and shape in words."""
    return {name: shapes(tensor) for name, tensor in module.state_dict().items()}


def change(known: Mapping[str, Any], module: nn.Module) -> str | None:
    """How a model is another one than that whose identity was written, in words; None if it is the same."""
    return None if digest(module) == known["digest"] else difference(known["tensors"], outline(module))


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Where two outlines differ, in words: the first few places, and how many more there are."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    places = [f"{name} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}" for name in names]
    rest = [f"and {len(places) - _TOLD} more"] if len(places) > _TOLD else []
    return ", ".join(places[:_TOLD] + rest) or "their tensors come in another order"
