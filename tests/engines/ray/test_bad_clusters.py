"""What cannot work on a cluster: one sentence says so, and nothing is left."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

import distbelief as db
from distbelief.engines.ray import cluster as clusters
from distbelief.errors import TaskError, UsageError, UserCodeError
from tests.engines.ray.clusters import ON_ONE_CLUSTER, Machines, train

pytestmark = ON_ONE_CLUSTER


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"address": "head"}, "must be that of a Ray cluster"),
        ({"address": "ray://head:10001"}, "must be that of a Ray cluster"),
        ({"device": "cuda:1"}, "Ray chooses which GPU"),
        ({"device": "cuda"}, "needs gpus=1"),
        ({"cpus": 0}, "cpus"),
        ({"gpus": -1}, "gpus"),
        ({"spares": -1}, "spares"),
    ],
    ids=str,
)
def test_what_no_cluster_has(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        db.Ray(**wrong)


def test_an_address_that_does_not_answer() -> None:
    with pytest.raises(UsageError, match=r"nothing answers at 127\.0\.0\.1:1 "):
        train(db.Ray(address="127.0.0.1:1"))


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # An import of it fails as where it is not installed.
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'distbelief\[ray\]'"):
        train(db.Ray())


def test_a_cluster_that_is_too_small(cluster: Machines) -> None:
    with pytest.raises(UsageError, match="too small for 1 and 2 spare replicas of 1 CPU, 1 GPU each"):
        train(db.Ray(address=cluster.address, gpus=1, spares=2), replicas=1)


def test_machines_with_other_versions(cluster: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = clusters.versions()
    monkeypatch.setattr(clusters, "versions", lambda: ours | {"torch": "1.0"})
    with pytest.raises(UsageError, match=f"has torch {ours['torch']}, and not 1.0 as here".replace("+", r"\+")):
        train(db.Ray(address=cluster.address))


def test_a_task_whose_module_the_machines_do_not_have(cluster: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes travel by name, as those of a file in a folder that only this machine has."""
    module = ModuleType("only_here")
    exec("class Loss:\n    def __call__(self, y, t):\n        return (y.sum(1) - t).square().mean()", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(TaskError, match=r"cannot be received by (?s:.*)No module named 'only_here'"):
        train(db.Ray(address=cluster.address), module.Loss())


@dataclass(frozen=True)
class FailsElsewhere:
    """A loss that raises in replicas, not where the first batch is tried."""

    maker: int = field(default_factory=os.getpid)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        if os.getpid() != self.maker:
            raise ValueError("a mistake of the user's")
        return nn.functional.cross_entropy(prediction, target)


def test_what_the_users_code_raises_is_told_with_its_frames(cluster: Machines) -> None:
    with pytest.raises(UserCodeError, match="a mistake of the user's") as caught:
        train(db.Ray(address=cluster.address), FailsElsewhere())
    assert f'{Path(__file__).name}", line' in str(caught.value)
    assert "in __call__" in str(caught.value)
