from typing import Any

import pytest

from benchmarks.slowing import Law
from benchmarks.stragglers import (
    DDP,
    FULL,
    OURS,
    SETTINGS,
    TORCHFT,
    arms_of,
    check_slowness,
    compare_speeds,
    compare_times,
    group,
    plain_step_s,
    plan,
    steady,
    tuned,
)


def run(seconds: float, accuracy: float = 0.7) -> dict[str, Any]:
    return {"history": [{"seconds": seconds, "examples": int(1000 * seconds), "accuracy": accuracy}]}


def speed(value: float, *each: float) -> dict[str, Any]:
    return {"examples_per_second": value, "each": list(each)}


PURSUITS = {
    f"tuning | {OURS} | 0.01": run(10),
    f"tuning | {OURS} | 0.02": run(9),
    f"tuning | {DDP} | 0.01": run(20),
    f"tuning | {DDP} | 0.02": run(30),
    f"target | {OURS} | 0": run(10),
    f"target | {OURS} | 1": run(12),
    f"target | {DDP} | 0": run(40),
    f"target | {DDP} | 1": run(30),
}


def test_runs_are_found_by_part_arm_and_round() -> None:
    runs = {"torchft": {"torchft": "1"}, "paced | ours | 0": speed(1), "paced, lognormal | ours | 0": speed(2)}
    assert group(runs, "paced") == {OURS: {"0": speed(1)}}
    assert group(runs, "torchft") == {}


def test_a_plain_step_is_the_median_of_the_rounds() -> None:
    runs = {f"plain | one process | {turn}": speed(value) for turn, value in enumerate([1000, 6400, 8000])}
    assert plain_step_s(runs) == 128 / 6400


def test_each_arm_is_tuned_for_itself() -> None:
    assert (tuned(PURSUITS, OURS, FULL), tuned(PURSUITS, DDP, FULL)) == (0.02, 0.01)


def test_times_are_compared_seed_by_seed_and_split_into_examples_and_speed() -> None:
    seconds, examples, speeds = compare_times(PURSUITS, FULL)
    assert (seconds.ours, seconds.theirs, seconds.met) == ([10, 12], [40, 30], True)
    assert (examples.ours, examples.theirs) == ([10_000, 12_000], [40_000, 30_000])
    assert list(speeds.ours) == [1000, 1000]


def test_runs_that_are_censored_are_counted_and_named() -> None:
    hopeless = {
        f"target | {OURS} | 0": run(150, accuracy=0.1),
        f"target | {OURS} | 1": run(150, accuracy=0.1),
        f"target | {DDP} | 0": run(151, accuracy=0.1),
    }
    seconds = compare_times(PURSUITS | hopeless, FULL)[0]
    assert seconds.ratio is not None
    assert seconds.ratio.median == 0
    assert seconds.met is False
    assert "(2 of ours never)" in seconds.what
    assert "(1 censored at 150 s)" in seconds.rival


def test_only_ddp_has_a_bar_and_everybody_a_row() -> None:
    names = {key: arms_of(setting, 1, torchft=True) for key, setting in SETTINGS.items()}
    runs = {f"{key} | {name} | 0": speed(8, 1, 7) for key, arms in names.items() for name in arms}
    rows = compare_speeds(runs)
    assert len(rows) == sum(len(arms) - 1 for arms in names.values())
    assert [(row.what, row.rival) for row in rows if row.bar] == [(SETTINGS["sustained"].what, DDP)]


def test_a_slow_worker_is_held_against_what_the_law_says() -> None:
    runs = {"plain | one process | 0": speed(5000)}
    runs |= {f"{key} | {OURS} | 0": speed(6000, 1000, 5000) for key in SETTINGS}
    slow, fast, paced_slow, _ = check_slowness(runs)
    assert (slow.ours, slow.theirs) == ([1000], [1000])
    assert (fast.ours, fast.theirs) == ([5000], [5000])
    assert paced_slow.theirs == [200]


@pytest.mark.parametrize("torchft", [True, False])
def test_backup_workers_need_more_than_two(torchft: bool) -> None:
    two, four = (arms_of(SETTINGS[key], 1, torchft=torchft) for key in ("sustained", "paced"))
    assert "Buffered(1)" not in " ".join(two)
    assert any("Buffered(3)" in name for name in four)
    assert (TORCHFT in two) is torchft


def test_a_round_has_a_law_of_its_own() -> None:
    assert SETTINGS["lognormal"].law(0.02, 3) == Law(plain_s=0.02, sigma=1.0, seed=3)


def test_the_plan_counts_every_run() -> None:
    assert plan(2, FULL) - plan(1, FULL) == 1 + sum(len(arms_of(s, 1, torchft=True)) for s in SETTINGS.values()) + 2


def progress(seconds: float, examples: int, *each: float) -> dict[str, Any]:
    replicas = [{"examples_per_second": value} for value in each]
    return {"event": "progress", "seconds": seconds, "examples": examples, "replicas": replicas}


def test_speeds_are_taken_after_the_warm_up() -> None:
    told = [progress(1, 10, 5, 5), progress(2, 100, 5, 5), progress(3, 700, 500, 100), progress(4, 1300, 500, 100)]
    found = steady([*told, {"event": "stopped", "seconds": 9, "examples": 5000}])
    assert found == {"examples_per_second": 600, "each": [100, 500]}


def test_a_run_that_is_too_short_has_no_speed() -> None:
    with pytest.raises(ValueError, match="too short"):
        steady([progress(2, 100, 5)])
