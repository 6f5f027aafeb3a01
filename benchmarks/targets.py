"""How long training took to a target, where some runs never got there."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Evaluation = Mapping[str, Any]
History = Sequence[Evaluation]


def reached(history: History, accuracy: float, limit_s: float) -> Evaluation | None:
    """The first evaluation at or above an accuracy and within the limit; None for a run that is censored."""
    return next((row for row in history if row["accuracy"] >= accuracy and row["seconds"] <= limit_s), None)


def never(histories: Sequence[History], accuracy: float, limit_s: float) -> int:
    """How many runs are censored."""
    return sum(reached(history, accuracy, limit_s) is None for history in histories)


def cost(history: History, field: str, accuracy: float, limit_s: float, *, ours: bool) -> float:
    """Seconds or examples to the target.

    One that is censored is told to our disadvantage: a rival's as what it had spent by then, ours as infinitely many.
    """
    row = reached(history, accuracy, limit_s)
    if row is not None:
        return float(row[field])
    return math.inf if ours else float(history[-1][field])


def speed(history: History, accuracy: float, limit_s: float) -> float:
    """Examples a second on the way to the target, or to the end of a run that is censored."""
    row = reached(history, accuracy, limit_s) or history[-1]
    return float(row["examples"] / row["seconds"])


def best_rate(trials: Mapping[float, History], accuracy: float, limit_s: float) -> float:
    """The learning rate with the fewest examples to the target; if none gets there, with the highest accuracy."""

    def merit(rate: float) -> tuple[bool, float]:
        row = reached(trials[rate], accuracy, limit_s)
        return (True, -row["examples"]) if row else (False, max(e["accuracy"] for e in trials[rate]))

    return max(trials, key=merit)
