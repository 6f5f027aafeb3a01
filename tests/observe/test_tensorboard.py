"""A run as TensorBoard reads it."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import distbelief as db
from distbelief.errors import UsageError
from tests import problems

PROGRESS = {
    "seconds": 1.0,
    "updates": 2,
    "loss": 0.5,
    "learning_rate": 0.25,
    "gradient_norm": 4.0,
    "examples_per_second": 30.0,
    "replicas": [
        {"replica": 0, "examples_per_second": 10.0, "staleness": 1},
        {"replica": 1, "examples_per_second": 20.0, "staleness": 3},
    ],
}
DIED: dict[str, Any] = {
    "event": "died",
    "seconds": 1.0,
    "replica": 1,
    "incarnation": 1,
    "status": -9,
    "error": None,
    "account": {},
}

STOPPED: dict[str, Any] = {"event": "stopped", "seconds": 2.0, "stopped_by": "epochs", "examples": 80, "updates": 4}


def read(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory)).Reload()


def points(read: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read.Scalars(tag)]


def tell(table: db.TensorBoard, directory: Path, *events: dict[str, Any]) -> None:
    run = SimpleNamespace(directory=directory)
    for event in events:
        table(event, run)


def progress(examples: int, **changes: Any) -> dict[str, Any]:
    return {"event": "progress", "examples": examples, **PROGRESS, **changes}


def test_a_run_is_written_into_its_directory(tmp_path: Path) -> None:
    run = db.train(
        problems.task(test=problems.points()),
        db.Downpour(replicas=1, batch_size=16),
        until=db.Until(epochs=3),
        directory=tmp_path / "run",
        callbacks=[db.TensorBoard()],
        progress=False,
    )
    written = read(tmp_path / "run" / "tensorboard")
    for name in ("loss", "test_loss"):
        expected = [(row["examples"], float(np.float32(row[name]))) for row in run.history if name in row]
        assert points(written, f"evaluation/{name}") == expected


def test_progress_of_each_replica_and_deaths(tmp_path: Path) -> None:
    tell(db.TensorBoard(tmp_path / "progress"), tmp_path, progress(40), DIED, progress(80, loss=None), STOPPED)
    written = read(tmp_path / "progress")
    assert points(written, "train/loss") == [(40, 0.5)]
    assert points(written, "train/learning_rate") == [(40, 0.25), (80, 0.25)]
    assert points(written, "train/gradient_norm") == [(40, 4.0), (80, 4.0)]
    assert points(written, "train/examples_per_second") == [(40, 30.0), (80, 30.0)]
    assert points(written, "examples_per_second/replica_1")[0] == (40, 20.0)
    assert points(written, "staleness/replica_1")[0] == (40, 3.0)
    (death,) = written.Tensors("deaths/text_summary")
    assert death.step == 40
    assert b"replica #1 died (SIGKILL" in death.tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_at_its_checkpoint(tmp_path: Path) -> None:
    """What was written after the checkpoint never happened; what was written at it did."""
    lost = progress(40, loss=4.0), progress(80, loss=3.0), progress(120, loss=2.0)
    resumed = {"event": "resumed", "seconds": 1.0, "examples": 80, "damaged": []}
    tell(db.TensorBoard(), tmp_path, *lost, STOPPED)
    tell(db.TensorBoard(), tmp_path, resumed, progress(110, loss=1.0), STOPPED)
    assert points(read(tmp_path / "tensorboard"), "train/loss") == [(40, 4.0), (80, 3.0), (110, 1.0)]


def test_a_run_begun_again_hides_all_of_the_first(tmp_path: Path) -> None:
    nothing = {"event": "resumed", "seconds": 0.0, "examples": None, "damaged": []}
    tell(db.TensorBoard(), tmp_path, nothing, progress(40, loss=4.0), STOPPED)
    tell(db.TensorBoard(), tmp_path, nothing, progress(30, loss=1.0), STOPPED)
    assert points(read(tmp_path / "tensorboard"), "train/loss") == [(30, 1.0)]


def test_one_callback_for_several_runs(tmp_path: Path) -> None:
    """Also where the first was ended by something else and never told to be stopped."""
    table = db.TensorBoard()
    for name in ("one", "two"):
        tell(table, tmp_path / name, progress(40, loss=4.0))
    tell(table, tmp_path / "two", STOPPED)
    for name in ("one", "two"):
        assert points(read(tmp_path / name / "tensorboard"), "train/loss") == [(40, 4.0)]


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="pip install"):
        db.TensorBoard()
