"""What is due: evaluations each epoch or as often as was asked for, checkpoints more often at first."""

from typing import final

from distbelief.run.until import Every

_FIRST = 16
"""The first checkpoint comes after this part of the time between two."""


@final
class EvaluationsDue:
    """Says once for each evaluation that it is due. None: one at the end of each epoch."""

    def __init__(self, every: Every | None) -> None:
        self._every = every
        self._begun: int | None = None

    def take(self, epochs: int, examples: int, seconds: float, *, free: bool = True) -> bool:
        """Whether one begins after so many ended epochs, examples and seconds: it is due, and none is under way.

        What is missed is not made up for.
        """
        every = self._every
        if every is None:
            count = epochs
        else:
            count = int(examples // every.examples if every.examples else seconds // (every.seconds or 1.0))
        begun = count if self._begun is None else self._begun
        self._begun = count if free else begun
        return free and count > begun


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
    """Says what is to be begun now: one evaluation and one checkpoint at a time."""

    def __init__(self, evaluate_every: Every | None, checkpoint_every: Every, *, evaluates: bool) -> None:
        self.evaluating = self.writing = False
        self._evaluations = EvaluationsDue(evaluate_every) if evaluates else None
        self._checkpoints = CheckpointsDue(checkpoint_every)

    def look(self, epochs: int, examples: int, seconds: float) -> tuple[bool, bool]:
        """Whether an evaluation, and whether a checkpoint, is to be begun after so many epochs, examples, seconds."""
        due, free = self._evaluations, not self.evaluating
        evaluate = due is not None and due.take(epochs, examples, seconds, free=free)
        capture = self._checkpoints.take(examples, seconds, free=not self.writing)
        self.evaluating |= evaluate
        self.writing |= capture
        return evaluate, capture
