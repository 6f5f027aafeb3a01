"""Requests to end: Ctrl-C, and the SIGTERM that a machine sends before it is taken away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_REQUESTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def requests_to_end() -> Iterator[list[signal.Signals]]:
    """Collect these signals in a list instead of having them raise wherever the program happens to be.

    An exception between reading a message and acting on it would lose the message. Off the main thread, where Python
    lets nobody handle signals, the list stays empty.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in _REQUESTS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
