"""Admission policies: pure functions that decide whether a shard applies, holds or refuses a push, and say why."""

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
    """An admission policy.

    1. `round` is the number of pushes that make up one update; 1 means that each push is an update of its own. If it is
       larger, the replicas start together, and the shard keeps a vector with the sum of the open round.
    2. `admit` gets the staleness of a push, the number of pushes held for the open round, and the number of living
       replicas. It returns APPLIED (the push and all held ones), HELD, or a refusal.
    3. `lead` is the number of steps that a replica may be ahead of the slowest living replica when it fetches; None
       means no limit. A replica is living while it holds a lease.
    """

    @property
    def round(self) -> int:
        """Number of pushes that make up one update."""

    @property
    def lead(self) -> int | None:
        """Steps that a replica may be ahead of the slowest living one; None: no limit."""

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Decide on one push."""


_ON_ARRIVAL = Decision(Verdict.APPLIED, "applied on arrival")


class _Defaults:
    """Default properties of a policy: no rounds, and no limit on a replica's lead."""

    @property
    def round(self) -> int:
        """Number of pushes that make up one update."""
        return 1

    @property
    def lead(self) -> int | None:
        """Steps that a replica may be ahead of the slowest living one; None: no limit."""
        return None


@final
@dataclass(frozen=True)
class Asynchronous(_Defaults):
    """Every push is applied when it arrives (section 4.1)."""

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Always apply."""
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class StalenessScaled(_Defaults):
    """Every push is applied when it arrives, with the learning rate divided by its staleness (Zhang et al. 2015).

    The factor for a push of staleness τ is 1/max(1, τ), under every rule. With n replicas of equal speed, staleness is
    about n - 1, and so the factor is about 1/(n - 1). Each shard measures staleness by its own updates.
    """

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Apply, with a learning rate that shrinks with staleness."""
        if staleness <= 1:
            return _ON_ARRIVAL
        return Decision(Verdict.APPLIED, f"applied at 1/{staleness} of the learning rate", 1 / staleness)


@final
@dataclass(frozen=True)
class Bounded(_Defaults):
    """A shard refuses a push whose staleness exceeds `versions` updates, and applies the others on arrival.

    With n replicas of equal speed, staleness is about n - 1. A smaller bound refuses most of the work.
    """

    versions: int

    def __post_init__(self) -> None:
        check_whole("versions", self.versions, least=0)

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Refuse a push that is too stale."""
        if staleness > self.versions:
            return Decision(Verdict.TOO_OLD, f"{staleness} updates old, and {self.versions} are allowed")
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class Paced(_Defaults):
    """A replica more than `steps` batches ahead of the slowest living one waits; no push is refused (Ho et al. 2013).

    The next fetch waits, not the push: a replica that fetches every n batches can be n - 1 batches further ahead.
    `steps=0` keeps all replicas in step. No replica waits for one that is dead or holds no lease. A batch counts once
    it is pushed; a batch with a non-finite gradient is never pushed and never counts. Only the first
    shard paces: two shards that have not seen the same pushes could each make another replica wait, forever.
    """

    steps: int

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, least=0)

    @property
    def lead(self) -> int:
        """Steps that a replica may be ahead of the slowest living one."""
        return self.steps

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Always apply."""
        return _ON_ARRIVAL


@final
@dataclass(frozen=True)
class Buffered(_Defaults):
    """The mean of m pushes is one update; a push that arrives after its round was closed is dropped (Chen et al. 2016).

    m equal to the number of replicas is synchronous training, a smaller m is synchronous with backup workers, and m = 1
    is asynchronous. A round takes at most as many pushes as replicas are living, so a death or the end of the data can
    close it early. The sum of such a round is still divided by min(m, number of replicas).
    """

    m: int

    def __post_init__(self) -> None:
        check_whole("m", self.m)

    @property
    def round(self) -> int:
        """Number of pushes that make up one update."""
        return self.m

    def admit(self, staleness: int, held: int, living: int) -> Decision:
        """Drop a late push; hold the others until the round is full."""
        if staleness > 0 and self.m > 1:
            return Decision(Verdict.LATE, f"its round was closed {staleness} updates ago")
        needed = max(1, min(self.m, living))
        if held + 1 < needed:
            return Decision(Verdict.HELD, f"{held + 1} of {needed} pushes of the round")
        return Decision(Verdict.APPLIED, f"closes a round of {held + 1} pushes")
