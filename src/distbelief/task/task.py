"""What the user brings: a model, a loss, data, and how to judge them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from distbelief.chance import derive
from distbelief.checks import check_whole
from distbelief.errors import TaskError, UsageError
from distbelief.task.data import seeded
from distbelief.task.nested import shapes
from distbelief.task.order import checked_weights
from distbelief.task.tensors import Sketch, put_, sketches_of, unlike

if TYPE_CHECKING:
    from distbelief.downpour.method import Downpour
    from distbelief.run.until import Until

FILE_MODULE = "distbelief_task_"
"""How the names of modules begin that were made from task files."""


RESERVED = ("event", "epoch", "examples", "updates", "seconds", "best", "loss")
"""What a row of the history and an event of an evaluation hold beside metrics."""


@dataclass(frozen=True)
class Metric:
    """A judgement of what the model says, and whether less or more of it is better.

    `fn(prediction, target)` with a loss, `fn(model, batch)` with a step; it returns a number or a scalar tensor.
    `over`: "batch", and it returns the mean over a batch; the mean over all examples is taken. "set", where it is no
    mean, as AUC or F1: it is given all predictions and targets of the set at once, on the CPU. A value that is not
    finite is never the best.
    """

    fn: Callable[[Any, Any], float | Tensor]
    mode: Literal["min", "max"] = "max"
    over: Literal["batch", "set"] = "batch"

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise UsageError(f"a metric must be a function, not {self.fn!r}")
        if self.mode not in ("min", "max"):
            raise UsageError(f'the mode of a metric must be "min" or "max", not {self.mode!r}')
        if self.over not in ("batch", "set"):
            raise UsageError(f'a metric is over="batch" or over="set", not {self.over!r}')


def accuracy(prediction: Tensor, target: Tensor) -> Tensor:
    """The fraction of rows of `prediction` (batch, classes, …) whose largest class is `target` (batch, …)."""
    return (prediction.argmax(1) == target).double().mean()


@dataclass(eq=False, repr=False)
class Task:
    """A model and the data it is trained on.

    `model`: a function that builds the module, called under the seed; or a module, which is copied and never changed.
    Exactly one of `loss(prediction, target)` and `step(model, batch)`; either returns the mean over the batch, or
    (sum, weight) so that batches of unequal weight add up rightly. A step may add a dict of numbers to show beside the
    loss, (loss, {"kl": …}) or (sum, weight, {…}): they are averaged as the loss is, of which they may be parts.
    `train`, `validation`, `test`: (input, target) of tensors, arrays, memory-mapped arrays or SciPy CSR; input may be a
    tuple (`model(*x)`) or a dict (`model(**x)`); a map-style Dataset; a DataLoader; or a function that returns any
    of these: what it opens is opened in each process that uses it. `metrics`: by name, functions or `Metric`s; "loss"
    is always there.
    `collate_fn`, `num_workers`: as in `torch.utils.data.DataLoader`, for Datasets.
    `weights`: one a training example, by which each epoch draws as many examples as there are, with replacement.
    `sparse`: SciPy CSR, wherever it stands in the data, arrives as `torch.sparse_csr` tensors and is never made dense;
    without it, each batch is made dense.

    Raises `TaskError` where these do not fit each other. The task keeps references, not copies, of the data.
    """

    model: Callable[[], nn.Module] | nn.Module
    loss: Callable[[Any, Any], Any] | None = None
    _: KW_ONLY
    train: Any
    validation: Any = None
    test: Any = None
    step: Callable[[nn.Module, Any], Any] | None = None
    metrics: Mapping[str, Metric | Callable[[Any, Any], Any]] = field(default_factory=dict)
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    weights: Any = None
    sparse: bool = False
    judges: dict[str, Metric] = field(init=False)
    """The metrics, all as such."""
    values: Mapping[str, Tensor] = field(default_factory=dict, init=False)
    """Parameters and buffers, by name, that modules are given when they have been built."""
    sketches: Mapping[str, Sketch] = field(default_factory=dict, init=False)
    """What is known of the tensors of a module that has been built; none before the first."""
    origin: dict[str, Any] = field(default_factory=dict, init=False)
    """Where the task came from, if from a file or a name: its path, name and arguments."""
    suggested_method: Downpour | None = field(default=None, init=False)
    suggested_until: Until | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        model, loss, step = self.model, self.loss, self.step
        if not callable(model):
            raise TaskError(f"model must be a function that returns a module, or a module, not {model!r}")
        if isinstance(model, type) and issubclass(model, nn.Module) and not takes(model, 0):
            raise TaskError(
                f"model is the class {model.__name__}, whose constructor needs arguments: "
                f"give a function such as lambda: {model.__name__}(…)"
            )
        if (loss is None) == (step is None):
            raise TaskError("a task needs exactly one of loss(prediction, target) and step(model, batch)")
        if not callable(loss or step):
            raise TaskError(f"{'step' if loss is None else 'loss'} must be a function, not {loss or step!r}")
        if isinstance(loss, type):
            raise TaskError(f"loss is the class {loss.__name__}: give an instance, {loss.__name__}()")
        check_whole("num_workers", self.num_workers, least=0, error=TaskError)
        if self.train is None:
            raise TaskError("train must be data, not None")
        self.weights = None if self.weights is None else checked_weights(self.weights)
        self.judges = {name: m if isinstance(m, Metric) else Metric(m) for name, m in self.metrics.items()}
        for name, metric in self.judges.items():
            check_name("the metric", name)
            if metric.over == "set" and step is not None:
                raise TaskError(
                    f'the metric {name} is over="set", which needs predictions and targets, and with step= there are '
                    "none: give loss=, or compute it from run.model() when the run has ended"
                )
        given = {"loss": loss, "step": step, **{f"the metric {name}": m.fn for name, m in self.judges.items()}}
        for name, function in given.items():
            if function is not None and not takes(function, 2):
                wanted = "(prediction, target)" if step is None else "(model, batch)"
                raise TaskError(f"{name} must take two arguments, {wanted}, but takes {inspect.signature(function)}")

    def suggest(self, *, method: Downpour | None = None, until: Until | None = None) -> Self:
        """The same task with a method and an end of its own, used where `train` is given none."""
        return self._with(suggested_method=method, suggested_until=until)

    def with_values(self, values: Mapping[str, Tensor]) -> Self:
        """The same task, whose modules begin with these parameters and buffers; it keeps references to them."""
        return self._with(values=values)

    def like(self, module: nn.Module) -> Self:
        """The same task, which builds nothing but modules whose tensors begin as this one's, in any process."""
        return self._with(sketches=sketches_of(module))

    def placed(self, device: torch.device) -> Self:
        """The same task, its loss on a device: a loss that is a module may hold tensors, such as weights of classes."""
        if device.type == "cpu" or not isinstance(self.loss, nn.Module):
            return self
        return self._with(loss=copy.deepcopy(self.loss).to(device))

    def mode(self, name: str) -> Literal["min", "max"]:
        """Whether less or more of a metric is better."""
        return self.judges[name].mode if name in self.judges else "min"

    def without_data(self) -> Self:
        """The same task without data and metrics, to be sent to where it is trained and the data already are."""
        return self._with(train=None, validation=None, test=None, weights=None, metrics={}, judges={})

    def _with(self, **changes: Any) -> Self:
        task = copy.copy(self)
        vars(task).update(changes)
        return task

    def build(self, seed: int) -> nn.Module:
        """A fresh module: built under the seed, or copied, and given `values`. The caller owns it.

        Raises `TaskError` where no module comes out, or one unlike that of another process. The caller's own random
        state is left as it was.
        """
        module = self._made(seed)
        if self.sketches and (name := unlike(self.sketches, sketches_of(module))) is not None:
            raise TaskError(
                f"model() does not always begin with the same {name}, so that replicas would compute with unlike "
                "models: draw it from the global generators of torch, numpy or random, which are seeded before "
                "model() is called, or from one with a fixed seed; or build the module once and give it as model="
            )
        put_(module, self.values)
        return module

    def _made(self, seed: int) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return unwrapped(copy.deepcopy(self.model))
        with seeded(derive(seed, "model")):
            module = self.model()
        if not isinstance(module, nn.Module):
            raise TaskError(f"model() returned {type(module).__name__}, not a torch.nn.Module: return the module")
        return unwrapped(module)

    def forward(self, module: nn.Module, batch: Any) -> Forward:
        """Run a batch through the module and its loss. With `step` there is no prediction, and None stands for it."""
        if self.loss is None:
            assert self.step is not None
            return _forward(None, self.step(module, batch), "step")
        x, target = batch
        prediction = predict(module, x)
        return _forward(prediction, self.loss(prediction, target), "loss")


