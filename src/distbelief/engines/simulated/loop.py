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
import sys
from asyncio import _enter_task, _get_running_loop, _leave_task, _set_running_loop
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple, final
from weakref import WeakValueDictionary

from distbelief.errors import DistBeliefError, InvariantViolated

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
# Handle, context, callback, arguments, and what may run only after it: the later callbacks of the same future.
Ready = tuple[asyncio.Handle, Context, Callable[..., object], tuple[Any, ...], list["Ready"]]

ASYNCIO = Path(asyncio.__file__).parent
_COLLECT_AFTER = 20_000
"""New objects until Python looks for cycles among them. At its own 700 that takes a third of the time of a loop."""


class Deadlock(DistBeliefError, RuntimeError):
    """Every task waits, and no deadline will wake one; the message says where each of them waits."""


def _refuse(*_: object, **__: object) -> Any:
    raise RuntimeError("virtual time knows no threads, sockets, subprocesses or signals, nor handlers and factories")


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
class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop; see the rules above. `simulate` runs one and cleans up after it."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._now = 0.0
        self._ready: list[Ready] = []
        self._timers: list[tuple[float, int, Ready]] = []  # a heap by deadline in seconds, then serial
        self._prune_at = 1000
        self._serials = itertools.count(1)
        self._names = itertools.count(1)
        self._generators: WeakValueDictionary[int, AsyncGenerator[Any, Any]] = WeakValueDictionary()
        self._failure: BaseException | None = None
        self.callbacks = 0
        """How many have been run."""
        self._running = self._stopping = self._closed = self._debug = False

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self._closed:
            raise RuntimeError("the virtual loop is closed")
        context = copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        queue = self._ready
        # A future that is done schedules its callbacks one after the other, each with the future as its argument.
        if queue and args and isinstance(args[0], asyncio.Future) and queue[-1][3] and queue[-1][3][0] is args[0]:
            queue = queue[-1][4]
        queue.append((handle, context, callback, args, []))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self._closed:
            raise RuntimeError("the virtual loop is closed")
        if math.isnan(when):
            raise ValueError("a deadline is not a number")
        context = copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        ready: Ready = (handle, context, callback, args, [])
        if when <= self._now:
            self._ready.append(ready)
        else:
            heapq.heappush(self._timers, (when, next(self._serials), ready))
            if len(self._timers) > self._prune_at:
                self._prune()
        return handle

    def _prune(self) -> None:
        """Drop cancelled timers: a long time-out that never fires would otherwise stay until its deadline."""
        self._timers = [timer for timer in self._timers if not timer[2][0].cancelled()]
        heapq.heapify(self._timers)
        self._prune_at = max(1000, 2 * len(self._timers))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """`TimerHandle.cancel` tells its loop; ours looks when the deadline comes."""

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
        with self._entered():
            ready, draw = self._ready, self._chance.random
            while not self._stopping:
                if not ready and not self._advance():
                    raise Deadlock(self._stuck())
                chosen = int(draw() * len(ready))
                ready[chosen], ready[-1] = ready[-1], ready[chosen]
                handle, context, callback, args, later = ready.pop()
                if later:
                    ready.append((*later[0][:4], later[1:]))
                if not handle.cancelled():
                    self.callbacks += 1
                    context.run(callback, *args)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _advance(self) -> bool:
        """Jump to the next deadline and make all of its timers ready; False if there is none."""
        timers = self._timers
        while timers and timers[0][2][0].cancelled():
            heapq.heappop(timers)
        if not timers or timers[0][0] == math.inf:
            return False
        self._now = timers[0][0]
        while timers and timers[0][0] == self._now:
            self._ready.append(heapq.heappop(timers)[2])
        return True

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Be the thread's running loop, also while another one runs in it, as in a notebook: that one stands still."""
        if self._running or self._closed:
            raise RuntimeError("the virtual loop is closed" if self._closed else "the virtual loop runs already")
        outer = _get_running_loop()
        task = None if outer is None else asyncio.current_task(outer)
        hooks = sys.get_asyncgen_hooks()
        # From 3.14 on a thread has one current task, not one for each loop: the outer loop's steps aside.
        if outer is not None and task is not None:
            _leave_task(outer, task)
        _set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._remember_generator, finalizer=self._finish_generator)
        self._running = True
        try:
            yield
        finally:
            self._running = self._stopping = False
            sys.set_asyncgen_hooks(*hooks)
            _set_running_loop(outer)
            if outer is not None and task is not None:
                _enter_task(outer, task)

    def run_until_complete(self, future: Any) -> Any:
        main: asyncio.Future[Any] = asyncio.ensure_future(future, loop=self)
        main.add_done_callback(self._stop_after)
        try:
            self.run_forever()
        finally:
            main.remove_done_callback(self._stop_after)
            if main.done() and not main.cancelled():
                main.exception()  # seen: whatever else ends the run comes first
        if not main.done():
            raise RuntimeError("the virtual loop was stopped before its main task was done")
        return main.result()

    def _stop_after(self, _: asyncio.Future[Any]) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop after the present callback; what is ready stays so."""
        self._stopping = True

    def close(self) -> None:
        if self._running:
            raise RuntimeError("the virtual loop is running: stop it before closing it")
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        self._debug = enabled

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run with the exception that asyncio would log, for instance of a task that nobody awaited."""
        failure = context.get("exception")
        if failure is None:
            failure = RuntimeError(context["message"])
        failure.add_note(f"{context['message']}: {context.get('task', context.get('future'))}")
        if not self._running:
            raise failure
        if self._failure is None:
            self._failure = failure
        self.stop()

    def _remember_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[next(self._serials)] = generator

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.call_soon(self.create_task, generator.aclose())

    async def shutdown_asyncgens(self) -> None:
        """Close the asynchronous generators that were left half-way, the oldest first."""
        for generator in list(self._generators.values()):
            await generator.aclose()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is none."""

    run_in_executor = call_soon_threadsafe = set_default_executor = getaddrinfo = getnameinfo = _refuse
    create_connection = create_server = create_datagram_endpoint = start_tls = sendfile = _refuse
    create_unix_connection = create_unix_server = connect_accepted_socket = _refuse
    connect_read_pipe = connect_write_pipe = subprocess_shell = subprocess_exec = _refuse
    add_reader = remove_reader = add_writer = remove_writer = add_signal_handler = remove_signal_handler = _refuse
    sock_recv = sock_recv_into = sock_recvfrom = sock_recvfrom_into = sock_sendall = sock_sendto = _refuse
    sock_connect = sock_accept = sock_sendfile = get_task_factory = set_task_factory = _refuse
    get_exception_handler = set_exception_handler = default_exception_handler = _refuse

    def check(self) -> None:
        """Raise InvariantViolated if a deadline lies in the past or the timers are no heap."""
        whens = [timer[0] for timer in self._timers]
        if any(when <= self._now for when in whens):
            raise InvariantViolated(f"a timer is due before the present {self._now} s")
        if any(whens[(child - 1) // 2] > whens[child] for child in range(1, len(whens))):
            raise InvariantViolated("the timers are no heap")

    def _stuck(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        places = "".join(f"\n  {task.get_name()} waits in {_place(task)}" for task in tasks)
        return f"at {self._now} s nothing is ready, no deadline is left, and {len(tasks)} task(s) wait:{places}"


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
    with _collecting_seldom():
        try:
            result: T = loop.run_until_complete(main)
        except BaseException as error:
            for failure in _wind_up(loop):
                error.add_note(f"a task that was cancelled because of this raised {failure!r}")
            raise
        if failures := _wind_up(loop):
            raise BaseExceptionGroup("tasks that outlived the main one failed when they were cancelled", failures)
    return result


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _COLLECT_AFTER) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _wind_up(loop: VirtualLoop) -> list[BaseException]:
    """Cancel what is left and close the loop; the failures of tasks that did not take their cancellation well."""

    async def cancel() -> list[BaseException]:
        left = sorted(asyncio.all_tasks() - {asyncio.current_task()}, key=hash)
        for task in left:
            task.cancel()
        outcomes = await asyncio.gather(*left, return_exceptions=True)
        await loop.shutdown_asyncgens()
        return [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, asyncio.CancelledError)]

    try:
        failures: list[BaseException] = loop.run_until_complete(cancel())
        return failures
    finally:
        loop.close()
