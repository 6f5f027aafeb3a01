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
       It answers APPLIED (with all that is held), HELD, or a refusal.
    3. `lead` is how many steps a replica may be ahead of the slowest living one when it fetches; None: any number.
    """

    @property
    def round(self) -> int:
        """Pushes to an update."""

    @property
    def lead(self) -> int | None:
        """Steps that a replica may be ahead."""

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Decide on one push."""


_ON_ARRIVAL = Decision(Verdict.APPLIED, "applied on arrival")


class _OneByOne:
    """What holds of a policy that does not say otherwise: neither rounds nor waiting."""

    @property
    def round(self) -> int:
        """Pushes to an update."""
        return 1

    @property
    def lead(self) -> int | None:
        """Steps that a replica may be ahead."""
        return None


@final
@dataclass(frozen=True)
class Asynchronous(_OneByOne):
    """Every push is applied when it arrives (section 4.1)."""

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Always apply."""
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class StalenessScaled(_OneByOne):
    """Every push is applied when it arrives, with the learning rate divided by its staleness (Zhang et al. 2015).

    A push of staleness τ moves the parameters by 1/max(1, τ) of what it would, whatever the rule: with n replicas of
    like speed, by about 1/(n - 1). Each shard divides by its own.
    """

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Apply, the less the staler."""
        if staleness <= 1:
            return _ON_ARRIVAL
        return Decision(Verdict.APPLIED, f"applied at 1/{staleness} of the learning rate", 1 / staleness)


@final
@dataclass(frozen=True)
class Bounded(_OneByOne):
    """What is older than `versions` updates of its shard is refused, the rest applied on arrival.

    With n replicas of like speed staleness is about n - 1: a bound below that refuses most of the work.
    """

    versions: int

    def __post_init__(self) -> None:
        check_whole("versions", self.versions, least=0)

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Refuse what is too old."""
        if staleness > self.versions:
            return Decision(Verdict.TOO_OLD, f"{staleness} updates old, and {self.versions} are allowed")
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class Paced(_OneByOne):
    """Nobody is more than `steps` batches ahead of the slowest living replica; nothing is refused (Ho et al. 2013).

    It is the next fetch that waits, so that a replica which fetches every n batches may be n - 1 more ahead. 0 keeps
    all in step; those who hold no lease, or are dead, hold nobody up. A batch counts when it is pushed: one whose
    gradient is not finite never is. The first shard keeps the pace for all.
    """

    steps: int

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=0)

    @property
    def lead(self) -> int:
        """Steps that a replica may be ahead."""
        return self.steps

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Always apply."""
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class Buffered(_OneByOne):
    """The mean of m pushes is one update; what comes late for its round is dropped (Chen et al. 2016).

    m = 1 is asynchronous, m below the number of replicas is synchronous with backup workers, m equal to it is
    synchronous. No round waits for more than the living holders of leases, so a death or the end of the data closes
    one; it is divided by m all the same (by the number of replicas, if that is less).
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
