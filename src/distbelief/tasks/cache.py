"""Folders that are made once and checked whenever they are used: whole or not there, whoever dies while making one.

1. A folder is made beside its place, under a lock, and renamed into place when it is whole.
2. Its manifest, written last, holds what it was made from, its content, and the length and SHA-256 of every file.
3. A folder that does not agree with its manifest is made again, and that is said.
4. The lock is the operating system's, on a file beside the folder: it is freed when its holder dies.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distbelief.errors import DataError

FORMAT = 1
_MANIFEST = "manifest.json"

Tell = Callable[[str, float], None]
"""Told what is being done, and which fraction of it is done."""


def provide(folder: Path, made_from: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]], tell: Tell) -> Path:
    """The folder, whole: checked if it is there, made if not.

    `make(folder)` fills an empty folder and returns what the manifest shall say of its content. `made_from` is what
    decides over the content; both hold what JSON can hold. Raises `DataError` where the folder cannot be written.
    """
    # Most often the folder is there, and nobody needs to wait for anybody.
    if fault(folder, made_from) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, tell):
            if (wrong := fault(folder, made_from)) is not None:
                if folder.exists():
                    tell(f"the cached {folder} is damaged ({wrong}): making it again", 0)
                _make(folder, made_from, make)
    except OSError as error:
        raise DataError(
            f"the cache {folder.parent} cannot be written ({error.strerror}): "
            "make it writable, or name another place in XDG_CACHE_HOME"
        ) from error
    return folder


def fault(folder: Path, made_from: Mapping[str, Any]) -> str | None:
    """What is wrong with the folder, in a few words, or None."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["format"] != FORMAT or manifest["made_from"] != made_from:
            return "it was made from something else"
        for name, expected in manifest["files"].items():
            if _sum(folder / name) != expected:
                return f"{name} has changed"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} has changed"
    return None


def _make(folder: Path, made_from: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> None:
    # Whoever holds the lock owns this name; what lies there was left by somebody who died.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        manifest = {"format": FORMAT, "made_from": made_from, "content": make(unfinished)}
        manifest["files"] = {path.name: _sum(path) for path in sorted(unfinished.iterdir())}
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def _locked(folder: Path, tell: Tell) -> Iterator[None]:
    with folder.with_name(folder.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another process makes {folder}: waiting", 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
