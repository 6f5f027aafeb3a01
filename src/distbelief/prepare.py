"""From what the user brought to what can run: everything is checked here, before anything is started."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distbelief.data import Batches, Rows, rows_of, seeded
from distbelief.downpour.method import Downpour
from distbelief.errors import DataError, TaskError
from distbelief.server.layout import Layout
from distbelief.task import Task, trainable
from distbelief.until import Every, Until

_DEFAULT_BATCH = 32
_LARGE = 1 << 20
"""Elements from which on a vector is cut into a shard a replica."""


@dataclass(frozen=True)
class Prepared:
    """A run that has been checked and whose numbers are all decided."""

    task: Task
    method: Downpour
    """With numbers in the place of "auto" and None."""
    module: nn.Module
    """The model at its start; the run owns it."""
    layout: Layout
    rows: Rows
    workers: int
    sets: dict[tuple[str, ...], Rows]
    """What is evaluated, by the prefixes of its metrics: "" for the set that chooses, "test_" for the test set."""
    until: Until
    evaluate_every: Every | None
    """None: each epoch."""
    seed: int

    @property
    def batch_size(self) -> int:
        """Examples a batch."""
        assert self.method.batch_size is not None
        return self.method.batch_size

    @property
    def replicas(self) -> int:
        """How many replicas train."""
        assert isinstance(self.method.replicas, int)
        return self.method.replicas


def prepare(
    task: Task,
    method: Downpour,
    *,
    until: Until,
    evaluate_every: Every | None,
    seed: int,
    replicas: Callable[[], int],
) -> Prepared:
    """Check a task and decide every open number; `replicas` is asked where the method says "auto".

    Raises `TaskError` or `DataError` for what cannot work, and what the user's own code raises on its first batch.
    """
    rows, loader_batch, loader_workers = rows_of(task.train, "train", task.collate_fn)
    sets: dict[tuple[str, ...], Rows] = {}
    if task.validation is not None:
        sets[("",)] = rows_of(task.validation, "validation", task.collate_fn)[0]
    if task.test is not None:
        sets[("test_",) if sets else ("", "test_")] = rows_of(task.test, "test", task.collate_fn)[0]
    module = task.build(seed)
    parameters = [(name, p.detach()) for name, p in trainable(module)]
    whole = Layout.of(parameters)
    count = method.replicas if isinstance(method.replicas, int) else replicas()
    shards = method.shards if isinstance(method.shards, int) else (count if whole.length >= _LARGE else 1)
    batch_size = method.batch_size or loader_batch or _DEFAULT_BATCH
    decided = dataclasses.replace(method, replicas=count, shards=shards, batch_size=batch_size)
    prepared = Prepared(
        task,
        decided,
        module,
        Layout.of(parameters, shards),
        rows,
        task.num_workers or loader_workers,
        sets,
        until,
        evaluate_every,
        seed,
    )
    _try_one_batch(prepared)
    return prepared


def _try_one_batch(prepared: Prepared) -> None:
    """Run the first batch through model and loss: what does not fit is said at once, in the user's own frames."""
    task, module = prepared.task, prepared.module
    kept = [buffer.clone() for buffer in module.buffers()]
    module.train()
    with seeded(prepared.seed):
        batch: Any = Batches(prepared.rows, prepared.batch_size, prepared.seed).make(0, 0)
        if task.loss is not None and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise DataError(
                "with a loss, each example of train must be a pair (input, target); use step= for other data"
            )
        try:
            loss = task.forward(module, batch).mean
        except Exception as error:
            error.add_note(f"on the first batch of train: {_shapes(batch)}")
            raise
    if not loss.requires_grad:
        raise TaskError("the loss does not depend on any trainable parameter: it carries no gradient")
    for buffer, value in zip(module.buffers(), kept, strict=True):
        buffer.copy_(value)


def _shapes(batch: Any) -> str:
    if isinstance(batch, torch.Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {_shapes(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(map(_shapes, batch)) + ")"
    return type(batch).__name__
