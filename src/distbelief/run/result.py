"""What an engine gives back."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distbelief.allocation import Account
from distbelief.errors import DistBeliefError
from distbelief.run.state import Totals

STAMP = ("epoch", "examples", "updates", "seconds")
"""When an evaluation was made."""


def trimmed(histogram: Tensor) -> list[int]:
    """A histogram's counts, without the zeros at its end."""
    return histogram[: int(histogram.nonzero().max()) + 1].tolist() if histogram.any() else []


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
