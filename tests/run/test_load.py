"""Loading a run, and what a loaded run can do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import distbelief as db
from distbelief.cli.commands import main
from distbelief.errors import DataError, DirectoryError, TaskError
from distbelief.run.run import Run
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
    with pytest.raises(TaskError, match=r"another one .* \(0\.weight was float32 \(32, 16\) and is not there"):
        db.load(tmp_path, task=other)
    with pytest.raises(DirectoryError, match="never evaluated"):
        run.model("best")


def test_what_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=r"there is no directory .*nowhere: give that of a run"):
        db.load(tmp_path / "nowhere")
    with pytest.raises(DirectoryError, match="holds no run: give"):
        db.load(tmp_path)
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(DirectoryError, match="holds no run that has ended: wait for it, or go on with it"):
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


def predicted(run: db.Run, folder: Path, inputs: np.ndarray, output: str = "y.npy") -> Result:
    np.save(folder / "x.npy", inputs)
    return CliRunner().invoke(
        main, ["predict", str(run.directory), str(folder / "x.npy"), "--output", str(folder / output)]
    )


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            np.zeros((5, 17), "float32"),
            "each row of x is float32 (17,), but the model was trained on rows of float32 (16,)",
        ),
        (np.zeros((5, 16)), "each row of x is float64 (16,), but"),
        (np.zeros((0, 16), "float32"), "x holds no rows"),
        (np.float32(3), "is a single number"),
        (np.array([{}]), "cannot be read as one array of numbers"),
    ],
    ids=["shape", "kind", "empty", "scalar", "objects"],
)
def test_inputs_that_cannot_be_predicted_from(run: db.Run, tmp_path: Path, inputs: np.ndarray, sentence: str) -> None:
    result = predicted(run, tmp_path, inputs)
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1


def test_predictions_are_written_under_the_very_name_or_not_begun(run: db.Run, tmp_path: Path) -> None:
    result = predicted(run, tmp_path, np.zeros((5, 16), "float32"), "predictions")
    assert "5 predictions written to" in result.output
    assert np.load(tmp_path / "predictions").shape == (5, 4)
    result = predicted(run, tmp_path, np.zeros((5, 16), "float32"), "nowhere/y.npy")
    assert (result.exit_code, "there is no folder" in result.output) == (2, True)


def test_a_model_that_fails_on_what_it_was_trained_on_raises_its_own_error(tmp_path: Path) -> None:
    """It is not the inputs' fault."""

    class Own(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and len(x) == 3:
                raise RuntimeError("three")
            return super().forward(x)

    task = db.Task(lambda: Own(16, 4), torch.nn.CrossEntropyLoss(), train=problems.points())
    run = Run(tmp_path, task, {"seed": 0, "history": [], "metrics": {}})
    save_file(task.build(0).state_dict(), tmp_path / "model.safetensors")
    assert run.predict(torch.zeros(2, 16)).shape == (2, 4)
    with pytest.raises(RuntimeError, match="three"):
        run.predict(torch.zeros(3, 16))
    stepped = db.Task(lambda: Own(16, 4), step=lambda model, batch: model(*batch).sum(), train=problems.points())
    with pytest.raises(DataError, match=r"what the task's step knows: call run\.model"):
        Run(tmp_path, stepped, {"seed": 0, "history": [], "metrics": {}}).predict(torch.zeros(3, 16))


def test_a_set_of_the_tasks_own_is_evaluated_by_its_name(run: db.Run, tmp_path: Path) -> None:
    assert run.judged_by == "test"
    assert run.evaluate("test") == run.evaluate()
    with pytest.raises(DataError, match="the task has no validation data: it has test, train"):
        run.evaluate("validation")
    result = CliRunner().invoke(main, ["evaluate", str(run.directory), "--set", "train"])
    assert result.output.startswith("train: loss ")
    assert CliRunner().invoke(main, ["evaluate", str(run.directory)]).output.startswith("test: loss ")
    x, y = problems.points(100)
    judged = Run(tmp_path, problems.task(validation=(x, y)), run.summary)
    assert judged.judged_by == "validation"
    with pytest.raises(DataError, match="neither test nor validation data"):
        Run(tmp_path, problems.task(), run.summary).evaluate()
