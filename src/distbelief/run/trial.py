"""Batches that are tried before anything starts: what does not fit is said at once, in the user's own frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from distbelief.errors import TaskError, UserCodeError
from distbelief.run.evaluation import evaluate
from distbelief.task.data import Head, seeded
from distbelief.task.gradients import autocast
from distbelief.task.nested import moved
from distbelief.task.task import Task
from distbelief.task.tracebacks import noted, user_frames

if TYPE_CHECKING:
    from distbelief.run.prepare import Prepared


def train_on(prepared: Prepared, task: Task, module: nn.Module, batch: Any) -> None:
    """Run a batch, which is where the module is, through model and loss."""
    device = next(module.parameters()).device
    with seeded(prepared.seed), autocast(device, prepared.precision):
        found = task.forward(module, batch)
    if not found.loss.requires_grad:
        raise TaskError("the loss does not depend on any trainable parameter: compute it from what the model returns")
    if found.weight is not None and not 0 <= float(found.weight) < math.inf:
        raise TaskError(
            f"the weight of the first batch is {float(found.weight):g}: return (sum, weight) with 0 or more"
        )


def try_last(prepared: Prepared, task: Task, module: nn.Module) -> None:
    """Try the last batch of an epoch, where it is smaller than the others and the run comes to it."""
    full, limit = prepared.examples // prepared.batch_size, prepared.until.examples
    size = prepared.examples % prepared.batch_size
    if not full or not size or (limit is not None and limit <= full * prepared.batch_size):
        return
    with noted(f"on the last batch of an epoch, of size {size}"), seeded(prepared.seed):
        batch = moved(prepared.batches()(0, full), next(module.parameters()).device)
    try:
        train_on(prepared, task, module, batch)
    # Whatever the user's code raises.
    except Exception as error:
        raise UserCodeError(
            f"the last batch of an epoch is of size {size}, and fails where the first, of size {prepared.batch_size}, "
            f"does not, with {error!r}: choose another batch size, such as batch_size={_fitting(prepared)}, or leave "
            f"the last batch out, by train=DataLoader(…, drop_last=True)\n\n{user_frames(error)}".rstrip()
        ) from error


def _fitting(prepared: Prepared) -> int:
    """The next smaller batch size with which the last batch is at least half as large as the others."""
    sizes = range(prepared.batch_size - 1, 1, -1)
    return next((size for size in sizes if not 0 < prepared.examples % size < size / 2), 1)


def try_evaluations(prepared: Prepared, task: Task, module: nn.Module) -> Iterator[str]:
    """Evaluate a few examples of each set, metrics and all; yields advice, in sentences."""
    over_set = any(metric.over == "set" for metric in task.judges.values())
    for prefixes, (rows, batch_size) in prepared.sets.items():
        name = "test" if "test_" in prefixes else "validation"
        few = Head(rows, min(len(rows), batch_size, prepared.batch_size))
        with noted(f"on the first examples of {name}"), seeded(prepared.seed):
            try:
                found = evaluate(task, module, few)
            # A metric over the set may be defined for the whole of it alone: where the first few are of one class, say.
            except Exception:
                if not over_set or len(few) == len(rows):
                    raise
                found = evaluate(task, module, rows, batch_size)
        for metric, judge in task.judges.items():
            if judge.over == "batch" and task.loss is not None and not math.isfinite(found[metric]):
                yield (
                    f"the metric {metric} is {found[metric]:g} on the first examples of {name}: where it is not a "
                    "number on a batch, it is computed over the whole set in a second pass; to save that, give "
                    f'metrics={{"{metric}": db.Metric(fn, over="set")}}'
                )
