"""A run whose directory is a URL: it is written to a folder on this machine, and what is whole there is sent.

1.  The folder is in the user's cache, one for each URL. Its lock keeps a second run on this machine out. What a run
    that was killed has left in it is removed by the next.
2.  At a checkpoint, in the thread that writes it, and at the end, whatever has changed here is sent: first the index,
    which may name more than there is; then checkpoints, each with its state last; then the rest, the summary last. Only
    then is removed there what has been removed here.
3.  A checkpoint is read from there only if it has its state. One that is replaced by another of as many examples stays
    until that one is whole: there are two names for each number of examples, by turns.
4.  What could not be sent is sent the next time. Training knows nothing of it.
"""

import hashlib
import itertools
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import final

from platformdirs import user_cache_path

from distbelief.run import checkpoint
from distbelief.run.checkpoint import STATE, TENSORS
from distbelief.run.lock import LOCK, DirectoryLock, StoreLock
from distbelief.run.store import Store

_CHECKPOINTS = "checkpoints"
_INDEX = ".checkpoints.json"
_LOG = "events.jsonl"
_LAST = "summary.json"
_TENSORS_END = ".safetensors"
_IN_WORK = ".partial"
_WHOLE = re.compile(rf"{_CHECKPOINTS}/(\.partial-)?([0-9]{{12,}})(-before)?/{re.escape(STATE)}")


