"""From what the user brought to what can run: everything is checked here, before anything is started."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distbelief.allocation import Method
from distbelief.errors import DataError, TaskError, UsageError
from distbelief.run.checkpoint import Checkpoint, savable, storable
from distbelief.run.evaluation import EVALUATED_AT_ONCE
from distbelief.run.state import KINDS, Changes, RunState, changes, module_values
from distbelief.run.trial import train_on, try_evaluations, try_last
from distbelief.run.until import Every, Until
from distbelief.server.block import OWN_VECTORS
from distbelief.server.layout import Layout
from distbelief.task.data import ArrayRows, Batches, Rows, rows_of, seeded
from distbelief.task.gradients import CPU, Precision
from distbelief.task.loader import Loading
from distbelief.task.nested import fingerprint, moved, shapes
from distbelief.task.order import Kind, Order
from distbelief.task.settings import check_settings
from distbelief.task.task import Task, trainable
from distbelief.task.tensors import put_, tensors_of
from distbelief.task.tracebacks import noted

_DEFAULT_BATCH = 32
_EVERY_MINUTE = Every(seconds=60)
_NAMED = 32
"""Examples of a batch that are named in a sentence."""
OF_AVERAGE = "average_"
"""What metrics of the average of the parameters begin with."""
_LARGE = 1 << 20
"""Elements from which on a vector is cut into a shard a replica."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is asked for beside its task and its method."""

    until: Until
    evaluate_every: Every | None = None
    """None: each epoch."""
    wait_for_evaluations: bool = False
    """Whether work of an epoch is held back until the evaluation of the one before has begun."""
    checkpoint_every: Every = _EVERY_MINUTE
    seed: int = 0
    precision: Precision | None = None
    """What replicas compute in; None: as the parameters are."""
    default_overlap: int = 0
    """Batches that fetches and pushes may lag behind where the method does not say: the engine's."""
    resumed: Checkpoint | None = None
    """What the run goes on from."""


