"""Learning rates: a number, or a schedule, which is a function of the number of examples that the run has used."""

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
    """Base of schedules that rise linearly to `peak` during the warm-up, then fall to `floor * peak` at `examples`.

    `examples`: where the decay ends; None: at the end of the run, which must be given in epochs or examples.
    `warmup`: a fraction of `examples` if below 1, else a number of examples.
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
        """Return a copy whose `examples` and `warmup` are numbers, for a run that ends after `examples`.

        `examples=None`: the run has no end in examples. Raises `UsageError` if the schedule needs one, or if its
        warm-up is not shorter than the schedule.
        """
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
        """Return the remaining part of the decay, from 1 down to 0; `done` is the elapsed fraction, from 0 to 1."""


@final
@dataclass(frozen=True)
class Cosine(_Decay):
    """Rises linearly to `peak` during the warm-up, then falls along half a cosine to `floor * peak` at `examples`.

    `examples`: where the decay ends; None: at the end of the run, which must be given in epochs or examples.
    `warmup`: a fraction of `examples` if below 1, else a number of examples.
    """

    def _left(self, done: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * done))


@final
@dataclass(frozen=True)
class Linear(_Decay):
    """Like `Cosine`, but falls linearly."""

    def _left(self, done: float) -> float:
        return 1 - done


@final
@dataclass(frozen=True)
class Steps:
    """A piecewise constant rate: `rates` maps a number of examples to the rate from there on. One key must be 0."""

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


def resolved_lr(lr: Any, examples: int | None) -> Any:
    """Resolve a learning rate for a run that ends after `examples`: see `_Decay.over`. Others stay as they are.

    Raises `UsageError` if a schedule needs an end that the run does not have, or does not return a valid rate.
    """
    lr = lr.over(examples) if isinstance(lr, _Decay) else lr
    first = rate(lr, 0)
    if not (isinstance(first, int | float) and 0 <= first < math.inf):
        raise UsageError(
            f"a schedule must give the rate after so many examples as a number, but {lr!r} gives {first!r} after 0"
        )
    return lr


def missed(lr: float | Schedule, end: int) -> str | None:
    """Describe how a resolved schedule does not fit a run that ends after `end` examples; None if it fits."""
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
