"""What is checked and decided before anything starts."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distbelief as db
from distbelief.errors import DataError, TaskError, UsageError
from distbelief.run.prepare import Asked, Prepared, prepare
from tests import problems


def prepared(task: db.Task, **method: Any) -> Prepared:
    return prepare(task, db.Downpour(**method), Asked(until=db.Until(epochs=1)), replicas=lambda: 3)


def test_open_numbers_are_decided() -> None:
    found = prepared(problems.task())
    assert (found.replicas, found.method.shards, found.batch_size) == (3, 1, 32)
    assert prepared(problems.task(), replicas=2, shards=4, batch_size=7).layout.shards == 4


def test_a_large_vector_is_cut_into_a_shard_a_replica() -> None:
    x = torch.randn(32, 1024)
    task = db.Task(lambda: nn.Linear(1024, 1025), nn.CrossEntropyLoss(), train=(x, torch.zeros(32).long()))
    assert prepared(task).layout.shards == 3


def test_a_loader_says_the_batch_size_unless_the_method_does() -> None:
    task = problems.task(train=DataLoader(TensorDataset(*problems.points()), batch_size=20))
    assert prepared(task).batch_size == 20
    assert prepared(task, batch_size=5).batch_size == 5


def test_the_set_that_chooses() -> None:
    data = problems.points(64)
    assert list(prepared(problems.task()).sets) == []
    assert list(prepared(problems.task(test=data)).sets) == [("", "test_")]
    assert list(prepared(problems.task(test=data, validation=data)).sets) == [("",), ("test_",)]


def test_trying_a_batch_leaves_no_trace() -> None:
    """Neither in the module's buffers nor in the caller's random state."""
    x, y = problems.points()
    module = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 4))
    torch.manual_seed(7)
    before = torch.random.get_rng_state(), random.getstate()
    found = prepared(db.Task(module, nn.CrossEntropyLoss(), train=(x, y)))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(torch.equal(a, b) for a, b in zip(found.module.buffers(), module.buffers(), strict=True))
    assert all(parameter.grad is None for parameter in found.module.parameters())


def test_what_does_not_fit_raises_the_users_error_with_the_shapes() -> None:
    x, y = problems.points()
    task = db.Task(lambda: nn.Linear(9, 4), nn.CrossEntropyLoss(), train={"x": x, "y": y}, step=None)
    with pytest.raises(DataError, match="must be a pair"):
        prepared(task)
    task = db.Task(lambda: nn.Linear(9, 4), nn.CrossEntropyLoss(), train=(x, y))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as error:
        prepared(task)
    assert error.value.__notes__ == ["on the first batch of train: (float32 (32, 16), int64 (32,))"]


def test_a_loss_without_a_gradient_is_refused() -> None:
    task = problems.task(loss=lambda prediction, target: prediction.detach().sum())
    with pytest.raises(TaskError, match="does not depend on any trainable parameter"):
        prepared(task)


def test_more_shards_than_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="shards do not fit"):
        prepared(problems.task(), shards=1000)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_cannot_be_is_refused_on_the_first_batch(weight: float) -> None:
    def loss(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, float]:
        return nn.functional.cross_entropy(prediction, target, reduction="sum"), weight

    with pytest.raises(TaskError, match=r"the weight of the first batch is .*: return \(sum, weight\) with 0 or more"):
        prepared(problems.task(loss=loss))


@pytest.mark.parametrize(("drop_last", "used"), [(True, 640 - 640 % 50), (False, 640)])
def test_a_loader_may_drop_the_last_batch_of_an_epoch(drop_last: bool, used: int) -> None:
    loader = DataLoader(TensorDataset(*problems.points()), batch_size=50, shuffle=True, drop_last=drop_last)
    found = prepared(problems.task(train=loader))
    assert (found.examples, len(found.order(0)), len(found.rows)) == (used, used, 640)


def test_an_epoch_without_any_batch_is_refused() -> None:
    loader = DataLoader(TensorDataset(*problems.points(20)), batch_size=50, drop_last=True)
    with pytest.raises(
        DataError, match=r"train has 20 examples, which are less than a batch of 50, .* a smaller batch_s"
    ):
        prepared(problems.task(train=loader))


def test_a_loader_that_does_not_shuffle_is_gone_through_in_order() -> None:
    loader = DataLoader(TensorDataset(*problems.points()), batch_size=50)
    assert prepared(problems.task(train=loader)).order(3).tolist() == list(range(640))
    assert prepared(problems.task()).order(3).tolist() != list(range(640))


def test_weights_need_one_for_each_example() -> None:
    with pytest.raises(DataError, match="there are 3 weights for 640 training examples"):
        prepared(problems.task(weights=[1, 2, 3]))


def test_a_loader_says_how_many_are_evaluated_at_once_and_leaves_none_out() -> None:
    data = TensorDataset(*problems.points(64))
    task = problems.task(validation=DataLoader(data, batch_size=7), test=data)
    assert [found.batch_size for found in prepared(task, batch_size=5).sets.values()] == [7, 20]
    with pytest.raises(DataError, match=r"^validation: its loader's drop_last=True cannot be kept, .*: leave it out$"):
        prepared(problems.task(validation=DataLoader(data, batch_size=7, drop_last=True)))


# What has no effect


def test_what_no_data_or_no_other_replica_make_use_of_is_said() -> None:
    assert prepared(problems.task(metrics={})).remarks == []
    (said,) = prepared(problems.task()).remarks
    assert said == "metrics (accuracy) has no effect, since there is neither validation nor test data to evaluate"
    often = Asked(until=db.Until(epochs=1), evaluate_every=db.Every(seconds=1))
    task = problems.task(metrics={}, collate_fn=list)
    method = db.Downpour(local_optimizer=db.SGD(0.1), warmstart=100)
    said = "\n".join(prepare(task, method, often, replicas=lambda: 1).remarks)
    for name in ("evaluate_every", "collate_fn", "local_optimizer", "warmstart"):
        assert f"{name} has no effect" in said
    assert not prepared(problems.task(validation=problems.points(64)), replicas=2, warmstart=100).remarks


def test_a_model_that_is_another_each_time_is_refused_by_name() -> None:
    def model() -> nn.Module:
        net = problems.network()
        net.register_buffer("noise", torch.from_numpy(np.random.default_rng().normal(size=8)))
        return net

    with pytest.raises(TaskError, match="does not always begin with the same noise"):
        prepared(problems.task(model=model))


def test_a_model_that_is_the_same_object_each_time_is_refused() -> None:
    net = problems.network()
    with pytest.raises(TaskError, match=r"the same 0\.weight each time .* give the module itself"):
        prepared(problems.task(model=lambda: net))
    assert prepared(problems.task(model=net)).module is not net


def test_a_parameter_of_the_first_batch_is_refused_by_name() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "scale"):
                self.scale = nn.Parameter(torch.ones(4))
            result: torch.Tensor = self.net(x) * self.scale
            return result

    with pytest.raises(TaskError, match=r"the first batch makes parameter scale, .* make it in model\(\)"):
        prepared(problems.task(model=Late))


# What no setting says without effect


def asked(until: db.Until, task: db.Task | None = None, **method: Any) -> Prepared:
    task = problems.task(test=problems.points()) if task is None else task
    return prepare(task, db.Downpour(**method), Asked(until=until), replicas=lambda: 1)


def test_a_schedule_without_an_end_ends_with_the_run_and_is_written_down_without_it() -> None:
    given: dict[str, Any] = {"optimizer": db.SGD(db.Cosine(0.1, warmup=0.1), groups={"*.bias": {"lr": db.Linear(0.2)}})}
    found = asked(db.Until(epochs=3, seconds=100), **given)
    wanted = db.SGD(db.Cosine(0.1, 1920, warmup=192), groups={"*.bias": {"lr": db.Linear(0.2, 1920)}})
    assert found.method.optimizer == wanted
    assert found.chosen.optimizer == given["optimizer"]
    assert asked(db.Until(epochs=3, examples=1000), **given).method.optimizer.lr.examples == 1000
    assert found.remarks == []
    for until in (db.Until(seconds=10), db.Until(patience=3)):
        with pytest.raises(UsageError, match="this one's end is neither in epochs nor in examples"):
            asked(until, **given)


def test_what_has_no_effect_is_remarked() -> None:
    found = asked(
        db.Until(epochs=5, min_delta=0.1), optimizer=db.SGD(db.Cosine(0.1, 250), groups={"0.*": {}, "0.bias": {}})
    )
    assert [line.partition(" ")[0] for line in found.remarks] == ["the", "the", "min_delta"]
    assert asked(db.Until(epochs=5, patience=1, min_delta=0.1)).remarks == []


def test_a_group_that_fits_no_parameter_is_refused_with_the_names() -> None:
    until = db.Until(epochs=1)
    rule = db.AdamW(0.1, groups={"*.gain": {"weight_decay": 0}})
    both: list[dict[str, Any]] = [{"optimizer": rule}, {"local_optimizer": rule}]
    for given in both:
        with pytest.raises(
            UsageError, match=r"'\*.gain' fits no parameter of the model: there are 0.weight, 0.bias, 2.w"
        ):
            asked(until, **given)
    frozen = problems.network()
    frozen.get_submodule("0").requires_grad_(False)
    task = problems.task(model=frozen, test=problems.points())
    (line,) = asked(until, task, optimizer=db.SGD(0.1, groups={"0.*": {"lr": 1.0}})).remarks
    assert line == "the group '0.*' has no effect: what it fits is not trained"


def test_the_metric_that_judges() -> None:
    until = db.Until(epochs=1)
    assert asked(until).judge == ("accuracy", "max")
    assert asked(db.Until(epochs=1, monitor="loss")).judge == ("loss", "min")
    assert asked(db.Until(target={"loss": 0.1})).judge == ("loss", "min")
    assert asked(db.Until(target={"loss": 0.1}, monitor="accuracy")).judge == ("accuracy", "max")
    assert asked(db.Until(epochs=1, monitor="average_accuracy"), average=0.9).judge == ("average_accuracy", "max")
    with pytest.raises(UsageError, match=r"the monitor is acuracy, .*: choose one of loss, accuracy$"):
        asked(db.Until(epochs=1, monitor="acuracy"))
    with pytest.raises(UsageError, match="the monitor is average_loss, which is no metric"):
        asked(db.Until(epochs=1, monitor="average_loss"))
    with pytest.raises(UsageError, match="a monitor and patience need validation or test data"):
        asked(db.Until(epochs=1, monitor="loss"), problems.task())


@pytest.mark.parametrize("taken", ["parameters", "round", "average", "a/b"])
def test_a_vector_of_a_rule_cannot_be_called_as_one_of_ours(taken: str) -> None:
    class Own:
        lr = 0.1

        @property
        def state(self) -> dict[str, float]:
            return {taken: 0.0}

        def update_(self, *arguments: Any) -> None: ...

    with pytest.raises(UsageError, match=f"a vector of the optimizer cannot be called '{taken}'"):
        asked(db.Until(epochs=1), optimizer=Own())
