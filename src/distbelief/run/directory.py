"""The files of a run: written while it trains, each whole or not there at all.

    .lock                        held while a run is at work (`lock.py`)
    method.json, task.json       what was asked for
    events.jsonl                 a line for everything that happened
    checkpoints/                 what the run can go on from (`checkpoint.py`), and best.safetensors
    .checkpoints.json            which of its folders the run has written
    model.safetensors            what was reached
    model-average.safetensors    the average of the parameters, where one is kept
    summary.json                 the same in figures

Where the directory is a URL, they are in a folder on this machine, and `mirror.py` sends them there.

1.  A run writes into a directory that is not there, is empty, or is a run's own: `method.json` or `task.json` says so,
    of which one is there from the first file that is written on. Anything else is refused before a byte is written.
2.  No link in it is followed.
3.  A run does not end because a file cannot be written: `unwritten` says which ones are missing, and why. What another
    program removes is written anew, and is in `renewed`.
"""

import errno
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, final

from torch import nn

from distbelief.allocation import Method
from distbelief.errors import DirectoryError
from distbelief.run import checkpoint
from distbelief.run.checkpoint import Checkpoint, Draft
from distbelief.run.description import describe, revive
from distbelief.run.lock import LOCK, TAKEN, DirectoryLock, word_in
from distbelief.run.mirror import Mirror
from distbelief.run.run import FORMAT, change
from distbelief.run.store import place, reading, why

_LOG = "events.jsonl"
_METHOD = "method.json"
_CHECKPOINT = "the last checkpoint"
_SENT = "the newest files"
_TASK = "task.json"
_FILES = (
    _TASK,
    "checkpoints",
    ".checkpoints.json",
    _LOG,
    "model.safetensors",
    "model-average.safetensors",
    "summary.json",
)
"""What a run writes beside its method."""
_SIGNS = {_METHOD: "kind", _TASK: "digest"}
"""What is in the files that say that a directory is a run's."""
_EARLIER = "earlier-"
_NAMED = 3
"""Files of others that are named in a sentence."""


def stored_method(path: str | Path) -> Method | None:
    """The method of the run in a directory; None if there is none.

    Raises `DirectoryError` where it holds a rule or policy of the user's own, or cannot be read.
    """
    with reading(path, [_METHOD]) as folder:
        file = folder / _METHOD
        try:
            method: Method | None = json.loads(file.read_text(), object_hook=revive) if file.exists() else None
        except (OSError, KeyError, TypeError, ValueError) as error:
            wrong = f"the run's own method cannot be read back from {file} ({error}): give the method again"
            raise DirectoryError(wrong) from error
        return method


