"""When checkpoints are written."""

import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distbelief.engines.checkpointing import Checkpoints
from distbelief.run import checkpoint
from distbelief.run.checkpoint import Draft, Image
from distbelief.run.until import Every
from tests.states import state


@pytest.mark.parametrize("every", [Every(seconds=60), Every(examples=60)], ids=["seconds", "examples"])
@pytest.mark.parametrize("reached", [0, 1000], ids=["new", "resumed"])
def test_the_first_come_soon_and_then_as_often_as_asked_for(tmp_path: Path, every: Every, reached: int) -> None:
    begun: list[int] = []
    told: list[dict[str, Any]] = []
    image = Image({})

    def capture() -> Draft:
        begun.append(now - reached)
        return Draft(now, image, state())

    checkpoints = Checkpoints(partial(checkpoint.write, tmp_path), every, capture=capture, tell=told.append)
    for now in range(reached, reached + 400):
        checkpoints.turn(now if every.examples else 0, now if every.seconds else 0)
        deadline = time.monotonic() + 60
        while len(told) < len(begun) and time.monotonic() < deadline:
            time.sleep(0.001)
            checkpoints.turn(now if every.examples else 0, now if every.seconds else 0)
    checkpoints.finish()
    checkpoints.close()
    gaps = [after - before for before, after in pairwise([0, *begun])]
    assert gaps == [4, 4, 8, 16, 32, 60, 60, 60, 60, 60, 35]
    assert [content["error"] for content in told] == [None] * len(gaps)
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == f"{reached + 399:012}"
