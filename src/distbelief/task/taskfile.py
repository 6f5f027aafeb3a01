"""Finding a task: a ready-made one by its name, or one in a Python file."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from distbelief import tasks
from distbelief.errors import TaskError
from distbelief.task.task import FILE_MODULE, Task


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Keywords from `name=value` texts; values are Python literals where they look like it, else texts."""
    arguments = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise TaskError(f"--with takes name=value, such as --with hours=0.5, not {pair!r}")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def find(spec: str, arguments: dict[str, Any], *, progress: bool = True) -> Task:
    """The task that a person means by `name` or `path/to/file.py[:name]`, built with `arguments`.

    A file is executed once, here; replicas receive what it defined by value. Raises `TaskError` in one sentence where
    there is no such file or name, or where it names no task; what the file itself raises passes through.
    """
    path, _, name = spec.partition(":")
    if path.endswith(".py") or "/" in path:
        name = name or "task"
        found = _from_file(Path(path), name)
        origin: dict[str, Any] = {"path": str(Path(path).resolve()), "name": name, "arguments": arguments}
    else:
        found = tasks.find(spec)
        origin = {"path": None, "name": spec, "arguments": arguments}
        if not progress and "progress" in inspect.signature(found).parameters:
            arguments = {"progress": False, **arguments}
    if isinstance(found, Task):
        if arguments:
            raise TaskError(f"{spec} is a task and takes no arguments; make it a function that returns one")
        task: Any = found
    else:
        task = _call(found, spec, arguments)
    if not isinstance(task, Task):
        raise TaskError(
            f"{spec} is no distbelief.Task and no function that returns one, but a {type(task).__name__}: name one"
        )
    task.origin = origin
    return task


def _call(function: Any, spec: str, arguments: dict[str, Any]) -> Any:
    if not callable(function) or isinstance(function, type):
        return function
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise TaskError(f"{spec} cannot be called so: {error}; it takes {signature}") from error
    return function(**arguments)


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise TaskError(f"there is no file {path}")
    module = _execute(path)
    if not hasattr(module, name):
        close = [n for n, v in vars(module).items() if isinstance(v, Task) or _returns_task(v, module)]
        hint = f"; say {path}:{close[0]}" if close else "; name its task after a colon, or call it task"
        raise TaskError(f'{path} defines nothing named "{name}"{hint}')
    return getattr(module, name)


def _returns_task(value: Any, module: ModuleType) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__ and "task" in value.__name__


def _execute(path: Path) -> ModuleType:
    module_name = f"{FILE_MODULE}{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} cannot be loaded: give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    # So that the file's neighbours can be imported, as when it is run as a script.
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module
