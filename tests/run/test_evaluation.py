"""Evaluation adds up over batches of unequal size and weight."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.errors import TaskError
from distbelief.run.evaluation import WithoutGradients, evaluate
from distbelief.task.data import rows_of
from tests import problems


def test_means_are_over_examples_and_not_over_batches() -> None:
    x, y = problems.points(700)
    task = problems.task(test=(x, y))
    model = task.build(0)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(x), y).item()
    found = evaluate(task, model, rows_of((x, y), "test")[0])
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx(float(db.accuracy(model(x), y)))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "None"),
        ("0.5", "'0.5'"),
        (torch.zeros(2, 3), "Tensor of torch.float32 and shape (2, 3)"),
        (np.zeros(0), "ndarray of float64 and shape (0,)"),
        (torch.zeros((), dtype=torch.complex64), "Tensor of torch.complex64"),
        ((1.0, 2.0), "(1.0, 2.0)"),
    ],
)
def test_a_metric_that_is_no_number_is_named(value: Any, told: str) -> None:
    task = problems.task(metrics={"fine": db.accuracy, "odd": lambda prediction, target: value})
    with pytest.raises(TaskError) as error:
        evaluate(task, task.build(0), rows_of(problems.points(64), "test")[0])
    assert f"the metric odd must return one number, the mean over the batch, but returned {told}" in str(error.value)


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(0.5), np.ones(1), torch.ones(1, 1), torch.tensor(2)])
def test_whatever_is_one_number_is_a_metric(value: Any) -> None:
    task = problems.task(metrics={"constant": lambda prediction, target: value})
    assert evaluate(task, task.build(0), rows_of(problems.points(64), "test")[0])["constant"] == float(
        np.asarray(value).item()
    )


def test_a_metric_that_raises_is_named() -> None:
    task = problems.task(metrics={"odd": lambda prediction, target: 1 / 0})
    with pytest.raises(ZeroDivisionError) as error:
        evaluate(task, task.build(0), rows_of(problems.points(64), "test")[0])
    assert error.value.__notes__ == ["in the metric odd"]


def test_the_module_is_in_eval_mode_and_gradients_are_off() -> None:
    x, y = problems.points(64)
    seen = []

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((model.training, torch.is_grad_enabled()))
        return nn.functional.cross_entropy(prediction, target)

    task = problems.task(loss=loss)
    model = task.build(0).train()
    evaluate(task, model, rows_of((x, y), "test")[0])
    assert seen == [(False, False)]


# Metrics of the set


def auc(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    score = prediction[:, 1]
    above = score[target == 1][:, None] > score[target != 1][None]
    return above.double().mean()


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
@pytest.mark.parametrize("over", ["set", "batch"])
def test_a_metric_over_the_set_is_of_all_at_once(batch_size: int, over: Any) -> None:
    """So is one over a batch that is not defined there: most of these batches are of one class."""
    x, y = problems.points(300)
    x, y = x[y.argsort()], y.sort().values
    task = problems.task(metrics={"auc": db.Metric(auc, over=over), "accuracy": db.accuracy})
    model = task.build(0)
    found = evaluate(task, model, rows_of((x, y), "test")[0], batch_size)
    with torch.no_grad():
        assert found["auc"] == pytest.approx(float(auc(model(x), y)))
    assert list(found) == ["loss", "auc", "accuracy"]


def test_a_metric_that_is_never_a_number_stays_none() -> None:
    def ragged(prediction: torch.Tensor, target: torch.Tensor) -> float:
        return math.nan

    class Ragged(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, : 1 + len(x) % 3]

    task = problems.task(model=lambda: Ragged(16, 4), loss=lambda p, t: p.sum(), metrics={"odd": ragged})
    found = evaluate(task, task.build(0), rows_of(problems.points(64), "test")[0], 5)
    assert math.isnan(found["odd"])
    assert math.isfinite(found["loss"])


def test_what_cannot_be_joined_is_said() -> None:
    def ragged(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return prediction.sum()

    class Ragged(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, : len(x)]

    task = problems.task(
        model=lambda: Ragged(16, 4), loss=lambda p, t: p.sum(), metrics={"odd": db.Metric(ragged, over="set")}
    )
    with pytest.raises(TaskError, match=r'the metric odd is over="set", and .* cannot be joined: .*over="batch"'):
        evaluate(task, task.build(0), rows_of(problems.points(10), "test")[0], 4 - 1)
    task = problems.task(metrics={"odd": db.Metric(lambda p, t: None, over="set")})  # type: ignore[arg-type, return-value]
    with pytest.raises(TaskError, match="the metric odd must return one number, but returned None"):
        evaluate(task, task.build(0), rows_of(problems.points(10), "test")[0])


def test_predictions_of_any_structure_are_joined() -> None:
    class Both(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return {"y": super().forward(x), "x": (x, x)}

    def shape(prediction: Any, target: torch.Tensor) -> float:
        return float(len(prediction["y"]) + len(prediction["x"][1]) + len(target))

    task = problems.task(
        model=lambda: Both(16, 4),
        loss=lambda p, t: nn.functional.cross_entropy(p["y"], t),
        metrics={"rows": db.Metric(shape, over="set")},
    )
    assert evaluate(task, task.build(0), rows_of(problems.points(10), "test")[0], 3)["rows"] == 30


def test_what_is_not_defined_is_not_a_number_and_stops_nothing() -> None:
    values = iter([1.0, float("nan"), 1.0])
    task = problems.task(metrics={"odd": lambda p, t: next(values)}, loss=lambda p, t: (p.sum() * 0, 0))
    found = evaluate(task, task.build(0), rows_of(problems.points(9), "test")[0], 3)
    assert all(np.isnan(value) for value in found.values())


# What a step shows


@pytest.mark.parametrize(
    "result",
    [
        lambda ce, n: (ce / n, {"half": ce / n / 2}),
        lambda ce, n: (ce, n, {"half": ce / 2}),
        lambda ce, n: ((ce, n), {"half": ce.detach() / 2}),
        lambda ce, n: (ce, torch.tensor(n), {"half": float(ce) / 2}),
    ],
    ids=["mean", "sum", "pair", "numbers"],
)
def test_what_a_step_shows_is_averaged_as_the_loss(result: Any) -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        x, y = batch
        return result(nn.functional.cross_entropy(model(x), y, reduction="sum"), len(y))

    task = problems.task(loss=None, step=step, metrics={})
    found = evaluate(task, task.build(0), rows_of(problems.points(100), "test")[0], 7)
    assert list(found) == ["loss", "half"]
    assert found["half"] == pytest.approx(found["loss"] / 2)
    whole = evaluate(task, task.build(0), rows_of(problems.points(100), "test")[0], 100)
    assert found == pytest.approx(whole)


@pytest.mark.parametrize(
    ("shown", "complaint"),
    [
        (
            {"kl": torch.ones(2)},
            r"step must return one number as kl, but returned Tensor of torch.float32 and shape \(2,\)",
        ),
        ({"best": 1.0}, 'the value of step "best" is always there'),
        ({"test_a": 1.0}, 'the value of step "test_a" is called as if'),
        ({"accuracy": 1.0}, "step returns a value called accuracy, and so is a metric"),
    ],
)
def test_what_a_step_cannot_show_is_said(shown: Any, complaint: str) -> None:
    task = problems.task(
        loss=None, step=lambda model, batch: (model(batch[0]).sum(), shown), metrics={"accuracy": lambda m, b: 1.0}
    )
    with pytest.raises(TaskError, match=complaint):
        evaluate(task, task.build(0), rows_of(problems.points(10), "test")[0])


# Code that differentiates


class Slope(nn.Module):
    """The derivative of what it has learnt."""

    def __init__(self, *, enables: bool) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
        self.enables = enables

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad() if self.enables else nullcontext():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("enables", [True, False])
def test_a_model_may_differentiate(enables: bool) -> None:
    x, _ = problems.points(50)
    graphs = []

    def metric(prediction: torch.Tensor, target: torch.Tensor) -> float:
        graphs.append((prediction.requires_grad, prediction.is_inference()))
        return 1.0

    task = problems.task(
        model=lambda: Slope(enables=enables), loss=nn.MSELoss(), train=(x, x), metrics={"seen": metric}
    )
    model = task.build(0)
    found = evaluate(task, model, rows_of((x, x), "test")[0], 20)
    assert found["loss"] == pytest.approx(nn.functional.mse_loss(model(x), x).item())
    assert {inference for _, inference in graphs} == {False}
    if not enables:
        assert not any(graph for graph, _ in graphs)


def test_other_errors_of_the_users_are_raised_once() -> None:
    calls = []

    def fails() -> None:
        calls.append(torch.is_grad_enabled())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        WithoutGradients()(fails)
    assert calls == [False]
