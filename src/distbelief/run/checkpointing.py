"""Checkpoints beside training: written in a thread."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, final

from distbelief.run.checkpoint import Draft


@final
@dataclass(eq=False)
class Checkpoints:
    """Writes checkpoints, one at a time.

    `write` writes one, or raises `OSError`; `tell` is given what became of each: its path, or the error. Without
    `beside`, training stands still while one is written.
    """

    write: Callable[[Draft], Path | str]
    _: KW_ONLY
    tell: Callable[[dict[str, Any]], None]
    beside: bool = True

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Path | str] | None = None
        self._began = self._capture_s = 0.0

    def capturing(self) -> None:
        """The run begins to be copied."""
        self._began = time.perf_counter()

    def captured(self) -> None:
        """It has been copied."""
        self._capture_s = round(time.perf_counter() - self._began, 4)

    def begin(self, draft: Draft) -> None:
        """Begin to write what was copied; it is left alone until `turn` says that it has been written."""
        self._running = self._pool.submit(self.write, draft)
        if not self.beside:
            wait([self._running])

    def turn(self) -> bool:
        """Tell of a checkpoint that has been written, or could not be; whether there was one."""
        if self._running is None or not self._running.done():
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Wait for the one under way."""
        if self._running is None:
            return
        ended, self._running = self._running, None
        try:
            self.tell({"path": str(ended.result()), "error": None, "capture_s": self._capture_s})
        except OSError as error:
            self.tell({"path": None, "error": str(error), "capture_s": self._capture_s})

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True)
