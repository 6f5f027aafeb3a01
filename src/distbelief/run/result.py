"""What an engine gives back."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

from distbelief.allocation import Account
from distbelief.run.prepare import Prepared
from distbelief.run.state import Totals
from distbelief.task.order import digest_of

STAMP = ("epoch", "examples", "updates", "seconds")
"""When an evaluation was made."""


class Result(NamedTuple):
    """A run that has ended; its module holds the server's parameters."""

    summary: dict[str, Any]
    error: BaseException | None
    """What ended the run early."""


def summary_of(
    prepared: Prepared,
    account: Account,
    totals: Totals,
    history: Sequence[dict[str, Any]],
    staleness: Sequence[Tensor],
    **told: Any,
) -> dict[str, Any]:
    """What a run came to, as it is written down.

    `staleness`: histograms of used pushes since the run began or went on, one a shard.
    """
    used, seconds = account.used + account.partial, totals.seconds
    last = history[-1] if history else {}
    return {
        **told,
        "examples": used,
        "updates": totals.updates,
        "seconds": round(seconds, 3),
        "examples_per_second": round(used / seconds, 1) if seconds else 0.0,
        "metrics": {name: value for name, value in last.items() if name not in STAMP},
        "restarts": totals.restarts,
        "staleness": {
            "median": quantile(totals.staleness, 0.5),
            "p99": quantile(totals.staleness, 0.99),
            "max": totals.stalest,
        },
        "staleness_histogram": [trimmed(shard) for shard in staleness],
        "bytes": {"fetched": totals.fetched_bytes, "pushed": totals.pushed_bytes},
        "rejected": totals.rejected,
        "poisoned": account.poisoned,
        "account": vars(account),
        "resumed_at": None if prepared.resumed is None else prepared.resumed.examples,
        "epochs": round(used / prepared.examples, 3),
        "examples_per_epoch": prepared.examples,
        "training_examples": len(prepared.rows),
        "order": prepared.order.kind,
        "weights": digest_of(prepared.task.weights),
        "batch_size": prepared.batch_size,
        "parameters": prepared.layout.parameters,
        "replicas": prepared.replicas,
        "shards": prepared.layout.shards,
        "seed": prepared.seed,
        "precision": prepared.precision,
        "history": history,
    }


def trimmed(histogram: Tensor) -> list[int]:
    """A histogram's counts, without the zeros at its end."""
    return histogram[: int(histogram.nonzero().max()) + 1].tolist() if histogram.any() else []


def quantile(histogram: Sequence[int], q: float) -> int:
    """The smallest bin at or below which a fraction `q` of a histogram lies; 0 if it is empty."""
    below = list(accumulate(histogram))
    return bisect_left(below, q * below[-1]) if below and below[-1] else 0


def left_outs(evaluations: int) -> str:
    """How many evaluations were left out of a run, in words; nothing where none was."""
    instead = "evaluate less often, or each epoch with wait_for_evaluations=True"
    return f"evaluations left out since others were under way: {evaluations:,}; {instead}" if evaluations else ""


def refusals(refused: int, train_loss: float | None) -> str:
    """What was refused of a run, and where its loss stood, in words; nothing where nothing was."""
    loss = "" if train_loss is None else f", training loss {train_loss:.4g}"
    return f"{refused:,} examples refused since their gradients were not finite{loss}" if refused else ""