@final
class RunDirectory:
    """The directory of a run, for one process at a time: `directory` is its name, `path` where it is written."""

    def __init__(
        self, directory: str | Path, path: Path, *, made: bool, lock: DirectoryLock, mirror: Mirror | None
    ) -> None:
        self.directory = directory
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        self.average = path / "model-average.safetensors"
        self.unwritten: dict[str, str] = {}
        """Files whose latest state could not be written, and why."""
        self.renewed: list[str] = []
        """Files that another program has removed, and that are there again."""
        self._made = made
        self._lock = lock
        self._mirror = mirror
        self._unsent = False
        self._kept: Path | None = None
        # As long as it is open, no other directory can have its number.
        self._folder = os.open(path, os.O_DIRECTORY | os.O_CLOEXEC)
        self._log: int | None = None
        self._written: dict[str, dict[str, Any]] = {}
        self._holding = threading.Lock()

    @classmethod
    def open(cls, path: str | Path | None, *, resume: bool = False) -> Self:
        """Take a directory, made where there is none; a fresh one under `runs/` where `path` is None.

        Raises `DirectoryError` where a run is at work or, unless it is to be resumed, has been, where there is
        anything else, or nothing can be written.
        """
        directory = _make_fresh() if path is None else place(path)
        mirror = Mirror(directory, _SIGNS) if isinstance(directory, str) else None
        folder = Path(directory) if mirror is None else mirror.folder
        made = path is None or not folder.exists()
        try:
            if not made and mirror is None:
                _check_own(folder, directory)
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as held:
                lock = held.enter_context(closing(DirectoryLock.take(folder)))
                there = None
                if mirror is not None:
                    held.callback(mirror.close)
                    there = mirror.look()
                # Again, now that nothing changes any more.
                _check_own(folder, directory, there)
                if mirror is not None:
                    mirror.take(lock)
                if _holds_run(folder) and not resume:
                    raise DirectoryError(
                        f"{directory} holds a run already: choose another directory, or go on with it (resume=True)"
                    )
                files = cls(directory, folder, made=made, lock=lock, mirror=mirror)
                # What a writer that was killed has left half written.
                for file in (files.best, *(folder / name for name in (*_FILES, _METHOD))):
                    _remove(_partial(file))
                checkpoint.clear(files.checkpoints)
                if mirror is not None:
                    mirror.fetch()
                held.pop_all()
                return files
        except BlockingIOError as error:
            raise DirectoryError(
                f"{directory} is in use by a run that is at work: wait for its end, or choose another"
            ) from error
        except OSError as error:
            if made:
                _remove_unused(folder)
            raise _unwritable(directory, error) from error

    def check_model(self, module: nn.Module) -> None:
        """Raise `DirectoryError` if the directory holds a run of another model, and say where they differ."""
        file = self.path / _TASK
        if not file.exists():
            return
        try:
            differences = change(json.loads(file.read_text()), module)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DirectoryError(f"{file} cannot be read ({error}): remove it to go on with this task") from error
        if differences:
            raise DirectoryError(
                f"{self.directory} holds a run of another model ({differences}): choose another directory, or go on "
                "with that model"
            )

    def set_aside(self) -> Path | None:
        """Move what an earlier run wrote into a folder of its own, and return that; None if there was no run.

        The method stays as well, until there is another one: it says that the directory is a run's. A move that was
        cut short is gone on with.
        """
        if self._mirror is not None:
            self._fetch_rest(self._mirror)
        there = [name for name in _FILES if (self.path / name).exists()]
        begun = self._begun_aside(there)
        if not (there or begun) or not (self.path / _METHOD).exists():
            return None
        try:
            folder = begun or _first_new(self.path / f"{_EARLIER}{number}" for number in itertools.count(1))
            for name in there:
                (self.path / name).rename(folder / name)
            half = folder / f".{_METHOD}.partial"
            with checkpoint.create(half) as file:
                file.write((self.path / _METHOD).read_bytes())
            half.replace(folder / _METHOD)
        except OSError as error:
            raise _unwritable(self.directory, error) from error
        return folder

    def _fetch_rest(self, mirror: Mirror) -> None:
        try:
            mirror.fetch_rest(_FILES)
        except OSError as error:
            raise DirectoryError(
                f"{self.directory} cannot be read ({why(error)}): look at the URL and its credentials"
            ) from error

    def _begun_aside(self, names: Sequence[str]) -> Path | None:
        """A folder into which a move was begun, with room for what is left to be moved."""
        named = [path for path in self.path.glob(f"{_EARLIER}*") if re.fullmatch("[0-9]+", path.name[len(_EARLIER) :])]
        folders = [path for path in named if path.is_dir() and not path.is_symlink()]
        taken = {path for path in folders for name in (*names, _METHOD) if (path / name).exists()}
        return next((path for path in folders if path not in taken), None)

    def begin(self, method: dict[str, Any], task: dict[str, Any]) -> None:
        """Write what was asked for. Raises `DirectoryError` where it cannot: a run that can write nothing is no use."""
        resumed = _holds_run(self.path)
        try:
            self.write_json(_METHOD, {"format": FORMAT, **method})
            self.write_json(_TASK, {"format": FORMAT, **task})
            for reason in self.unwritten.values():
                raise DirectoryError(f"cannot write to the run directory {self.directory} ({reason}): choose another")
            self.checkpoints.mkdir(exist_ok=True)
            self._send()
            self._unsent = True
        except (OSError, DirectoryError) as error:
            if not resumed:
                _remove(self.path / _METHOD)
                _remove(self.path / _TASK)
                if self._mirror is not None:
                    self._mirror.discard()
            raise error if isinstance(error, DirectoryError) else _unwritable(self.directory, error) from error

    def event(self, event: str, content: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        line = (json.dumps(describe({"event": event, **content})) + "\n").encode()
        try:
            self._hold()
            if self._log is None:
                self._log = _open_log(self.path / _LOG)
            _append(self._log, line)
        except OSError as error:
            self.unwritten[_LOG] = why(error)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file."""
        text = json.dumps(describe(content), indent=2) + "\n"

        def write(partial: Path) -> None:
            with checkpoint.create(partial) as file:
                file.write(text.encode())

        self._put(self.path / name, write)
        self._written[name] = content

    def write_model(self, module: nn.Module, path: Path | None = None) -> None:
        """Write `model.safetensors`, with the names of `state_dict`; a tensor of several names is there under each."""
        tensors = module.state_dict()
        image = checkpoint.Image(tensors, pairs=False)
        for name, tensor in tensors.items():
            image.tensors[name].copy_(tensor.detach())
        self._put(path or self.path / "model.safetensors", lambda partial: checkpoint.write_image(partial, image))

    def write_checkpoint(self, draft: Draft) -> str:
        """Write a checkpoint, and return where it is. Raises `OSError` where it cannot."""
        try:
            self._hold()
            path = checkpoint.write(self.checkpoints, draft)
        except OSError as error:
            self.unwritten[_CHECKPOINT] = why(error)
            raise
        self.unwritten.pop(_CHECKPOINT, None)
        self._send()
        return self.told(str(path))

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, and what is to be said of others, as `checkpoint.newest` does."""
        try:
            found, complaints = checkpoint.newest(self.checkpoints)
        except DirectoryError as error:
            raise DirectoryError(self.told(str(error))) from error
        return found, [self.told(complaint) for complaint in complaints]

    def told(self, text: str) -> str:
        """A text about files that are written here, as one about those in the directory that was asked for."""
        return text.replace(str(self.path), str(self.directory))

    def publish(self) -> None:
        """Have the directory hold all that was written, at the end. What cannot be sent to a URL is kept here."""
        self._unsent = False
        try:
            self._send()
        except OSError:
            assert self._mirror is not None
            self._kept = self._mirror.keep()

    def missing(self) -> str:
        """A sentence on the files that could not be written, and on what remains; nothing if there are none."""
        if not self.unwritten:
            return ""
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(self.unwritten.items()):
            reasons.setdefault(reason, []).append(name)
        missing = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        examples = checkpoint.latest(self.checkpoints) if self._mirror is None else self._mirror.newest()
        kept = "no checkpoint is left" if examples is None else f"resume goes on after {examples:,} examples"
        here = f"; all of it is in {self._kept}" if self._kept is not None else ""
        return f"not all of {self.directory} could be written ({missing}); {kept}{here}"

    def close(self) -> None:
        """Close the log, and let others in. A directory in which no run has begun goes, if it was made for this one."""
        if self._unsent:
            self.publish()
        if self._log is not None:
            os.close(self._log)
        os.close(self._folder)
        if self._mirror is not None:
            self._mirror.close()
        elif self._made and not _holds_run(self.path):
            _remove_unused(self.path)
        self._lock.close()

    def _send(self) -> None:
        """Send what has changed, where the directory is a URL. Raises `OSError` where that fails."""
        if self._mirror is None:
            return
        try:
            self._mirror.send()
        except OSError as error:
            self.unwritten[_SENT] = why(error)
            raise
        self.unwritten.pop(_SENT, None)

    def _put(self, path: Path, write: Callable[[Path], object]) -> None:
        """Have a file written beside its place, and put it there when it is whole and on the disk."""
        name, partial = str(path.relative_to(self.path)), _partial(path)
        try:
            self._hold()
            _remove(partial)
            write(partial)
            checkpoint.sync(partial)
            partial.replace(path)
        except OSError as error:
            _remove(partial)
            self.unwritten[name] = why(error)
        else:
            self.unwritten.pop(name, None)

    def _hold(self) -> None:
        """Put back what another program has removed. Raises `OSError` if the directory is another's by now."""
        with self._holding:
            if not self._lock.in_place(self.path):
                self._take_again()
            if self._log is not None and not _in_place(self._log, self.path / _LOG):
                self._log = _renew_log(self._log, self.path / _LOG)
                self.renewed.append(_LOG)
            gone = [name for name in self._written if not (self.path / name).exists()]
            contents = {name: self._written.pop(name) for name in gone}
        for name, content in contents.items():
            self.write_json(name, content)
            self.renewed.append(name)

    def _take_again(self) -> None:
        """Take the lock again, and make the directory again, if these are gone.

        Raises `OSError` where another run is in its place, or has been, or other files.
        """
        try:
            same = os.path.samestat(self.path.stat(), os.fstat(self._folder))
            if not same and word_in(self.path) != self._lock.word:
                _check_own(self.path, self.directory)
                if _holds_run(self.path):
                    raise OSError(errno.EEXIST, TAKEN)
        except FileNotFoundError:
            same = False
        except DirectoryError as error:
            raise OSError(errno.EEXIST, "other files are in its place") from error
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            lock = DirectoryLock.take(self.path, self._lock.word)
        except BlockingIOError as error:
            if word_in(self.path) == self._lock.word:
                # It is this one: some file systems number a file anew.
                return
            raise OSError(errno.EBUSY, TAKEN) from error
        if lock.before not in ("", lock.word):
            lock.close()
            raise OSError(errno.EEXIST, TAKEN)
        self._lock.close()
        self._lock = lock
        if not same:
            os.close(self._folder)
            self._folder = os.open(self.path, os.O_DIRECTORY | os.O_CLOEXEC)
            if self._log is not None:
                os.close(self._log)
            self._log = _open_log(self.path / _LOG)
            self.unwritten[_LOG] = "the directory was removed while the run was at work"
        elif not lock.before:
            self.renewed.append(LOCK)


def _remove_unused(path: Path) -> None:
    """Remove a directory in which no run has begun; what is not a run's stays in it."""
    with suppress(OSError):
        _remove(path / LOCK)
        path.rmdir()


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in _SIGNS)


