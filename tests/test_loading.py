"""Loading a run, and what a loaded run can do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import distbelief as db
from distbelief.cli import main
from distbelief.errors import DirectoryError, TaskError
from tests import problems

FILE = """
import distbelief as db
from tests import problems

task = problems.task(test=problems.points())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> db.Run:
    folder = tmp_path_factory.mktemp("loading")
    (folder / "mine.py").write_text(FILE)
    arguments = [
        "train",
        str(folder / "mine.py"),
        "--epochs",
        "3",
        "--replicas",
        "1",
        "--directory",
        str(folder / "run"),
    ]
    result = CliRunner().invoke(main, [*arguments, "--lr", "0.05", "--quiet"])
    assert result.exit_code == 0, result.output
    return db.load(folder / "run")


def test_a_loaded_run_knows_what_it_was(run: db.Run) -> None:
    x, y = problems.points()
    assert run.metrics["accuracy"] > 0.4
    assert run.evaluate() == pytest.approx({k: run.metrics[k] for k in ("loss", "accuracy")})
    assert run.evaluate((x[:100], y[:100]))["accuracy"] == pytest.approx(
        float(db.accuracy(run.model()(x[:100]), y[:100]))
    )
    assert torch.allclose(run.predict(x), run.model()(x))
    assert len(run.history) >= 1


def test_a_task_without_a_file_must_be_given(tmp_path: Path) -> None:
    run = db.train(
        problems.task(), db.Downpour(replicas=1), until=db.Until(epochs=1), directory=tmp_path, progress=False
    )
    with pytest.raises(TaskError, match="has no file: give it"):
        db.load(tmp_path)
    assert torch.equal(
        db.load(tmp_path, task=problems.task()).predict(problems.points()[0]), run.predict(problems.points()[0])
    )
    other = db.Task(lambda: torch.nn.Linear(16, 4), torch.nn.CrossEntropyLoss(), train=problems.points())
    with pytest.raises(TaskError, match="another one"):
        db.load(tmp_path, task=other)
    with pytest.raises(DirectoryError, match="never evaluated"):
        run.model("best")


def test_what_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="holds no run that has ended"):
        db.load(tmp_path)


def test_evaluate_and_predict_on_the_command_line(run: db.Run, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", str(run.directory)])
    assert result.exit_code == 0, result.output
    assert f"accuracy {run.metrics['accuracy']:.4f}" in result.output
    x, _ = problems.points()
    np.save(tmp_path / "x.npy", x.numpy())
    result = CliRunner().invoke(
        main, ["predict", str(run.directory), str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    )
    assert result.exit_code == 0, result.output
    assert np.allclose(np.load(tmp_path / "y.npy"), run.predict(x).numpy())
    result = CliRunner().invoke(main, ["predict", str(run.directory), "none.npy", "--output", "y.npy"])
    assert result.exit_code == 2
    assert "there is no file none.npy" in result.output
