"""Admission: whether a shard applies a push, holds it, or turns it away. Pure decisions with their reason."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, final, runtime_checkable

from distbelief.checks import check_whole
from distbelief.ports import Verdict


class Decision(NamedTuple):
    """The verdict on a push, and why. `scale` multiplies the learning rate of an applied push."""

    verdict: Verdict
    reason: str
    scale: float = 1.0


@runtime_checkable
class Admission(Protocol):
    """A policy.

    1. `round` is how many pushes one update of a round takes; 1 where pushes are applied one by one. Where it is more,
       the replicas begin together, and the shard keeps a vector for the sum of a round.
    2. `admit` sees the staleness of a push, how many the shard holds for the present round, and how many replicas live.
       It answers APPLIED (with all that is held, as their mean), HELD, or a refusal.
    """

    @property
    def round(self) -> int:
        """Pushes to an update."""

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Decide on one push."""


_ON_ARRIVAL = Decision(Verdict.APPLIED, "applied on arrival")


@final
@dataclass(frozen=True)
class Asynchronous:
    """Every push is applied when it arrives (section 4.1)."""

    @property
    def round(self) -> int:
        """Pushes to an update."""
        return 1

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Always apply."""
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class Buffered:
    """The mean of m pushes is one update; what comes late for its round is dropped (Chen et al. 2016).

    m = 1 is asynchronous, m below the number of replicas is synchronous with backup workers, m equal to it is
    synchronous. m counts no more than the living holders of leases, so a death or the end of the data closes a round.
    """

    m: int

    def __post_init__(self) -> None:
        check_whole("m", self.m)

    @property
    def round(self) -> int:
        """Pushes to an update."""
        return self.m

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Drop what is late, hold until the round is full."""
        if staleness > 0 and self.m > 1:
            return Decision(Verdict.LATE, f"its round was closed {staleness} updates ago")
        needed = max(1, min(self.m, living))
        if held + 1 < needed:
            return Decision(Verdict.HELD, f"{held + 1} of {needed} pushes of the round")
        return Decision(Verdict.APPLIED, f"closes a round of {held + 1} pushes")
