"""Calls to other machines, made in a thread of their own: the controller never waits for them."""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, final

T = TypeVar("T")
Event = Callable[[], object]
"""What is to be done in the controller's thread."""


@final
class Calls:
    """A thread with an event loop. What it finds out comes back as functions, which the controller's thread calls."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="distbelief-calls", daemon=True)
        self._thread.start()

    def post(self, event: Event) -> None:
        """Have a function called by the controller's thread."""
        self._events.put(event)

    def turn(self, wait_s: float) -> None:
        """Call what was posted; waits a moment for the first."""
        try:
            event = self._events.get(timeout=wait_s)
            while True:
                event()
                event = self._events.get_nowait()
        except queue.Empty:
            pass

    def start(self, call: Coroutine[Any, Any, object]) -> Future[Any]:
        """Begin a call. An error that it does not handle is raised by the turn that hears of it."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        future.add_done_callback(self._ended)
        return future

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Make a call, and wait for its answer."""
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def close(self, last: Coroutine[Any, Any, object] | None = None) -> None:
        """End all calls, then make a last one, if any, and end the thread."""
        self.wait(self._cancel())
        if last is not None:
            self.wait(last)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _ended(self, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is not None:
            self.post(future.result)
