"""Laws of time: how long something takes, as values. Each source of chance draws from a generator of its own."""

import bisect
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from distbelief.checks import check_number, check_whole
from distbelief.errors import DirectoryError, UsageError
from distbelief.run.store import reading

Draw = Callable[[], float]
"""Seconds that the next one takes."""
_QUANTILES = 100
_LONGEST_S = 1.0


@runtime_checkable
class Law(Protocol):
    """How long each of many like things takes, such as the batches of a replica, or messages."""

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """What gives one time after another, in seconds, for a replica; `chance` is its own."""


@final
@dataclass(frozen=True)
class Constant:
    """Always the same."""

    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds)

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """The same each time."""
        return lambda: self.seconds


@final
@dataclass(frozen=True)
class Lognormal:
    """Times whose logarithm is normal around that of `median` seconds, with standard deviation `sigma`.

    At sigma 0.5 one in a hundred takes more than three times the median.
    """

    median: float
    sigma: float

    def __post_init__(self) -> None:
        check_number("median", self.median, above=0)
        check_number("sigma", self.sigma)

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """Independent times."""
        center = math.log(self.median)
        return lambda: chance.lognormvariate(center, self.sigma)


@final
@dataclass(frozen=True)
class Exponential:
    """Times without memory, `mean` seconds on the average."""

    mean: float

    def __post_init__(self) -> None:
        check_number("mean", self.mean, above=0)

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """Independent times."""
        return lambda: chance.expovariate(1 / self.mean)


@final
@dataclass(frozen=True)
class Measured:
    """Times drawn from those that were measured, in `seconds`, each as likely as any other."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.seconds, tuple | list) or not self.seconds:
            raise UsageError(f"seconds must be one or more measured times, not {self.seconds!r}")
        for value in self.seconds:
            check_number("each of the measured times", value)
        object.__setattr__(self, "seconds", tuple(self.seconds))

    @classmethod
    def of(cls, directory: str | Path) -> "Measured":
        """The times that batches took in a run of any engine, by the speeds of its replicas in its events: quantiles.

        They hold what a replica did for a batch beside computing: fetching, pushing, and waiting for a lock. Speeds are
        told over two seconds, so a run whose batches take longer than one is refused.
        """
        with reading(directory, ["events.jsonl"]) as folder:
            file = folder / "events.jsonl"
            if not file.is_file():
                raise DirectoryError(f"{directory} holds no run to take times from: there is no {file.name} in it")
            try:
                events = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
                batch = next(event["batch_size"] for event in events if event["event"] == "started")
                told = [replica for event in events if event["event"] == "progress" for replica in event["replicas"]]
                speeds = sorted(speed for replica in told if (speed := float(replica["examples_per_second"])) > 0)
            except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
                raise DirectoryError(f"{file} holds no events of a run to take times from ({error!r})") from error
        if not speeds:
            raise DirectoryError(f"{file} tells of no speed: the run was too short to take times from")
        if batch / speeds[len(speeds) // 2] > _LONGEST_S:
            raise DirectoryError(
                f"batches take more than {_LONGEST_S:g} s in {directory}, too long to be taken from its speeds, which "
                "are told over two: give times that you measured yourself, as in Measured((3.1, 2.9, 4.0))"
            )
        # Each speed was that of as many batches as it is high.
        batches = list(itertools.accumulate(speeds))
        middles = [batches[-1] * (part + 0.5) / _QUANTILES for part in range(_QUANTILES)]
        return cls(tuple(batch / speeds[bisect.bisect_left(batches, middle)] for middle in middles))

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """Independent times, with replacement."""
        return lambda: chance.choice(self.seconds)


@final
@dataclass(frozen=True)
class PerReplica:
    """A law of its own for some replicas, and one for the others."""

    laws: Mapping[int, Law | float]
    others: Law | float

    def __post_init__(self) -> None:
        if not isinstance(self.laws, Mapping):
            raise UsageError(
                f"laws must be laws by the replica's number, such as {{0: Constant(0.1)}}, not {self.laws!r}"
            )
        for replica in self.laws:
            check_whole("the number of a replica", replica, least=0)
        laws = {replica: law_of(f"the law of replica {replica}", law) for replica, law in self.laws.items()}
        object.__setattr__(self, "laws", laws)
        object.__setattr__(self, "others", law_of("others", self.others))

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """Its own law's."""
        return law_of("the law of a replica", self.laws.get(replica, self.others)).draw(chance, replica)


@final
@dataclass(frozen=True)
class Spread:
    """Replicas that differ for good: each one's times are those of `law` by a factor of its own.

    The factors are lognormal with median 1 and standard deviation `sigma` of their logarithm; a replica that comes
    back after its death has the same.
    """

    law: Law | float
    sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "law", law_of("law", self.law))
        check_number("sigma", self.sigma)

    def draw(self, chance: random.Random, replica: int) -> Draw:
        """Times of the law, by a factor that is drawn first."""
        factor, draw = chance.lognormvariate(0.0, self.sigma), law_of("law", self.law).draw(chance, replica)
        return lambda: factor * draw()


def law_of(name: str, value: object) -> Law:
    """A law as it is, and a number as the law that is always that many seconds; `UsageError` for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        check_number(name, value)
        return Constant(value)
    if not isinstance(value, Law) or isinstance(value, type):
        raise UsageError(f"{name} must be seconds or a law such as Lognormal(0.1, 0.5), not {value!r}")
    return value
