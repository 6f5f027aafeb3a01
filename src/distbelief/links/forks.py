"""What a child that the user's code forks must not have of a run: its descriptors, and a longer life.

A child that is forked without `exec`, as by multiprocessing, inherits every descriptor: it would keep a run's lock and
its memory for as long as it lives, however the run has ended.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_PR_SET_PDEATHSIG = 1

_held: set[int] = set()
_threads: list[int] = []
"""Whose children end with them."""


def hold(fd: int) -> None:
    """Have forked children close a descriptor, until `release`."""
    _watch()
    _held.add(fd)


def release(fd: int) -> None:
    """The descriptor is about to be closed here."""
    _held.discard(fd)


@contextmanager
def children_end_too() -> Iterator[None]:
    """Have children that this thread forks in a block end when this thread does, even by SIGKILL."""
    _watch()
    _threads.append(threading.get_ident())
    try:
        yield
    finally:
        _threads.pop()


@cache
def _watch() -> None:
    library = ctypes.CDLL(None)

    def in_child() -> None:
        for fd in _held:
            os.close(fd)
        _held.clear()
        if threading.get_ident() in _threads:
            library.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    os.register_at_fork(after_in_child=in_child)
