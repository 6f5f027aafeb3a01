"""Faults of machines and of the network, as values, and the plan that they make together.

A machine is named "replica N", "shard N" or "controller". Times are virtual seconds since the engine's start.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from distbelief.checks import check_number
from distbelief.errors import UsageError

_ABOVE = {"at": None, "back": None, "notice_s": None, "seconds": 0.0, "factor": 0.0}
"""What the numbers of a fault must be more than; None: they may be 0."""

_MOST = {"at": 1_000_000, "back": 1_000_000, "notice_s": 1_000_000, "seconds": 100_000}
"""Seconds. While a machine does not answer, calls are repeated every few of them, each of which is computed."""


def _check_machine(name: object, kinds: str = "replica|shard|controller") -> None:
    if not isinstance(name, str) or not re.fullmatch(r"(replica|shard) \d+|controller", name):
        raise UsageError(f'a machine is "replica N", "shard N" or "controller", not {name!r}')
    if not re.match(kinds, name):
        raise UsageError(f"{name} is no {kinds.replace('|', ' or ')}: name one, such as replica 0")


def _check_numbers(fault: object) -> None:
    for name, value in vars(fault).items():
        if name in _ABOVE and (value is not None or name != "back"):
            check_number(name, value, above=_ABOVE[name])
            if value is not None and value > _MOST.get(name, math.inf):
                raise UsageError(f"{name} must be at most {_MOST[name]:,} seconds, not {value!r}")


@dataclass(frozen=True)
class _OfMachine:
    machine: str
    at: float

    _kinds: ClassVar = "replica|shard|controller"

    def __post_init__(self) -> None:
        _check_machine(self.machine, self._kinds)
        _check_numbers(self)


@final
@dataclass(frozen=True)
class Death(_OfMachine):
    """A machine dies at a time, and is there again `back` seconds later; None: never.

    A replica is replaced by another process. A shard's host comes back with the shard as it was at the last
    checkpoint, or at the start. The controller takes everything with it, and what comes back resumes the run with the
    machines that are there then.

    `notice_s`: how long before that a replica is told to leave, as where the machine is taken away by whom it belongs
    to; 0: it is not told. It finishes its batch, gives back what it holds and ends, and from the notice on nothing
    begins on that machine until it is back.
    """

    back: float | None = 2.0
    notice_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.notice_s and not self.machine.startswith("replica"):
            raise UsageError(f"only a replica can be told to leave: leave notice_s of {self.machine} out")

    @property
    def told_at(self) -> float:
        """When the notice comes; where none comes, when the machine dies."""
        return self.at - self.notice_s

    @property
    def over(self) -> float:
        """When the machine is there again."""
        return math.inf if self.back is None else self.at + self.back


@final
@dataclass(frozen=True)
class Join(_OfMachine):
    """A replica that is not there from the start, but from `at` on."""

    _kinds: ClassVar = "replica"


@final
@dataclass(frozen=True)
class Pause(_OfMachine):
    """A machine stands still for a while: it computes nothing and hears nothing, but loses nothing either."""

    seconds: float


@final
@dataclass(frozen=True)
class Slow(_OfMachine):
    """A replica computes `factor` times as long for a while."""

    seconds: float
    factor: float

    _kinds: ClassVar = "replica"


@final
@dataclass(frozen=True)
class Cut:
    """For a while no message passes between some machines and some others; None: all others."""

    at: float
    seconds: float
    machines: tuple[str, ...]
    others: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name, machines in (("machines", self.machines), ("others", self.others)):
            if machines is not None:
                if not isinstance(machines, list | tuple) or not machines:
                    raise UsageError(f'{name} must be machines, such as ("replica 0", "shard 1"), not {machines!r}')
                for machine in machines:
                    _check_machine(machine)
                object.__setattr__(self, name, tuple(machines))
        if both := set(self.machines) & set(self.others or ()):
            raise UsageError(f"{min(both)} cannot be cut off from itself: leave it out of one side")

    def between(self, one: str, other: str, now: float) -> bool:
        """Whether a message between two machines is lost now."""

        def apart(one: str, other: str) -> bool:
            far = other not in self.machines if self.others is None else other in self.others
            return one in self.machines and far

        return _lasts(self, now) and (apart(one, other) or apart(other, one))


Fault = Death | Join | Pause | Slow | Cut


def _lasts(fault: Pause | Slow | Cut, now: float) -> bool:
    return fault.at <= now < fault.at + fault.seconds


def _machines(fault: Fault) -> tuple[str, ...]:
    return (*fault.machines, *(fault.others or ())) if isinstance(fault, Cut) else (fault.machine,)


@final
class Plan:
    """What happens to whom, and when. Raises `UsageError` for what contradicts itself."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if not isinstance(fault, Fault):
                raise UsageError(f'a fault is a value such as Death("replica 0", at=10.0), not {fault!r}')
        self.faults = tuple(faults)
        self.deaths = sorted((f for f in faults if isinstance(f, Death)), key=lambda death: (death.at, death.machine))
        self.joins = {f.machine: f.at for f in faults if isinstance(f, Join)}
        self.cuts = [f for f in faults if isinstance(f, Cut)]
        self.loses_shards = any(death.machine.startswith("shard") for death in self.deaths)
        """Whether a shard's host dies."""
        self.silences = bool(self.cuts) or any(isinstance(fault, Pause) for fault in faults)
        """Whether a machine may say nothing for a while, and be alive."""
        self.loses_messages = bool(self.cuts) or self.loses_shards
        """Whether a call may never be answered."""
        ends = [f.at + f.seconds for f in faults if isinstance(f, Pause | Slow | Cut)]
        backs = [death.at if death.back is None else death.over for death in self.deaths]
        self.quiet_from = max([0.0, *ends, *backs, *self.joins.values()])
        """When everything that is planned is over."""
        self._named = {machine for fault in faults for machine in _machines(fault)}
        self._pauses = {name: [f for f in faults if isinstance(f, Pause) and f.machine == name] for name in self._named}
        self._slow = {name: [f for f in faults if isinstance(f, Slow) and f.machine == name] for name in self._named}
        self._check_lives()

    def _check_lives(self) -> None:
        for fault in self.faults:
            if isinstance(fault, Join) and self.joins[fault.machine] != fault.at:
                raise UsageError(f"{fault.machine} joins twice: leave one of the two out")
        for machine in sorted({death.machine for death in self.deaths}):
            there = self.joins.get(machine, 0.0)
            for death in (d for d in self.deaths if d.machine == machine):
                if death.at < there:
                    when = "dead for good by then" if there == math.inf else f"there from {there:g} s on"
                    raise UsageError(f"{machine} cannot die at {death.at:g} s: it is {when}; choose another time")
                there = death.over

    def away(self, machine: str, now: float) -> Death | None:
        """The death that keeps a machine away now, if any does; also where it has only been told of."""
        deaths = (d for d in self.deaths if d.machine == machine and d.told_at < now < d.over)
        return max(deaths, key=lambda death: death.over, default=None)

    def there_from(self, machine: str, now: float) -> float:
        """When something that is to begin on a machine now can do so; infinite: never."""
        comes = max(now, self.joins.get(machine, 0.0))
        while (death := self.away(machine, comes)) is not None:
            comes = death.over
        return comes

    def check_targets(self, replicas: int, shards: int) -> None:
        """Raise `UsageError` if a fault is meant for a machine that the run does not have."""
        for machine in sorted(self._named):
            kind, _, number = machine.partition(" ")
            there = {"replica": replicas, "shard": shards}.get(kind, 1)
            if int(number or 0) >= there:
                some = f"{kind}s 0 to {there - 1}" if there > 1 else f"{kind} 0"
                raise UsageError(f"a fault is meant for {machine}, but the run has {some} only: leave it out")

    def cut_off(self, one: str, other: str, now: float) -> bool:
        """Whether a message between two machines is lost now."""
        return any(cut.between(one, other, now) for cut in self.cuts)

    def awake(self, machine: str, now: float) -> float:
        """When a machine that is spoken to now will hear it."""
        for pause in sorted(self._pauses.get(machine, ()), key=lambda pause: pause.at):
            if _lasts(pause, now):
                now = pause.at + pause.seconds
        return now

    def out_of_reach(self, machine: str, of: str, now: float) -> bool:
        """Whether a machine stands still, or is cut off from another."""
        return self.awake(machine, now) > now or self.cut_off(machine, of, now)

    def finish(self, machine: str, begun: float, seconds: float) -> float:
        """When work that takes so many seconds of an undisturbed machine will be done."""
        pauses, slow = self._pauses.get(machine, []), self._slow.get(machine, [])
        spans = [(fault.at, fault.at + fault.seconds) for faults in (pauses, slow) for fault in faults]
        changes = {time for span in spans for time in span if time > begun}
        for now, until in itertools.pairwise([begun, *sorted(changes), math.inf]):
            paused = any(_lasts(pause, now) for pause in pauses)
            speed = 0.0 if paused else 1 / math.prod(fault.factor for fault in slow if _lasts(fault, now))
            if speed and seconds <= (until - now) * speed:
                return now + seconds / speed
            seconds -= (until - now) * speed
        return begun + seconds
