"""Checkpoints are written beside training, one after the other, and it is told what became of each."""

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from distbelief.run import checkpoint
from distbelief.run.checkpoint import Draft, Image
from distbelief.run.checkpointing import Checkpoints
from tests.states import state


def wait_for(checkpoints: Checkpoints) -> None:
    deadline = time.monotonic() + 60
    while not checkpoints.turn():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_each_is_written_and_told_of_once(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    checkpoints = Checkpoints(partial(checkpoint.write, tmp_path), tell=told.append)
    assert not checkpoints.turn()
    for examples in (10, 20):
        checkpoints.capturing()
        checkpoints.begin(Draft(examples, Image({}), state()))
        wait_for(checkpoints)
        assert not checkpoints.turn()
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == f"{20:012}"
    assert [content["error"] for content in told] == [None] * 2
    assert [Path(content["path"]).name for content in told] == [f"{10:012}", f"{20:012}"]


def test_training_goes_on_while_one_is_written() -> None:
    told: list[dict[str, Any]] = []
    go_on = threading.Event()

    def write(draft: Draft) -> Path:
        assert go_on.wait(60)
        return Path(str(draft.examples))

    checkpoints = Checkpoints(write, tell=told.append)
    checkpoints.capturing()
    checkpoints.begin(Draft(1, Image({}), state()))
    assert not checkpoints.turn()
    assert told == []
    go_on.set()
    checkpoints.finish()
    assert told[0]["path"] == "1"
    checkpoints.finish()
    checkpoints.close()
    assert len(told) == 1


def test_not_beside_training_it_is_written_when_begin_returns() -> None:
    told: list[dict[str, Any]] = []
    checkpoints = Checkpoints(lambda draft: Path("there"), tell=told.append, beside=False)
    checkpoints.capturing()
    checkpoints.begin(Draft(1, Image({}), state()))
    assert checkpoints.turn()
    checkpoints.close()
    assert [content["path"] for content in told] == ["there"]


def test_a_disk_that_is_full_is_told_of_and_ends_nothing() -> None:
    told: list[dict[str, Any]] = []

    def write(draft: Draft) -> Path:
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(write, tell=told.append, beside=False)
    checkpoints.capturing()
    checkpoints.begin(Draft(1, Image({}), state()))
    assert checkpoints.turn(), "it has come to its end, all the same"
    checkpoints.close()
    assert told[0]["path"] is None
    assert "No space left" in told[0]["error"]


def test_how_long_the_copy_took_is_told() -> None:
    told: list[dict[str, Any]] = []
    checkpoints = Checkpoints(lambda draft: Path("there"), tell=told.append, beside=False)
    checkpoints.capturing()
    time.sleep(0.05)
    checkpoints.captured()
    checkpoints.begin(Draft(1, Image({}), state()))
    checkpoints.finish()
    checkpoints.close()
    assert 0.05 <= told[0]["capture_s"] < 5.0
