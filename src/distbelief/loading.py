"""Loading a run from its directory, with the task that it was a run of."""

import json
from pathlib import Path

from distbelief import taskfile
from distbelief.errors import DirectoryError, TaskError
from distbelief.run import Run, digest
from distbelief.task import Task


def load(directory: str | Path, task: Task | None = None) -> Run:
    """The run in a directory. A task that came from a file or a name is found again; any other must be given.

    Raises `DirectoryError` where there is no run that has ended, `TaskError` where the task is missing or another one.
    """
    directory = Path(directory)
    files = {name: directory / f"{name}.json" for name in ("summary", "task")}
    if not all(file.is_file() for file in files.values()):
        raise DirectoryError(f"{directory} holds no run that has ended")
    summary, origin = (json.loads(file.read_text()) for file in files.values())
    if task is None:
        if "name" not in origin:
            raise TaskError(f"the task of {directory} has no file: give it, as in load(directory, task=…)")
        spec = origin["name"] if origin["path"] is None else f"{origin['path']}:{origin['name']}"
        task = taskfile.find(spec, origin["arguments"])
    if digest(task.build(summary["seed"])) != origin["digest"]:
        raise TaskError(f"the model of this task is another one than that of {directory}")
    return Run(directory, task, summary)
