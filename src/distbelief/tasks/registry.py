"""The ready-made tasks by the names that the command line knows them by."""

import difflib
from collections.abc import Callable

from distbelief.errors import TaskError
from distbelief.task.task import Task
from distbelief.tasks.digits import digits
from distbelief.tasks.speech import speech, speech_paper

TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "speech": speech, "speech-paper": speech_paper}


def find(name: str) -> Callable[..., Task]:
    """The function that makes the task of that name; it takes what `--with` passes.

    Raises `TaskError` for a name that is not known.
    """
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name, TASKS, n=1)
    guess = f" Did you mean {close[0]}?" if close else ""
    raise TaskError(f"there is no ready-made task {name!r}; there are {', '.join(TASKS)}.{guess}")
