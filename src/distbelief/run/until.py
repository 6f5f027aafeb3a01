"""When a run ends, and how often something is done in it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distbelief.checks import check_number, check_whole
from distbelief.errors import UsageError

ENDS = ("epochs", "examples", "seconds", "target", "patience")
"""What ends a run."""


@dataclass(frozen=True, kw_only=True)
class Until:
    """The end of a run: whichever comes first. Totals over the run's life.

    `epochs` and `examples` count what has been used or spent; `seconds` run from the first lease. `target`: values of
    metrics, such as {"accuracy": 0.7}, of which each is to be reached at one evaluation. `patience`: evaluations in a
    row that bring nothing better. Metrics are those of the set that chooses.

    `monitor`: the metric by which an evaluation is the best and patience goes; None is the target's, else the first,
    else the loss. `min_delta`: patience takes an evaluation for better if it is so by more than this; the best model is
    the best all the same.
    """

    epochs: int | None = None
    examples: int | None = None
    seconds: float | None = None
    target: Mapping[str, float] | None = None
    patience: int | None = None
    monitor: str | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in ENDS):
            raise UsageError("Until needs at least one of epochs, examples, seconds, target and patience")
        for name in ("epochs", "examples", "patience"):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value)
        if self.seconds is not None:
            check_number("seconds", self.seconds, above=0.0)
        if self.target is not None and not (
            isinstance(self.target, Mapping)
            and self.target
            and all(isinstance(value, int | float) for value in self.target.values())
        ):
            raise UsageError(f'target must be values of metrics, such as {{"accuracy": 0.7}}, not {self.target!r}')
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise UsageError(f'monitor must be the name of a metric, such as "loss", or None, not {self.monitor!r}')
        check_number("min_delta", self.min_delta)

    def out_of_patience(self, ranks: Iterable[float]) -> bool:
        """Whether too many evaluations have brought nothing better, by their ranks, of which more is better.

        Minus infinity is an evaluation without a number: it counts neither for nor against.
        """
        best, since = -math.inf, 0
        for rank in ranks:
            if rank > -math.inf:
                best, since = (rank, 0) if rank > best + self.min_delta else (best, since + 1)
        return self.patience is not None and since >= self.patience

    def in_examples(self, examples_per_epoch: int) -> int | None:
        """Examples after which a run ends, if nothing else ends it before; None where only time or metrics do."""
        epochs = None if self.epochs is None else self.epochs * examples_per_epoch
        return min((end for end in (self.examples, epochs) if end is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Every:
    """How often: every so many examples, or seconds."""

    examples: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.examples is None) == (self.seconds is None):
            raise UsageError("Every needs exactly one of examples and seconds")
        if self.examples is not None:
            check_whole("examples", self.examples)
        else:
            check_number("seconds", self.seconds, above=0.0)
