"""The files of a run: written while it trains, each whole or not there at all.

    .lock                        held while a run is at work
    method.json, task.json       what was asked for
    events.jsonl                 a line for everything that happened
    checkpoints/                 what the run can go on from (`checkpoint.py`), and best.safetensors
    model.safetensors            what was reached
    model-average.safetensors    the average of the parameters, where one is kept
    summary.json                 the same in figures

A run does not end because a file cannot be written: `unwritten` says which ones are missing, and why.
"""

import errno
import fcntl
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TextIO, final

from torch import nn

from distbelief.allocation import Method
from distbelief.errors import DirectoryError
from distbelief.run import checkpoint
from distbelief.run.checkpoint import Draft
from distbelief.run.description import describe, revive
from distbelief.run.run import change

_LOG = "events.jsonl"
_METHOD = "method.json"
_CHECKPOINT = "the last checkpoint"
_FILES = ("task.json", "checkpoints", _LOG, "model.safetensors", "model-average.safetensors", "summary.json", _METHOD)
"""What a run writes. That its method is there says that there is a run, so it is the last to be moved."""


def stored_method(path: str | Path) -> Method | None:
    """The method of the run in a directory; None if there is none.

    Raises `DirectoryError` where it holds a rule or policy of the user's own, or cannot be read.
    """
    file = Path(path, _METHOD)
    try:
        method: Method | None = json.loads(file.read_text(), object_hook=revive) if file.exists() else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        wrong = f"the run's own method cannot be read back from {file} ({error}): give the method again"
        raise DirectoryError(wrong) from error
    return method


