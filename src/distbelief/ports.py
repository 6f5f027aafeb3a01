"""What the algorithms ask of the world, and the values that cross.

The rules of `ShardLink`, met by every link and tested by one suite:

1.  A call takes effect at most once. If it raises, its outcome is unknown; sequence numbers, terms and command numbers
    make a repetition safe, and a repeated push is told what became of the first.
2.  `fetch` takes no lock. The version it returns was read before the copy: some coordinates may be newer, none older.
3.  `fetch(at_least=v)` answers when the shard has reached v: its version or, where a policy paces the replicas, the
    steps of the slowest living one. Waiting is always this, never a push that blocks.
4.  `push` answers with a verdict. A replica has at most one push under way at a shard, in the order of its sequence.
5.  `execute` carries the controller's commands. They may come twice, late, or in another order than they were sent:
    each command says how a shard knows that it has been overtaken.
6.  A link that answers at once never suspends the caller: no other task runs between the call and the answer,
    unless `fetch` has to wait for a version.

The rules of `WorkSource`:

1.  `lease` answers with work, or with None when there will be no more.
2.  Every lease ends in one `done`, or with the death of its holder; never both.
3.  `done` tells of every batch of the lease in order; what it leaves out at the end was not worked on. The account
    leaves at the call. What it returns is awaited until the controller has acknowledged it: before that nothing of a
    later lease is pushed, and no later account is given.
"""

from collections.abc import Awaitable, Mapping, Sequence
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

    used: bool
    """Whether the push moved, or will move, the parameters. No property, since it is asked for many times a push."""

    def __init__(self, number: int) -> None:
        self.used = number <= 2


class Version(NamedTuple):
    """How far a shard has come. Versions of a later term are larger, whatever their counts."""

    term: int
    """Which life of the shard: it begins anew with each restoration, and with each resumption of the run."""
    updates: int
    """Applied so far; where a policy paces the replicas and this is waited for, steps."""


ORIGIN = Version(0, 0)
"""What every shard has reached."""


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
    version: Version
    """The shard's version that the gradient was computed from."""
    work: Work
    slices: tuple[Slice, ...]
    gradients: Sequence[Tensor]
    """One flat tensor a slice, of the vector's dtype."""
    weight: float = 0.0
    """Of the sum that the gradients are of, over all batches of the work; 0: they are means, or sums of these."""

    @property
    def divisor(self) -> float:
        """What the gradients are divided by where they are applied: the mean weight of a batch."""
        return self.weight / (self.work.stop - self.work.start) if self.weight else 1.0


class Reply(NamedTuple):
    """A shard's answer to a push."""

    verdict: Verdict
    reason: str
    staleness: int
    """Updates that the shard applied between the fetch and this push."""
    version: Version
    at_least: Version
    """What the pusher's next fetch should wait for."""


class PushRecord(NamedTuple):
    """The last push of a replica that a shard knows of."""

    sequence: int
    work: Work
    verdict: Verdict
    whole: bool
    """False if its pusher died while applying it."""


class Snapshot(NamedTuple):
    """A shard at one instant: the integers of its block, and its vectors by name. Owns its tensors."""

    numbers: Tensor
    vectors: dict[str, Tensor]


class SetLiving(NamedTuple):
    """Command: which replicas hold leases. A round that is full with these is closed.

    A shard takes no command of an earlier `number` than the last one's, nor the same again.
    """

    number: int
    replicas: frozenset[int]
    alone: bool
    """Whether one of them makes a warm start."""


class Fence(NamedTuple):
    """Command: take nothing more from an incarnation, nor from those before it. Answered with its `PushRecord`."""

    replica: int
    incarnation: int


class Capture(NamedTuple):
    """Command: copy slices of vectors, by the vectors' names, into tensors of the sender's. Changes nothing.

    Answered with a `Snapshot` that holds the integers alone.
    """

    into: Mapping[str, Sequence[tuple[Slice, Tensor]]]


class Restore(NamedTuple):
    """Command: become what was snapshot from a shard of an equal spec, in a later term.

    What was computed in another term is refused from then on, and nobody waits for what was to come in one before.
    A shard that has come to `term` already takes no notice.
    """

    term: int
    snapshot: Snapshot
    fenced: tuple[int, ...]
    """The newest incarnation of each replica that is dead: what the snapshot does not know."""
    living: SetLiving


Command = SetLiving | Fence | Capture | Restore
Answer = PushRecord | Snapshot | None
"""What `Fence` and `Capture` are answered with."""


class Gradient(NamedTuple):
    """What a batch says about the parameters. The receiver owns the tensors."""

    tensors: list[Tensor | None]
    """In the layout's order and the vector's dtype; None where a parameter took no part."""
    loss: Tensor
    """The mean over the batch, a scalar without a graph; not read yet, since reading it waits for the device."""
    examples: int
    weight: Tensor | None = None
    """A scalar as the loss: the tensors are the gradient of a sum of this weight. None: that of the mean."""


class ShardLink(Protocol):
    """How a client or the controller reaches one shard."""

    answers_at_once: bool

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        """Copy the shard's parameters into `into` (flat, the shard's length) and return their version."""

    async def push(self, push: Push) -> Reply:
        """Offer a gradient."""

    async def execute(self, command: Command) -> Answer:
        """Have a command of the controller's obeyed."""

    def transferring(self) -> bool:
        """Whether bytes of a call are under way: then it makes no sense to give the call up."""


class WorkSource(Protocol):
    """Where a replica gets its portions of the data."""

    async def lease(self) -> Lease | None:
        """The next portion."""

    def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        """Account for a lease."""


class GradientSource(Protocol):
    """The model over a batch: the one door by which gradients enter the vector."""

    def keep(self) -> None:
        """Keep what batches change in the model beside its parameters as it is now."""

    def undo(self) -> None:
        """Put it back: the batches since the last `keep` are refused."""

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """The gradient of the mean loss over a batch, at the parameters that the replica holds now."""
