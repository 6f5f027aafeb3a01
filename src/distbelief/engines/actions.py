"""What the controller wants done, as values that an engine's driver carries out in their order."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from distbelief.allocation import Account
from distbelief.downpour.lease_server import LeaseReply
from distbelief.ports import Answer, Command, PushRecord, SetLiving


class Start(NamedTuple):
    """Bring a replica to life."""

    replica: int
    incarnation: int


class Kill(NamedTuple):
    """End a replica at once, whatever it is doing."""

    replica: int
    incarnation: int


class Suspect(NamedTuple):
    """A replica has said nothing for long: report its end if it is stopped or out of reach, and kill it."""

    replica: int
    incarnation: int


class Acknowledge(NamedTuple):
    """Tell a replica that its account has been heard."""

    replica: int
    incarnation: int
    number: int


class Execute(NamedTuple):
    """Have every shard obey a command, and report their answers in the shards' order under this number."""

    number: int
    command: Command


class TakeSnapshots(NamedTuple):
    """Have every shard copied for a checkpoint, and report the snapshots under this number."""

    number: int


class RestoreShard(NamedTuple):
    """Give a shard that has lost its memory what was written down last; nothing is reported."""

    shard: int
    term: int
    fenced: tuple[int, ...]
    living: SetLiving


class StopWork(NamedTuple):
    """Ask all replicas to stop after their present batch."""


class Left(NamedTuple):
    """For the record: a replica has come to its natural end."""

    replica: int


class Lost(NamedTuple):
    """For the record: a replica has died, or has left, and its leases have been accounted for."""

    replica: int
    incarnation: int
    status: int | None
    error: str | None
    account: Account
    records: Sequence[PushRecord | None]
    """What each shard knows of its last push."""
    partial: bool
    """Whether some shards have that push and others do not."""
    left: bool
    """Whether it was told to leave: no failure."""


class SetAside(NamedTuple):
    """For the record: a batch is never leased again."""

    epoch: int
    batch: int
    error: str
    """What became of the last replica that worked on it."""


class Evaluate(NamedTuple):
    """Begin an evaluation, and report when it has ended."""


class WriteCheckpoint(NamedTuple):
    """Begin to write a checkpoint, and report when that has ended."""

    snapshots: Sequence[Answer]
    total: Account
    state: Any
    """The allocator's, as if every replica had died when the snapshots were taken."""


Action = (
    Start
    | Kill
    | Suspect
    | LeaseReply
    | Acknowledge
    | Execute
    | TakeSnapshots
    | RestoreShard
    | StopWork
    | Left
    | Lost
    | SetAside
    | Evaluate
    | WriteCheckpoint
)
