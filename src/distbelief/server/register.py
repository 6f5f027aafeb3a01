"""The register of a shard: who pushed what, who lives, and how far everybody is.

It is the integers at the head of the shard's block, changed so that a death between any two writes can be seen and
mended. The shard's lock is held by whoever calls; what only reads one integer needs none.
"""

from typing import final

from distbelief.errors import InvariantViolated
from distbelief.ports import ORIGIN, Push, PushRecord, Reply, SetLiving, Verdict, Version
from distbelief.server import block
from distbelief.server.block import ShardSpec

SEEN = "seen before"
"""The reason of a reply that tells again what became of a push."""


@final
class Register:
    """The account of one shard. `numbers` are the integers of its block, which the caller owns."""

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
        """Where a replica's slot begins."""
        if not 0 <= replica < self._replicas:
            raise InvariantViolated(f"replica {replica} has no slot among {self._replicas}")
        return block.slot_of(replica)

    def answered(self, slot: int, push: Push) -> Reply | None:
        """The answer to a push that is not to be looked at again, or None where it is new.

        The last one of a replica is told again what became of it: the answer may have been lost on its way.
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
        """What a replica's next fetch waits for, after a push before which the shard had applied `count` updates."""
        if self.lead is not None:
            return Version(self.numbers[block.TERM], max(0, self.numbers[slot + block.CLOCK] - self.lead))
        return Version(self.numbers[block.TERM], count + 1) if verdict is Verdict.HELD else ORIGIN

    def begin(self, slot: int, push: Push, verdict: Verdict) -> None:
        """Write down what is about to be done with a push, and what will be true afterwards."""
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
        """Write down that the open round is about to be closed, for nobody's push."""
        numbers = self.numbers
        numbers[block.NEXT_VERSION] = numbers[block.VERSION] + 1
        numbers[block.NEXT_EXAMPLES] = numbers[block.EXAMPLES] + numbers[block.HELD_EXAMPLES]
        numbers[block.NEXT_HELD] = numbers[block.NEXT_HELD_EXAMPLES] = numbers[block.NEXT_HELD_BATCHES] = 0
        self._floats[block.NEXT_HELD_WEIGHT] = 0.0
        numbers[block.NEXT_PUSHES] = numbers[block.PUSHES]
        numbers[block.APPLYING] = block.NOBODY

    def commit(self) -> None:
        """End what is under way; repeating it changes nothing."""
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
        """The mean weight of a batch in the open round and the push that closes it; 1 where these are means."""
        weight = self._floats[block.HELD_WEIGHT] + (push.weight if push else 0.0)
        batches = self.numbers[block.HELD_BATCHES] + (push.work.stop - push.work.start if push else 0)
        return weight / batches if weight else 1.0

    @property
    def opens_round(self) -> bool:
        """Whether a pusher died while its push was to be the first of a round."""
        numbers = self.numbers
        return bool(numbers[block.APPLYING] and not numbers[block.HELD] and numbers[block.NEXT_HELD])

    def recover(self) -> None:
        """End a push whose pusher died inside it, and mark it as torn."""
        numbers = self.numbers
        if slot := numbers[block.APPLYING]:
            if slot > 0:
                verdict = slot + block.RECORDS + (numbers[slot + block.BEGUN] & 1) * block.RECORD + block.RECORD - 2
                numbers[verdict] = -abs(numbers[verdict])
            self.commit()

    def count_staleness(self, staleness: int) -> None:
        """A push of this staleness was used."""
        numbers = self.numbers
        numbers[block.HEADER + min(staleness, block.BINS - 1)] += 1
        numbers[block.STALEST] = max(numbers[block.STALEST], staleness)

    def set_living(self, command: SetLiving) -> bool:
        """Take note of which replicas hold leases; True if the open round is full with these.

        A replica that begins to live is put where the slowest of the others is, if that is further: it holds no other
        up for what it has not done before. Where there are no others, all are put where the furthest of them is.
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
        # Where nobody is, they begin together.
        slowest = min(there) if there else max((numbers[slot + block.CLOCK] for slot in living), default=0)
        for slot in living:
            if not numbers[slot + block.LIVES]:
                numbers[slot + block.CLOCK] = max(numbers[slot + block.CLOCK], slowest)
                numbers[slot + block.LIVES] = 1
        numbers[block.SLOWEST] = self._slowest()

    def _slowest(self) -> int:
        """The steps of the slowest living replica."""
        numbers, slots = self.numbers, map(block.slot_of, range(self._replicas))
        return min((numbers[slot + block.CLOCK] for slot in slots if numbers[slot + block.LIVES]), default=block.NEVER)

    def fence(self, replica: int, incarnation: int) -> PushRecord | None:
        """The last push that this incarnation began, or None; nothing more is taken from it."""
        numbers, slot = self.numbers, self.slot(replica)
        # Dead between its own mark and the header's: nothing was changed, so it had not begun.
        numbers[slot + block.BEGUN] = numbers[slot + block.SEQUENCE]
        numbers[slot + block.FENCED] = max(numbers[slot + block.FENCED], incarnation)
        return block.record_in(numbers, replica, incarnation)

    def begin_term(self, term: int) -> None:
        """Go on in a term in which all replicas begin in step."""
        numbers = self.numbers
        numbers[block.TERM], numbers[block.COMMAND] = term, 0
        for replica in range(self._replicas):
            numbers[block.slot_of(replica) + block.CLOCK] = 0
        numbers[block.SLOWEST] = self._slowest()

    def faults(self) -> list[str]:
        """What is not as it must be."""
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
