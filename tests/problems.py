"""Small problems that a network learns in a second."""

from typing import Any

import torch
from torch import Tensor, nn

import distbelief as db


def points(examples: int = 640, classes: int = 4, features: int = 16) -> tuple[Tensor, Tensor]:
    """Points (examples, features) and the class (examples,) of each: which of some directions it lies along most."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, features, generator=generator)
    return x, (x @ torch.randn(features, classes, generator=generator)).argmax(1)


def network(features: int = 16, classes: int = 4) -> nn.Module:
    """A network of two layers, 132 parameters an output and more than one shard's worth of them."""
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, classes))


def task(**changes: Any) -> db.Task:
    """A task of these points and this network."""
    given: dict[str, Any] = {
        "model": network,
        "train": points(),
        "metrics": {"accuracy": db.accuracy},
        "loss": nn.CrossEntropyLoss(),
    }
    return db.Task(**(given | changes))
