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

    def due(self, epochs: int, examples: int, seconds: float) -> bool:
        """Whether one is due after so many ended epochs, examples and seconds. What is missed is not made up for."""
        every = self._every
        if every is None:
            count = epochs
        else:
            count = int(examples // every.examples if every.examples else seconds // (every.seconds or 1.0))
        self._begun = count if self._begun is None else self._begun
        return count > self._begun

    def begin(self, epochs: int, examples: int, seconds: float) -> None:
        """The one that is due begins."""
        self._begun = None
        self.due(epochs, examples, seconds)


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

    def due(self, examples: int, seconds: float) -> bool:
        """Whether one is due after so many examples and seconds."""
        every = self._every.examples or self._every.seconds or 0.0
        now = self._now(examples, seconds)
        if self._first is None:
            self._first, self._due = now, now + every / _FIRST
        return now >= self._due

    def begin(self, examples: int, seconds: float) -> None:
        """The one that is due begins."""
        now = self._now(examples, seconds)
        self._due = now + min(self._every.examples or self._every.seconds or 0.0, now - (self._first or 0.0))

    def _now(self, examples: int, seconds: float) -> float:
        return examples if self._every.examples else seconds


@final
class Due:
    """Says what is to be begun now: one evaluation and one checkpoint at a time."""

    def __init__(self, evaluate_every: Every | None, checkpoint_every: Every, *, evaluates: bool) -> None:
        self.evaluating = self.writing = False
        self._evaluations = EvaluationsDue(evaluate_every) if evaluates else None
        self._checkpoints = CheckpointsDue(checkpoint_every)

    def look(self, epochs: int, examples: int, seconds: float) -> tuple[bool, bool]:
        """Whether an evaluation, and whether a checkpoint, is to be begun after so many epochs, examples, seconds."""
        evaluate = self._evaluations is not None and self._evaluations.due(epochs, examples, seconds)
        if evaluate := evaluate and not self.evaluating:
            assert self._evaluations is not None
            self._evaluations.begin(epochs, examples, seconds)
            self.evaluating = True
        if capture := self._checkpoints.due(examples, seconds) and not self.writing:
            self._checkpoints.begin(examples, seconds)
            self.writing = True
        return evaluate, capture
