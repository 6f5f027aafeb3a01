"""Learning rates as values: a number, or a function of the examples that the run has used."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, final, runtime_checkable

from distbelief.errors import UsageError


@runtime_checkable
class Schedule(Protocol):
    """A learning rate that changes with the run's global count of examples."""

    def __call__(self, examples: int) -> float:
        """The rate after this many examples."""


@dataclass(frozen=True)
class _Decay(ABC):
    """From 0 to `peak` over the warm-up, then down to `floor`, a part of the peak, at `examples`.

    `examples`: None is the run's end, as its epochs or examples say. `warmup`: below 1 it is a part of `examples`, from
    1 on a number of them.
    """

    peak: float
    examples: int | None = None
    warmup: float = 0
    floor: float = 0

    def __post_init__(self) -> None:
        length = math.inf if self.examples is None else self.examples
        numbers = all(isinstance(value, int | float) for value in (self.peak, length, self.warmup, self.floor))
        if not (
            numbers
            and 0 < self.peak < math.inf
            and length > 0
            and (0 <= self.warmup < 1 or 1 <= self.warmup < length)
            and 0 <= self.floor <= 1
        ):
            raise UsageError(
                f"{type(self).__name__} needs peak > 0, examples > 0 or None, 0 <= warmup < examples, where one below "
                f"1 is a part of the examples, and 0 <= floor <= 1, not {self}"
            )

    def over(self, examples: int | None) -> Self:
        """The same in numbers, for a run that ends after so many examples; None: it has no such end."""
        name, length = type(self).__name__, examples if self.examples is None else self.examples
        if length is None:
            raise UsageError(
                f"{name} ends with the run, and this one's end is neither in epochs nor in examples: give the run one, "
                f"or the schedule its own number of examples, as in {name}({self.peak:g}, 100_000)"
            )
        if self.warmup >= length:
            raise UsageError(
                f"{name} warms up over {self.warmup:,} examples, and the run ends after {length:,}: give less, such as "
                "warmup=0.05, a part of the run"
            )
        warmup = round(self.warmup * length) if self.warmup < 1 else self.warmup
        return replace(self, examples=length, warmup=warmup)

    def __call__(self, examples: int) -> float:
        """The rate after this many examples."""
        if self.examples is None:
            raise UsageError(f"{self} ends with a run: outside of one, give it examples")
        warmup = self.warmup * self.examples if self.warmup < 1 else self.warmup
        if examples < warmup:
            # The first update must not be a step of length 0.
            return self.peak * (examples + 1) / (warmup + 1)
        left = self._left(min(1.0, (examples - warmup) / (self.examples - warmup)))
        return self.peak * (self.floor + (1 - self.floor) * left)

    @abstractmethod
    def _left(self, done: float) -> float:
        """What is left of the way down, from 1 to 0, when so much of it is done."""


@final
@dataclass(frozen=True)
class Cosine(_Decay):
    """From 0 to `peak` over the warm-up, then along half a cosine to `floor`, a part of the peak, at `examples`.

    `examples`: None is the run's end, as its epochs or examples say. `warmup`: below 1 it is a part of `examples`, from
    1 on a number of them.
    """

    def _left(self, done: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True)
class Linear(_Decay):
    """As `Cosine`, but down a straight line."""

    def _left(self, done: float) -> float:
        return 1 - done


@final
@dataclass(frozen=True)
class Steps:
    """A constant rate from each given number of examples on; the first must be 0."""

    rates: Mapping[int, float]

    def __post_init__(self) -> None:
        starts = sorted(self.rates)
        if not starts or starts[0] != 0 or any(not self.rates[start] >= 0 for start in starts):
            raise UsageError(
                f"Steps needs rates from 0 examples on, such as {{0: 0.1, 100_000: 0.01}}, not {self.rates}"
            )

    def __call__(self, examples: int) -> float:
        """The rate after this many examples."""
        return self.rates[max(start for start in self.rates if start <= examples)]


def rate(lr: float | Schedule, examples: int) -> float:
    """The learning rate after this many examples."""
    return lr if isinstance(lr, int | float) else lr(examples)


def lr_over(lr: Any, examples: int | None) -> Any:
    """A learning rate in numbers, for a run that ends after so many examples.

    Raises `UsageError` where the run has no such end, and for schedules that give no rates.
    """
    lr = lr.over(examples) if isinstance(lr, _Decay) else lr
    first = rate(lr, 0)
    if not (isinstance(first, int | float) and 0 <= first < math.inf):
        raise UsageError(
            f"a schedule must give the rate after so many examples as a number, but {lr!r} gives {first!r} after 0"
        )
    return lr


def missed(lr: float | Schedule, end: int) -> str | None:
    """What of a schedule, in numbers, does not fit a run that ends after so many examples; None if all does."""
    if isinstance(lr, _Decay) and lr.examples is not None and lr.examples != end:
        when = "stays there until" if lr.examples < end else "is not there by"
        return (
            f"the learning rate comes down to {lr(lr.examples):g} after {lr.examples:,} examples, and {when} the run's "
            f"end after {end:,}: schedules count examples, not steps; without examples= they end with the run"
        )
    if isinstance(lr, Steps) and (late := [start for start in lr.rates if start >= end]):
        return f"the learning rate's step after {min(late):,} examples is never taken: the run ends after {end:,}"
    return None


def check_rate(lr: float | Schedule) -> None:
    """Raise `UsageError` unless `lr` is a positive, finite number or a schedule."""
    if not (isinstance(lr, Schedule) or (isinstance(lr, int | float) and 0 < lr < math.inf)):
        raise UsageError(f"lr must be a positive number or a schedule, not {lr!r}")
