"""The block of memory that is a shard: what lies where, and what can be read from a copy of it.

header | histogram of staleness | replica slots | parameters | rule state … | average | sum of the open round
"""

from dataclasses import dataclass

import torch

from distbelief.ports import PushRecord, Snapshot, Verdict, Work
from distbelief.server.admission import Admission
from distbelief.server.groups import Group
from distbelief.server.rules import Rule

# Header fields.
VERSION, EXAMPLES, HELD, HELD_EXAMPLES, LIVING, PUSHES, STALEST, SLOWEST = range(8)
# Of the update under way: the slot it is for (or 0, or NOBODY), then what will be true once it has ended.
APPLYING, NEXT_VERSION, NEXT_EXAMPLES, NEXT_HELD, NEXT_HELD_EXAMPLES, NEXT_PUSHES, NEXT_CLOCK = range(8, 15)
ALONE, TERM, COMMAND = range(15, 18)
"""Whether one replica makes a warm start, the shard's term, and the number of the last `SetLiving`."""
HELD_BATCHES, NEXT_HELD_BATCHES, HELD_WEIGHT, NEXT_HELD_WEIGHT = range(18, 22)
"""Batches and weight in the open round; weights are float64 numbers in the integers' place."""
NOBODY = -1
HEADER = 24
BINS = 4096
# Slot fields, then two records of work, verdict and version, used in turn so that one is always whole.
INCARNATION, SEQUENCE, BEGUN, FENCED, CLOCK, LIVES, RECORDS = range(7)
RECORD = len(Work._fields) + 2
NEVER = 1 << 62
"""What no fetch waits for: the clock of the slowest where no replica lives."""
SLOT = RECORDS + 2 * RECORD
PAGE = 4096
AVERAGE, ROUND = OWN_VECTORS = ("average", "round")
"""Vectors of the shard's own, beside those of its rule."""


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is made from. All who map one shard hold equal specs."""

    elements: int
    dtype: torch.dtype
    rule: Rule
    admission: Admission
    replicas: int
    """Number of replica slots, fixed for the life of the shard."""
    groups: tuple[Group, ...] = ()
    """The rules of its elements, where there are several."""
    average: float | None = None
    """The decay of the average of the parameters; None: none is kept."""

    @property
    def vectors(self) -> dict[str, float]:
        """The vectors a shard holds, and what fills them at first."""
        own = {AVERAGE: self.average is not None, ROUND: self.admission.round > 1}
        return {"parameters": 0.0, **self.rule.state, **{name: 0.0 for name, held in own.items() if held}}

    @property
    def numbers(self) -> int:
        """Integers before the vectors, whole pages of them."""
        return -(-8 * (HEADER + BINS + self.replicas * SLOT) // PAGE) * PAGE // 8

    @property
    def nbytes(self) -> int:
        """Bytes of memory that a shard takes."""
        return 8 * self.numbers + len(self.vectors) * self.elements * self.dtype.itemsize


def slot_of(replica: int) -> int:
    """Where a replica's slot begins, in integers from the block's start."""
    return HEADER + BINS + replica * SLOT


def record_in(numbers: memoryview, replica: int, incarnation: int) -> PushRecord | None:
    """The last push of an incarnation that a block's integers tell of, or None."""
    slot = slot_of(replica)
    sequence = numbers[slot + SEQUENCE]
    if numbers[slot + INCARNATION] != incarnation or not sequence:
        return None
    record = slot + RECORDS + (sequence & 1) * RECORD
    *work, verdict, _ = numbers[record : record + RECORD].tolist()
    return PushRecord(sequence, Work(*work), Verdict(abs(verdict)), verdict > 0)


def record_of(snapshot: Snapshot, replica: int, incarnation: int) -> PushRecord | None:
    """The last push of an incarnation that a snapshot holds, or None."""
    return record_in(snapshot.numbers.numpy().data, replica, incarnation)


def updates_of(snapshot: Snapshot) -> int:
    """Updates that a snapshot holds."""
    return int(snapshot.numbers[VERSION])


def examples_of(snapshot: Snapshot) -> int:
    """Examples in the updates that a snapshot holds."""
    return int(snapshot.numbers[EXAMPLES])


def in_pushes(snapshot: Snapshot) -> int:
    """Examples in all pushes that were used, those of the open round included."""
    return int(snapshot.numbers[EXAMPLES] + snapshot.numbers[HELD_EXAMPLES])
