"""An event loop whose clock is virtual and whose races are drawn from a seed.

1. Time starts at 0 s and stands still while any callback is ready; then it jumps to the next deadline. A task that
   polls with `sleep(0)` for something later therefore waits for ever: let it sleep for a while, or wait for an event.
2. The next callback is drawn from all the ready ones by the seed, equal deadlines included, so whoever is woken second
   may run first. What keeps its order: the steps of a task, and the callbacks of one future (TaskGroup relies on it).
3. Equal seeds give equal schedules, in every process: nothing depends on hashes, addresses or the time of day.
4. No failure is only logged: what a callback raises, or a task whose result nobody can ask for any more, ends the run.
5. If nothing is ready and no deadline is left, nothing can ever happen: `Deadlock`.
6. There are no threads, sockets, subprocesses or signals: their time is not virtual.
"""

import asyncio
import gc
import heapq
import itertools
import math
import random
from asyncio import _enter_task, _get_running_loop, _leave_task, _set_running_loop
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import Context
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple, final
from weakref import WeakValueDictionary

from distbelief.errors import DistBeliefError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ASYNCIO = Path(asyncio.__file__).parent
MAX_REPORTED_WAITERS = 8
_COLLECT_AFTER = 20_000
"""New objects until Python looks for cycles among them. At its own 700 that takes a third of the time of a loop."""
_PART_OF_IT = frozenset(
    """call_at call_exception_handler call_later call_soon close create_future create_task get_debug is_closed
    is_running run_forever run_until_complete set_debug shutdown_asyncgens shutdown_default_executor stop
    time""".split()
)
"""What of an event loop makes sense in virtual time."""


class Deadlock(DistBeliefError, RuntimeError):
    """Every task waits, and no deadline will wake one; the message says where each of them waits."""

    def told(self, seconds: float, waiting: Sequence[str]) -> "Deadlock":
        """The same for a person: when it came to that, and who waits for what, as far as that is known."""
        who = "; ".join(waiting[:MAX_REPORTED_WAITERS]) or str(self)
        told = Deadlock(f"no progress is possible after {round(seconds, 3):g} s: {who}")
        if waiting:
            told.add_note(str(self))
        return told


# asyncio keeps tasks and futures in sets and walks through these, to cancel a TaskGroup for one. Hashed by address, as
# they are by default, they would come in another order in every process.
class _Future(asyncio.Future[T]):
    serial: int

    def __hash__(self) -> int:
        return self.serial


class _Task(asyncio.Task[T]):
    def __init__(self, coro: Coroutine[Any, Any, T], *, serial: int, **options: Any) -> None:
        self.serial = serial  # before the rest: asyncio puts the new task into a set
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.serial


