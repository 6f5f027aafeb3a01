"""What an engine gives back."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distbelief.allocation import Account
from distbelief.errors import DistBeliefError

STAMP = ("epoch", "examples", "updates", "seconds")
"""When an evaluation was made."""


def trimmed(histogram: Tensor) -> list[int]:
    """A histogram's counts, without the zeros at its end."""
    return histogram[: int(histogram.nonzero().max()) + 1].tolist() if histogram.any() else []


@dataclass(frozen=True)
class Totals:
    """Sums over a run's life, resumed runs included. Plain numbers: they are written into checkpoints."""

    updates: int = 0
    """Pushes that every shard used."""
    seconds: float = 0.0
    """From the first lease to the end of the last, pauses between a run and its resumption apart."""
    restarts: int = 0
    rejected: int = 0
    """Pushes that were not finite, or that every shard turned away."""
    staleness: list[int] = field(default_factory=list)
    """Histogram over all shards, without the zeros at its end."""
    stalest: int = 0
    fetched_bytes: int = 0
    pushed_bytes: int = 0


@dataclass(frozen=True)
class Result:
    """A run that has ended; its module holds the server's parameters."""

    account: Account
    """Of every example that was leased and not leased again."""
    totals: Totals
    stopped_by: str
    train_loss: float | None
    """Mean over the replicas' own batches of about the last two seconds; None if none was finite."""
    setup_seconds: float
    """From the engine's start to the first lease."""
    evaluation_seconds: float
    """Spent in evaluations, most of them beside training."""
    history: list[dict[str, Any]]
    """One row an evaluation: the fields of STAMP, then the metrics."""
    staleness: list[list[int]]
    """Histograms of used pushes since the run began or went on, one a shard, without the zeros at their ends."""
    resumed_at: int | None = None
    """Examples after which the run last went on from a checkpoint."""
    error: DistBeliefError | None = None
    """What ended the run early."""
    virtual_seconds: float | None = None
    """Of a simulated run: when it was over, set-up, deaths and pauses included."""
    trace_digest: str | None = None
    """Of a simulated run: what happened in it, in order."""