class EvaluationSet(NamedTuple):
    """Examples that are evaluated, and how many of them at once."""

    rows: Rows
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Prepared(Asked):
    """A run that has been checked and whose numbers are all decided."""

    task: Task
    """Its modules are as the run begins, or goes on, but for the trained parameters, which are the server's."""
    origin: Task
    """Its modules are as the run began in its first life."""
    method: Method
    """With numbers in the place of "auto" and None, in schedules too."""
    chosen: Method
    """The same with the schedules as they were given: what ends with the run ends with that which goes on from it."""
    replicas: int
    """At the most."""
    batch_size: int
    """Examples a batch."""
    module: nn.Module
    """The model as the run begins, or goes on; the run owns it."""
    layout: Layout
    rows: Rows
    order: Order
    """Which of them an epoch uses, one after the other."""
    workers: Mapping[str, Any]
    """Arguments of a DataLoader whose processes make a replica's batches; none where it makes them itself."""
    sets: dict[tuple[str, ...], EvaluationSet]
    """What is evaluated, by the prefixes of its metrics: "" for the set that chooses, "test_" for the test set."""
    advice: tuple[str, ...] = ()
    """What was seen in the first evaluations, in sentences."""
    mutable_buffers: tuple[str, ...] = ()
    """The buffers, and parameters that are not trained, that training changes, by name."""
    growing: tuple[str, ...] = ()
    """Tensors that have another shape after each batch."""
    data: str = ""
    """The fingerprint of the first batch."""

    @property
    def examples(self) -> int:
        """Examples that an epoch uses."""
        return self.order.used

    def batches(self, *, workers: Mapping[str, Any] | None = None, epochs: int = 1) -> Batches:
        """The batches to train on."""
        return Batches(self.rows, self.batch_size, self.seed, self.order, workers=workers, epochs=epochs)

    @property
    def judge(self) -> tuple[str, Literal["min", "max"]]:
        """The metric by which evaluations are judged: `monitor`, or the target's, else the first, else the loss."""
        name = self.until.monitor or next(iter([*(self.until.target or {}), *self.task.metrics, "loss"]))
        return name, self.mode(name)

    def mode(self, name: str) -> Literal["min", "max"]:
        """Whether less or more of a metric is better, those of the average included."""
        return self.task.mode(name.removeprefix(OF_AVERAGE) if self.of_average(name) else name)

    def of_average(self, name: str) -> bool:
        """Whether a metric is one of the average of the parameters, and none of the task's own of such a name."""
        return self.method.average is not None and name not in ("loss", *self.task.metrics)

    @property
    def remarks(self) -> list[str]:
        """Settings that have no effect, and tensors that are left out, in sentences."""
        until, trained = self.until, [entry.name for entry in self.layout.entries]
        unused = [] if until.patience or not until.min_delta else ["min_delta has no effect without patience"]
        if not self.sets:
            asked = {
                "evaluate_every": self.evaluate_every,
                "wait_for_evaluations": self.wait_for_evaluations,
                f"metrics ({', '.join(self.task.metrics)})": self.task.metrics,
            }
            without = "since there is neither validation nor test data to evaluate"
            unused += [f"{name} has no effect, {without}" for name, value in asked.items() if value]
        used = [self.rows, *(found.rows for found in self.sets.values())]
        if self.task.collate_fn is not None and all(isinstance(rows, ArrayRows) for rows in used):
            unused.append("collate_fn has no effect, since all data are arrays: rows are taken from them as they are")
        left_out = [
            f"{name} has another shape after each batch: replicas keep it to themselves, and the model that is "
            "evaluated and written does not have it"
            for name in self.growing
        ]
        remarks = self.method.remarks(trained, until.in_examples(self.examples))
        return [*remarks, *unused, *self.advice, *left_out]

    @property
    def chosen_by(self) -> str | None:
        """Which set chooses the best evaluation, and is judged by targets and patience."""
        return None if not self.sets else "validation" if ("",) in self.sets else "test"

    @property
    def past_history(self) -> list[dict[str, Any]]:
        """The evaluations of the run that this one goes on from."""
        return [] if self.resumed is None else list(self.resumed.state.history)

    @property
    def changes(self) -> Changes:
        """What is not as in the checkpoint that the run goes on from."""
        if self.resumed is None:
            return Changes([], [], [])
        before = self.resumed.state.trained
        return changes(before, self.resumed.tensors, self.layout, self.method.kept)

    def examples_of(self, epoch: int, batch: int) -> list[int]:
        """Which examples are in a batch."""
        indices: list[int] = self.order(epoch).tolist()
        return indices[batch * self.batch_size : (batch + 1) * self.batch_size]

    def name_batch(self, epoch: int, batch: int) -> str:
        """A batch in words, with its first examples."""
        indices = self.examples_of(epoch, batch)
        rest = f" and {len(indices) - _NAMED} others" if len(indices) > _NAMED else ""
        return f"batch {batch} of epoch {epoch} (examples {', '.join(map(str, indices[:_NAMED]))}{rest})"

    @property
    def term(self) -> int:
        """The term of the shards as the run begins or goes on, from 1: later than all there have been."""
        return 1 if self.resumed is None else self.resumed.state.term + 1

    @property
    def incarnations(self) -> tuple[int, ...]:
        """How many processes each replica has had in the lives before, also those that are not there any more."""
        before = () if self.resumed is None else self.resumed.state.incarnations
        return before + (0,) * (self.replicas - len(before))

    def state(self, *, incarnations: Sequence[int], history: Sequence[dict[str, Any]], **now: Any) -> RunState:
        """The state of the run for a checkpoint; `incarnations` are those of the replicas that are there now.

        `now`: those fields of it that change from moment to moment.
        """
        return RunState(
            seed=self.seed,
            data=self.data,
            trained=tuple(entry.name for entry in self.layout.entries),
            incarnations=(*incarnations, *self.incarnations[len(incarnations) :]),
            history=list(history),
            **now,
        )

    @property
    def overlap(self) -> int:
        """Batches that fetches and pushes may lag behind."""
        if self.method.overlap is not None:
            return self.method.overlap
        # What is computed from parameters older than its round's would come late for it.
        return 0 if self.method.admission.round > 1 else self.default_overlap


