"""Evaluation adds up over batches of unequal size and weight."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.errors import TaskError
from distbelief.run.evaluation import evaluate
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
