"""Training: where a task, a method and an engine meet."""

import functools
import gc
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ParamSpec, final

import torch
from torch import Tensor, nn

from distbelief.checks import check_seed
from distbelief.downpour.method import Downpour
from distbelief.engines.engine import Engine, Session
from distbelief.engines.local import Local
from distbelief.engines.signals import Requests, requests_raise, requests_to_end
from distbelief.errors import DirectoryError, DistBeliefError, NotWritten, TaskError, UsageError, UserCodeError
from distbelief.links.forks import children_end_too
from distbelief.observe.events import Observer, Status
from distbelief.observe.progress import watching
from distbelief.observe.streams import take_descriptors
from distbelief.run import written
from distbelief.run.callbacks import Callback
from distbelief.run.checkpoint import Checkpoint
from distbelief.run.description import describe
from distbelief.run.directory import RunDirectory, stored_method
from distbelief.run.prepare import Asked, Prepared, prepare
from distbelief.run.result import Result
from distbelief.run.run import FORMAT, Run, identity
from distbelief.run.store import place, reading
from distbelief.run.until import Every, Until
from distbelief.task.gradients import Precision
from distbelief.task.task import Task
from distbelief.task.tracebacks import described, user_frames

_DEFAULT_EPOCHS = 10
_AT_WORK = threading.Lock()
P = ParamSpec("P")


@final
@dataclass(frozen=True)
class Request:
    """Train a task to the end and return the run.

    `method`: if None, that of the run that is resumed, else the task's own, else `Downpour()`. `until`: the task's own
    if None, else 10 epochs. `directory`: a folder, or a URL (`s3://…`) for which `fsspec` is
    installed; a fresh one under `runs/` if None. `resume`: go on from the directory's newest
    checkpoint, with any number of replicas and shards, or begin if there is none. `start`: the parameters to begin
    with, of a run, its directory, or a `state_dict`. `evaluate_every`: each epoch if None. `wait_for_evaluations`:
    at the end of each epoch training waits for its evaluation to begin; else one may be left out, which is counted.
    `checkpoint_every`: each minute if None; sooner at first, and at the end.
    `callbacks`: each is called as fn(event, run) for everything that happens, with a line of the log of events and a
    `LiveRun`, whose `stop` ends the run. `precision`: "bf16" computes forward passes and their gradients in it where
    torch finds it safe; parameters, their updates and evaluations stay in float32.

    Raises `UsageError` for what cannot work, what the user's own code raises on its first batch, `UserCodeError` for
    what it raises later, `Diverged`, `WorkerDied`; `NotWritten` where files could not be written; `KeyboardInterrupt`
    after Ctrl-C, SIGTERM or SIGHUP. Once training has begun, what was reached by then is written first.
    """

    task: Task
    method: Downpour | None = None
    _: KW_ONLY
    engine: Engine | None = None
    until: Until | None = None
    directory: str | Path | None = None
    resume: bool = False
    start: Run | str | Path | Mapping[str, Tensor] | None = None
    evaluate_every: Every | None = None
    wait_for_evaluations: bool = False
    checkpoint_every: Every | None = None
    callbacks: Sequence[Callback] = ()
    precision: Precision | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        needed = {"task": Task}
        optional = {"method": Downpour, "until": Until, "evaluate_every": Every, "checkpoint_every": Every}
        for name, kind in {**needed, **optional}.items():
            value = getattr(self, name)
            absent = value is None and name in optional
            if not absent and (isinstance(value, bool) or not isinstance(value, kind)):
                error = TaskError if name == "task" else UsageError
                raise error(f"{name} must be of type {kind.__name__}, not {value!r}")
        if self.engine is not None and not hasattr(type(self.engine), "open"):
            raise UsageError(f"engine must be an engine such as Local() or Simulated(), not {self.engine!r}")
        if not isinstance(self.callbacks, Sequence) or not all(callable(function) for function in self.callbacks):
            raise UsageError(f"callbacks must be a list of functions fn(event, run), not {self.callbacks!r}")
        if self.precision not in (None, "bf16"):
            raise UsageError(f'precision must be None or "bf16", not {self.precision!r}')
        if self.wait_for_evaluations and self.evaluate_every is not None:
            raise UsageError("wait_for_evaluations=True waits at the end of each epoch: leave evaluate_every out")
        if self.resume and self.directory is None:
            raise UsageError("resume needs the directory of the run to go on with")

    @property
    def on(self) -> Engine:
        """The engine that is meant."""
        return self.engine or Local()


