"""What the algorithms ask of the world, and the values that cross.

The rules of `ShardLink`, met by every link and tested by one suite:

1.  A call takes effect at most once. If it raises, its outcome is unknown; the sequence number makes a repetition safe,
    and a repeated push is told what became of the first.
2.  `fetch` takes no lock. The version it returns was read before the copy: some coordinates may be newer, none older.
3.  `fetch(at_least=v)` answers when the shard has reached v: its version or, where a policy paces the replicas, the
    steps of the slowest living one. Waiting is always this, never a push that blocks.
4.  `push` answers with a verdict. A replica has at most one push under way at a shard, in the order of its sequence.
5.  A link that answers at once never suspends the caller: no other task runs between the call and the answer,
    unless `fetch` has to wait for a version.

The rules of `WorkSource`:

1.  `lease` answers with work, or with None when there will be no more.
2.  Every lease ends in one `done`, or with the death of its holder; never both.
3.  `done` tells of every batch of the lease in order; what it leaves out at the end was not worked on.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from torch import Tensor


class Verdict(IntEnum):
    """What became of a push at a shard."""

    APPLIED = 1
    HELD = 2
    """Part of a round that is not yet full; it will be applied with it."""
    DUPLICATE = 3
    """Seen before, or from an incarnation that has been replaced."""
    NOT_FINITE = 4
    TOO_OLD = 5
    LATE = 6
    """Its round was closed without it."""

    @property
    def used(self) -> bool:
        """Whether the push moved, or will move, the parameters."""
        return self <= Verdict.HELD


class Lease(NamedTuple):
    """A portion of work: the batches [start, stop) of an epoch. Only the data source knows what they are."""

    number: int
    epoch: int
    start: int
    stop: int


class Work(NamedTuple):
    """The batches [start, stop) of a lease that one push holds, and what was lost of the same lease before it."""

    lease: int
    start: int
    stop: int
    examples: int
    refused: int = 0
    """Examples before `start` whose pushes no shard was asked to take: not finite."""
    dropped: int = 0
    """Examples before `start` that every shard turned away."""


class Outcome(NamedTuple):
    """What became of the batches [start, stop) of a lease."""

    start: int
    stop: int
    verdict: Verdict


class Slice(NamedTuple):
    """A gradient's elements [start, stop) inside a shard, counted from the shard's first element."""

    start: int
    stop: int


class Push(NamedTuple):
    """One gradient's part for one shard. The pusher owns the tensors and does not change them until the reply."""

    replica: int
    incarnation: int
    sequence: int
    version: int
    """The shard's version that the gradient was computed from."""
    work: Work
    slices: tuple[Slice, ...]
    gradients: Sequence[Tensor]
    """One flat tensor a slice, of the vector's dtype."""


class Reply(NamedTuple):
    """A shard's answer to a push."""

    verdict: Verdict
    reason: str
    staleness: int
    """Updates that the shard applied between the fetch and this push."""
    version: int
    at_least: int
    """What the pusher's next fetch should wait for."""


class Gradient(NamedTuple):
    """What a batch says about the parameters. The receiver owns the tensors."""

    tensors: list[Tensor | None]
    """In the layout's order and the vector's dtype; None where a parameter took no part."""
    loss: Tensor
    """The mean over the batch, a scalar without a graph; not read yet, since reading it waits for the device."""
    examples: int


class ShardLink(Protocol):
    """How a client reaches one shard."""

    answers_at_once: bool

    async def fetch(self, into: Tensor, at_least: int = 0) -> int:
        """Copy the shard's parameters into `into` (flat, the shard's length) and return their version."""

    async def push(self, push: Push) -> Reply:
        """Offer a gradient."""


class WorkSource(Protocol):
    """Where a replica gets its portions of the data."""

    async def lease(self) -> Lease | None:
        """The next portion."""

    async def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> None:
        """Account for a lease."""


class GradientSource(Protocol):
    """The model over a batch: the one door by which gradients enter the vector."""

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """The gradient of the mean loss over a batch, at the parameters that the replica holds now."""
