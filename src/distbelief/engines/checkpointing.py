"""Checkpoints beside training: captured between two messages, written in a thread."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

from distbelief.run.checkpoint import Draft
from distbelief.run.until import Every

_FIRST = 16
"""The first checkpoint comes after this part of the time between two."""


@final
class Checkpoints:
    """Writes a checkpoint as often as was asked for. One is written at a time; what becomes due meanwhile waits.

    The first comes after a sixteenth of that time, and the time until the next doubles until it is as long as was
    asked for: what a run can lose is never much more than half of what it has. `write` writes one, or raises
    `OSError`; `capture` copies the run at this instant, to be left alone until it is written; `tell` is given what
    became of each: its path, or the error. Without `beside`, training stands still while one is written.
    """

    def __init__(
        self,
        write: Callable[[Draft], Path],
        every: Every,
        *,
        capture: Callable[[], Draft],
        tell: Callable[[dict[str, Any]], None],
        beside: bool = True,
    ) -> None:
        self._write = write
        self._every = every
        self._capture = capture
        self._tell = tell
        self._beside = beside
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Path] | None = None
        self._capture_s = 0.0
        self._first: float | None = None
        self._due = 0.0

    def turn(self, examples: int, seconds: float) -> None:
        """Begin a checkpoint if one is due, and tell of one that has been written."""
        if self._running is not None and self._running.done():
            self._told()
        every = self._every.examples or self._every.seconds or 0.0
        now = examples if self._every.examples else seconds
        if self._first is None:
            self._first, self._due = now, now + every / _FIRST
        if self._running is None and now >= self._due:
            self._due = now + min(every, now - self._first)
            self._begin()
            if not self._beside:
                self._told()

    def finish(self) -> None:
        """Wait for the one under way, and write a last one."""
        if self._running is not None:
            self._told()
        self._begin()
        self._told()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True)

    def _begin(self) -> None:
        began = time.perf_counter()
        draft = self._capture()
        self._capture_s = round(time.perf_counter() - began, 4)
        self._running = self._pool.submit(self._write, draft)

    def _told(self) -> None:
        assert self._running is not None
        ended, self._running = self._running, None
        try:
            self._tell({"path": str(ended.result()), "error": None, "capture_s": self._capture_s})
        except OSError as error:
            self._tell({"path": None, "error": str(error), "capture_s": self._capture_s})
