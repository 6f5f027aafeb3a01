import math

from distbelief.engines.stopwatch import Stopwatch


def test_time_begins_with_the_first_lease() -> None:
    watch = Stopwatch(0.0)
    assert (watch.began, watch.seconds(50.0), watch.worked) == (None, 0.0, 0.0)
    watch.begin(60.0)
    watch.begin(70.0)
    assert (watch.began, watch.seconds(75.0)) == (60.0, 15.0)


def test_what_was_worked_ends_with_the_last_account() -> None:
    watch = Stopwatch(0.0)
    watch.begin(60.0)
    assert watch.worked == 0.0
    for now in (70.0, 90.0):
        watch.work(now)
    assert watch.worked == 30.0
    assert watch.seconds(200.0) == 140.0


def test_a_run_that_goes_on_adds_to_what_was_before() -> None:
    watch = Stopwatch(1000.0)
    assert watch.seconds(5.0) == watch.worked == 1000.0
    watch.begin(5.0)
    watch.work(8.0)
    assert (watch.seconds(9.0), watch.worked) == (1004.0, 1003.0)


def test_a_limit_is_reached_after_so_many_seconds_of_all_lives() -> None:
    watch = Stopwatch(10.0, 60.0)
    assert watch.ends_at == math.inf
    watch.begin(100.0)
    assert watch.ends_at == 150.0
    watch = Stopwatch(10.0)
    watch.begin(100.0)
    assert watch.ends_at == math.inf
