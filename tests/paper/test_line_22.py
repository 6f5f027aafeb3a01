"""Line 22. Figure 4: accuracy against time for one-replica SGD, Downpour, and Downpour with Adagrad; all but the first
start from one shared warm start. Downpour with Adagrad and the most replicas is fastest."""

import json
import math

import pytest

from benchmarks import asynchrony, figure4
from benchmarks.asynchrony import ONE, SEEDS, SPEEDS, Cell
from benchmarks.measure import RESULTS

FOUND = figure4.read(json.loads((RESULTS / "figure4.json").read_text()))


def test_every_arm_is_there_for_both_laws_of_speed() -> None:
    assert set(FOUND) == set(figure4.cells())
    assert {cell.arm for cell in FOUND} == {ONE, *asynchrony.ARMS}
    assert {cell.speeds for cell in FOUND} == set(SPEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_start_from_one_warm_start_which_is_in_their_clocks(seed: int) -> None:
    warm = asynchrony.WARM_EXAMPLES // asynchrony.EVERY
    starts = [cell["runs"][seed]["history"][:warm] for cell in FOUND.values()]
    learned = {tuple((row["examples"], row["updates"], row["accuracy"]) for row in start) for start in starts}
    assert len(learned) == 1
    assert {start[-1]["examples"] for start in starts} == {asynchrony.WARM_EXAMPLES}
    alone = asynchrony.WARM_EXAMPLES / asynchrony.BATCH * 0.1
    assert all(start[-1]["seconds"] == pytest.approx(alone, rel=0.1) for start in starts)


def test_what_is_drawn_here_takes_what_figure_5_says() -> None:
    there = figure4.read(json.loads((RESULTS / "figure5.json").read_text()))
    for cell, entry in FOUND.items():
        seconds = [run["seconds"] or math.inf for run in there[cell]["runs"]]
        assert [asynchrony.cost(run) for run in entry["runs"]] == seconds


@pytest.mark.parametrize("speeds", SPEEDS)
def test_downpour_with_adagrad_and_the_most_replicas_is_fastest(speeds: str) -> None:
    """What the committed runs say; where they say something else, so does the page that shows them."""
    seconds = {cell: asynchrony.middle(entry["runs"]) for cell, entry in FOUND.items() if cell.speeds == speeds}
    assert min(seconds, key=seconds.__getitem__) == Cell("Downpour, Adagrad", max(figure4.REPLICAS), speeds)
