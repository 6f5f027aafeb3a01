"""The memory layout of a shard's block, and functions that read a snapshot of its integers.

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
# Write-ahead record of the update under way. APPLYING is the offset of the pusher's slot; 0: no update is under way;
# NO_SLOT: a round closes without a push. `Register.commit` copies each NEXT_ value to the field of that name.
APPLYING, NEXT_VERSION, NEXT_EXAMPLES, NEXT_HELD, NEXT_HELD_EXAMPLES, NEXT_PUSHES, NEXT_CLOCK = range(8, 15)
ALONE, TERM, COMMAND = range(15, 18)
"""ALONE: 1 while a single replica makes the warm start. TERM: the shard's. COMMAND: number of the last `SetLiving`."""
HELD_BATCHES, NEXT_HELD_BATCHES, HELD_WEIGHT, NEXT_HELD_WEIGHT = range(18, 22)
"""Batches and total weight of the pushes in the open round. The two weights are float64 values in int64 places."""
NO_SLOT = -1
# Sizes in integers: the header, and the histogram of staleness.
HEADER = 24
BINS = 4096
# Slot fields. At RECORDS lie two push records (work, verdict, version before the push). The parity of the sequence
# number picks the record, so that the record of the last complete push is never overwritten.
INCARNATION, SEQUENCE, BEGUN, FENCED, CLOCK, LIVES, RECORDS = range(7)
RECORD = len(Work._fields) + 2
NO_CLOCK = 1 << 62
"""Value of SLOWEST while no replica holds a lease: larger than every clock, so that no fetch waits."""
SLOT = RECORDS + 2 * RECORD
PAGE = 4096
AVERAGE, ROUND = OWN_VECTORS = ("average", "round")
"""Vectors besides the parameters and the rule's state: the moving average, and the sum of the open round."""


@dataclass(frozen=True)
class ShardSpec:
    """The construction parameters of a shard. All processes that map the same shard hold equal specs."""

    elements: int
    dtype: torch.dtype
    rule: Rule
    admission: Admission
    replicas: int
    """Number of replica slots, fixed for the life of the shard."""
    groups: tuple[Group, ...] = ()
    """The parameter groups of the shard's elements; empty if `rule` updates all of them."""
    average: float | None = None
    """The decay of the moving average of the parameters; None: the shard keeps no average."""

    @property
    def vectors(self) -> dict[str, float]:
        """The vectors of a shard by name, each with its initial fill value."""
        own = {AVERAGE: self.average is not None, ROUND: self.admission.round > 1}
        return {"parameters": 0.0, **self.rule.state, **{name: 0.0 for name, held in own.items() if held}}

    @property
    def numbers(self) -> int:
        """Number of int64 values before the vectors, rounded up to whole pages."""
        return -(-8 * (HEADER + BINS + self.replicas * SLOT) // PAGE) * PAGE // 8

    @property
    def nbytes(self) -> int:
        """Bytes of memory that a shard takes."""
        return 8 * self.numbers + len(self.vectors) * self.elements * self.dtype.itemsize


def slot_of(replica: int) -> int:
    """Where a replica's slot begins, in integers from the block's start."""
    return HEADER + BINS + replica * SLOT


def record_in(numbers: memoryview, replica: int, incarnation: int) -> PushRecord | None:
    """Read the last push of an incarnation from a block's integers, or None. A negative verdict marks it as torn."""
    slot = slot_of(replica)
    sequence = numbers[slot + SEQUENCE]
    if numbers[slot + INCARNATION] != incarnation or not sequence:
        return None
    record = slot + RECORDS + (sequence & 1) * RECORD
    *work, verdict, _ = numbers[record : record + RECORD].tolist()
    return PushRecord(sequence, Work(*work), Verdict(abs(verdict)), verdict > 0)


def record_of(snapshot: Snapshot, replica: int, incarnation: int) -> PushRecord | None:
    """Read the last push of an incarnation from a snapshot; None if there is none."""
    return record_in(snapshot.numbers.numpy().data, replica, incarnation)


def updates_of(snapshot: Snapshot) -> int:
    """Number of updates applied to the snapshot's parameters."""
    return int(snapshot.numbers[VERSION])


def examples_of(snapshot: Snapshot) -> int:
    """Number of examples in the updates applied to the snapshot's parameters."""
    return int(snapshot.numbers[EXAMPLES])


def in_pushes(snapshot: Snapshot) -> int:
    """Number of examples in all used pushes, including the pushes held for the open round."""
    return int(snapshot.numbers[EXAMPLES] + snapshot.numbers[HELD_EXAMPLES])
