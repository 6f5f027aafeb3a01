"""The register of a shard: who pushed what, who lives, and how far everybody is.

It is the integers at the head of the shard's block, changed so that a death between any two writes can be seen and
mended. The shard's lock is held by whoever calls; what only reads one integer needs none.
"""

from collections.abc import Iterable
from typing import final

from distbelief.errors import InvariantViolated
from distbelief.ports import Push, Reply, Verdict
from distbelief.server.block import (
    APPLYING,
    BEGUN,
    BINS,
    CLOCK,
    EXAMPLES,
    FENCED,
    GENERATION,
    HEADER,
    HELD,
    HELD_EXAMPLES,
    INCARNATION,
    LIVES,
    LIVING,
    NEVER,
    NEXT_CLOCK,
    NEXT_EXAMPLES,
    NEXT_HELD,
    NEXT_HELD_EXAMPLES,
    NEXT_PUSHES,
    NEXT_VERSION,
    NOBODY,
    PUSHES,
    RECORD,
    RECORDS,
    SEQUENCE,
    SLOWEST,
    STALEST,
    VERSION,
    ShardSpec,
    Standing,
    slot_of,
    standing_in,
    updates_between,
)

SEEN = "seen before"
"""The reason of a reply that tells again what became of a push."""


@final
class Register:
    """The account of one shard. `numbers` are the integers of its block, which the caller owns."""

    def __init__(self, spec: ShardSpec, numbers: "memoryview[int]") -> None:
        self.numbers = numbers
        self._replicas = spec.replicas
        self._round = spec.admission.round
        self.lead = spec.admission.lead

    def slot(self, replica: int) -> int:
        """Where a replica's slot begins."""
        if not 0 <= replica < self._replicas:
            raise InvariantViolated(f"replica {replica} has no slot among {self._replicas}")
        return slot_of(replica)

    def answered(self, slot: int, push: Push) -> Reply | None:
        """The answer to a push that is not to be looked at again, or None where it is new.

        The last one of a replica is told again what became of it: the answer may have been lost on its way.
        """
        numbers = self.numbers
        incarnation = numbers[slot + INCARNATION]
        if push.incarnation < incarnation or push.incarnation <= numbers[slot + FENCED]:
            return Reply(Verdict.DUPLICATE, "its incarnation has been replaced", 0, numbers[VERSION], 0)
        seen = numbers[slot + SEQUENCE] if push.incarnation == incarnation else 0
        if push.sequence > seen:
            return None
        if push.sequence < seen:
            return Reply(Verdict.DUPLICATE, "seen before, and another one since", 0, numbers[VERSION], 0)
        record = slot + RECORDS + (push.sequence & 1) * RECORD
        verdict, version = Verdict(abs(numbers[record + RECORD - 2])), numbers[record + RECORD - 1]
        staleness = updates_between(push.version, version)
        return Reply(verdict, SEEN, staleness, numbers[VERSION], self.at_least(slot, verdict, version))

    def at_least(self, slot: int, verdict: Verdict, version: int) -> int:
        """What a replica's next fetch waits for, after a push before which the shard was at `version`."""
        if self.lead is not None:
            return max(0, self.numbers[slot + CLOCK] - self.lead)
        return version + 1 if verdict is Verdict.HELD else 0

    def begin(self, slot: int, push: Push, verdict: Verdict) -> None:
        """Write down what is about to be done with a push, and what will be true afterwards."""
        numbers = self.numbers
        if numbers[slot + INCARNATION] != push.incarnation:
            numbers[slot + SEQUENCE] = numbers[slot + BEGUN] = 0
            numbers[slot + INCARNATION] = push.incarnation
        record = slot + RECORDS + (push.sequence & 1) * RECORD
        for field, value in enumerate((*push.work, verdict, numbers[VERSION])):
            numbers[record + field] = value
        applied, used = verdict is Verdict.APPLIED, verdict.used
        examples = numbers[HELD_EXAMPLES] + (push.work.examples if used else 0)
        numbers[NEXT_VERSION] = numbers[VERSION] + applied
        numbers[NEXT_EXAMPLES] = numbers[EXAMPLES] + (examples if applied else 0)
        numbers[NEXT_HELD] = 0 if applied else numbers[HELD] + (verdict is Verdict.HELD)
        numbers[NEXT_HELD_EXAMPLES] = 0 if applied else examples
        numbers[NEXT_PUSHES] = numbers[PUSHES] + used
        numbers[NEXT_CLOCK] = numbers[slot + CLOCK] + push.work.stop - push.work.start
        numbers[slot + BEGUN] = push.sequence
        numbers[APPLYING] = slot

    def begin_closing(self) -> None:
        """Write down that the open round is about to be closed, for nobody's push."""
        numbers = self.numbers
        numbers[NEXT_VERSION] = numbers[VERSION] + 1
        numbers[NEXT_EXAMPLES] = numbers[EXAMPLES] + numbers[HELD_EXAMPLES]
        numbers[NEXT_HELD] = numbers[NEXT_HELD_EXAMPLES] = 0
        numbers[NEXT_PUSHES] = numbers[PUSHES]
        numbers[APPLYING] = NOBODY

    def commit(self) -> None:
        """End what is under way; repeating it changes nothing."""
        numbers = self.numbers
        slot = numbers[APPLYING]
        numbers[VERSION] = numbers[NEXT_VERSION]
        numbers[EXAMPLES] = numbers[NEXT_EXAMPLES]
        numbers[HELD] = numbers[NEXT_HELD]
        numbers[HELD_EXAMPLES] = numbers[NEXT_HELD_EXAMPLES]
        numbers[PUSHES] = numbers[NEXT_PUSHES]
        if slot > 0:
            numbers[slot + SEQUENCE] = numbers[slot + BEGUN]
            numbers[slot + CLOCK] = numbers[NEXT_CLOCK]
            if self.lead is not None:
                numbers[SLOWEST] = self._slowest()
        numbers[APPLYING] = 0

    def recover(self) -> None:
        """End a push whose pusher died inside it, and mark it as torn."""
        numbers = self.numbers
        if slot := numbers[APPLYING]:
            if slot > 0:
                verdict = slot + RECORDS + (numbers[slot + BEGUN] & 1) * RECORD + RECORD - 2
                numbers[verdict] = -abs(numbers[verdict])
            self.commit()

    def count_staleness(self, staleness: int) -> None:
        """A push of this staleness was used."""
        numbers = self.numbers
        numbers[HEADER + min(staleness, BINS - 1)] += 1
        numbers[STALEST] = max(numbers[STALEST], staleness)

    def set_living(self, replicas: Iterable[int]) -> bool:
        """Tell which replicas hold leases; True if the open round is full with these.

        Who begins to live is put where the slowest of the others is, if that is further: it holds nobody up for what
        it has not done before. Where there are no others, all are put where the furthest of them is.
        """
        numbers, living = self.numbers, set(replicas)
        if self.lead is not None:
            self._set_paced({self.slot(replica) for replica in living})
        numbers[LIVING] = len(living)
        return 0 < numbers[HELD] >= min(self._round, len(living))

    def _set_paced(self, living: set[int]) -> None:
        numbers = self.numbers
        for slot in map(slot_of, range(self._replicas)):
            numbers[slot + LIVES] &= slot in living
        there = [numbers[slot + CLOCK] for slot in living if numbers[slot + LIVES]]
        # Where nobody is, they begin together.
        slowest = min(there) if there else max((numbers[slot + CLOCK] for slot in living), default=0)
        for slot in living:
            if not numbers[slot + LIVES]:
                numbers[slot + CLOCK] = max(numbers[slot + CLOCK], slowest)
                numbers[slot + LIVES] = 1
        numbers[SLOWEST] = self._slowest()

    def _slowest(self) -> int:
        """The steps of the slowest living replica."""
        numbers, slots = self.numbers, map(slot_of, range(self._replicas))
        return min((numbers[slot + CLOCK] for slot in slots if numbers[slot + LIVES]), default=NEVER)

    def fence(self, replica: int, incarnation: int) -> Standing | None:
        """The last push that this incarnation began, or None; nothing more is taken from it."""
        numbers, slot = self.numbers, self.slot(replica)
        # Dead between its own mark and the header's: nothing was changed, so it had not begun.
        numbers[slot + BEGUN] = numbers[slot + SEQUENCE]
        numbers[slot + FENCED] = max(numbers[slot + FENCED], incarnation)
        return standing_in(numbers, replica, incarnation)

    def begin_generation(self, generation: int) -> None:
        """Versions and steps go on from where none has been before."""
        numbers = self.numbers
        numbers[VERSION] = generation * GENERATION + numbers[VERSION] % GENERATION
        if self.lead is not None:
            for replica in range(self._replicas):
                numbers[slot_of(replica) + CLOCK] = generation * GENERATION
            numbers[SLOWEST] = self._slowest()

    def faults(self) -> list[str]:
        """What is not as it must be."""
        numbers = self.numbers
        slots = [slot_of(replica) for replica in range(self._replicas)]
        faults = {
            "a sequence differs from what was begun": any(numbers[s + SEQUENCE] != numbers[s + BEGUN] for s in slots),
            "negative counts": min(numbers[:APPLYING].tolist()) < 0,
            "more held than a round takes": numbers[HELD] >= max(2, self._round),
            "more updates than pushes": numbers[VERSION] % GENERATION > numbers[PUSHES],
            "another slowest than by the clocks": self.lead is not None and numbers[SLOWEST] != self._slowest(),
        }
        return [fault for fault, true in faults.items() if true]
