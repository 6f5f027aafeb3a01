"""What a run has written is read as it was written, and executes nothing that it names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import distbelief as db
from distbelief.cli.commands import main
from distbelief.errors import DirectoryError, TaskError
from tests import problems

FILE = """
import pathlib
import distbelief as db
from tests import problems

pathlib.Path(__file__).with_name("executed").touch()
task = problems.task(test=problems.points())
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    method, until = db.Downpour(replicas=1), db.Until(epochs=1)
    db.train(
        problems.task(test=problems.points()), method, engine=db.Simulated(), until=until, directory=folder / "run",
        progress=False,
    )  # fmt: skip
    return folder / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.mark.parametrize("name", ["summary.json", "task.json"])
@pytest.mark.parametrize("damage", ["", "{", "[]", "3", "null", "{}", "\x00\xff", '{"seed": "x", "digest": 3}'])
def test_damaged_files_are_named(run: Path, name: str, damage: str) -> None:
    (run / name).write_text(damage, encoding="latin-1")
    with pytest.raises(DirectoryError, match=rf"{name} is damaged \(.*\): put it back, or go on with the run"):
        db.load(run, problems.task())


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff" * 100, b"\x00" * 100])
def test_a_damaged_model_is_named(run: Path, damage: bytes) -> None:
    (run / "model.safetensors").write_bytes(damage)
    with pytest.raises(DirectoryError, match=r"model.safetensors is damaged \(.*\): put it back"):
        db.load(run, problems.task()).model()
    with pytest.raises(DirectoryError, match=r"model.safetensors is damaged"):
        db.train(problems.task(), db.Downpour(replicas=1), start=run, directory=run.parent / "next", progress=False)
    assert not (run.parent / "next").exists()


def test_a_damaged_method_is_named_and_may_be_given(run: Path) -> None:
    (run / "method.json").write_text("{")
    options: dict[str, Any] = {"engine": db.Simulated(), "until": db.Until(epochs=2), "directory": run, "resume": True}
    with pytest.raises(DirectoryError, match=r"cannot be read back from .*method.json .* give the method again"):
        db.train(problems.task(), progress=False, **options)
    task = problems.task(test=problems.points())
    assert db.train(task, db.Downpour(replicas=1), progress=False, **options).summary["resumed_at"] == 640


@pytest.mark.parametrize("named", ["inside", "relative", "link", "by name", "colon"])
def test_what_a_directory_brings_itself_is_not_executed_unasked(run: Path, named: str) -> None:
    code = run / "mine.py"
    code.write_text(FILE)
    (run.parent / "link.py").symlink_to(code)
    paths = {
        "inside": str(code),
        "relative": "mine.py",
        "link": str(run.parent / "link.py"),
        "by name": None,
        "colon": f"{code}:x/../../..",
    }
    origin = json.loads((run / "task.json").read_text())
    origin |= {"path": paths[named], "name": str(code) if named == "by name" else "task", "arguments": {}}
    (run / "task.json").write_text(json.dumps(origin))
    with pytest.raises(TaskError, match=r"names code that it brings itself .* not executed unasked: look at it, and"):
        db.load(run)
    for command in (["evaluate", str(run)], ["predict", str(run), "x.npy", "--output", "y.npy"]):
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, "not executed unasked" in result.output) == (1, True)
    assert not (run / "executed").exists()
    result = CliRunner().invoke(main, ["evaluate", str(run), "--task", str(code)])
    assert (result.exit_code, result.output.startswith("test: loss ")) == (0, True), result.output
    assert (run / "executed").exists()
