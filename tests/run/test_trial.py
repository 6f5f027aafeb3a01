"""What is tried before anything starts: the first batch, a smaller last one, and a few examples of each set."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distbelief as db
from distbelief.errors import UserCodeError
from distbelief.run.prepare import Asked, Prepared, prepare
from tests import problems


def prepared(task: db.Task, batch_size: int = 32, until: db.Until | None = None) -> Prepared:
    asked = Asked(until=until or db.Until(epochs=1))
    return prepare(task, db.Downpour(batch_size=batch_size), asked, replicas=lambda: 3)


SEEN: list[int] = []


class AtLeastTwo(nn.Module):
    """As batch norm: not one example."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = problems.network()

    def forward(self, x: torch.Tensor) -> Any:
        SEEN.append(len(x))
        if self.training and len(x) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return self.layer(x)


def test_the_smaller_batch_at_the_end_is_tried_too() -> None:
    SEEN.clear()
    prepared(problems.task(model=AtLeastTwo), batch_size=50)
    assert SEEN == [50, 40]
    with pytest.raises(UserCodeError) as error:
        prepared(problems.task(model=AtLeastTwo), batch_size=71)
    assert (
        "the last batch of an epoch is of size 1, and fails where the first, of size 71, does not, with "
        "ValueError('Expected more than 1 value per channel when training'): choose another batch size, such as "
        "batch_size=67, or leave the last batch out, by train=DataLoader(…, drop_last=True)" in str(error.value)
    )
    assert "in forward" in str(error.value), "the user's own frames"


def test_a_last_batch_that_never_comes_is_not_tried() -> None:
    loader = DataLoader(TensorDataset(*problems.points()), batch_size=71, drop_last=True)
    prepared(problems.task(model=AtLeastTwo, train=loader))
    prepared(problems.task(model=AtLeastTwo), batch_size=71, until=db.Until(examples=639))


def test_buffers_are_put_back_after_both() -> None:
    found = prepared(problems.task(model=lambda: nn.Sequential(nn.BatchNorm1d(16), problems.network())), batch_size=50)
    assert found.mutable_buffers == ("0.running_mean", "0.running_var", "0.num_batches_tracked")
    assert int(found.module.get_buffer("0.num_batches_tracked")) == 0


def test_a_metric_of_the_set_that_the_first_examples_do_not_define_is_tried_on_all() -> None:
    def strict(prediction: torch.Tensor, target: torch.Tensor) -> float:
        if len(target.unique()) == 1:
            raise ValueError("only one class is present")
        return 0.5

    x, y = problems.points(64)
    data = x[y.argsort()], y.sort().values
    prepared(problems.task(validation=data, metrics={"auc": db.Metric(strict, over="set")}), batch_size=5)
    with pytest.raises(ValueError, match="only one class"):
        prepared(problems.task(validation=data, metrics={"auc": strict}), batch_size=5)


def test_a_metric_that_is_no_number_at_first_is_said() -> None:
    task = problems.task(validation=problems.points(64), metrics={"f1": lambda p, t: math.nan})
    (said,) = prepared(task).remarks
    assert said == (
        "the metric f1 is nan on the first examples of validation: where it is not a number on a batch, it is computed "
        'over the whole set in a second pass; to save that, give metrics={"f1": db.Metric(fn, over="set")}'
    )
