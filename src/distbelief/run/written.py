"""What a run has written, read back: as it was written, or refused in a sentence. Nothing that it names is executed."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distbelief.errors import DirectoryError, TaskError

_KINDS: dict[str, dict[str, Any]] = {
    "summary.json": {"seed": int, "history": list, "metrics": dict, "account": dict, "examples": int},
    "task.json": {"digest": str, "tensors": dict},
}
"""What must be in a file for it to be of use, and of which kind."""


def content(file: Path) -> dict[str, Any]:
    """The content of a JSON file of a run. Raises `DirectoryError` where it is damaged."""
    try:
        found = json.loads(file.read_text())
        wrong = [name for name, kind in _KINDS[file.name].items() if not isinstance(found[name], kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} is not what a run writes there")
    except KeyError as error:
        raise _damaged(file, f"{error} is missing") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    return dict(found)


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a model's file. Raises `DirectoryError` where it is damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(file, str(error)) from error


def task_of(origin: dict[str, Any], directory: Path) -> tuple[str, dict[str, Any]]:
    """How the task of a run is found again, and its arguments.

    Raises `TaskError` where it has no file, or where that lies in the directory itself: a directory that comes from
    somebody else would have its code executed by being looked at.
    """
    name, path, arguments = (origin.get(key) for key in ("name", "path", "arguments"))
    if name is None:
        raise TaskError(f"the task of {directory} has no file: give it, as in load(directory, task=…)")
    if not isinstance(name, str) or not isinstance(path, str | None) or not isinstance(arguments, dict):
        raise _damaged(directory / "task.json", "it names no task")
    spec = name if path is None else f"{path}:{name}"
    file = spec.partition(":")[0]
    is_file, at = file.endswith(".py") or "/" in file, Path(file)
    if is_file and (not at.is_absolute() or at.resolve().is_relative_to(directory.resolve())):
        raise TaskError(
            f"{directory} names code that it brings itself ({file}), which is not executed unasked: look at it, and "
            f"give it, as in load(directory, task=…), or --task {file}"
        )
    return spec, arguments


def _damaged(file: Path, why: str) -> DirectoryError:
    return DirectoryError(
        f"{file} is damaged ({why}): put it back, or go on with the run (resume=True), whose end writes it anew"
    )
