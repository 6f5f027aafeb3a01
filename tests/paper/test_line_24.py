"""Line 24. What the paper does not report, and we do: seeds and spread, a synchronous baseline, staleness, failures
that are really injected, the cost of the warm start inside the time axis."""

import json
from pathlib import Path

import pytest

import distbelief as db
from benchmarks.asynchrony import ARMS, SEEDS
from benchmarks.measure import RESULTS
from tests import problems


@pytest.mark.parametrize("figure", ["figure4", "figure5"])
def test_the_figures_have_seeds_a_spread_and_synchronous_baselines_with_as_many_trials(figure: str) -> None:
    cells = json.loads((RESULTS / f"{figure}.json").read_text())["cells"]
    assert {"synchronous", "backup workers"} <= {cell["arm"] for cell in cells}
    assert len(SEEDS) >= 5
    assert all(len(cell["runs"]) == len(SEEDS) for cell in cells)
    assert {len(settings) for settings in ARMS.values()} == {4}


def test_staleness_is_reported_for_each_shard(tmp_path: Path) -> None:
    summary = small(tmp_path).summary
    assert len(summary["staleness_histogram"]) == 2
    assert sum(summary["staleness_histogram"][0]) == summary["updates"]
    assert 0 < summary["staleness"]["median"] <= summary["staleness"]["p99"] <= summary["staleness"]["max"]


def test_failures_are_really_injected_and_told_of(tmp_path: Path) -> None:
    run = small(tmp_path, db.Death("replica 0", 1.0), db.Death("shard 1", 2.0), db.Death("controller", 3.0))
    events = [json.loads(line) for line in (run.directory / "events.jsonl").read_text().splitlines()]
    assert [e["replica"] for e in events if e["event"] == "died"] == [0]
    assert sum(e["event"] == "resumed" for e in events) == 1
    assert sum(run.summary["account"].values()) == 6 * 640


def test_the_warm_start_is_in_the_clock(tmp_path: Path) -> None:
    cold, warm = small(tmp_path / "cold"), small(tmp_path / "warm", warmstart=1280)
    assert warm.summary["seconds"] > cold.summary["seconds"] + 0.5 * 1280 / 32 * 0.1


def small(folder: Path, *faults: db.Death, warmstart: int = 0) -> db.Run:
    return db.train(
        problems.task(),
        db.Downpour(replicas=4, shards=2, warmstart=warmstart),
        engine=db.Simulated(compute=0.1, faults=faults),
        until=db.Until(epochs=6),
        directory=folder / "run",
        checkpoint_every=db.Every(seconds=0.5),
        progress=False,
    )
