"""The lock of a run's directory: `.lock`, which one process at a time holds, and by which it knows its directory."""

import fcntl
import os
import re
import uuid
from pathlib import Path
from typing import Self, final

from distbelief.links import forks

LOCK = ".lock"


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
