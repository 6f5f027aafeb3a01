"""Requests to end: Ctrl-C, the SIGTERM that a machine sends before it is taken away, and a terminal that hangs up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
def requests_to_end() -> Iterator[list[signal.Signals]]:
    """Collect these signals in a list instead of having them raise wherever the program happens to be.

    An exception between reading a message and acting on it would lose the message. A signal that is ignored stays so:
    that is how a shell keeps Ctrl-C from what it runs in the background.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    with _handled(note, lambda before: before is not signal.SIG_IGN):
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
