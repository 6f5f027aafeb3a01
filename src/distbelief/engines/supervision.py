"""Whether a replica that died is replaced: yes, unless it would die again of the same thing."""

from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, final

from distbelief.allocation import Allocator, LastPush
from distbelief.engines.actions import SetAside
from distbelief.errors import DistBeliefError, Diverged, TaskError, UserCodeError, WorkerDied

_DEATHS = 5
"""Deaths in a row, with no push used between them, after which the run ends."""
_BARREN_DEATHS = 200
"""Deaths in a row of replicas that made one push or none, whatever others do meanwhile, after which the run ends."""
_DEATHS_AT_A_BATCH = 3
"""Deaths at one batch after which it is held to be the cause."""
_FAILURES = 2
"""The same where the user's code raised."""
_VERBS = {False: "died", True: "failed"}
_ONE_EVENT_S = 1.0
"""Deaths that are no further apart have one cause, such as a machine that was taken away, and count once."""


class Failure(NamedTuple):
    """What a replica said before it ended."""

    error: str
    """Its type and its sentence."""
    frames: str
    """The frames of the user's own code."""
    kind_of: Literal["diverged", "refused", "user"]
    cause: BaseException | None = None
    """The error itself, where it was raised in this process."""


class Ending(NamedTuple):
    """How a replica ended, as its driver saw it."""

    status: int | None
    """The exit status of its process; negative for a signal."""
    how: str
    """The same in words that follow "the last one"."""
    batch: tuple[int, int] | None = None
    """The batch that it was at, as (epoch, batch)."""
    cause: str | None = None
    """Why it ended, where the driver knows that better than by the status."""


class Death(NamedTuple):
    """The end of a replica before that of its work."""

    at: float
    """When, in seconds."""
    ending: Ending
    failure: Failure | None
    last: LastPush | None
    """What the shards know of its last push; None where there was none."""
    killed: bool = False
    """Whether the controller had ordered it."""
    told: bool = False
    """Whether the replica had been told to leave."""

    @property
    def error(self) -> str | None:
        """What it died of, where that is known better than by its exit status."""
        return self.ending.cause if self.failure is None else self.failure.error

    @property
    def torn(self) -> bool:
        """Whether some shards have its last push and others do not."""
        return self.last is not None and self.last.partial

    @property
    def left(self) -> bool:
        """Whether it was no failure: the replica was told to leave, and nothing else is known to be wrong."""
        return self.told and self.failure is None

    @property
    def how(self) -> str:
        """It in words that follow "the last one"."""
        failure = self.failure
        return self.ending.how if failure is None else f"failed with {failure.error}\n\n{failure.frames}".rstrip()

    @property
    def batch(self) -> tuple[int, int] | None:
        """The batch that may be the cause, as (epoch, batch)."""
        if self.failure is None:
            blameless = self.killed or self.ending.cause is not None
        else:
            blameless = self.failure.kind_of != "user"
        return None if blameless else self.ending.batch


@final
class Supervisor:
    """Told of deaths and of work done; says when replacing has become pointless, and which batches to set aside.

    `tolerate`: how many batches may be set aside. `name_batch` gives the words for one.
    """

    def __init__(
        self,
        tolerate: int = 0,
        name_batch: Callable[[int, int], str] = lambda epoch, batch: f"batch {batch} of epoch {epoch}",
    ) -> None:
        self._tolerate = tolerate
        self._name_batch = name_batch
        self._seen: set[tuple[str, str]] = set()
        self._in_a_row = self._barren = 0
        self._counted_at = float("-inf")
        self._used = 0
        self._at: Counter[tuple[int, int, bool]] = Counter()
        """Deaths at a batch, those apart in which the user's code raised."""
        self._aside = 0

    def look(self, examples: int) -> None:
        """So many examples have been used."""
        if examples > self._used:
            self._used = examples
            self.worked()

    def worked(self) -> None:
        """A push was used."""
        self._in_a_row = 0

    def judge(self, death: Death, allocator: Allocator) -> tuple[list[SetAside], DistBeliefError | None]:
        """A replica died, and what it held has been released. The batch to set aside, and why the run ends, if it does.

        A batch at which a replica died is given out by itself from then on: what else was in its portion is done
        meanwhile, and if replicas go on dying at it, it is the cause. Who was told to leave is not counted.
        """
        if death.left:
            return [], None
        batch, failed = death.batch, death.failure is not None
        if batch is None or not allocator.isolate(*batch):
            return [], self.died(death)
        self._at[*batch, failed] += 1
        count = self._at[*batch, failed]
        if count < (_FAILURES if failed else _DEATHS_AT_A_BATCH):
            return [], self.died(death, at_batch=True)
        if self._aside == self._tolerate:
            return [], self._poisoned(death, batch, count)
        self._aside += 1
        self._in_a_row = self._barren = 0
        allocator.set_aside(*batch)
        return [SetAside(*batch, f"{count} replicas {_VERBS[failed]} at it; the last one {death.how}")], None

    def died(self, death: Death, *, at_batch: bool = False) -> DistBeliefError | None:
        """A replica died; None if it is to be replaced, else why the run ends.

        `Diverged` and `TaskError` at once, `UserCodeError` for a failure that was seen before, and `WorkerDied` after
        several deaths without any work between. With `at_batch`, failures that batches may be set aside for are counted
        for each batch alone.
        """
        few = death.last is None or death.last.record.sequence <= 1
        self._barren = self._barren if few else 0
        if death.at - self._counted_at > _ONE_EVENT_S:
            self._in_a_row += 1
            self._barren += few and death.ending.cause is None
            self._counted_at = death.at
        if (failure := death.failure) is not None:
            if failure.kind_of == "diverged":
                return Diverged(failure.error)
            if failure.kind_of == "refused":
                return TaskError(failure.error)
            if (failure.error, failure.frames) in self._seen:
                return _user_code_error(f"replicas failed twice with {failure.error}", failure)
            if not (at_batch and self._tolerate):
                self._seen.add((failure.error, failure.frames))
        if self._in_a_row >= _DEATHS:
            how = f"{_DEATHS} times in a row replicas died before they finished any work"
        elif self._barren >= _BARREN_DEATHS:
            how = f"{_BARREN_DEATHS} times in a row replicas died after one push or none"
        else:
            return None
        return WorkerDied(f"{how}; the last one {death.how}")

    def _poisoned(self, death: Death, batch: tuple[int, int], count: int) -> DistBeliefError:
        """Why the run ends at a batch."""
        aside, failure = self._aside, death.failure
        before = f", and {aside} such batch{'es have' if aside > 1 else ' has'} been set aside before" if aside else ""
        where = f"at {self._name_batch(*batch)}{before}"
        advice = f"look at these examples, or have such batches set aside with tolerate={aside + 1} or more"
        if failure is None:
            return WorkerDied(f"{count} replicas died {where}; the last one {death.how}: {advice}")
        return _user_code_error(f"replicas failed twice {where} with {failure.error}: {advice}", failure)


def _user_code_error(what: str, failure: Failure) -> UserCodeError:
    error = UserCodeError(f"{what}\n\n{failure.frames}".rstrip())
    error.__cause__ = failure.cause
    return error
