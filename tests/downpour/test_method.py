import dataclasses
from typing import Any

import pytest
import torch

from distbelief.downpour.method import Downpour
from distbelief.errors import UsageError
from distbelief.server.admission import Asynchronous, Buffered
from distbelief.server.rules import SGD, Adagrad
from distbelief.server.schedules import Cosine, Linear


def test_the_defaults_are_the_papers() -> None:
    method = Downpour()
    assert (method.n_fetch, method.n_push) == (1, 1)
    assert method.optimizer == Adagrad(0.01)
    assert method.admission == Asynchronous()
    assert method.clip_norm is None


def test_a_method_is_a_value() -> None:
    assert Downpour(replicas=3) == Downpour(replicas=3) != Downpour(replicas=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Downpour().replicas = 3  # type: ignore[misc]


def test_schedules_that_end_with_the_run_get_its_number() -> None:
    method = Downpour(optimizer=SGD(Cosine(0.1)), local_optimizer=Adagrad(Linear(0.1), groups={"*": {"lr": Cosine(1)}}))
    ready = method.over(500)
    assert ready.optimizer == SGD(Cosine(0.1, 500))
    assert ready.local_optimizer == Adagrad(Linear(0.1, 500), groups={"*": {"lr": Cosine(1, 500)}})
    with pytest.raises(UsageError, match="neither in epochs nor in examples"):
        method.over(None)
    assert Downpour().over(None) == Downpour()


def test_a_local_optimizer_that_is_never_used_is_said() -> None:
    assert Downpour(n_fetch=2, local_optimizer=SGD(0.1)).remarks(["w"], 100) == []
    (line,) = Downpour(local_optimizer=SGD(0.1)).remarks(["w"], 100)
    assert "no effect with n_fetch=1" in line


def test_a_local_step_follows_the_shards_rule_unless_told_otherwise() -> None:
    assert Downpour(n_fetch=2).local_rule == Adagrad(0.01)
    assert Downpour(n_fetch=2, local_optimizer=SGD(0.1)).local_rule == SGD(0.1)
    assert Downpour(n_fetch=1, local_optimizer=SGD(0.1)).local_rule is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"replicas": (4, 2)}, r"the smaller first, such as \(4, 16\), not \(4, 2\)"),
        ({"replicas": (0, 2)}, "two whole numbers of 1 or more"),
        ({"replicas": (1, 2, 3)}, r"replicas must be .*, not \(1, 2, 3\)"),
        ({"replicas": (True, 2)}, r"replicas must be .*, not \(True, 2\)"),
        ({"replicas": (1, 2.0)}, r"replicas must be .*, not \(1, 2.0\)"),
        ({"replicas": ()}, r"replicas must be .*, not \(\)"),
        ({"replicas": [1, 2]}, r"replicas must be .*, not \[1, 2\]"),
        ({"replicas": 0}, "replicas must be a whole number of 1 or more, not 0"),
        ({"replicas": True}, "replicas must be .*, not True"),
        ({"replicas": "all"}, "replicas must be .*, not 'all'"),
        ({"shards": 1.5}, "shards must be .*, not 1.5"),
        ({"batch_size": -1}, "batch_size must be .*, not -1"),
        ({"batch_size": "auto"}, "batch_size must be .*, not 'auto'"),
        ({"replicas": None}, "replicas must be .*, not None"),
        ({"n_fetch": 0}, "n_fetch must be .*, not 0"),
        ({"n_push": None}, "n_push must be .*, not None"),
        ({"n_push": "auto"}, "n_push must be .*, not 'auto'"),
        ({"warmstart": -1}, "warmstart must be a whole number of 0 or more, not -1"),
        ({"warmstart": 1.0}, "warmstart must be a whole number of 0 or more, not 1.0"),
        ({"clip_norm": 0}, "clip_norm must be a positive number or None, not 0"),
        ({"clip_norm": float("nan")}, "clip_norm must be .*, not nan"),
        ({"overlap": 2}, "overlap must be 0, 1 or None, not 2"),
        ({"overlap": 1, "admission": Buffered(2)}, "needs overlap=0"),
        ({"optimizer": 0.1}, r"optimizer must be one of .*, such as Adagrad\(0.01\), not 0.1"),
        ({"optimizer": SGD}, "optimizer must be one of"),
        (
            {"optimizer": [{"params": [], "lr": 0.1}]},
            r"not a value of type list: .*, as in AdamW\(.*groups=.*weight_decay",
        ),
        ({"optimizer": [SGD(0.1), SGD(0.2)]}, "get it by their names, as in .*groups="),
        ({"optimizer": torch.optim.SGD}, "not the class SGD: .*groups="),
        ({"local_optimizer": torch.optim.SGD([torch.zeros(1)])}, "^local_optimizer must .* type SGD: .*groups="),
        ({"average": 1.0}, "average must be a decay between 0 and 1, such as 0.999, or None, not 1.0"),
        ({"average": True}, "average must be .*, not True"),
        ({"local_optimizer": "sgd"}, "local_optimizer must be .*, not 'sgd'"),
        ({"admission": 4}, "admission must be a policy .*, not 4"),
        ({"admission": Buffered}, "admission must be a policy"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_name(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Downpour(**given)


@pytest.mark.parametrize(
    ("replicas", "admission", "most", "quorum"),
    [
        (4, Asynchronous(), 4, 1),
        (4, Buffered(2), 4, 4),
        ((2, 4), Asynchronous(), 4, 2),
        ((2, 4), Buffered(2), 4, 2),
    ],
    ids=str,
)
def test_a_run_begins_with_the_least_and_has_places_for_the_most(
    replicas: Any, admission: Any, most: int, quorum: int
) -> None:
    method = Downpour(replicas=replicas, admission=admission).decided(replicas=most, shards=1, batch_size=10)
    assert (method.replicas, method.most_replicas) == (replicas, most)
    ledger = method.allocator(100, epochs=1, limit=None)
    assert (ledger.replicas, ledger.quorum) == (most, quorum)


def test_auto_has_no_number_until_it_is_decided() -> None:
    assert Downpour().most_replicas is None
    assert Downpour().decided(replicas=3, shards=1, batch_size=1).most_replicas == 3


def test_rounds_of_more_than_are_sure_to_be_there_are_said_to_take_smaller_steps() -> None:
    assert Downpour(replicas=(2, 4), admission=Buffered(2)).remarks(["w"], None) == []
    assert Downpour(replicas=4, admission=Buffered(4)).remarks(["w"], None) == []
    (line,) = Downpour(replicas=(2, 4), admission=Buffered(3)).remarks(["w"], None)
    assert "with replicas=(2, 4): while fewer are there" in line
