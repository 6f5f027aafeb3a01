"""Evaluation: the server's parameters, never a replica's drifted copy, over data that is not trained on."""

import math
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from distbelief.errors import TaskError
from distbelief.task.data import Rows
from distbelief.task.nested import detached, joined, moved
from distbelief.task.task import Forward, Metric, Task
from distbelief.task.tracebacks import noted

EVALUATED_AT_ONCE = 512
"""Examples in a batch, where nothing else is said."""
_NO_GRAPH = ("does not require grad", "doesn't require grad")
"""What torch says to code that differentiates while gradients are off."""


class Abandoned(Exception):
    """Nobody waits for the evaluation any more."""


@final
class WithoutGradients:
    """Calls functions with gradients off, and from the first on that differentiates by itself, with gradients on.

    Never in inference mode: what is made there cannot be differentiated even where gradients are on again.
    """

    def __init__(self) -> None:
        self._needed = False

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, without a graph."""
        if not self._needed:
            try:
                with torch.no_grad():
                    return function(*arguments)
            except RuntimeError as error:
                if not any(said in str(error) for said in _NO_GRAPH):
                    raise
                self._needed = True
        with torch.enable_grad():
            return detached(function(*arguments))


def evaluate(
    task: Task,
    module: nn.Module,
    rows: Rows,
    batch_size: int = EVALUATED_AT_ONCE,
    abandoned: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The loss, each metric of a task, and what its step shows; not a number where it is not defined.

    Means over all examples, where a batch weighs what it weighs in training; metrics over the set are of all at once.
    So is, in a second pass, a metric that is not a number on some batch, as AUC where all targets are of one class.
    Raises `Abandoned` between two batches if `abandoned` says so.
    """
    over_set = {name for name, metric in task.judges.items() if metric.over == "set"}
    values = _one_pass(task, module, rows, batch_size, abandoned, over_set)
    undefined = {name for name in task.judges.keys() - over_set if math.isnan(values[name])}
    if not undefined or task.loss is None or math.isnan(values["loss"]) or len(rows) <= batch_size:
        return values
    try:
        return _one_pass(task, module, rows, batch_size, abandoned, over_set | undefined)
    except _NotJoined:
        return values


class _NotJoined(TaskError):
    """The predictions or targets of batches do not go together."""


def _one_pass(
    task: Task,
    module: nn.Module,
    rows: Rows,
    batch_size: int,
    abandoned: Callable[[], bool],
    names: Collection[str],
) -> dict[str, float]:
    """Evaluate; `names`: the metrics that are given the whole set."""
    module.eval()
    call, device = WithoutGradients(), next(module.parameters()).device
    means: dict[str, _Mean] = {}
    over_set = {name: metric for name, metric in task.judges.items() if name in names}
    kept = []
    for start in range(0, len(rows), batch_size):
        size = min(batch_size, len(rows) - start)
        if abandoned():
            raise Abandoned
        batch = moved(rows.batch(np.arange(start, start + size)), device)
        found: Forward = call(task.forward, module, batch)
        times, weight = (size, size) if found.weight is None else (1, float(found.weight))
        means.setdefault("loss", _Mean()).add(found.loss.item() * times, weight)
        for name, metric in task.judges.items():
            if name not in over_set:
                with noted(f"in the metric {name}"):
                    given = (module, batch) if task.loss is None else (found.prediction, batch[1])
                    value = call(metric.fn, *given)
                means.setdefault(name, _Mean()).add(_number(f"the metric {name}", value) * size, size)
        for name, value in found.values.items():
            if name in task.judges:
                raise TaskError(f"step returns a value called {name}, and so is a metric: choose another name for one")
            number = _number("step", value, f"return one number as {name}")
            means.setdefault(name, _Mean()).add(number * times, weight)
        if over_set:
            kept.append(detached((found.prediction, batch[1]), torch.device("cpu")))
    values = {name: mean.value for name, mean in means.items()} | _over_set(over_set, kept)
    return {name: values[name] for name in dict.fromkeys(["loss", *task.judges, *values])}


class _Mean:
    """A sum with its weight."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float, weight: float) -> None:
        self._sum += value
        self._weight += weight

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else math.nan


def _over_set(metrics: dict[str, Metric], kept: Sequence[Any]) -> dict[str, float]:
    """The metrics of predictions and targets of a whole set, given batch by batch."""
    if not metrics:
        return {}
    try:
        prediction, target = joined(kept)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise _NotJoined(
            f'the metric {next(iter(metrics))} is over="set", and the predictions or targets of its batches cannot be '
            f"joined: {error}: have the model and the data give equal shapes but for the first dimension, or use "
            'over="batch"'
        ) from error
    values = {}
    for name, metric in metrics.items():
        with noted(f"in the metric {name}"), torch.no_grad():
            values[name] = _number(f"the metric {name}", metric.fn(prediction, target), "return one number")
    return values


def _number(what: str, value: Any, wanted: str = "return one number, the mean over the batch") -> float:
    """A value as a number; raises `TaskError` with its name for what is none."""
    array = isinstance(value, Tensor | np.ndarray)
    number = value.item() if array and math.prod(value.shape) == 1 else value
    if isinstance(number, Real):
        return float(number)
    told = f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}" if array else repr(value)
    raise TaskError(f"{what} must {wanted}, but returned {told}")
