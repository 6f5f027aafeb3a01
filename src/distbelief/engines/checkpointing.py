"""Checkpoints beside training: captured between two messages, written in a thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, final

from distbelief import checkpoint as checkpoints
from distbelief.checkpoint import Checkpoint
from distbelief.until import Every


@final
class Checkpoints:
    """Writes a checkpoint as often as was asked for. One is written at a time; what becomes due meanwhile waits.

    `capture` copies the run at this instant; `tell` is given what became of each: its path, or the error.
    """

    def __init__(
        self, folder: Path, every: Every, *, capture: Callable[[], Checkpoint], tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self._folder = folder
        self._every = every
        self._capture = capture
        self._tell = tell
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Path] | None = None
        self._begun: int | None = None

    def turn(self, examples: int, seconds: float) -> None:
        """Begin a checkpoint if one is due, and tell of one that has been written."""
        if self._running is not None and self._running.done():
            self._told()
        due = int(examples // self._every.examples if self._every.examples else seconds // (self._every.seconds or 1))
        self._begun = due if self._begun is None else self._begun
        if self._running is None and due > self._begun:
            self._begun = due
            self._begin()

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
        self._running = self._pool.submit(checkpoints.write, self._folder, self._capture())

    def _told(self) -> None:
        assert self._running is not None
        ended, self._running = self._running, None
        try:
            self._tell({"path": str(ended.result()), "error": None})
        except OSError as error:
            self._tell({"path": None, "error": str(error)})
