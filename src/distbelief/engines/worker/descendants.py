"""What a worker has started: found by a mark in its environment, which what it starts inherits.

Children of children lose their parent, and may leave the group and the session of the worker; the mark stays.
"""

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "DISTBELIEF_WORKER"
_ROUNDS = 10
"""How often to look again for what was started meanwhile."""


def new_mark() -> str:
    """A mark for one worker."""
    return uuid.uuid4().hex


def end_descendants(mark: str, spared: int | None = None) -> None:
    """Kill every process with a mark, but for one."""
    for _ in range(_ROUNDS):
        found = [pid for pid in _marked(mark) if pid != spared]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _marked(mark: str) -> Iterator[int]:
    sought = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        # It may be another user's, or have ended.
        with suppress(OSError):
            if sought in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
