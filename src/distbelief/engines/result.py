"""What an engine gives back."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distbelief.downpour.ledger import Account
from distbelief.errors import DistBeliefError

STAMP = ("epoch", "examples", "updates", "seconds")
"""When an evaluation was made."""


@dataclass(frozen=True)
class Result:
    """A run that has ended; its module holds the server's parameters."""

    account: Account
    """Of every example that was leased and not leased again."""
    updates: int
    """Pushes that every shard used."""
    seconds: float
    """From the first lease to the end of the last."""
    restarts: int
    rejected: int
    """Pushes that were not finite, or that every shard turned away."""
    staleness: Tensor
    """Histogram over all shards."""
    stalest: int
    fetched_bytes: int
    pushed_bytes: int
    stopped_by: str
    train_loss: float | None
    """Mean over the replicas' own batches of about the last two seconds; None if none was finite."""
    history: list[dict[str, Any]]
    """One row an evaluation: the fields of STAMP, then the metrics."""
    error: DistBeliefError | None = None
    """What ended the run early."""
