"""SIGTERM to a worker: its replica is to leave, as where the machine is about to be taken away."""

import os
import signal
from collections.abc import Callable
from typing import final


@final
class Notice:
    """Whether this process was told to leave. A second SIGTERM ends it, as any other process."""

    def __init__(self) -> None:
        self.given = False
        self._process = os.getpid()
        self._tell: Callable[[], object] = lambda: None

    def watch(self) -> None:
        """Hear SIGTERM from now on. Only in the main thread."""
        signal.signal(signal.SIGTERM, self._hear)

    def pass_on(self, tell: Callable[[], object]) -> None:
        """Have `tell` called when the notice is given, or now if it was; it may be called twice."""
        self._tell = tell
        if self.given:
            tell()

    def _hear(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == self._process:
            self.given = True
            self._tell()
        else:
            # A child that the user's code has forked inherits this function, and is ended by the signal as ever.
            os.kill(os.getpid(), signal.SIGTERM)
