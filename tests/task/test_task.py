from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distbelief.downpour.method import Downpour
from distbelief.errors import TaskError, UsageError
from distbelief.run.until import Until
from distbelief.task.task import Metric, Task, accuracy, predict, trainable

X, Y = torch.zeros(8, 4), torch.zeros(8, 2)
LOSS = nn.functional.mse_loss


def model() -> nn.Module:
    return nn.Linear(4, 2)


def task(**changes: Any) -> Task:
    given: dict[str, Any] = {"model": model, "loss": LOSS, "train": (X, Y)}
    return Task(**(given | changes))


# The model


def test_a_model_is_built_under_the_seed_and_the_callers_chance_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (task().build(seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.get_parameter("weight"), again.get_parameter("weight"))
    assert not torch.equal(first.get_parameter("weight"), other.get_parameter("weight"))


def test_a_module_is_copied_and_never_changed() -> None:
    module = model()
    built = task(model=module).build(0)
    assert built is not module
    with torch.no_grad():
        built.get_parameter("weight").zero_()
    assert module.get_parameter("weight").any()
    assert module.training


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": None}, "model must be a function that returns a module, or a module, not None"),
        ({"model": nn.Linear}, "model is the class Linear, whose constructor needs arguments: .* lambda: Linear"),
        ({"loss": None}, "exactly one of loss.prediction, target. and step.model, batch."),
        ({"step": LOSS}, "exactly one of loss.prediction, target. and step.model, batch."),
        ({"loss": 3}, "loss must be a function, not 3"),
        ({"loss": None, "step": 3}, "step must be a function, not 3"),
        ({"loss": nn.MSELoss}, r"loss is the class MSELoss: give an instance, MSELoss\(\)"),
        ({"num_workers": -1}, "num_workers must be a whole number of 0 or more, not -1"),
        ({"num_workers": 1.5}, "num_workers must be a whole number of 0 or more, not 1.5"),
        ({"train": None}, "train must be data, not None"),
        ({"metrics": {"loss": accuracy}}, 'the metric "loss" is always there'),
        ({"metrics": {"best": accuracy}}, 'the metric "best" is always there and cannot be given: choose another name'),
        ({"metrics": {"examples": accuracy}}, 'the metric "examples" is always there'),
        (
            {"metrics": {"test_a": accuracy}},
            'the metric "test_a" is called as if it were of the test set: choose a name',
        ),
        ({"metrics": {3: accuracy}}, "the metric must have a text as its name, not 3"),
        (
            {"metrics": {"a": lambda p: 1.0}},
            r"the metric a must take two arguments, .prediction, target., but takes .p.$",
        ),
        ({"loss": lambda p: p}, r"loss must take two arguments, .prediction, target., but takes .p.$"),
        ({"loss": None, "step": lambda m: m}, r"step must take two arguments, .model, batch., but takes .m.$"),
        (
            {"loss": None, "step": lambda m, b: m, "metrics": {"auc": Metric(accuracy, over="set")}},
            'the metric auc is over="set", which needs predictions and targets, and with step= .*: give loss=, or',
        ),
        ({"weights": [1, -1]}, "weights must be finite and 0 or more"),
    ],
)
def test_a_task_that_cannot_work_is_refused_in_one_sentence(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        task(**changes)


def test_what_model_returns_must_be_a_module() -> None:
    with pytest.raises(TaskError, match=r"model\(\) returned int, not a torch.nn.Module"):
        task(model=lambda: 3).build(0)


def test_a_class_whose_constructor_needs_nothing_is_a_model() -> None:
    class Tiny(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)

    assert isinstance(task(model=Tiny).build(0), Tiny)


# What is trained


def test_what_is_trained_is_each_parameter_once_without_the_frozen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = self.a
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.c = nn.Parameter(torch.ones(()))

    assert [name for name, _ in trainable(Tied())] == ["c", "a.weight"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (nn.ReLU, "^the model has no parameters to train$"),
        (lambda: model().requires_grad_(False), "none of its parameters has requires_grad=True"),
        (lambda: nn.LazyLinear(3), "parameter weight is lazy and has no shape yet: run one batch through"),
        (
            lambda: nn.Linear(3, 2, dtype=torch.complex64),
            "parameter weight is of torch.complex64, which .*view_as_real",
        ),
        (lambda: nn.Linear(3, 2, device="meta"), "parameter weight is on meta: build the model on the CPU"),
        (lambda: nn.Linear(0, 2), r"parameter weight of shape \(2, 0\) is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_that_cannot_be_trained_is_refused_in_one_sentence(
    make: Callable[[], nn.Module], complaint: str
) -> None:
    with pytest.raises(TaskError, match=complaint):
        trainable(make())


# A batch


def test_a_loss_sees_the_prediction_and_a_step_the_model() -> None:
    module, batch = model(), (torch.ones(8, 4), torch.ones(8, 2))
    by_loss = task().forward(module, batch)
    by_step = task(loss=None, step=lambda m, b: LOSS(m(b[0]), b[1])).forward(module, batch)
    assert torch.equal(by_loss.loss, by_step.loss)
    assert torch.equal(by_loss.prediction, module(batch[0]))
    assert by_step.prediction is None


@pytest.mark.parametrize("weight", [16, 16.0, torch.tensor(16), torch.tensor(16.0)])
def test_a_sum_and_its_weight_are_a_mean(weight: Any) -> None:
    batch = (torch.ones(8, 4), torch.ones(8, 2))
    module = model()
    summed = task(loss=lambda p, t: (LOSS(p, t, reduction="sum"), weight)).forward(module, batch)
    assert summed.weight is not None
    torch.testing.assert_close(summed.loss / summed.weight, task().forward(module, batch).loss)


@pytest.mark.parametrize(
    ("loss", "returned"),
    [
        (lambda p, t: 0.5, "float"),
        (lambda p, t: None, "NoneType"),
        (lambda p, t: (p - t).square(), r"a tensor, float32 \(8, 2\)"),
        (lambda p, t: (1j * (p - t)).sum(), r"a tensor, complex64 \(\)"),
        (lambda p, t: (p.sum(), 1, 2), "tuple"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss: Callable[[Tensor, Tensor], Any], returned: str) -> None:
    with pytest.raises(TaskError, match=f"loss must return a scalar tensor, .*; it returned {returned}"):
        task(loss=loss).forward(model(), (X, Y))
    with pytest.raises(TaskError, match="step must return a scalar tensor"):
        task(loss=None, step=lambda m, b: loss(m(b[0]), b[1])).forward(model(), (X, Y))


def test_a_loss_of_one_element_is_a_scalar() -> None:
    assert task(loss=lambda p, t: LOSS(p, t).reshape(1, 1)).forward(model(), (X, Y)).loss.shape == ()


def test_an_input_is_one_argument_several_or_named_ones() -> None:
    linear, bilinear = model(), nn.Bilinear(2, 3, 1)
    a, b = torch.ones(5, 2), torch.ones(5, 3)
    expected = bilinear(a, b)
    for x in ((a, b), [a, b], {"input2": b, "input1": a}):
        assert torch.equal(predict(bilinear, x), expected)
    assert torch.equal(predict(linear, X), linear(X))


# Metrics


def test_accuracy_is_the_fraction_of_rows_that_are_right() -> None:
    prediction = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(prediction, torch.tensor([1, 0, 0, 0])) == 0.75
    per_pixel = prediction.reshape(2, 2, 2)
    assert accuracy(per_pixel, per_pixel.argmax(1)) == 1.0


def test_a_function_is_a_metric_of_which_more_is_better() -> None:
    judges = task(metrics={"a": accuracy, "b": Metric(LOSS, mode="min")}).judges
    assert (judges["a"].mode, judges["b"].mode) == ("max", "min")


def test_a_metric_that_cannot_work_is_refused() -> None:
    with pytest.raises(UsageError, match="a metric must be a function, not 3"):
        Metric(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match='the mode of a metric must be "min" or "max", not \'up\''):
        Metric(accuracy, mode="up")  # type: ignore[arg-type]


# Its other sides


def test_a_task_may_suggest_how_it_is_trained() -> None:
    plain = task()
    suggested = plain.suggest(method=Downpour(replicas=3), until=Until(epochs=2))
    assert (suggested.suggested_method, suggested.suggested_until) == (Downpour(replicas=3), Until(epochs=2))
    assert (plain.suggested_method, plain.suggested_until) == (None, None)


def test_a_task_can_be_sent_without_its_data() -> None:
    whole = task(validation=(X, Y), test=(X, Y))
    light = whole.without_data()
    assert light.train is light.validation is light.test is None
    assert whole.train is not None
    assert light.model is whole.model


def test_a_loss_with_tensors_is_placed_where_the_model_is() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    task = Task(lambda: nn.Linear(2, 3), loss, train=(torch.zeros(4, 2), torch.ones(4)))
    placed = task.placed(torch.device("meta"))
    assert isinstance(placed.loss, nn.CrossEntropyLoss)
    assert isinstance(task.loss, nn.CrossEntropyLoss)
    assert placed.loss.weight is not None
    assert task.loss.weight is not None
    assert (placed.loss.weight.device.type, task.loss.weight.device.type) == ("meta", "cpu")
    assert task.placed(torch.device("cpu")) is task


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_has_the_names_of_the_plain_one(whole: bool) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        if whole:
            return torch.compile(net, backend=backend)  # type: ignore[return-value]
        net[2] = torch.compile(net[2], backend=backend)  # type: ignore[assignment]
        return net

    module = task(model=model).build(0)
    assert [*module.state_dict()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    module(torch.ones(2, 16))
    assert compiled