def prepare(
    task: Task,
    method: Method,
    asked: Asked,
    *,
    replicas: Callable[[], int],
    start: Mapping[str, Tensor] | None = None,
    check_model: Callable[[nn.Module], None] = lambda module: None,
    device: torch.device = CPU,
) -> Prepared:
    """Check a task and decide every open number; `replicas` is asked where the method says "auto".

    `check_model` is given the module as it is after one batch, and raises where it is not that of the run that goes on.
    `device`: where the first batch is tried. The module that is returned is on the CPU.

    Raises `TaskError` or `DataError` for what cannot work, and what the user's own code raises on its first batch.
    """
    check_settings()
    rows, loading = rows_of(task.train, "train", task.collate_fn, sparse=task.sparse)
    batch_size = method.batch_size or loading.batch_size or _DEFAULT_BATCH
    order, sets = _order(task, loading, len(rows), batch_size, asked.seed), _sets(task, batch_size)
    _check_judges(task, asked.until, bool(sets), averaged=method.average is not None)
    module = task.build(asked.seed)
    _check_tensors(module)
    task = task.like(module)
    parameters = [(name, p.detach()) for name, p in trainable(module)]
    whole = Layout.of(parameters)
    _check_method(method, module)
    count = method.most_replicas or replicas()
    shards = method.shards if isinstance(method.shards, int) else (count if whole.length >= _LARGE else 1)
    chosen = method.decided(replicas=count, shards=shards, batch_size=batch_size)
    prepared = Prepared(
        **vars(asked),
        task=task,
        origin=task,
        method=chosen.over(asked.until.in_examples(order.used)),
        chosen=chosen,
        replicas=count,
        batch_size=batch_size,
        module=module,
        layout=Layout.of(parameters, shards),
        rows=rows,
        order=order,
        workers={**loading.workers, **({"num_workers": task.num_workers} if task.num_workers else {})},
        sets=sets,
    )
    _check_decided(prepared)
    return _tried(prepared, start, check_model, device)


def _tried(
    prepared: Prepared,
    start: Mapping[str, Tensor] | None,
    check_model: Callable[[nn.Module], None],
    device: torch.device,
) -> Prepared:
    """The same, once a batch has gone through; its module and task begin as the run does, or goes on."""
    task, module, seed = prepared.task, prepared.module, prepared.seed
    with seeded(seed):
        batch = prepared.batches()(0, 0)
    prepared = _recut(dataclasses.replace(prepared, data=fingerprint(batch)))
    trial = _again(task, module, seed).to(device)
    made, mutable_buffers, growing = _try_one_batch(prepared, trial, moved(batch, device))
    advice = tuple(try_evaluations(prepared, task.placed(device), trial))
    put_(module, made)
    check_model(module)
    tried = dataclasses.replace(
        prepared,
        task=task.with_values(made),
        mutable_buffers=mutable_buffers,
        growing=growing,
        advice=advice,
    )
    return _begun(tried, start)


def _begun(prepared: Prepared, start: Mapping[str, Tensor] | None) -> Prepared:
    """The run with the values that it starts from, or goes on from."""
    task, module, resumed = prepared.task, prepared.module, prepared.resumed
    origin = task if start is None else _started(task, module, start)
    if resumed is not None:
        _restore_(module, resumed)
    changed = start is not None or resumed is not None
    # Replicas begin with what is not trained, and fetch the rest.
    task = origin.with_values(_copies(module, trained=False)) if changed else origin
    return dataclasses.replace(prepared, task=task, origin=origin)


def _again(task: Task, module: nn.Module, seed: int) -> nn.Module:
    """A second module like one that a task has built, to be tried out."""
    another = task.build(seed)
    if shared := {id(p) for p in module.parameters()} & {id(p) for p in another.parameters()}:
        name = next(name for name, p in module.named_parameters() if id(p) in shared)
        raise TaskError(
            f"model() returns the same {name} each time it is called, and replicas need one each: build the layers "
            "inside model(), or give the module itself as model=, which is copied"
        )
    return another


