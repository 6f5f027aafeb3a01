"""Small problems that a network learns in a second."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

import distbelief as db


def points(examples: int = 640, classes: int = 4, features: int = 16) -> tuple[Tensor, Tensor]:
    """Points (examples, features) and the class (examples,) of each: which of some directions it lies along most."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, features, generator=generator)
    return x, (x @ torch.randn(features, classes, generator=generator)).argmax(1)


def sparse_points(examples: int = 2000, features: int = 200_000, each: int = 20) -> tuple[Any, Tensor]:
    """SciPy CSR (examples, features) of ones, `each` a row, and which half of the first 100 features has more of them.

    Of the features of a row, half are among the first 100. Dense, the default would take 1.6 GB.
    """
    chance = np.random.default_rng(1)
    telling = chance.integers(100, size=(examples, each // 2))
    rest = chance.integers(100, features, size=(examples, each // 2))
    columns = np.concatenate([telling, rest], 1).astype(np.int32)
    starts = np.arange(0, columns.size + 1, each, dtype=np.int32)
    matrix = scipy.sparse.csr_matrix((np.ones(columns.size, np.float32), columns.ravel(), starts), (examples, features))
    return matrix, torch.from_numpy((telling < 50).mean(1) > 0.5).float()[:, None]


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