def _as_function(request: Callable[P, Request]) -> Callable[P, Run]:
    """A function that does what is asked for by the same arguments: they are listed, and told of, in one place."""

    @functools.wraps(request, assigned=("__doc__",))
    def train(*arguments: P.args, **named: P.kwargs) -> Run:
        asked = request(*arguments, **named)
        take_descriptors()
        with requests_raise(), asked.on.open() as session:
            return fulfil(asked, session)

    told: Any = train
    told.__signature__ = inspect.signature(request).replace(return_annotation=Run)
    return train


# What Python says of arguments that are wrong is about the function that a person has called.
Request.__init__.__qualname__ = "train"
train = _as_function(Request)


def fulfil(request: Request, session: Session) -> Run:
    """Do what was asked, in a session of the engine that it asks for."""
    # Where the user's code runs in this process, it may want the terminal for a debugger.
    watch = watching(request.progress, redrawn=not request.on.in_this_process)
    # Before any of the user's code runs, which may change the working directory.
    directory = None if request.directory is None else place(request.directory)
    with _alone(), children_end_too():
        if not request.resume:
            prepared = _prepared(request, None, session)
            with closing(RunDirectory.open(directory)) as files:
                return _train(request, prepared, session, files, watch)
        # The directory first: no other run is to write a checkpoint between our look at them and our own.
        with closing(RunDirectory.open(directory, resume=True)) as files:
            resumed, complaints = files.newest()
            prepared = _prepared(request, resumed, session, files.check_model)
            return _train(request, prepared, session, files, watch, complaints)


@contextmanager
def _alone() -> Iterator[None]:
    """One run at a time: models are made and data are ordered by the generators that a process has only one of.

    Raises `UsageError` where another is at work.
    """
    if not _AT_WORK.acquire(blocking=False):
        raise UsageError(
            "another run is at work in this process, and each would change what the other draws by chance: begin this "
            "one when that has ended, or in a process of its own"
        )
    try:
        yield
    finally:
        _AT_WORK.release()


def own_method(task: Task, resumed: str | Path | None) -> Downpour:
    """What is meant where no method is given: that of the run that is resumed, else the task's own, else the default.

    Raises `DirectoryError` where the run's own cannot be read back, and the task has none.
    """
    try:
        stored = None if resumed is None else stored_method(resumed)
    except DirectoryError:
        # A rule of the user's own is not in the file; it is found again where it came from.
        if task.suggested_method is None:
            raise
        stored = None
    return stored if isinstance(stored, Downpour) else task.suggested_method or Downpour()


def own_end(task: Task) -> Until:
    """The end that is meant where none is given: the task's own, else the default."""
    return task.suggested_until or Until(epochs=_DEFAULT_EPOCHS)


def _prepared(
    request: Request,
    resumed: Checkpoint | None,
    session: Session,
    check_model: Callable[[nn.Module], None] = lambda module: None,
) -> Prepared:
    task, engine = request.task, request.on
    method = request.method or own_method(task, request.directory if request.resume else None)
    most = method.most_replicas or engine.replicas
    session.expect(method.least_replicas or most, most)
    asked = Asked(
        until=request.until or own_end(task),
        evaluate_every=request.evaluate_every,
        wait_for_evaluations=request.wait_for_evaluations,
        checkpoint_every=request.checkpoint_every or Every(seconds=60),
        seed=request.seed if resumed is None else resumed.state.seed,
        precision=request.precision,
        default_overlap=engine.overlap,
        resumed=resumed,
    )
    return prepare(
        task,
        method,
        asked,
        replicas=lambda: engine.replicas,
        start=None if request.start is None else _state_dict(request.start),
        check_model=check_model,
        device=torch.device(engine.devices[0]),
    )