class Forward(NamedTuple):
    """A batch's prediction and loss: a sum over `weight`, or the mean over the batch where `weight` is None."""

    prediction: Any
    loss: Tensor
    weight: float | Tensor | None
    values: Mapping[str, Any] = {}
    """What a step shows beside the loss: sums or means as it."""


def _forward(prediction: Any, result: Any, name: str) -> Forward:
    parts = list(result) if isinstance(result, tuple) else [result]
    values: Mapping[str, Any] = {}
    if name == "step" and len(parts) > 1 and isinstance(parts[-1], Mapping):
        values = parts.pop()
        for shown in values:
            check_name("the value of step", shown)
        if len(parts) == 1 and isinstance(parts[0], tuple):
            parts = list(parts[0])
    loss, weight = parts if len(parts) == 2 else (parts[0] if len(parts) == 1 else result, None)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        shape = f"a tensor, {shapes(loss)}" if isinstance(loss, Tensor) else type(loss).__name__
        more = "; step may add a dict of values to show" if name == "step" else ""
        raise TaskError(
            f"{name} must return a scalar tensor, the mean over the batch, or (sum, weight){more}; it returned {shape}"
        )
    # A reshape that changes nothing is a step of autograd's all the same.
    return Forward(prediction, loss if loss.dim() == 0 else loss.reshape(()), weight, values)


