"""Finding tasks in files and by name."""

import sys
from pathlib import Path

import pytest

from distbelief.errors import TaskError
from distbelief.task import taskfile

FILE = """
import neighbour
import torch
from torch import nn
import distbelief as db

executions = globals().get("executions", 0) + 1


def task(rows=10, *, name="a"):
    x = torch.zeros(rows, neighbour.WIDTH)
    return db.Task(lambda: nn.Linear(neighbour.WIDTH, 2), nn.CrossEntropyLoss(), train=(x, x[:, 0].long()))


other = task(3)
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def test_arguments_are_literals_where_they_look_like_it() -> None:
    pairs = ["rows=20000", "rate=1e-3", "name=speech", "flag=True", "text=a=b", "empty="]
    assert taskfile.parse_arguments(pairs) == {
        "rows": 20000,
        "rate": 1e-3,
        "name": "speech",
        "flag": True,
        "text": "a=b",
        "empty": "",
    }


@pytest.mark.parametrize("pair", ["rows", "=3", "a b=3"])
def test_arguments_without_a_name_are_refused(pair: str) -> None:
    with pytest.raises(TaskError, match="--with takes name=value"):
        taskfile.parse_arguments([pair])


def test_a_file_with_its_neighbours_and_arguments(file: str) -> None:
    task = taskfile.find(file, {"rows": 7})
    assert len(task.train[0]) == 7
    assert task.origin == {"path": file, "name": "task", "arguments": {"rows": 7}}
    assert len(taskfile.find(f"{file}:other", {}).train[0]) == 3


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("nope", {}, 'defines nothing named "nope"'),
        ("executions", {}, "is no distbelief.Task"),
        ("task", {"lines": 3}, "unexpected keyword argument 'lines'; it takes"),
        ("other", {"rows": 3}, "takes no arguments"),
    ],
)
def test_what_names_no_task(file: str, name: str, arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        taskfile.find(f"{file}:{name}", arguments)


def test_a_ready_made_task_by_name() -> None:
    task = taskfile.find("digits", {})
    assert task.origin["name"] == "digits"
    with pytest.raises(TaskError, match="digits, speech, speech-paper"):
        taskfile.find("digit", {})