def go_on(prepared: Prepared, resumed: Checkpoint | None) -> Prepared:
    """The same run in another life, from a checkpoint, or from its beginning; its module becomes what it was there."""
    put_(prepared.module, tensors_of(prepared.origin.build(prepared.seed)))
    if resumed is not None:
        _restore_(prepared.module, resumed)
    task = prepared.task.with_values(_copies(prepared.module, trained=False))
    return _recut(dataclasses.replace(prepared, task=task, resumed=resumed))


def _started(task: Task, module: nn.Module, start: Mapping[str, Tensor]) -> Task:
    """Load what a run is to start from; returns the task whose modules begin so."""
    try:
        module.load_state_dict(start)
    except RuntimeError as error:
        raise TaskError(f"start= does not fit the model ({error}): give a state_dict of the same model") from error
    return task.with_values(_copies(module, trained=True))


def _restore_(module: nn.Module, resumed: Checkpoint) -> None:
    """Give a module every parameter and buffer of a checkpoint, whether it is trained now, then, or not at all."""
    values = module_values(resumed.tensors)
    if missing := [name for name, _ in module.named_parameters() if name not in values]:
        raise TaskError(f"the run had no parameter {missing[0]}: go on with the model that it began with")
    put_(module, values)


def _copies(module: nn.Module, *, trained: bool) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers by name, the trained parameters among them or not."""
    left_out = set() if trained else {name for name, p in module.named_parameters() if p.requires_grad}
    return {name: tensor.to(CPU, copy=True) for name, tensor in tensors_of(module).items() if name not in left_out}


def _check_tensors(module: nn.Module) -> None:
    """Raise `TaskError` for what no checkpoint, or no file of the model, could hold."""
    kept = module.state_dict()
    for name, tensor in tensors_of(module).items():
        if not storable(tensor):
            raise TaskError(
                f"{name} is of {tensor.dtype}, {tensor.layout}, which checkpoints cannot hold: keep it as dense "
                "tensors, such as the indices and values of a sparse one"
            )
        if name in kept and not savable(tensor):
            raise TaskError(
                f"{name} is of {tensor.dtype}, which files of models cannot hold: keep it as torch.view_as_real "
                "gives it, or register it with persistent=False"
            )


def _check_method(method: Method, module: nn.Module) -> None:
    """Raise `UsageError` for names in a method that do not fit the model, or what is written of a run."""
    if taken := {name for name in method.optimizer.state if name in (*KINDS, *OWN_VECTORS) or "/" in name}:
        raise UsageError(f"a vector of the optimizer cannot be called {min(taken)!r}: choose another name")
    method.check_names([name for name, _ in module.named_parameters()])


def _check_decided(prepared: Prepared) -> None:
    """A run's place in its data is told in batches of an epoch: both must be what they were."""
    precision, resumed = prepared.precision, prepared.resumed
    if precision is not None and prepared.layout.dtype != torch.float32:
        raise UsageError(
            f'precision="{precision}" is for models of float32, and this one has parameters of float64: leave it out'
        )
    if resumed is not None and resumed.state.method.examples != prepared.examples:
        dropped = "; with drop_last=True their number depends on the batch size, which must stay"
        raise DataError(
            f"the run has {resumed.state.method.examples:,} examples to train on, and cannot go on with "
            f"{prepared.examples:,}: give the same data{dropped if prepared.examples < len(prepared.rows) else ''}"
        )


def _recut(prepared: Prepared) -> Prepared:
    """The same, going on in batches of its own size from a checkpoint of a run that may have had others."""
    resumed = prepared.resumed
    if resumed is None or resumed.state.method.batch_size == prepared.batch_size:
        return prepared
    state, earlier = resumed.state, resumed.state.method.batch_size
    try:
        ledger = state.method.recut(prepared.batch_size)
    except ValueError as error:
        raise UsageError(f"the run cannot go on with batches of {prepared.batch_size} examples: {error}") from error
    with seeded(prepared.seed):
        first = fingerprint(Batches(prepared.rows, earlier, prepared.seed, prepared.order)(0, 0))
    # The first batch is another one for its size alone.
    data = prepared.data if first == state.data else state.data
    changed = dataclasses.replace(state, method=ledger, data=data)
    return dataclasses.replace(prepared, resumed=dataclasses.replace(resumed, state=changed))


