"""Standard input, output and error, whatever the program was started with.

1.  Their descriptors are always taken: a lock or a socket that had one of these numbers would be written to by whatever
    is printed.
2.  Where the command line and the workers print, no run ends because its output is not read, or has no such letters.
"""

import os
import sys
from contextlib import suppress
from typing import Any, final


def take_descriptors() -> None:
    """Have each descriptor that is closed lead nowhere."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest that is free, and those below it are taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def forgive() -> None:
    """Have whatever this process prints be written as far as that is possible."""
    take_descriptors()
    for name, fd in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, Forgiving(getattr(sys, name) or os.fdopen(fd, "w", closefd=False)))


@final
class Forgiving:
    """A stream for as long as it is read; from then on, what is written to it goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with suppress(OSError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write, if that is possible."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush, if that is possible."""
        try:
            self._stream.flush()
        except OSError:
            # What it holds would be tried again when the process ends, and be told of.
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