def _check_own(path: Path, directory: str | Path, there: Sequence[str] | None = None) -> None:
    """Raise `DirectoryError` where a directory holds anything, unless it is a run's.

    `there`: what it holds, where `path` has only copies of what says that it is one.
    """
    there = sorted(file.name for file in path.iterdir()) if there is None else there
    if links := [name for name in there if name in (LOCK, _METHOD, *_FILES) and (path / name).is_symlink()]:
        raise DirectoryError(
            f"{path / links[0]} is a link, which no run follows: remove it, or choose another directory"
        )
    if any(_is_sign(path / name, key) for name, key in _SIGNS.items()):
        return
    own = {_partial(path / _METHOD).name} | ({LOCK} if word_in(path) is not None else set())
    if others := [name for name in there if name not in own]:
        some = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        raise DirectoryError(
            f"{directory} holds what no run has written ({some}): choose a directory that is empty or not there yet"
        )


def _is_sign(file: Path, key: str) -> bool:
    """Whether a file is one of those that name a run, as they are written here."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", key} <= content.keys()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _in_place(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _append(log: int, line: bytes) -> None:
    """Write a whole line, or nothing of it."""
    size = os.fstat(log).st_size
    try:
        while line:
            line = line[os.write(log, line) :]
    except OSError:
        os.ftruncate(log, size)
        raise


def _open_log(path: Path) -> int:
    """Open for appending, after the last whole line: a writer that was killed may have left half of one."""
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    content = path.read_bytes()
    os.ftruncate(log, content.rfind(b"\n") + 1)
    return log


def _renew_log(before: int, path: Path) -> int:
    """Open the log anew, with what was in the one that is gone."""
    log = _open_log(path)
    if not os.fstat(log).st_size:
        _append(log, os.pread(before, os.fstat(before).st_size, 0))
    os.close(before)
    return log


def _remove(path: Path) -> None:
    # Where nothing can be removed, the next run that is resumed there tries again.
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _unwritable(path: str | Path, error: OSError) -> DirectoryError:
    return DirectoryError(f"cannot write to the run directory {path} ({why(error)}): choose another")


def _make_fresh() -> Path:
    """A new directory, named after the time."""
    stem = Path("runs", datetime.now().strftime("%Y-%m-%d-%H%M%S")).absolute()
    try:
        return _first_new(stem if i == 1 else stem.with_name(f"{stem.name}-{i}") for i in itertools.count(1))
    except OSError as error:
        raise _unwritable(stem, error) from error


def _first_new(paths: Iterable[Path]) -> Path:
    """Make the first of these folders that is not there; of two runs that begin at once, each gets its own."""
    for path in paths:
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("counting has no end")
