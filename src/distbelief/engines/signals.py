"""Requests to end: Ctrl-C, the SIGTERM that a machine sends before it is taken away, and a terminal that hangs up."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = (3.0, 0.5)
"""For how long the run may stand in one place after the first request, and after each other."""
_LOOK_S = 0.1


@final
class Requests(list[signal.Signals]):
    """The requests that have come, in their order.

    The run heeds them between two of its turns. Where a turn does not end, as in a callback that waits for something,
    `KeyboardInterrupt` is raised inside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._came_at = 0.0
        self._turn_at = math.inf
        self._closed = self._overdue = False

    def turn(self) -> None:
        """A turn begins."""
        if self._turn_at < math.inf:
            self._turn_at = time.monotonic()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block of turns. What is done outside of one is never interrupted."""
        self._turn_at = time.monotonic()
        try:
            yield
        finally:
            self._turn_at = math.inf

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        if not self._overdue:
            self.append(signal.Signals(number))
            self._came_at = time.monotonic()
            return
        self._overdue = False
        if self._turn_at < math.inf:
            raise KeyboardInterrupt

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A block in which this thread is the run's."""
        heeding = threading.get_ident()

        # It polls: a handler that took a lock could come in the midst of itself.
        def watch() -> None:
            while not self._closed:
                time.sleep(_LOOK_S)
                stood = time.monotonic() - max(self._came_at, self._turn_at)
                if self and stood > _PATIENCE_S[len(self) > 1] and not self._closed:
                    self._overdue = True
                    signal.pthread_kill(heeding, self[0])

        threading.Thread(target=watch, name="requests", daemon=True).start()
        try:
            yield
        finally:
            self._closed = True


@contextmanager
def requests_raise() -> Iterator[None]:
    """Have each of these signals raise `KeyboardInterrupt`, as Ctrl-C does: nothing is lost before training begins.

    What the program around it has decided to do about a signal stays.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, lambda before: before is signal.SIG_DFL):
        yield


@contextmanager
def requests_to_end() -> Iterator[Requests]:
    """Collect these signals instead of having them raise wherever the program happens to be.

    An exception between reading a message and acting on it would lose the message. A signal that is ignored stays so:
    that is how a shell keeps Ctrl-C from what it runs in the background.
    """
    received = Requests()
    with _handled(received.note, lambda before: before is not signal.SIG_IGN), received.watched():
        yield received


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], wanted: Callable[[object], bool]) -> Iterator[None]:
    """Handle the requests where that is wanted, by what was done about them before.

    Off the main thread Python lets nobody handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _REQUESTS}
    # One that was installed from C cannot be put back, so it stays.
    handled = [number for number in _REQUESTS if before[number] is not None and wanted(before[number])]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
