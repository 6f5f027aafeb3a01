"""Loading a run from its directory, with the task that it was a run of."""

import json
from pathlib import Path

from distbelief.errors import DirectoryError, TaskError
from distbelief.run.run import Run, change
from distbelief.task import taskfile
from distbelief.task.task import Task


def load(directory: str | Path, task: Task | None = None) -> Run:
    """The run in a directory. A task that came from a file or a name is found again; any other must be given.

    Raises `DirectoryError` where there is no run that has ended, `TaskError` where the task is missing or another one.
    """
    directory = Path(directory)
    files = {name: directory / f"{name}.json" for name in ("summary", "task")}
    if not directory.is_dir():
        raise DirectoryError(f"there is no directory {directory}: give that of a run, as is told where the run ends")
    if not files["task"].is_file():
        raise DirectoryError(f"{directory} holds no run: give the directory that is told where a run ends")
    if not files["summary"].is_file():
        raise DirectoryError(f"{directory} holds no run that has ended: wait for it, or go on with it (resume=True)")
    summary, origin = (json.loads(file.read_text()) for file in files.values())
    if task is None:
        if "name" not in origin:
            raise TaskError(f"the task of {directory} has no file: give it, as in load(directory, task=…)")
        spec = origin["name"] if origin["path"] is None else f"{origin['path']}:{origin['name']}"
        task = taskfile.find(spec, origin["arguments"])
    module = task.build(summary["seed"])
    if differences := change(origin, module):
        raise TaskError(f"the model of this task is another one than that of {directory}: {differences}")
    return Run(directory, task, summary)
