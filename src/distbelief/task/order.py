"""Which examples an epoch uses, one after the other: the same for every replica, on every engine, in every life."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import numpy as np
import torch
from torch import Tensor

from distbelief import chance
from distbelief.errors import DataError, TaskError

Kind = Literal["shuffled", "sequential", "weighted"]


@final
@dataclass(frozen=True)
class Order:
    """Called with an epoch, it gives the indices of its examples, int64.

    "shuffled" is a permutation of all, "sequential" the order that they have, and "weighted" draws as many as there
    are, with replacement. Of these an epoch uses the first `used`.
    """

    seed: int
    kind: Kind
    examples: int
    """That there are."""
    used: int
    """In an epoch."""
    sums: Tensor | None = None
    """Where it draws: sums of weights, for `chance.draws`."""

    @classmethod
    def of(cls, seed: int, kind: Kind, examples: int, used: int, weights: Tensor | None) -> Self:
        """An order; `weights`, as of `checked_weights`, are what "weighted" draws by.

        Raises `DataError` unless there is one weight an example.
        """
        if weights is None:
            return cls(seed, kind, examples, used)
        if len(weights) != examples:
            raise DataError(
                f"there are {len(weights):,} weights for {examples:,} training examples: give one for each, in order"
            )
        # Of the largest weight, so that no sum is too large. Summed one after the other, so that equal everywhere.
        return cls(seed, kind, examples, used, torch.from_numpy(np.cumsum((weights / weights.max()).numpy())))

    def __call__(self, epoch: int) -> Tensor:
        """The indices of an epoch's examples."""
        if self.sums is not None:
            return chance.draws(self.seed, epoch, self.sums)[: self.used]
        if self.kind == "sequential":
            return torch.arange(self.used)
        return chance.order(self.seed, epoch, self.examples)[: self.used]


def checked_weights(weights: Any) -> Tensor:
    """Weights as one float64 vector. Raises `TaskError` for what cannot be drawn by."""
    try:
        found = torch.as_tensor(weights if isinstance(weights, Tensor) else np.asarray(weights)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"weights must be numbers, one a training example, not {type(weights).__name__}") from error
    if found.dim() != 1 or found.is_complex():
        told = f"{found.dtype} of shape {tuple(found.shape)}"
        raise TaskError(f"weights must be one row of real numbers, one a training example, not {told}")
    found = found.double()
    if wrong := (~(found.isfinite() & (found >= 0))).nonzero().flatten().tolist():
        raise TaskError(
            f"weights must be finite and 0 or more, but that of example {wrong[0]} is {float(found[wrong[0]]):g}"
        )
    if not found.any():
        raise TaskError("weights are all 0: give at least one example a positive weight")
    return found


def digest_of(weights: Tensor | None) -> str | None:
    """What weights are, as a short name."""
    return None if weights is None else hashlib.blake2b(weights.numpy().data, digest_size=8).hexdigest()
