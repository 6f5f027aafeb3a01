"""The lock of a run's directory: `.lock`, which one process at a time holds, and by which it knows its directory."""

import errno
import fcntl
import os
import re
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Self, final

from distbelief.links import forks
from distbelief.run.store import Store

LOCK = ".lock"
TAKEN = "another run has taken its place"
STALE_S = 60.0
"""The age at which a lock at a URL is anybody's: its holder writes it anew more often."""
_RENEWED_S = 15.0


@final
class DirectoryLock:
    """Held until it is closed, or until this process ends; children that it forks do not hold it.

    The file says which process has taken it last, in a word that no two have in common.
    """

    def __init__(self, fd: int, before: str, word: str) -> None:
        self._fd = fd
        self.before = before
        """The word of the process that had taken it before; empty where there was none."""
        self.word = word
        forks.hold(fd)

    @classmethod
    def take(cls, path: Path, word: str | None = None) -> Self:
        """Take the lock of a directory, which must be there, by a new word if none is given.

        Raises `BlockingIOError` where another process holds it, another `OSError` where the file cannot be written.
        """
        # A link is not followed: what it leads to is not the run's.
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before, word = _word(fd), word or uuid.uuid4().hex
            os.pwrite(fd, f"{word}\n".encode(), 0)
        except OSError:
            os.close(fd)
            raise
        return cls(fd, before, word)

    def in_place(self, path: Path) -> bool:
        """Whether the file of that directory is still the one that is held."""
        try:
            return os.path.samestat((path / LOCK).lstat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others in."""
        forks.release(self._fd)
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


@final
class StoreLock:
    """The lock of a directory at a URL: the word of the run at work, written anew while it is.

    There is nothing to hold: it keeps out who begins later, not who begins at the same moment, nor who comes back after
    a minute of silence. Each of these sees another's word within a few seconds, and the one whose word is gone writes
    no more. The age of a lock is by the clock of the store.
    """

    def __init__(self, store: Store, word: str) -> None:
        self._store = store
        self._word = word
        self._lost = self._removed = False
        self._ended = threading.Event()
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, store: Store, word: str, before: str) -> Self:
        """Take it. `before` is the word of a run of which it is known that it has ended.

        Raises `BlockingIOError` where another run holds it, another `OSError` where it cannot be written.
        """
        found = _word_at(store)
        # A kill may have left a part of the word, on a server that writes files piece by piece.
        if found and not before.startswith(found):
            now = f"{LOCK}-{word}"
            store.write(now, b"")
            age_s = store.age_s(LOCK, now)
            store.remove(now)
            if age_s < STALE_S:
                raise BlockingIOError(errno.EAGAIN, f"a run has said {age_s:.0f} s ago that it is at work")
        store.write(LOCK, f"{word}\n".encode())
        if _word_at(store) != word:
            raise BlockingIOError(errno.EAGAIN, "another run began at the same moment")
        return cls(store, word)

    def renew(self) -> None:
        """Write it anew. Raises `OSError` where it is another's by now."""
        with self._renewing:
            found = _word_at(self._store)
            if found is None:
                self._removed = True
                self._store.forget_folders()
            self._lost = self._lost or found not in (None, self._word)
            self.check()
            self._store.write(LOCK, f"{self._word}\n".encode())

    def was_removed(self) -> bool:
        """Whether it was gone at some moment since this was asked for last."""
        removed, self._removed = self._removed, False
        return removed

    def check(self) -> None:
        """Raise `OSError` where it is known to be another's."""
        if self._lost:
            raise OSError(errno.EEXIST, TAKEN)

    def close(self) -> None:
        """Let others in."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            with suppress(OSError):
                self._store.remove(LOCK)

    def _keep(self) -> None:
        while not self._ended.wait(_RENEWED_S):
            # Whether it is another's is asked for before anything is sent; what cannot be written is said there.
            with suppress(OSError):
                self.renew()


def _word_at(store: Store) -> str | None:
    try:
        return store.read(LOCK).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def word_in(path: Path) -> str | None:
    """The word in the lock of a directory; None if it has none, or another file of that name."""
    try:
        fd = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        word = _word(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return word if re.fullmatch(r"([0-9a-f]{32})?", word) else None


def _word(fd: int) -> str:
    return os.pread(fd, 1024, 0).decode("ascii", "replace").strip()
