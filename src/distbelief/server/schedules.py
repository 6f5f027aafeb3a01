"""Learning rates as values: a number, or a function of the examples that the run has used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from distbelief.errors import UsageError


@runtime_checkable
class Schedule(Protocol):
    """A learning rate that changes with the run's global count of examples."""

    def __call__(self, examples: int) -> float:
        """The rate after this many examples."""


@dataclass(frozen=True)
class Cosine:
    """From 0 to `peak` over `warmup` examples, then along half a cosine to 0 at `examples`."""

    peak: float
    examples: int
    warmup: int = 0

    def __post_init__(self) -> None:
        if not (self.peak > 0 and 0 <= self.warmup < self.examples):
            raise UsageError(f"Cosine needs peak > 0 and 0 <= warmup < examples, not {self}")

    def __call__(self, examples: int) -> float:
        """The rate after this many examples."""
        if examples < self.warmup:
            # The first update must not be a step of length 0.
            return self.peak * (examples + 1) / (self.warmup + 1)
        done = min(1.0, (examples - self.warmup) / (self.examples - self.warmup))
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


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


def check_rate(lr: float | Schedule) -> None:
    """Raise `UsageError` unless `lr` is a positive, finite number or a schedule."""
    if not (isinstance(lr, Schedule) or (isinstance(lr, int | float) and 0 < lr < math.inf)):
        raise UsageError(f"lr must be a positive number or a schedule, not {lr!r}")
