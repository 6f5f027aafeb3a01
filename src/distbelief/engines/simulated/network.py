"""The network: links as a value, and the wire that carries messages over them in virtual time.

A message leaves its machine when those before it have left, travels for its latency, and enters the other machine when
those before it have entered: that is how bandwidth is shared. One without a vector takes none of it. What calls make of
messages is in `link.py`.
"""

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import final

from distbelief.checks import check_number
from distbelief.engines.simulated.faults import Plan
from distbelief.engines.simulated.laws import Draw, Law, law_of
from distbelief.errors import UsageError

_HELD_BACK = 10
"""A message that is overtaken takes up to so many latencies more."""


@final
@dataclass(frozen=True, kw_only=True)
class Network:
    """Links between machines, all alike.

    `latency`: of a message one way, seconds or a law. `bandwidth`: bytes per second that a machine sends, and as many
    that it receives. `loss`, `duplication` and `reordering`: the part of the messages that never arrive, arrive twice,
    or are overtaken by later ones; each 1 at most, and `loss` one half.
    """

    latency: float | Law = 0.0005
    bandwidth: float = 125e6
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0

    def __post_init__(self) -> None:
        law_of("latency", self.latency)
        if self.bandwidth != math.inf:
            check_number("bandwidth", self.bandwidth, above=0)
        for name, most in (("loss", 0.5), ("duplication", 1.0), ("reordering", 1.0)):
            check_number(name, getattr(self, name))
            if getattr(self, name) > most:
                raise UsageError(f"{name} must be {most:g} at most, not {getattr(self, name)!r}")

    @property
    def disturbs(self) -> bool:
        """Whether messages are lost, doubled or overtaken."""
        return bool(self.loss or self.duplication or self.reordering)

    def wire(self, chance: random.Random, plan: Plan) -> "Wire":
        """The wire of one run."""
        return Wire(law_of("latency", self.latency).draw(chance, 0), network=self, chance=chance, plan=plan)


_IDEAL = Network(latency=0.0, bandwidth=math.inf)
_NOTHING_HAPPENS = Plan(())


@final
@dataclass(eq=False)
class Wire:
    """Carries messages between machines. `latency` gives the seconds that the next one travels."""

    latency: Draw
    _: KW_ONLY
    network: Network = _IDEAL
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    plan: Plan = _NOTHING_HAPPENS
    down: set[str] = field(default_factory=set)
    """Machines that hear nothing now."""
    is_calm: bool = False
    """Whether every message arrives at once."""

    def __post_init__(self) -> None:
        self._closed = False
        self._sent: defaultdict[str, float] = defaultdict(float)
        self._received: defaultdict[str, float] = defaultdict(float)
        self._under_way: defaultdict[tuple[str, str], float] = defaultdict(float)
        """Until when bytes from one machine to another are on their way."""

    def send(self, source: str, target: str, nbytes: int, deliver: Callable[[], object]) -> None:
        """Have `deliver` called when a message of so many bytes has arrived, if it does."""
        if self._closed:
            return
        copies, network, draw = 1, self.network, self.chance.random
        if network.disturbs:
            copies = 0 if draw() < network.loss else 2 if draw() < network.duplication else 1
        loop = asyncio.get_running_loop()
        if self.plan.cuts and self.plan.cut_off(source, target, loop.time()):
            return
        for _ in range(copies):
            latency = self.latency()
            if network.disturbs and draw() < network.reordering:
                latency += _HELD_BACK * draw() * latency
            if (seconds := nbytes / network.bandwidth) > 0:
                begins = max(loop.time(), self._sent[source])
                self._sent[source] = begins + seconds
                self._under_way[source, target] = begins + latency + seconds
                loop.call_at(begins + latency, self._enter, source, target, seconds, deliver)
            else:
                loop.call_at(loop.time() + latency, self._arrive, target, deliver)

    def transferring(self, one: str, other: str) -> bool:
        """Whether bytes of a message between two machines are under way."""
        ends = max(self._under_way[one, other], self._under_way[other, one])
        return ends > asyncio.get_running_loop().time()

    def calm(self) -> None:
        """From now on every message arrives, at once, whatever the network and the plan were."""
        self.is_calm = True
        self.down.clear()
        self.plan, self.network, self.latency = _NOTHING_HAPPENS, _IDEAL, lambda: 0.0

    def close(self) -> None:
        """Nothing that is under way arrives any more."""
        self._closed = True

    def _enter(self, source: str, target: str, seconds: float, deliver: Callable[[], object]) -> None:
        """The first byte is there: the last one is when those before this message have entered, and it has."""
        loop = asyncio.get_running_loop()
        self._received[target] = enters = max(loop.time(), self._received[target]) + seconds
        self._under_way[source, target] = enters
        loop.call_at(enters, self._arrive, target, deliver)

    def _arrive(self, target: str, deliver: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        if self._closed or target in self.down:
            return
        if (awake := self.plan.awake(target, loop.time())) > loop.time():
            loop.call_at(awake, self._arrive, target, deliver)
        else:
            deliver()