def _train(
    request: Request,
    prepared: Prepared,
    session: Session,
    files: RunDirectory,
    watch: AbstractContextManager[Observer],
    complaints: Sequence[str] = (),
) -> Run:
    # From here on a request to end waits for its moment: what was reached is written first.
    with requests_to_end() as received, watch as seen:
        observer = _Both(files, seen)
        driver = session.driver(
            prepared, observer=observer, files=files, received=received, callbacks=request.callbacks
        )
        with closing(driver):
            earlier = files.set_aside() if request.resume and prepared.resumed is None else None
            files.begin(
                describe(prepared.chosen),
                {**request.task.origin, **identity(prepared.module)},
            )
            if request.resume:
                driver.record.tell_resumed(complaints, earlier)
            result = driver.run()
        # A driver and what it lent its methods to refer to each other, and to the memory of the shards.
        del driver
        gc.collect()
        return _finish(request, prepared, result, files, received)


def _state_dict(start: Run | str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors to begin with."""
    if isinstance(start, Run):
        return start.state_dict()
    if isinstance(start, Mapping):
        return start
    with reading(start, ["model.safetensors"]) as folder:
        if not (file := folder / "model.safetensors").is_file():
            raise UsageError(
                f"there is no {file.name} in {start} to start from: give the directory of a run that has ended"
            )
        return written.tensors(file)


def _finish(request: Request, prepared: Prepared, result: Result, files: RunDirectory, received: Requests) -> Run:
    """Write what was reached, and only then say what went wrong."""
    method, engine = type(prepared.method).__name__, describe(request.on)
    summary = {"format": FORMAT, "method": method, "engine": engine, **result.summary}
    error = result.error
    try:
        files.write_model(prepared.module)
    # What the user's `state_dict` raises, for one.
    except BaseException as failure:  # noqa: BLE001
        error = error or failure
    files.write_json("summary.json", summary)
    files.publish()
    missing = files.missing()
    reached = missing or f"what was reached is in {files.directory}"
    if isinstance(error, KeyboardInterrupt) or (received and error is None):
        # Also where it came when the run was ending by itself: the program around it is to end, too.
        told = f"{received[0].name if received else 'an interruption'}: {reached}"
        raise KeyboardInterrupt(f"{told}\n\n{'' if error is None else user_frames(error)}".rstrip()) from error
    if error is not None:
        raise _told(error, missing, reached)
    if missing:
        raise NotWritten(missing)
    return Run(files.directory, prepared.task, summary)


def _told(error: BaseException, missing: str, reached: str) -> BaseException:
    """What has ended a run, as it is raised once everything is written."""
    if isinstance(error, DistBeliefError):
        if missing:
            error.add_note(missing)
        return error
    frames = user_frames(error)
    # An exit code that says that something is wrong stays; another would say that all is well.
    if not error.code if isinstance(error, SystemExit) else frames:
        ended = UserCodeError(f"the run was ended by {described(error)}; {reached}\n\n{frames}".rstrip())
        ended.__cause__ = error
        return ended
    error.add_note(reached)
    return error


@final
class _Both:
    """An observer for the files and one for the eye."""

    def __init__(self, files: RunDirectory, seen: Observer) -> None:
        self._files = files
        self._seen = seen
        self._said: set[str] = set()
        self._renewed: set[str] = set()

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Write it down and show it."""
        self._files.event(event, {"seconds": seconds, **content})
        self._seen.event(event, seconds, **content)
        unwritten = dict(self._files.unwritten)
        for name in unwritten.keys() - self._said:
            self._seen.event("unwritten", seconds, name=name, error=unwritten[name])
        self._said = set(unwritten)
        for name in set(self._files.renewed) - self._renewed:
            self._renewed.add(name)
            self.event("renewed", seconds, name=name)

    def status(self, status: Status) -> None:
        """Show it."""
        self._seen.status(status)