def _order(task: Task, loading: Loading, examples: int, batch_size: int, seed: int) -> Order:
    """Which examples an epoch uses: with drop_last, as many as whole batches hold."""
    used = examples - examples % batch_size if loading.drop_last else examples
    if not used:
        raise DataError(
            f"train has {examples:,} examples, which are less than a batch of {batch_size:,}, and with drop_last=True "
            "none is left: choose a smaller batch_size, or leave drop_last out"
        )
    kind: Kind = "weighted" if task.weights is not None else "shuffled" if loading.shuffle else "sequential"
    return Order.of(seed, kind, examples, used, task.weights)


def _sets(task: Task, batch_size: int) -> dict[tuple[str, ...], EvaluationSet]:
    # An evaluation keeps no activations, so that more fit than in training.
    at_once = max(batch_size, min(EVALUATED_AT_ONCE, 4 * batch_size))

    def given(name: str, data: Any) -> EvaluationSet:
        source = rows_of(data, name, task.collate_fn, sparse=task.sparse)
        source.check_whole(name)
        return EvaluationSet(source.rows, source.loading.batch_size or at_once)

    sets: dict[tuple[str, ...], EvaluationSet] = {}
    if task.validation is not None:
        sets[("",)] = given("validation", task.validation)
    if task.test is not None:
        sets[("test_",) if sets else ("", "test_")] = given("test", task.test)
    return sets


def _check_judges(task: Task, until: Until, evaluated: bool, *, averaged: bool) -> None:
    known = ["loss", *task.metrics]
    ours = [OF_AVERAGE + name for name in known if averaged]
    if taken := {*ours} & {*known}:
        raise TaskError(f"a metric cannot be called {min(taken)}, which is that of the average: choose another name")
    known += ours
    asked = dict.fromkeys(until.target or {}, "target") | ({until.monitor: "monitor"} if until.monitor else {})
    for name, what in asked.items():
        if name not in known:
            raise UsageError(f"the {what} is {name}, which is no metric of the task: choose one of {', '.join(known)}")
    if (asked or until.patience) and not evaluated:
        raise UsageError("a target, a monitor and patience need validation or test data to be judged by")


Tried = tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]


def _try_one_batch(prepared: Prepared, module: nn.Module, batch: Any) -> Tried:
    """Run the first batch, and a smaller last one, through model and loss: what does not fit is said at once.

    `module` is another one than the run's, equal to it; it is of no use afterwards. Returns the buffers that the first
    forward pass makes, fills or enlarges, the names of the tensors that a batch in training changes, trained parameters
    apart, and of those that have another shape after each batch.
    """
    device = next(module.parameters()).device
    task = prepared.task.placed(device)
    module.train()
    if task.loss is not None and not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise DataError("with a loss, each example of train must be a pair (input, target); use step= for other data")
    trained = {entry.name for entry in prepared.layout.entries}

    def forward() -> dict[str, Tensor]:
        with noted(f"on the first batch of train: {shapes(batch)}"):
            train_on(prepared, task, module, batch)
        return {name: tensor.to(CPU) for name, tensor in tensors_of(module).items() if name not in trained}

    before, after = tensors_of(prepared.module), forward()
    made = {
        name: tensor.clone()
        for name, tensor in after.items()
        if name not in before or tensor.shape != before[name].shape
    }
    if late := [name for name, _ in module.named_parameters() if name not in before]:
        raise TaskError(f"the first batch makes parameter {late[0]}, which would not be trained: make it in model()")
    if made:
        # Whether what it has made now is changed by every batch, or stays.
        before, after = before | made, forward()
    changed = [name for name, tensor in after.items() if not _equal(tensor, before[name])]
    growing = tuple(name for name in changed if after[name].shape != before[name].shape)
    try_last(prepared, task, module)
    return made, tuple(name for name in changed if name not in growing), growing


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes: unlike numbers, NaN is equal to itself."""
    return one.shape == other.shape and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().contiguous().view(-1).view(torch.uint8)
