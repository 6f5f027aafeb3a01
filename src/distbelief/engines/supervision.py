"""Whether a replica that died is replaced: yes, unless it would die again of the same thing."""

from typing import Literal, NamedTuple, final

from distbelief.errors import Diverged, UserCodeError, WorkerDied
from distbelief.observe.events import how_ended

_DEATHS = 5
"""Deaths in a row, with no portion finished by anyone between them, after which the run ends."""


class Failure(NamedTuple):
    """What a replica said before it ended."""

    error: str
    """Its type and its sentence."""
    frames: str
    """The frames of the user's own code."""
    kind_of: Literal["diverged", "user"]


@final
class Supervisor:
    """Told of deaths and of work done; raises when replacing has become pointless."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self._in_a_row = 0

    def worked(self) -> None:
        """A portion was finished."""
        self._in_a_row = 0

    def died(self, status: int, failure: Failure | None) -> None:
        """A replica ended early; returns if it is to be replaced.

        Raises `Diverged` at once, `UserCodeError` if this error was seen before, and `WorkerDied` after several
        deaths without any work between.
        """
        self._in_a_row += 1
        if failure is not None:
            if failure.kind_of == "diverged":
                raise Diverged(failure.error)
            if (failure.error, failure.frames) in self._seen:
                raise UserCodeError(f"replicas failed twice with {failure.error}\n\n{failure.frames}".rstrip())
            self._seen.add((failure.error, failure.frames))
        if self._in_a_row == _DEATHS:
            how = _how(status) if failure is None else f"failed with {failure.error}\n\n{failure.frames}".rstrip()
            raise WorkerDied(f"{_DEATHS} replicas died in a row before they finished any work; the last one {how}")


def _how(status: int) -> str:
    return f"{'ended with' if status >= 0 else 'was ended by'} {how_ended(status)}"