def predict(module: nn.Module, x: Any) -> Any:
    """The module's output for an input: a tuple or list is `module(*x)`, a mapping `module(**x)`, else `module(x)`."""
    if isinstance(x, Mapping):
        return module(**x)
    # A packed sequence is a tuple by its making only.
    if isinstance(x, tuple | list) and not isinstance(x, PackedSequence):
        return module(*x)
    return module(x)


def unwrapped(module: nn.Module) -> nn.Module:
    """A module without the wrappers of `torch.compile`, compiled all the same.

    So its parameters have the names that they have in the plain model, which the files of a run are read by.
    """
    for name, child in list(module.named_children()):
        if (plain := unwrapped(child)) is not child:
            setattr(module, name, plain)
    if not isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        return module
    # By the options that the wrapper was made with.
    inner.forward = module.dynamo_ctx(inner.forward)  # type: ignore[operator]
    return inner


def takes(function: Callable[..., Any], arguments: int) -> bool:
    """Whether a function can be called with so many arguments; also where it does not say."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(arguments))
    except TypeError:
        return False
    return True


def check_name(what: str, name: object) -> None:
    """Raise `TaskError` for a name that a number in a row of the history cannot have."""
    if not isinstance(name, str) or not name:
        raise TaskError(f"{what} must have a text as its name, not {name!r}")
    if name in RESERVED:
        raise TaskError(f'{what} "{name}" is always there and cannot be given: choose another name')
    if name.startswith("test_"):
        raise TaskError(f'{what} "{name}" is called as if it were of the test set: choose a name without test_')


def _instead(parameter: nn.Parameter) -> str:
    """What to write instead of a parameter of a kind that cannot be trained."""
    if parameter.is_complex():
        return (
            "keep it as pairs of real numbers, nn.Parameter(torch.view_as_real(weight)), and use "
            "torch.view_as_complex(self.weight) in forward"
        )
    return "make it float32, bfloat16 or float16 with .to(torch.float32), or freeze it with requires_grad_(False)"


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name, each once however often it is used.

    Raises `TaskError` where there is none, or one that is not a real floating-point tensor on the CPU.
    """
    found = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not found:
        raise TaskError(
            "the model has no trainable parameters: none of its parameters has requires_grad=True"
            if any(True for _ in module.parameters())
            else "the model has no parameters to train"
        )
    for name, p in found:
        if isinstance(p, nn.UninitializedParameter):
            raise TaskError(
                f"parameter {name} is lazy and has no shape yet: run one batch through the model in model()"
            )
        if not p.is_floating_point() or p.dtype.itemsize < 2:
            raise TaskError(f"parameter {name} is of {p.dtype}, which cannot be trained: {_instead(p)}")
        if p.device.type != "cpu":
            raise TaskError(
                f"parameter {name} is on {p.device}: build the model on the CPU, replicas place it themselves"
            )
        if p.numel() == 0:
            raise TaskError(f"parameter {name} of shape {tuple(p.shape)} is empty: leave it out of the model")
    return found
