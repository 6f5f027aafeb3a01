"""What figures 4 and 5 are drawn from, and what they say of themselves."""

import json
import math

import pytest
from matplotlib.figure import Figure

import distbelief as db
from benchmarks import asynchrony, figure4, figure5
from benchmarks.asynchrony import ARMS, SPEEDS, Cell, Setting, Trial
from benchmarks.measure import RESULTS

FOUND = figure4.read(json.loads((RESULTS / "figure4.json").read_text()))


def title(figure: Figure) -> str:
    assert figure.get_suptitle()
    return figure.get_suptitle().lower()


@pytest.mark.parametrize("speeds", SPEEDS)
def test_every_picture_says_that_its_time_is_simulated(speeds: str) -> None:
    assert "simulated time" in title(figure4.draw_curves(FOUND, speeds))
    assert "simulated time" in title(figure4.draw_staleness(FOUND))
    assert "simulated time" in title(figure5.draw(FOUND, figure4.REPLICAS))


def test_each_arm_is_the_method_that_its_name_says() -> None:
    def method(arm: str, setting: Setting) -> db.Downpour:
        return Trial(Cell(arm, 20, "stragglers"), setting).method

    assert method("synchronous", Setting("SGD", 0.3)).admission == db.Buffered(20)
    assert method("backup workers", Setting("Adagrad", 0.1, 0.8)).admission == db.Buffered(16)
    assert method("Downpour", Setting("SGD", 0.1)).admission == db.Buffered(1)
    assert method("Downpour, scaled", Setting("SGD", 0.1)).admission == db.StalenessScaled()
    assert method("Downpour, Adagrad", Setting("Adagrad", 0.1)).optimizer == db.Adagrad(0.1)
    assert {len(settings) for settings in ARMS.values()} == {4}, "as many trials for each"


def run(*accuracies: float) -> dict[str, object]:
    rows = [
        {"seconds": 10.0 * n, "examples": 100 * n, "updates": n, "accuracy": accuracy}
        for n, accuracy in enumerate(accuracies, 1)
    ]
    return {"history": rows, "staleness": [1], "dropped": 0}


def test_the_cost_is_that_of_the_first_evaluation_at_the_target_and_infinite_without_one() -> None:
    over, never = asynchrony.TARGET, asynchrony.TARGET - 0.01
    assert asynchrony.cost(run(never, over, never, over)) == 20.0
    assert asynchrony.cost(run(never, over), "examples") == 200
    assert asynchrony.cost(run(never, never)) == math.inf
    assert asynchrony.middle([run(over), run(never, over), run(never)]) == 20.0
    assert asynchrony.middle([run(over), run(never), run(never)]) == math.inf


def test_a_run_of_fewer_evaluations_keeps_its_warm_start_and_the_one_at_the_target() -> None:
    warm = asynchrony.WARM_EXAMPLES // asynchrony.EVERY
    whole = run(*[0.1] * warm, *[0.3] * 997, asynchrony.TARGET, 0.2)
    thin = figure4.thinned(whole)
    assert asynchrony.cost(thin) == asynchrony.cost(whole)
    assert thin["history"][:warm] == whole["history"][:warm]  # type: ignore[index]
    assert 50 < len(thin["history"]) < 100
