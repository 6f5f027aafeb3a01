"""From what the user brought to what can run: everything is checked here, before anything is started."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distbelief.downpour.method import Downpour
from distbelief.errors import DataError, TaskError, UsageError
from distbelief.run.checkpoint import Checkpoint
from distbelief.run.evaluation import evaluate
from distbelief.run.until import Every, Until
from distbelief.server.layout import Layout
from distbelief.task.data import Batches, Head, Rows, fingerprint, kinds, moved, rows_of, seeded
from distbelief.task.gradients import CPU, Precision, autocast
from distbelief.task.task import Task, trainable

_DEFAULT_BATCH = 32
_EVERY_MINUTE = Every(seconds=60)
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
    checkpoint_every: Every
    resumed: Checkpoint | None
    """What the run goes on from."""
    precision: Precision | None = None
    """What replicas compute in; None: as the parameters are."""
    moving: tuple[str, ...] = ()
    """The buffers that training changes, by name."""
    data: str = ""
    """The fingerprint of the first batch."""

    @property
    def evaluation_batch(self) -> int:
        """Examples a batch of an evaluation: it keeps no activations, so that more fit than in training."""
        return max(self.batch_size, min(512, 4 * self.batch_size))

    @property
    def judge(self) -> tuple[str, Literal["min", "max"]]:
        """The metric by which the best evaluation is chosen: that of the target, else the first, else the loss."""
        name = next(iter([*(self.until.target or {}), *self.task.metrics, "loss"]))
        return name, self.task.mode(name)

    @property
    def chosen_by(self) -> str | None:
        """Which set chooses the best evaluation, and is judged by targets and patience."""
        return None if not self.sets else "validation" if ("",) in self.sets else "test"

    @property
    def past_history(self) -> list[dict[str, Any]]:
        """The evaluations of the run that this one goes on from."""
        return [] if self.resumed is None else list(self.resumed.state["history"])

    @property
    def term(self) -> int:
        """The term of the shards as the run begins or goes on: later than all there have been."""
        return 0 if self.resumed is None else self.resumed.state["term"] + 1

    @property
    def incarnations(self) -> list[int]:
        """How many incarnations of each replica there have been."""
        before = [] if self.resumed is None else self.resumed.state["incarnations"]
        return [before[replica] if replica < len(before) else 0 for replica in range(self.replicas)]

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
    checkpoint_every: Every = _EVERY_MINUTE,
    start: Mapping[str, Tensor] | None = None,
    resumed: Checkpoint | None = None,
    precision: Precision | None = None,
    device: torch.device = CPU,
) -> Prepared:
    """Check a task and decide every open number; `replicas` is asked where the method says "auto".

    `device`: where the first batch is tried. The module that is returned is on the CPU.

    Raises `TaskError` or `DataError` for what cannot work, and what the user's own code raises on its first batch.
    """
    rows, loader_batch, loader_workers = rows_of(task.train, "train", task.collate_fn, sparse=task.sparse)
    sets = _sets(task)
    _check_judges(task, until, bool(sets))
    module = task.build(seed)
    if start is not None:
        _load(module, start)
        # Replicas begin with all of it, the frozen parameters included.
        task = task.with_model(copy.deepcopy(module))
    parameters = [(name, p.detach()) for name, p in trainable(module)]
    whole = Layout.of(parameters)
    count = method.replicas if isinstance(method.replicas, int) else replicas()
    shards = method.shards if isinstance(method.shards, int) else (count if whole.length >= _LARGE else 1)
    batch_size = method.batch_size or loader_batch or _DEFAULT_BATCH
    if resumed is not None:
        _check_same(resumed.state["ledger"], len(rows), batch_size)
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
        checkpoint_every,
        resumed,
        precision,
    )
    if precision is not None and whole.dtype != torch.float32:
        raise UsageError(f'precision="{precision}" is for models of float32; this one has parameters of float64')
    with seeded(seed):
        batch = Batches(rows, batch_size, seed).make(0, 0)
    trial = module if device.type == "cpu" else copy.deepcopy(module).to(device)
    moving = _try_one_batch(prepared, trial, moved(batch, device))
    return dataclasses.replace(prepared, moving=moving, data=fingerprint(batch))


def _check_same(ledger: dict[str, Any], examples: int, batch_size: int) -> None:
    """A run's place in its data is told in batches of an epoch: both must be what they were."""
    if ledger["batch_size"] != batch_size:
        raise UsageError(f"the run has batches of {ledger['batch_size']} examples, and cannot go on with {batch_size}")
    if ledger["examples"] != examples:
        raise DataError(f"the run has {ledger['examples']:,} examples to train on, and cannot go on with {examples:,}")


def _sets(task: Task) -> dict[tuple[str, ...], Rows]:
    sets: dict[tuple[str, ...], Rows] = {}
    if task.validation is not None:
        sets[("",)] = rows_of(task.validation, "validation", task.collate_fn, sparse=task.sparse)[0]
    if task.test is not None:
        rows = rows_of(task.test, "test", task.collate_fn, sparse=task.sparse)[0]
        sets[("test_",) if sets else ("", "test_")] = rows
    return sets


def _check_judges(task: Task, until: Until, evaluated: bool) -> None:
    known = ["loss", *task.metrics]
    for name in until.target or {}:
        if name not in known:
            raise UsageError(f"the target is {name}, which is no metric of the task: {', '.join(known)}")
    if (until.target or until.patience) and not evaluated:
        raise UsageError("a target and patience need validation or test data to be judged by")


def _load(module: nn.Module, start: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(start)
    except RuntimeError as error:
        raise TaskError(f"what the run is to start from does not fit the model: {error}") from error


def _try_set(task: Task, module: nn.Module, rows: Rows, name: str, examples: int) -> None:
    """Evaluate a few examples of a set, metrics and all."""
    try:
        evaluate(task, module, Head(rows, examples))
    except Exception as error:
        error.add_note(f"on the first examples of {name}")
        raise


def _try_one_batch(prepared: Prepared, module: nn.Module, batch: Any) -> tuple[str, ...]:
    """Run the first batch through model and loss: what does not fit is said at once, in the user's own frames.

    Returns the names of the buffers that a batch in training changes.
    """
    device = next(module.parameters()).device
    task = prepared.task.placed(device)
    kept = [buffer.clone() for buffer in module.buffers()]
    module.train()
    if task.loss is not None and not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise DataError("with a loss, each example of train must be a pair (input, target); use step= for other data")
    with seeded(prepared.seed):
        try:
            with autocast(device, prepared.precision):
                loss = task.forward(module, batch).mean
        except Exception as error:
            error.add_note(f"on the first batch of train: {kinds(batch)}")
            raise
    if not loss.requires_grad:
        raise TaskError("the loss does not depend on any trainable parameter: it carries no gradient")
    moving = tuple(
        name
        for (name, buffer), before in zip(module.named_buffers(), kept, strict=True)
        if not torch.equal(buffer, before)
    )
    for buffer, value in zip(module.buffers(), kept, strict=True):
        buffer.copy_(value)
    for prefixes, rows in prepared.sets.items():
        name = "test" if "test_" in prefixes else "validation"
        with seeded(prepared.seed):
            _try_set(task, module, rows, name, min(len(rows), prepared.batch_size))
    return moving
