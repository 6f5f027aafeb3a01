"""What is due: evaluations each epoch or as often as was asked for, checkpoints more often at first."""

from typing import final

from distbelief.allocation import Allocator
from distbelief.engines.stopwatch import Stopwatch
from distbelief.run.until import Every

_FIRST = 16
"""The first checkpoint comes after this part of the time between two."""


@final
class EvaluationsDue:
    """Says once for each evaluation that it is due. None: one at the end of each epoch.

    What falls due while an evaluation is under way is left out, but for one. With `each`, for which `every` is None,
    work is held back instead.
    """

    def __init__(self, every: Every | None, *, each: bool = False) -> None:
        self._every = every
        self._each = each
        self._begun: int | None = None
        self._left_out = 0

    def take(self, epochs: int, examples: int, seconds: float, *, free: bool = True) -> bool:
        """Whether one begins after so many ended epochs, examples and seconds: it is due, and none is under way."""
        count = self._count(epochs, examples, seconds)
        if self._begun is None:
            self._begun = count
        due = count > self._begun
        if free and due:
            self._left_out, self._begun = self.left_out(epochs, examples, seconds), count
        return free and due

    def left_out(self, epochs: int, examples: int, seconds: float) -> int:
        """How many evaluations were left out by now; one that is due is not."""
        if self._begun is None:
            return 0
        return self._left_out + max(0, self._count(epochs, examples, seconds) - self._begun - 1)

    def holds(self, epoch: int) -> bool:
        """Whether work of an epoch waits for the evaluation of the one before to begin."""
        return self._each and self._begun is not None and epoch > self._begun

    def _count(self, epochs: int, examples: int, seconds: float) -> int:
        every = self._every
        if every is None:
            return epochs
        return int(examples // every.examples if every.examples else seconds // (every.seconds or 1.0))


@final
class CheckpointsDue:
    """Says when a checkpoint is due.

    The first comes after a sixteenth of the time that was asked for, and the time until the next doubles until it is
    as long as that: what a run can lose is never much more than half of what it has.
    """

    def __init__(self, every: Every) -> None:
        self._every = every
        self._first: float | None = None
        self._due = 0.0

    def take(self, examples: int, seconds: float, *, free: bool = True) -> bool:
        """Whether one begins after so many examples and seconds: it is due, and none is under way."""
        now, every = (examples if self._every.examples else seconds), self._every.examples or self._every.seconds or 0.0
        if self._first is None:
            self._first, self._due = now, now + every / _FIRST
        if not free or now < self._due:
            return False
        self._due = now + min(every, now - self._first)
        return True


@final
class Due:
    """Says what is to be begun now, by the accounts and the time: one evaluation and one checkpoint at a time."""

    def __init__(
        self, allocator: Allocator, watch: Stopwatch, evaluations: EvaluationsDue | None, checkpoints: CheckpointsDue
    ) -> None:
        self.evaluating = self.writing = False
        self._allocator, self._watch = allocator, watch
        self._evaluations, self._checkpoints = evaluations, checkpoints

    def look(self, now: float, examples: int) -> tuple[bool, bool]:
        """Whether an evaluation, and whether a checkpoint, is to be begun; `examples`: used, by what replicas tell."""
        # What a replica did just before its death is in its account alone.
        examples, seconds = max(examples, self._used), self._watch.seconds(now)
        due, free = self._evaluations, not self.evaluating
        evaluate = due is not None and due.take(self._allocator.epochs_ended, examples, seconds, free=free)
        capture = self._checkpoints.take(examples, seconds, free=not self.writing)
        self.evaluating |= evaluate
        self.writing |= capture
        return evaluate, capture

    def holds(self) -> bool:
        """Whether what is to be given out next waits for an evaluation to begin."""
        return self._evaluations is not None and self._evaluations.holds(self._allocator.epoch)

    def left_out(self, now: float) -> int:
        """How many evaluations fell due while another one was under way, and were not made."""
        due, seconds = self._evaluations, self._watch.seconds(now)
        return 0 if due is None else due.left_out(self._allocator.epochs_ended, self._used, seconds)

    @property
    def _used(self) -> int:
        return self._allocator.total.used + self._allocator.total.partial