@final
class VirtualLoop(asyncio.BaseEventLoop):
    """The loop; see the rules above. `simulate` runs one and cleans up after it.

    asyncio's own, but for the time, the next callback, and what becomes of failures.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._now = 0.0
        self._ready: list[list[asyncio.Handle]] = []
        """Each list in its order: the callbacks of one future, or a single one."""
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        """A heap by deadline in seconds, then serial."""
        self._prune_at = 1000
        self._serials = itertools.count(1)
        self._names = itertools.count(1)
        self._generators: WeakValueDictionary[int, AsyncGenerator[Any, Any]] = WeakValueDictionary()
        self._failure: BaseException | None = None
        self.callbacks = 0
        """How many have been run."""

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_closed():
            raise RuntimeError("the virtual loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        last = self._ready[-1][-1]._args if self._ready else None
        # A future that is done schedules its callbacks one after the other, each with the future as its argument.
        if last and args and last[0] is args[0] and isinstance(args[0], asyncio.Future):
            self._ready[-1].append(handle)
        else:
            self._ready.append([handle])
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self.is_closed():
            raise RuntimeError("the virtual loop is closed")
        if math.isnan(when):
            raise ValueError("a deadline is not a number")
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if when <= self._now:
            self._ready.append([handle])
            return handle
        heapq.heappush(self._timers, (when, next(self._serials), handle))
        if len(self._timers) > self._prune_at:
            # A long time-out that never fires would otherwise stay until its deadline.
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._prune_at = max(1000, 2 * len(self._timers))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        future: _Future[Any] = _Future(loop=self)
        future.serial = next(self._serials)
        return future

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        if options.get("name") is None:
            options["name"] = f"Task-{next(self._names)}"  # asyncio's own count goes on from one loop to the next
        return _Task(coro, serial=next(self._serials), loop=self, **options)

    def run_forever(self) -> None:
        """Run until `stop`, a failure or a deadlock."""
        super().run_forever()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run_once(self) -> None:
        """Run the next callback; asyncio asks for it until `stop`."""
        ready = self._ready
        if not ready:
            self._advance()
        chosen = int(self._chance.random() * len(ready))
        ready[chosen], ready[-1] = ready[-1], ready[chosen]
        handle = ready[-1].pop(0)
        if not ready[-1]:
            ready.pop()
        if not handle.cancelled():
            self.callbacks += 1
            handle._run()

    def _advance(self) -> None:
        """Jump to the next deadline and make all of its timers ready."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers or timers[0][0] == math.inf:
            tasks = sorted(asyncio.all_tasks(self), key=hash)
            places = "".join(f"\n  {task.get_name()} waits in {_place(task)}" for task in tasks)
            wait = f"nothing is ready, no deadline is left, and {len(tasks)} task(s) wait:{places}"
            raise Deadlock(f"at {self._now} s {wait}")
        self._now = timers[0][0]
        while timers and timers[0][0] == self._now:
            self._ready.append([heapq.heappop(timers)[2]])

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run with the exception that asyncio would log, for instance of a task that nobody awaited."""
        failure = context.get("exception")
        if failure is None:
            failure = RuntimeError(context["message"])
        failure.add_note(f"{context['message']}: {context.get('task', context.get('future', context.get('handle')))}")
        if not self.is_running():
            raise failure
        if self._failure is None:
            self._failure = failure
        self.stop()

    # asyncio keeps asynchronous generators in a set by their addresses.
    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        self._generators[next(self._serials)] = agen

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        if not self.is_closed():
            self.call_soon(self.create_task, agen.aclose())

    async def shutdown_asyncgens(self) -> None:
        """Close the asynchronous generators that were left half-way, the oldest first."""
        for generator in list(self._generators.values()):
            await generator.aclose()


def _refuse(*_: object, **__: object) -> Any:
    raise RuntimeError("virtual time knows no threads, sockets, subprocesses or signals, nor handlers and factories")


for _name in vars(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in _PART_OF_IT:
        setattr(VirtualLoop, _name, _refuse)


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits: its innermost frame and, where that is asyncio's, the one that called asyncio."""
    frames: list[FrameType] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        found = [getattr(awaited, name, None) for name in ("cr_frame", "gi_frame", "ag_frame")]
        frames += [frame for frame in found if frame is not None]
        inner = [getattr(awaited, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await")]
        awaited = next((one for one in inner if one is not None), None)
    frames.reverse()
    own = next((frame for frame in frames if Path(frame.f_code.co_filename).parent != ASYNCIO), None)
    shown = frames[:1] if own is None or own is frames[0] else [frames[0], own]
    return ", called by ".join(f"{f.f_code.co_filename}:{f.f_lineno} {f.f_code.co_qualname}" for f in shown)


def simulate(main: Coroutine[Any, Any, T], *, seed: int) -> T:
    """Run `main` in virtual time to its end, and return its result.

    Works while another loop runs in this thread. Tasks that are left are cancelled, asynchronous generators closed.
    Raises what `main` raises, what no one else handles (rule 4), and `Deadlock`.
    """
    loop = VirtualLoop(seed)
    with _undisturbed(), closing(loop):
        try:
            result: T = loop.run_until_complete(main)
        except BaseException as error:
            for failure in loop.run_until_complete(_cancel_rest()):
                error.add_note(f"a task that was cancelled because of this raised {failure!r}")
            raise
        if failures := loop.run_until_complete(_cancel_rest()):
            raise BaseExceptionGroup("tasks that outlived the main one failed when they were cancelled", failures)
    return result


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Another loop that runs in this thread, as in a notebook, stands still, and garbage is collected seldom."""
    outer, threshold = _get_running_loop(), gc.get_threshold()
    task = None if outer is None else asyncio.current_task(outer)
    # From 3.14 on a thread has one current task, not one for each loop: the outer loop's steps aside.
    if outer is not None and task is not None:
        _leave_task(outer, task)
    _set_running_loop(None)
    gc.set_threshold(max(threshold[0], _COLLECT_AFTER) if threshold[0] else 0, *threshold[1:])
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        _set_running_loop(outer)
        if outer is not None and task is not None:
            _enter_task(outer, task)


async def _cancel_rest() -> list[BaseException]:
    """Cancel all other tasks; the failures of those that did not take it well."""
    left = sorted(asyncio.all_tasks() - {asyncio.current_task()}, key=hash)
    for task in left:
        task.cancel()
    outcomes = await asyncio.gather(*left, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    return [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, asyncio.CancelledError)]
