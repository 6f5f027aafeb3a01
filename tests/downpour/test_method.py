import dataclasses
from typing import Any

import pytest

from distbelief.downpour.method import Downpour
from distbelief.errors import UsageError
from distbelief.server.admission import Asynchronous, Buffered
from distbelief.server.rules import SGD, Adagrad


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


def test_a_local_step_follows_the_shards_rule_unless_told_otherwise() -> None:
    assert Downpour(n_fetch=2).local_rule == Adagrad(0.01)
    assert Downpour(n_fetch=2, local_optimizer=SGD(0.1)).local_rule == SGD(0.1)
    assert Downpour(n_fetch=1, local_optimizer=SGD(0.1)).local_rule is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
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
        ({"local_optimizer": "sgd"}, "local_optimizer must be .*, not 'sgd'"),
        ({"admission": 4}, "admission must be a policy .*, not 4"),
        ({"admission": Buffered}, "admission must be a policy"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_name(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Downpour(**given)