@final
class RunDirectory:
    """The directory of a run, for one process at a time."""

    def __init__(self, path: Path, *, made: bool, lock: TextIO, log: int) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        self.average = path / "model-average.safetensors"
        self.unwritten: dict[str, str] = {}
        """Files whose latest state could not be written, and why."""
        self._made = made
        self._lock = lock
        self._log = log
        self._written: dict[str, dict[str, Any]] = {}
        self._holding = threading.Lock()

    @classmethod
    def open(cls, path: str | Path | None, *, resume: bool = False) -> Self:
        """Take a directory, made where there is none; a fresh one under `runs/` where `path` is None.

        Raises `DirectoryError` where a run is at work or, unless it is to be resumed, has been, or nothing can be
        written.
        """
        made = path is None or not Path(path).exists()
        path = _make_fresh() if path is None else Path(path)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
            if (path / _METHOD).exists() and not resume:
                lock.close()
                raise DirectoryError(
                    f"{path} holds a run already: choose another directory, or go on with it (resume=True)"
                )
            # What a writer that was killed left half written.
            for half in [*path.glob(".*.partial"), *path.glob("checkpoints/.*.partial")]:
                _remove(half)
            return cls(path, made=made, lock=lock, log=_open_log(path / _LOG))
        except OSError as error:
            if made:
                shutil.rmtree(path, ignore_errors=True)
            raise _unwritable(path, error) from error

    def check_model(self, module: nn.Module) -> None:
        """Raise `DirectoryError` if the directory holds a run of another model, and say where they differ."""
        file = self.path / "task.json"
        if not file.exists():
            return
        try:
            differences = change(json.loads(file.read_text()), module)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DirectoryError(f"{file} cannot be read ({error}): remove it to go on with this task") from error
        if differences:
            raise DirectoryError(
                f"{self.path} holds a run of another model ({differences}): choose another directory, or go on with "
                "that model"
            )

    def set_aside(self) -> Path | None:
        """Move what an earlier run wrote into a folder of its own, and return that; None if there was no run."""
        if not (self.path / _METHOD).exists():
            return None
        try:
            folder = _first_new(self.path / f"earlier-{number}" for number in itertools.count(1))
            for name in _FILES:
                if (self.path / name).exists():
                    (self.path / name).rename(folder / name)
            self.checkpoints.mkdir()
            moved, self._log = self._log, _open_log(self.path / _LOG)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        os.close(moved)
        return folder

    def begin(self, method: dict[str, Any], task: dict[str, Any]) -> None:
        """Write what was asked for. Raises `DirectoryError` where it cannot: a run that can write nothing is no use."""
        resumed = (self.path / _METHOD).exists()
        self.write_json(_METHOD, method)
        self.write_json("task.json", task)
        for why in self.unwritten.values():
            if not resumed:
                _remove(self.path / _METHOD)
            raise DirectoryError(f"cannot write to the run directory {self.path}: {why}")

    def event(self, event: str, content: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        line = (json.dumps(describe({"event": event, **content})) + "\n").encode()
        try:
            self._hold()
            _append(self._log, line)
        except OSError as error:
            self.unwritten[_LOG] = _why(error)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file."""
        text = json.dumps(describe(content), indent=2) + "\n"
        self._written[name] = content
        self._put(self.path / name, lambda partial: partial.write_text(text))

    def write_model(self, module: nn.Module, path: Path | None = None) -> None:
        """Write `model.safetensors`, with the names of `state_dict`; a tensor of several names is there under each."""
        tensors = module.state_dict()
        image = checkpoint.Image(tensors, pairs=False)
        for name, tensor in tensors.items():
            image.tensors[name].copy_(tensor.detach())
        self._put(path or self.path / "model.safetensors", lambda partial: checkpoint.write_image(partial, image))

    def write_checkpoint(self, draft: Draft) -> Path:
        """Write a checkpoint. Raises `OSError` where it cannot."""
        try:
            self._hold()
            path = checkpoint.write(self.checkpoints, draft)
        except OSError as error:
            self.unwritten[_CHECKPOINT] = _why(error)
            raise
        self.unwritten.pop(_CHECKPOINT, None)
        return path

    def missing(self) -> str:
        """A sentence on the files that could not be written, and on what remains; nothing if there are none."""
        if not self.unwritten:
            return ""
        reasons: dict[str, list[str]] = {}
        for name, why in sorted(self.unwritten.items()):
            reasons.setdefault(why, []).append(name)
        missing = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        examples = checkpoint.latest(self.checkpoints)
        kept = "no checkpoint is left" if examples is None else f"resume goes on after {examples:,} examples"
        return f"not all of {self.path} could be written ({missing}); {kept}"

    def close(self) -> None:
        """Close the log, and let others in. A directory in which no run has begun goes, if it was made for this one."""
        os.close(self._log)
        if self._made and not (self.path / _METHOD).exists():
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def _put(self, path: Path, write: Callable[[Path], object]) -> None:
        """Have a file written beside its place, and put it there when it is whole and on the disk."""
        name, partial = str(path.relative_to(self.path)), path.with_name(f".{path.name}.partial")
        try:
            self._hold()
            write(partial)
            checkpoint.sync(partial)
            partial.replace(path)
        except OSError as error:
            _remove(partial)
            self.unwritten[name] = _why(error)
        else:
            self.unwritten.pop(name, None)

    def _hold(self) -> None:
        """Make the directory again if somebody has removed it. Raises `OSError` if another run's is in its place."""
        with self._holding:
            try:
                if os.path.samestat((self.path / ".lock").stat(), os.fstat(self._lock.fileno())):
                    return
            except FileNotFoundError:
                pass
            if (self.path / _METHOD).exists():
                raise OSError(errno.EEXIST, "another run has taken its place")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            try:
                lock = _take_lock(self.path)
            except DirectoryError as error:
                raise OSError(errno.EBUSY, "another run has taken its place") from error
            self._lock.close()
            self._lock = lock
            os.close(self._log)
            self._log = _open_log(self.path / _LOG)
            self.unwritten[_LOG] = "the directory was removed while the run was at work"
        for name, content in list(self._written.items()):
            self.write_json(name, content)


def _take_lock(path: Path) -> TextIO:
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise DirectoryError(f"{path} is in use by a run that is at work") from error
    return lock


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
    log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    content = path.read_bytes()
    os.ftruncate(log, content.rfind(b"\n") + 1)
    return log


def _remove(path: Path) -> None:
    # Where nothing can be removed, the next run that is resumed there tries again.
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> DirectoryError:
    return DirectoryError(f"cannot write to the run directory {path}: {_why(error)}")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _make_fresh() -> Path:
    """A new directory, named after the time."""
    stem = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        return _first_new(Path("runs", stem if i == 1 else f"{stem}-{i}") for i in itertools.count(1))
    except OSError as error:
        raise _unwritable(Path("runs", stem), error) from error


def _first_new(paths: Iterable[Path]) -> Path:
    """Make the first of these folders that is not there; of two runs that begin at once, each gets its own."""
    for path in paths:
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("counting has no end")