@final
class Mirror:
    """The files of a run, in a folder here and at a URL. Methods raise `OSError` where that cannot be used."""

    def __init__(self, url: str, signs: Iterable[str]) -> None:
        """`signs`: the files by which a run is known there."""
        name = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
        self.folder = user_cache_path("distbelief") / "runs" / name
        self._signs = frozenset(signs)
        self._store = Store(url)
        self._lock: StoreLock | None = None
        self._there: dict[str, object] = {}
        """The files there that are the run's, and the state here that each has; None where it may have none."""
        self._listed: set[str] = set()
        """Checkpoints that the index there names."""

    def look(self) -> list[str]:
        """The names of all files and folders there. The folder, whose lock is held, has copies of the signs alone."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        names = self._store.names()
        for name in names & self._signs:
            self._fetch(name)
        return sorted({name.partition("/")[0] for name in names})

    def take(self, lock: DirectoryLock) -> None:
        """Take the lock there, `lock` being that of the folder, and look again.

        Raises `BlockingIOError` where another run holds it.
        """
        self._lock = StoreLock.take(self._store, lock.word, lock.before)
        self.look()

    def fetch(self) -> None:
        """Copy what a run goes on with: the checkpoints that have their state, their index, and the log."""
        names = self._store.names()
        for name in names & {_INDEX, _LOG}:
            self._fetch(name)
        self._listed = checkpoint.listed(self.folder / _CHECKPOINTS)
        places = [f"{place}/{file}" for name in self._listed for place in _places(name) for file in (TENSORS, STATE)]
        self._there |= dict.fromkeys(names.intersection(places))
        for name in sorted(names, reverse=True):
            match, place = _WHOLE.fullmatch(name), name.rpartition("/")[0]
            if match is None or f"{place}/{TENSORS}" not in names:
                continue
            if not checkpoint.has_state(folder := self.folder / _CHECKPOINTS / match[2]):
                for file in (TENSORS, STATE):
                    self._fetch(f"{place}/{file}", folder / file)

    def fetch_rest(self, names: Iterable[str]) -> None:
        """Copy what else is there under these names."""
        for name in self._store.names():
            if name.partition("/")[0] in names and not (self.folder / name).exists():
                self._fetch(name)

    def send(self) -> None:
        """Have the URL hold what is whole here. Where that fails, the next call goes on from there."""
        assert self._lock is not None
        self._lock.renew()
        if self._lock.was_removed():
            # The directory was removed: everything is sent again.
            self._there = dict.fromkeys(self._store.names() & self._there.keys())
        here = checkpoint.listed(self.folder / _CHECKPOINTS)
        if self._listed | here:
            self._send(_INDEX, checkpoint.index_of(self._listed | here))
        wanted = {_INDEX}
        for name, path in self._wanted():
            wanted.add(name)
            self._send(name, _content(path))
        # A folder that somebody has emptied is no reason to remove anything there.
        if any(path.is_dir() for path in (self.folder / _CHECKPOINTS).glob("*")):
            for name in sorted(self._there.keys() - wanted):
                self._store.remove(name)
                del self._there[name]
                folder = name.rpartition("/")[0]
                if folder and not any(other.startswith(f"{folder}/") for other in self._there):
                    self._store.remove_folder(folder)
            self._listed = here

    def newest(self) -> int | None:
        """The examples of the newest checkpoint there; None if there is none."""
        found = (_WHOLE.fullmatch(name) for name, state in self._there.items() if state is not None)
        return max((int(match[2]) for match in found if match), default=None)

    def discard(self) -> None:
        """Remove what was sent, as far as that can be done."""
        with suppress(OSError):
            for name in (_INDEX, *self._there):
                self._store.remove(name)

    def keep(self) -> Path:
        """Move the folder to where no later run empties it."""
        places = (self.folder.with_name(f"{self.folder.name}-{number}") for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        return self.folder.rename(place)

    def close(self) -> None:
        """Let others in, and remove the folder."""
        if self._lock is not None:
            self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wanted(self) -> Iterator[tuple[str, Path]]:
        """What is to be there, and the file here, in the order in which it is sent."""
        checkpoints = checkpoint.whole(self.folder / _CHECKPOINTS)
        for folder in checkpoints:
            place = self._place_of(folder)
            yield from ((f"{place}/{file}", folder / file) for file in (TENSORS, STATE))
        others = {
            path.relative_to(self.folder).as_posix(): path
            for path in self.folder.rglob("*")
            if path.is_file() and path.parent not in checkpoints
        }
        for name in sorted(others, key=lambda name: (-name.count("/"), name == _LAST, name)):
            if name not in (LOCK, _INDEX) and _IN_WORK not in name:
                yield name, others[name]

    def _place_of(self, folder: Path) -> str:
        """Where a checkpoint lies, or may be sent to: not where another of as many examples is whole."""
        state, places = _state_of((folder / STATE).read_bytes()), _places(folder.name)
        for place in places:
            if self._there.get(f"{place}/{STATE}") == state:
                # It has the checksum of its tensors: they are there, too.
                self._there[f"{place}/{TENSORS}"] = _state_of(folder / TENSORS)
                return place
        place = next(place for place in places if self._there.get(f"{place}/{STATE}") is None)
        # What is left of one that is not used any more is not to be the state of this one.
        if f"{place}/{STATE}" in self._there:
            self._store.remove(f"{place}/{STATE}")
        return place

    def _send(self, name: str, content: bytes | Path) -> None:
        """Send a file, unless it is there as it is here."""
        assert self._lock is not None
        self._lock.check()
        state = _state_of(content)
        if self._there.get(name) == state:
            return
        self._there[name] = None
        if isinstance(content, Path):
            self._store.send(content, name)
        else:
            self._store.write(name, content)
        self._there[name] = state

    def _fetch(self, name: str, path: Path | None = None) -> None:
        path = path or self.folder / name
        self._store.fetch(name, path)
        self._there[name] = _state_of(_content(path))


def _places(name: str) -> tuple[str, str]:
    """The folders there in which a checkpoint may lie: both are read where a run goes on in a copy of the directory."""
    return f"{_CHECKPOINTS}/{name}", f"{_CHECKPOINTS}/.partial-{name}-before"


def _content(path: Path) -> bytes | Path:
    """What is sent of a file: its bytes, or as a stream."""
    return path if path.name.endswith(_TENSORS_END) else path.read_bytes()


def _state_of(content: bytes | Path) -> object:
    """What distinguishes a file from another of its name. One of tensors is written once, and not changed."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    stat = content.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
