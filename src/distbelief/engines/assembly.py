"""A replica, put together from links, work and a model, on every engine in the same way."""

import traceback
from collections.abc import Callable, Sequence

from torch import Tensor

from distbelief.allocation import Progress, Replica
from distbelief.engines.supervision import Failure
from distbelief.errors import Diverged, TaskError
from distbelief.ports import GradientSource, ShardLink, WorkSource
from distbelief.run.prepare import Prepared
from distbelief.server.client import Client
from distbelief.server.patience import Patience
from distbelief.task.tracebacks import user_frames

_LONGEST_ERROR = 2000
_LONGEST_FRAMES = 8000


def assemble(
    run: Prepared,
    links: Sequence[ShardLink],
    replica: int,
    incarnation: int,
    *,
    source: GradientSource,
    work: WorkSource,
    parameters: Tensor,
    stopping: Callable[[], bool],
    watch: Callable[[Progress], None],
    patience: Patience | None = None,
) -> Replica:
    """A replica of the run's method; `watch` is told how far it is, after each step."""
    return run.method.replica(
        client=Client(run.layout, links, replica=replica, incarnation=incarnation, patience=patience),
        source=source,
        work=work,
        parameters=parameters,
        overlap=run.overlap,
        stopping=stopping,
        watch=watch,
    )


def failure_of(error: BaseException) -> Failure:
    """What a replica says of an error before it ends: its kind, its sentence, and the frames of the user's own code."""
    frames = user_frames(error)[-_LONGEST_FRAMES:]
    if isinstance(error, Diverged):
        return Failure(str(error), frames, "diverged")
    if isinstance(error, TaskError):
        return Failure(str(error), frames, "refused")
    return Failure("".join(traceback.format_exception_only(error)).strip()[:_LONGEST_ERROR], frames, "user")
