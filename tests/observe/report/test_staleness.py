"""The staleness of each shard's pushes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from distbelief.observe.report.picture import Picture
from distbelief.observe.report.record import read_records
from distbelief.observe.report.staleness import staleness_of
from tests.observe.report.logs import record, simulate, texts


def drawn(folder: Path, histogram: Any, **summary: Any) -> Picture | None:
    return staleness_of(record(folder, summary={"format": 1, "staleness_histogram": histogram, **summary}))


def heights(picture: Picture) -> list[list[float]]:
    return [[float(bar.get_height()) for bar in panel.patches] for panel in picture.figure.axes]  # type: ignore[attr-defined]


def test_a_few_shards_have_bars_each(tmp_path: Path) -> None:
    run = simulate(tmp_path / "run")
    picture = staleness_of(*read_records([run.directory]))
    assert picture is not None
    assert "simulated time" in texts(picture)
    longest = max(map(len, run.summary["staleness_histogram"]))
    assert heights(picture) == [shard + [0] * (longest - len(shard)) for shard in run.summary["staleness_histogram"]]
    assert {"shard 0", "shard 1"} <= set(texts(picture))
    median, largest = run.summary["staleness"]["median"], run.summary["staleness"]["max"]
    assert f"median {median}, " in picture.alt
    assert f"largest {largest}." in picture.alt


def test_a_long_tail_is_drawn_in_ever_wider_steps_and_every_push_counts(tmp_path: Path) -> None:
    histogram = [[1000, 500, *[0] * 3000, 2, 1]]
    picture = drawn(tmp_path, histogram)
    assert picture is not None
    ((*bars,),) = heights(picture)
    assert (sum(bars), len(bars) < 60, bars[:2], bars[-1]) == (1503, True, [1000, 500], 3)
    assert "ever wider" in picture.caption


@pytest.mark.parametrize(("shards", "rows"), [(7, 7), (100, 100), (1001, 91)])
def test_many_shards_are_a_map(tmp_path: Path, shards: int, rows: int) -> None:
    picture = drawn(tmp_path, [[10, 30, 0, shard % 3] for shard in range(shards)])
    assert picture is not None
    (mesh,) = (c for c in picture.figure.axes[0].collections if isinstance(c, QuadMesh))
    shares = np.ma.masked_array(mesh.get_array()).filled(0.0).reshape(rows, 4)
    assert np.allclose(shares.sum(1), 1.0)
    assert ("together" in picture.caption) == (shards > 100)
    assert picture.png


def test_a_resumed_run_says_since_when_it_counts(tmp_path: Path) -> None:
    picture = drawn(tmp_path, [[1, 2]], resumed_at=1280)
    assert picture is not None
    assert "since the run went on after 1,280 examples" in picture.caption


@pytest.mark.parametrize("histogram", [None, [], [[]], [[0, 0]], "x", [3], [["a", None]], {"0": [1]}])
def test_without_counts_there_is_no_picture(tmp_path: Path, histogram: Any) -> None:
    assert drawn(tmp_path, histogram) is None


def test_a_single_bar_and_a_shard_without_pushes_are_drawn(tmp_path: Path) -> None:
    picture = drawn(tmp_path, [[5], []])
    assert picture is not None
    assert heights(picture) == [[5], [0]]
    assert picture.png
