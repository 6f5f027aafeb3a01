"""Evaluation adds up over batches of unequal size and weight."""

import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.data import rows_of
from distbelief.evaluation import evaluate
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
