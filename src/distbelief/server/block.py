"""The block of memory that is a shard: what lies where, and what can be read from a copy of it.

header | histogram of staleness | replica slots | parameters | rule state … | sum of the open round
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distbelief.ports import Verdict, Work
from distbelief.server.admission import Admission
from distbelief.server.rules import Rule

# Header fields.
VERSION, EXAMPLES, HELD, HELD_EXAMPLES, LIVING, PUSHES, STALEST, SLOWEST = range(8)
# Of the update under way: the slot it is for (or 0, or NOBODY), then what will be true once it has ended.
APPLYING, NEXT_VERSION, NEXT_EXAMPLES, NEXT_HELD, NEXT_HELD_EXAMPLES, NEXT_PUSHES, NEXT_CLOCK = range(8, 15)
ALONE = 15
NOBODY = -1
HEADER = 16
BINS = 4096
# Slot fields, then two records of work, verdict and version, used in turn so that one is always whole.
INCARNATION, SEQUENCE, BEGUN, FENCED, CLOCK, LIVES, RECORDS = range(7)
RECORD = len(Work._fields) + 2
GENERATION = 1 << 40
"""A version is the number of updates, and this for each time that the shard was restored."""
NEVER = 1 << 62
"""What nobody waits for: the clock of the slowest where nobody lives."""
SLOT = RECORDS + 2 * RECORD
PAGE = 4096


class Standing(NamedTuple):
    """The last push of a replica that a shard knows of."""

    sequence: int
    work: Work
    verdict: Verdict
    whole: bool
    """False if its pusher died while applying it."""


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is made from. All who map one shard hold equal specs."""

    elements: int
    dtype: torch.dtype
    rule: Rule
    admission: Admission
    replicas: int
    """Number of replica slots, fixed for the life of the shard."""

    @property
    def vectors(self) -> dict[str, float]:
        """The vectors a shard holds, and what fills them at first."""
        held = {"round": 0.0} if self.admission.round > 1 else {}
        return {"parameters": 0.0, **self.rule.state, **held}

    @property
    def numbers(self) -> int:
        """Integers before the vectors, whole pages of them."""
        return -(-8 * (HEADER + BINS + self.replicas * SLOT) // PAGE) * PAGE // 8

    @property
    def nbytes(self) -> int:
        """Bytes of memory that a shard takes."""
        return 8 * self.numbers + len(self.vectors) * self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class Snapshot:
    """A shard at one instant. Owns its tensors."""

    numbers: Tensor
    vectors: dict[str, Tensor]

    @property
    def updates(self) -> int:
        """Updates applied."""
        return int(self.numbers[VERSION]) % GENERATION

    @property
    def examples(self) -> int:
        """Examples in the updates."""
        return int(self.numbers[EXAMPLES])

    def standing(self, replica: int, incarnation: int) -> Standing | None:
        """The last push of this incarnation that the snapshot holds, or None."""
        return standing_in(self.numbers.numpy().data, replica, incarnation)


def updates_between(since: int, version: int) -> int:
    """Updates that a shard applied after one version and up to another; 0 where it was restored to before the first."""
    return max(0, version % GENERATION - since % GENERATION)


def slot_of(replica: int) -> int:
    """Where a replica's slot begins, in integers from the block's start."""
    return HEADER + BINS + replica * SLOT


def standing_in(numbers: memoryview, replica: int, incarnation: int) -> Standing | None:
    """The last push of an incarnation that a block's integers tell of, or None."""
    slot = slot_of(replica)
    sequence = numbers[slot + SEQUENCE]
    if numbers[slot + INCARNATION] != incarnation or not sequence:
        return None
    record = slot + RECORDS + (sequence & 1) * RECORD
    *work, verdict, _ = numbers[record : record + RECORD].tolist()
    return Standing(sequence, Work(*work), Verdict(abs(verdict)), verdict > 0)
