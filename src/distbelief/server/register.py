"""The bookkeeping of a shard: the pushes it has seen, the living replicas, and the steps of each replica.

The state is the integers at the start of the shard's block. They are written in such an order that the next lock holder
can detect and repair a death between any two writes. The caller holds the shard's lock; a method that reads a single
integer needs no lock.
"""

from typing import final

from distbelief.errors import InvariantViolated
from distbelief.ports import ORIGIN, Push, PushRecord, Reply, SetLiving, Verdict, Version
from distbelief.server import block
from distbelief.server.block import ShardSpec

SEEN = "seen before"
"""`Reply.reason` for a repetition of a replica's last push. The reply repeats the original verdict."""


@final
class Register:
    """The bookkeeping of one shard. `numbers` are the integers of its block; the caller owns them."""

    def __init__(self, spec: ShardSpec, numbers: "memoryview[int]") -> None:
        self.numbers = numbers
        self._floats = numbers.cast("B").cast("d")
        self._replicas = spec.replicas
        self._round = spec.admission.round
        self.lead = spec.admission.lead

    @property
    def version(self) -> Version:
        """The term, and the updates applied."""
        return Version(self.numbers[block.TERM], self.numbers[block.VERSION])

    def slot(self, replica: int) -> int:
        """Offset of a replica's slot in the block, in integers. Raises `InvariantViolated` for an unknown replica."""
        if not 0 <= replica < self._replicas:
            raise InvariantViolated(f"replica {replica} has no slot among {self._replicas}")
        return block.slot_of(replica)

    def repeated_reply(self, slot: int, push: Push) -> Reply | None:
        """Return the reply to a repeated or fenced push, or None if the push is new.

        A repetition of the replica's last push gets the original verdict again, since the first reply may be lost.
        """
        numbers = self.numbers
        incarnation = numbers[slot + block.INCARNATION]
        if push.incarnation < incarnation or push.incarnation <= numbers[slot + block.FENCED]:
            return Reply(Verdict.DUPLICATE, "its incarnation has been replaced", 0, self.version, ORIGIN)
        seen = numbers[slot + block.SEQUENCE] if push.incarnation == incarnation else 0
        if push.sequence > seen:
            return None
        if push.sequence < seen:
            return Reply(Verdict.DUPLICATE, "seen before, and another one since", 0, self.version, ORIGIN)
        record = slot + block.RECORDS + (push.sequence & 1) * block.RECORD
        verdict, count = Verdict(abs(numbers[record + block.RECORD - 2])), numbers[record + block.RECORD - 1]
        staleness = max(0, count - push.version.updates)
        return Reply(verdict, SEEN, staleness, self.version, self.at_least(slot, verdict, count))

    def at_least(self, slot: int, verdict: Verdict, count: int) -> Version:
        """Return the version that a replica's next fetch waits for. `count`: updates applied before its last push."""
        if self.lead is not None:
            return Version(self.numbers[block.TERM], max(0, self.numbers[slot + block.CLOCK] - self.lead))
        return Version(self.numbers[block.TERM], count + 1) if verdict is Verdict.HELD else ORIGIN

    def begin(self, slot: int, push: Push, verdict: Verdict) -> None:
        """Record a push and the values that hold after it (write-ahead), before the shard's vectors change."""
        numbers = self.numbers
        if numbers[slot + block.INCARNATION] != push.incarnation:
            numbers[slot + block.SEQUENCE] = numbers[slot + block.BEGUN] = 0
            numbers[slot + block.INCARNATION] = push.incarnation
        record = slot + block.RECORDS + (push.sequence & 1) * block.RECORD
        for field, value in enumerate((*push.work, verdict, numbers[block.VERSION])):
            numbers[record + field] = value
        applied, used = verdict is Verdict.APPLIED, verdict.used
        examples = numbers[block.HELD_EXAMPLES] + (push.work.examples if used else 0)
        numbers[block.NEXT_VERSION] = numbers[block.VERSION] + applied
        numbers[block.NEXT_EXAMPLES] = numbers[block.EXAMPLES] + (examples if applied else 0)
        numbers[block.NEXT_HELD] = 0 if applied else numbers[block.HELD] + (verdict is Verdict.HELD)
        numbers[block.NEXT_HELD_EXAMPLES] = 0 if applied else examples
        if self._round > 1:
            batches = numbers[block.HELD_BATCHES] + push.work.stop - push.work.start
            numbers[block.NEXT_HELD_BATCHES] = 0 if applied else batches if used else numbers[block.HELD_BATCHES]
            weight = self._floats[block.HELD_WEIGHT] + (push.weight if used else 0.0)
            self._floats[block.NEXT_HELD_WEIGHT] = 0.0 if applied else weight
        numbers[block.NEXT_PUSHES] = numbers[block.PUSHES] + used
        numbers[block.NEXT_CLOCK] = numbers[slot + block.CLOCK] + push.work.stop - push.work.start
        numbers[slot + block.BEGUN] = push.sequence
        numbers[block.APPLYING] = slot

    def begin_closing(self) -> None:
        """Record (write-ahead) that the open round closes without another push."""
        numbers = self.numbers
        numbers[block.NEXT_VERSION] = numbers[block.VERSION] + 1
        numbers[block.NEXT_EXAMPLES] = numbers[block.EXAMPLES] + numbers[block.HELD_EXAMPLES]
        numbers[block.NEXT_HELD] = numbers[block.NEXT_HELD_EXAMPLES] = numbers[block.NEXT_HELD_BATCHES] = 0
        self._floats[block.NEXT_HELD_WEIGHT] = 0.0
        numbers[block.NEXT_PUSHES] = numbers[block.PUSHES]
        numbers[block.APPLYING] = block.NO_SLOT

    def commit(self) -> None:
        """Make the recorded values current, and end the update under way. Idempotent."""
        numbers = self.numbers
        slot = numbers[block.APPLYING]
        numbers[block.VERSION] = numbers[block.NEXT_VERSION]
        numbers[block.EXAMPLES] = numbers[block.NEXT_EXAMPLES]
        numbers[block.HELD] = numbers[block.NEXT_HELD]
        numbers[block.HELD_EXAMPLES] = numbers[block.NEXT_HELD_EXAMPLES]
        numbers[block.PUSHES] = numbers[block.NEXT_PUSHES]
        if self._round > 1:
            numbers[block.HELD_BATCHES] = numbers[block.NEXT_HELD_BATCHES]
            numbers[block.HELD_WEIGHT] = numbers[block.NEXT_HELD_WEIGHT]
        if slot > 0:
            numbers[slot + block.SEQUENCE] = numbers[slot + block.BEGUN]
            numbers[slot + block.CLOCK] = numbers[block.NEXT_CLOCK]
            if self.lead is not None:
                numbers[block.SLOWEST] = self._slowest()
        numbers[block.APPLYING] = 0

    def round_divisor(self, push: Push | None) -> float:
        """Mean weight of a batch, over the open round and the push that closes it; 1 if the gradients are of means."""
        weight = self._floats[block.HELD_WEIGHT] + (push.weight if push else 0.0)
        batches = self.numbers[block.HELD_BATCHES] + (push.work.stop - push.work.start if push else 0)
        return weight / batches if weight else 1.0

    @property
    def interrupted_opening(self) -> bool:
        """Whether the interrupted update, if any, is the first push held for a round."""
        numbers = self.numbers
        return bool(numbers[block.APPLYING] and not numbers[block.HELD] and numbers[block.NEXT_HELD])

    def recover(self) -> None:
        """Complete an interrupted update. If it is a push, mark the push as torn: its verdict becomes negative."""
        numbers = self.numbers
        if slot := numbers[block.APPLYING]:
            if slot > 0:
                verdict = slot + block.RECORDS + (numbers[slot + block.BEGUN] & 1) * block.RECORD + block.RECORD - 2
                numbers[verdict] = -abs(numbers[verdict])
            self.commit()

    def count_staleness(self, staleness: int) -> None:
        """Add a used push to the histogram of staleness."""
        numbers = self.numbers
        numbers[block.HEADER + min(staleness, block.BINS - 1)] += 1
        numbers[block.STALEST] = max(numbers[block.STALEST], staleness)

    def set_living(self, command: SetLiving) -> bool:
        """Record which replicas hold leases. True if these make the open round full; a stale command has no effect.

        Under a pacing policy, a replica that joins gets the slowest clock of the replicas already living, if its own is
        lower: these do not wait for steps that it missed. If none is living, all that join get their largest clock.
        """
        numbers = self.numbers
        if command.number <= numbers[block.COMMAND]:
            return False
        numbers[block.COMMAND] = command.number
        numbers[block.ALONE] = command.alone
        if self.lead is not None:
            self._set_paced({self.slot(replica) for replica in command.replicas})
        numbers[block.LIVING] = len(command.replicas)
        return 0 < numbers[block.HELD] >= min(self._round, len(command.replicas))

    def _set_paced(self, living: set[int]) -> None:
        numbers = self.numbers
        for slot in map(block.slot_of, range(self._replicas)):
            numbers[slot + block.LIVES] &= slot in living
        there = [numbers[slot + block.CLOCK] for slot in living if numbers[slot + block.LIVES]]
        # If no replica was living, all that join start with the same clock.
        slowest = min(there) if there else max((numbers[slot + block.CLOCK] for slot in living), default=0)
        for slot in living:
            if not numbers[slot + block.LIVES]:
                numbers[slot + block.CLOCK] = max(numbers[slot + block.CLOCK], slowest)
                numbers[slot + block.LIVES] = 1
        numbers[block.SLOWEST] = self._slowest()

    def _slowest(self) -> int:
        """The smallest clock of the living replicas; NO_CLOCK if none is living."""
        numbers, slots = self.numbers, map(block.slot_of, range(self._replicas))
        return min(
            (numbers[slot + block.CLOCK] for slot in slots if numbers[slot + block.LIVES]), default=block.NO_CLOCK
        )

    def fence(self, replica: int, incarnation: int) -> PushRecord | None:
        """Refuse further pushes of this incarnation and earlier ones; return its last push, or None."""
        numbers, slot = self.numbers, self.slot(replica)
        # A process that died after it set BEGUN and before it set APPLYING changed no vector: its push had not begun.
        numbers[slot + block.BEGUN] = numbers[slot + block.SEQUENCE]
        numbers[slot + block.FENCED] = max(numbers[slot + block.FENCED], incarnation)
        return block.record_in(numbers, replica, incarnation)

    def begin_term(self, term: int) -> None:
        """Enter a new term: reset the clocks of all replicas and the number of the last command to 0."""
        numbers = self.numbers
        numbers[block.TERM], numbers[block.COMMAND] = term, 0
        for replica in range(self._replicas):
            numbers[block.slot_of(replica) + block.CLOCK] = 0
        numbers[block.SLOWEST] = self._slowest()

    def faults(self) -> list[str]:
        """Names of the invariants that are violated."""
        numbers = self.numbers
        slots = [block.slot_of(replica) for replica in range(self._replicas)]
        faults = {
            "a sequence differs from what was begun": any(
                numbers[s + block.SEQUENCE] != numbers[s + block.BEGUN] for s in slots
            ),
            "negative counts": min(numbers[: block.APPLYING].tolist()) < 0,
            "more held than a round takes": numbers[block.HELD] >= max(2, self._round),
            "more updates than pushes": numbers[block.VERSION] > numbers[block.PUSHES],
            "another slowest than by the clocks": self.lead is not None and numbers[block.SLOWEST] != self._slowest(),
        }
        return [fault for fault, true in faults.items() if true]
