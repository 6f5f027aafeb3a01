"""Who gets which work: the one place where the methods differ for the controller, and the values that it needs.

The rules of `Allocator`, by which the methods differ for the controller:

1.  `lease` answers at once: a lease, or why there is none. A holder may have several.
2.  A lease ends in `done` or in `died`, which is given what the shards know of the holder's last push.
3.  Once `stop` was called nothing more is given out. When `finished`, nothing will be, and no lease is outstanding.
4.  `state` is a value, for an allocator without leases; `restore_` goes on from it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, Unpack

from torch import Tensor

from distbelief.ports import GradientSource, Lease, Outcome, PushRecord, WorkSource


@dataclass
class Account:
    """What became of examples."""

    used: int = 0
    refused: int = 0
    dropped: int = 0
    partial: int = 0
    poisoned: int = 0
    """In batches that were set aside, since replicas died or failed at them again and again."""

    @property
    def total(self) -> int:
        """Examples accounted for."""
        return self.used + self.refused + self.dropped + self.partial + self.poisoned

    def __add__(self, other: "Account") -> "Account":
        return Account(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Reason(Enum):
    """Why a request for work was answered as it was."""

    GRANTED = "here is work"
    GATHERING = "not all replicas are here, and this policy begins with all"
    WARM_START = "one replica works alone until the warm start is over"
    AHEAD = "near the end nobody is given a second lease"
    OUTSTANDING = "all is leased, but a holder may die"
    FINISHED = "there will be no more work"


class Grant(NamedTuple):
    """The answer to a request: a lease, or why there is none (now, or for good if FINISHED)."""

    lease: Lease | None
    reason: Reason


class LastPush(NamedTuple):
    """The last push of a dead replica, over all shards."""

    record: PushRecord
    used: bool
    partial: bool
    """Begun at some shard, and not ended at all."""


def last_push(records: Sequence[PushRecord | None]) -> LastPush | None:
    """What the shards know of a dead replica's last push; one record a shard, None where it never pushed."""
    known = [record for record in records if record is not None]
    if not known:
        return None
    newest = max(record.sequence for record in known)
    begun = [record for record in known if record.sequence == newest]
    partial = len(begun) < len(records) or not all(record.whole for record in begun)
    return LastPush(begun[0], any(record.verdict.used for record in begun), partial)


def as_if_dead(allocator: "Allocator", records: Mapping[int, Sequence[PushRecord | None]]) -> "Allocator":
    """A copy of an allocator in which every holder died; `records`: what the shards know of the last push of each."""
    copied = copy.deepcopy(allocator)
    for holder, known in records.items():
        copied.died(holder, last_push(known))
    return copied


class Allocator(Protocol):
    """Who gets which work, what an account or a death means, and whether it is over."""

    total: Account
    examples: int
    """In an epoch."""
    epochs_ended: int

    @property
    def epoch(self) -> int:
        """The first epoch of which something is still to be given out."""

    @property
    def holders(self) -> frozenset[int]:
        """Who holds leases."""

    @property
    def alone(self) -> bool:
        """Whether one holder makes a warm start."""

    @property
    def stopped(self) -> bool:
        """Whether nothing more is given out."""

    @property
    def finished(self) -> bool:
        """Whether all work is done, or the run was stopped, and every lease has ended."""

    def ask(self, holder: int) -> None:
        """Somebody wants work. Where several do at once, all of them ask before the first is answered."""

    def lease(self, holder: int) -> Grant:
        """Work for a holder, or why there is none."""

    def done(self, number: int, outcomes: Sequence[Outcome]) -> None:
        """A lease has ended."""

    def died(self, holder: int, last: LastPush | None) -> Account:
        """A holder is dead; returns what its last leases came to."""

    def isolate(self, epoch: int, batch: int) -> bool:
        """Give out a batch by itself from now on; False where it is not waiting to be given out."""

    def set_aside(self, epoch: int, batch: int) -> None:
        """Never give out a batch again."""

    def leave(self, holder: int) -> None:
        """Count no longer on a holder that will not come, or not come back."""

    def stop(self) -> None:
        """Give out nothing more."""

    def state(self) -> Any:
        """Where the work stands, of an allocator without leases."""

    def restore_(self, state: Any) -> None:
        """Go on from where another allocator of the same work stood."""

    def check(self) -> None:
        """Raise `InvariantViolated` unless all work is in exactly one place."""


@dataclass(slots=True)
class Progress:
    """What a replica has done since its start, for those who watch it. Sums, but for `staleness`."""

    steps: float = 0
    examples: float = 0
    """In pushes that were used."""
    losses: float = 0
    """Batches whose loss was finite."""
    loss: float = 0
    """Sum over these."""
    norms: float = 0
    """Pushes whose 2-norm was looked at."""
    norm: float = 0
    """Sum over these, before they were clipped."""
    pushes: float = 0
    rejected: float = 0
    staleness: float = 0
    """Of the last push, at its stalest shard."""
    fetched_bytes: float = 0
    pushed_bytes: float = 0


class ReplicaParts(TypedDict):
    """What a replica is put together from.

    `parameters` is the flat vector that the model's tensors are views of: fetched into, and read by `source`.
    `overlap`: batches that fetches and pushes may lag behind. `stopping` is asked before each batch, `watch` told
    after each.
    """

    client: Any
    source: GradientSource
    work: WorkSource
    parameters: Tensor
    overlap: int
    stopping: Callable[[], bool]
    watch: Callable[[Progress], None]


class Replica(Protocol):
    """One copy of the model at work."""

    async def run(self) -> None:
        """Work until there is no more."""


class Method(Protocol):
    """An optimisation method as a value."""

    @property
    def replicas(self) -> int | tuple[int, int] | Literal["auto"]:
        """Copies of the model that train at once, or the least and the most of them."""

    @property
    def most_replicas(self) -> int | None:
        """Copies of the model that train at once, at the most; None: "auto"."""

    @property
    def shards(self) -> int | Literal["auto"]:
        """Parts of the parameter vector."""

    @property
    def batch_size(self) -> int | None:
        """Examples a batch."""

    @property
    def optimizer(self) -> Any:
        """The rule in the shards."""

    @property
    def average(self) -> float | None:
        """The decay of the average of the parameters that the shards keep; None: they keep none."""

    @property
    def kept(self) -> dict[str, float | None]:
        """The vectors that belong to a run beside its parameters, and what fills them at first.

        None: the parameters do.
        """

    @property
    def admission(self) -> Any:
        """Their policy."""

    @property
    def tolerate(self) -> int:
        """How many batches may be set aside at which replicas die or fail again and again."""

    @property
    def overlap(self) -> int | None:
        """Batches that fetches and pushes may lag behind."""

    def decided(self, *, replicas: int, shards: int, batch_size: int) -> "Method":
        """The same with numbers in the place of "auto" and None, which is what the following are asked of.

        `replicas`: the most; the least stays.
        """

    def over(self, examples: int | None) -> "Method":
        """The same for a run of so many examples: schedules that end with the run get a number.

        None: the run has no such end. Raises `UsageError` where that is needed.
        """

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `UsageError` for what names parameters and fits none of a model's."""

    def remarks(self, trained: Sequence[str], end: int | None) -> list[str]:
        """Settings that have no effect in a run of these parameters that ends after so many examples, in sentences.

        It has its schedules in numbers. None: only time or metrics end the run.
        """

    def allocator(self, examples: int, *, epochs: int | None, limit: int | None) -> Allocator:
        """Who hands out the work of a run over so many examples."""

    def replica(self, **parts: Unpack[ReplicaParts]) -> Replica:
        """One copy of the model."""
