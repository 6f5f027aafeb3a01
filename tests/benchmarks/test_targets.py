import math

from benchmarks.targets import best_rate, cost, never, reached, speed

FAST = [
    {"seconds": 1.0, "examples": 100, "accuracy": 0.5},
    {"seconds": 2.0, "examples": 200, "accuracy": 0.7},
    {"seconds": 3.0, "examples": 300, "accuracy": 0.6},
    {"seconds": 4.0, "examples": 400, "accuracy": 0.8},
]
NEVER = [{"seconds": 5.0, "examples": 250, "accuracy": 0.3}, {"seconds": 11.0, "examples": 550, "accuracy": 0.4}]


def test_a_target_is_reached_once_and_for_all() -> None:
    assert reached(FAST, 0.65, 10) == FAST[1]
    assert reached(FAST, 0.7, 10) == FAST[1]


def test_what_comes_after_the_limit_does_not_count() -> None:
    assert reached(FAST, 0.75, 3.5) is None
    assert never([FAST, NEVER], 0.75, 3.5) == 2
    assert never([FAST, NEVER], 0.75, 10) == 1


def test_a_run_that_is_censored_counts_to_our_disadvantage() -> None:
    assert cost(FAST, "seconds", 0.65, 10, ours=True) == cost(FAST, "seconds", 0.65, 10, ours=False) == 2
    assert cost(NEVER, "seconds", 0.65, 10, ours=True) == math.inf
    assert cost(NEVER, "seconds", 0.65, 10, ours=False) == 11
    assert cost(NEVER, "examples", 0.65, 10, ours=False) == 550


def test_examples_and_speed_make_up_the_time() -> None:
    assert speed(FAST, 0.65, 10) * cost(FAST, "seconds", 0.65, 10, ours=True) == 200
    assert speed(NEVER, 0.65, 10) == 50


def test_the_best_rate_needs_the_fewest_examples() -> None:
    slower = [{"seconds": 1.0, "examples": 300, "accuracy": 0.9}]
    assert best_rate({0.1: NEVER, 0.01: FAST, 0.001: slower}, 0.65, 10) == 0.01


def test_where_no_rate_gets_there_the_most_accurate_is_best() -> None:
    worse = [{"seconds": 1.0, "examples": 10, "accuracy": 0.1}]
    assert best_rate({0.1: worse, 0.01: NEVER}, 0.65, 10) == 0.01
