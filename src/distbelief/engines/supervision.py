"""Whether a replica that died is replaced: yes, unless it would die again of the same thing."""

from typing import Literal, NamedTuple, final

from distbelief.errors import DistBeliefError, Diverged, UserCodeError, WorkerDied

_DEATHS = 5
"""Deaths in a row, with no push used between them, after which the run ends."""
_ONE_EVENT_S = 1.0
"""Deaths that are no further apart have one cause, such as a machine that was taken away, and count once."""


class Failure(NamedTuple):
    """What a replica said before it ended."""

    error: str
    """Its type and its sentence."""
    frames: str
    """The frames of the user's own code."""
    kind_of: Literal["diverged", "user"]
    cause: BaseException | None = None
    """The error itself, where it was raised in this process."""


class Ending(NamedTuple):
    """How a replica ended, as its driver saw it."""

    status: int | None
    """The exit status of its process; negative for a signal."""
    how: str
    """The same in words that follow "the last one"."""
    cause: str | None = None
    """Why it ended, where the driver knows that better than by the status."""


@final
class Supervisor:
    """Told of deaths and of work done; says when replacing has become pointless."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self._in_a_row = 0
        self._counted_at = float("-inf")

    def worked(self) -> None:
        """A push was used."""
        self._in_a_row = 0

    def died(self, now: float, how: str, failure: Failure | None) -> DistBeliefError | None:
        """A replica ended early at `now`, in seconds; None if it is to be replaced, else why the run ends.

        `Diverged` at once, `UserCodeError` for a failure that was seen before, and `WorkerDied` after several deaths
        without any work between. `how` tells of the death in words, where the replica did not.
        """
        if now - self._counted_at > _ONE_EVENT_S:
            self._in_a_row += 1
            self._counted_at = now
        if failure is not None:
            if failure.kind_of == "diverged":
                return Diverged(failure.error)
            if (failure.error, failure.frames) in self._seen:
                error = UserCodeError(f"replicas failed twice with {failure.error}\n\n{failure.frames}".rstrip())
                error.__cause__ = failure.cause
                return error
            self._seen.add((failure.error, failure.frames))
        if self._in_a_row < _DEATHS:
            return None
        what = how if failure is None else f"failed with {failure.error}\n\n{failure.frames}".rstrip()
        return WorkerDied(f"{_DEATHS} times in a row replicas died before they finished any work; the last one {what}")
