"""Slow workers: each sleeps in every step, so that the step takes as long as a law says.

A task that is slowed is the same for every arm. Its loss sleeps in whichever process trains, be it a replica of ours or
a rank of a rival, so nobody needs to know who it is. A process learns it with its first step: it takes the first free
seat in a folder, and seat 0 is the slow one's. Neither evaluations nor the process that the benchmark runs in sleep.
"""

import fcntl
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

import distbelief as db


@dataclass(frozen=True, kw_only=True)
class Law:
    """How long a worker's steps take, as factors of a plain one.

    A step takes `pace` plain steps; on seat 0 `slow` times as long; times a lognormal factor of median 1 whose
    logarithm has the deviation `sigma`, drawn anew for each step. No step takes less than a plain one: half of the
    lognormal factors are cut to 1 where the pace is 1.
    """

    plain_s: float
    """What a plain step takes: a measured figure."""
    slow: float = 1.0
    sigma: float = 0.0
    pace: float = 1.0
    seed: int = 0

    def factors(self, seat: int) -> Iterator[float]:
        """One factor a step, without end; the same for the same seed and seat."""
        chance = random.Random(f"{self.seed}/{seat}")
        steady = self.pace * (self.slow if seat == 0 else 1.0)
        while True:
            yield max(1.0, steady * math.exp(self.sigma * chance.gauss()))


class Seat(NamedTuple):
    """Who a process is. The lock is that of an open file: it falls with the process, however that dies."""

    number: int
    fd: int


def take_seat(folder: Path) -> Seat:
    """Take the first seat in a folder that nobody holds."""
    number = 0
    while True:
        fd = os.open(folder / f"seat-{number}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            number += 1
        else:
            return Seat(number, fd)


@final
class SlowLoss:
    """A loss that sleeps before it answers, in every process but one and wherever a gradient is wanted."""

    def __init__(self, loss: Callable[[Any, Any], Any], law: Law, folder: Path, spared: int) -> None:
        self._loss = loss
        self._law = law
        self._folder = folder
        self._spared = spared
        self._seat: Seat | None = None
        self._factors: Iterator[float] = iter(())

    def __call__(self, prediction: Tensor, target: Tensor) -> Any:
        """The loss, after a sleep."""
        if torch.is_grad_enabled() and os.getpid() != self._spared:
            if self._seat is None:
                self._seat = take_seat(self._folder)
                self._factors = self._law.factors(self._seat.number)
            time.sleep((next(self._factors) - 1) * self._law.plain_s)
        return self._loss(prediction, target)


def slowed(task: db.Task, law: Law | None, folder: str | Path, spared: int = 0) -> db.Task:
    """The same task, with a loss that sleeps. `spared`: a process that does not; 0 is none."""
    if law is None or task.loss is None:
        return task
    loss = SlowLoss(task.loss, law, Path(folder), spared)
    return db.Task(
        task.model, loss, train=task.train, validation=task.validation, test=task.test, metrics=dict(task.metrics)
    )
