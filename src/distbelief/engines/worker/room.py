"""How many more workers fit on this machine: looked at before the first of them is started."""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from distbelief.engines.cgroups import CGROUPS, PROC, groups
from distbelief.engines.memory import available, told_bytes
from distbelief.errors import UsageError

WORKER_BYTES = 150_000_000
"""What a worker takes for itself once it has imported torch, before it has a task."""
_THREADS = 3
"""Of a worker at the least."""
_DESCRIPTORS = 3
"""Of the controller, for each worker."""
_OTHER_DESCRIPTORS = 32
"""Of the controller, for what else a run opens."""


def require_room(workers: int) -> None:
    """Raise `UsageError` unless so many more workers fit."""
    room, why = min(_rooms(PROC, CGROUPS, available()))
    if workers > room:
        raise UsageError(
            f"there is room for {room:,} more processes of replicas here, and not for {workers:,}: {why}; choose fewer "
            "replicas"
        )


def _rooms(proc: Path, cgroups: Path, free: int) -> Iterator[tuple[int, str]]:
    """How many workers fit in each respect, and why no more do."""
    each = told_bytes(WORKER_BYTES)
    yield max(0, free) // WORKER_BYTES, f"each takes {each} of memory by itself, and {told_bytes(free)} are free"
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        left = most - len(list((proc / "self" / "fd").iterdir())) - _OTHER_DESCRIPTORS
        yield max(0, left) // _DESCRIPTORS, f"this process may open {most:,} files (ulimit -n)"
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # The limit does not bind root.
    if most != resource.RLIM_INFINITY and os.getuid() != 0:
        left = most - _threads(proc)
        yield max(0, left) // _THREADS, f"this user may have {most:,} processes and threads (ulimit -u)"
    for folder, _ in groups("pids", proc, cgroups):
        with suppress(OSError, ValueError):
            most = int((folder / "pids.max").read_text())
            left = most - int((folder / "pids.current").read_text())
            yield max(0, left) // _THREADS, f"this control group may have {most:,} processes and threads (pids.max)"


def _threads(proc: Path) -> int:
    """How many threads this user has."""
    threads = 0
    for folder in proc.glob("[0-9]*"):
        # It may have ended.
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid():
                threads += len(list((folder / "task").iterdir()))
    return threads
