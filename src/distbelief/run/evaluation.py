"""Evaluation: the server's parameters, never a replica's drifted copy, over data that is not trained on."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distbelief.errors import TaskError
from distbelief.task.data import Rows, moved
from distbelief.task.task import Task
from distbelief.task.tracebacks import noted


class Abandoned(Exception):
    """Nobody waits for the evaluation any more."""


@torch.inference_mode()
def evaluate(
    task: Task, module: nn.Module, rows: Rows, batch_size: int = 512, abandoned: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """The loss and each metric of a task: means over all examples, where a batch weighs what it weighs in training.

    Raises `Abandoned` between two batches if `abandoned` says so.
    """
    sums = dict.fromkeys(task.metrics, 0.0)
    loss_sum = loss_weight = 0.0
    module.eval()
    device = next(module.parameters()).device
    for start in range(0, len(rows), batch_size):
        size = min(batch_size, len(rows) - start)
        if abandoned():
            raise Abandoned
        batch = moved(rows.batch(np.arange(start, start + size)), device)
        prediction, loss, weight = task.forward(module, batch)
        loss_sum += loss.item() * (size if weight is None else 1)
        loss_weight += size if weight is None else float(weight)
        for name, metric in task.judges.items():
            with noted(f"in the metric {name}"):
                value = metric.fn(module, batch) if task.loss is None else metric.fn(prediction, batch[1])
            sums[name] += _number(name, value) * size
    return {"loss": loss_sum / loss_weight, **{name: total / len(rows) for name, total in sums.items()}}


def _number(name: str, value: Any) -> float:
    """A metric's value; raises `TaskError` with the metric's name for what is no number."""
    array = isinstance(value, Tensor | np.ndarray)
    number = value.item() if array and math.prod(value.shape) == 1 else value
    if isinstance(number, Real):
        return float(number)
    told = f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}" if array else repr(value)
    raise TaskError(f"the metric {name} must return one number, the mean over the batch, but returned {told}")
