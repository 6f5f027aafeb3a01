"""Speeds as they are shown."""

import pytest

from distbelief.allocation import Progress
from distbelief.engines.speeds import Speeds


def test_a_speed_is_over_the_last_two_seconds() -> None:
    speeds = Speeds(2)
    for tenth in range(60):
        speeds.update(tenth / 10, 0, Progress(examples=100.0 * tenth if tenth < 30 else 3000.0))
    assert speeds.examples_per_second(0) == pytest.approx(0)
    for tenth in range(60, 81):
        speeds.update(tenth / 10, 0, Progress(examples=3000.0 + 50 * (tenth - 60)))
    assert speeds.examples_per_second(0) == pytest.approx(500)
    assert speeds.examples_per_second(1) == 0


def test_the_loss_is_the_mean_of_what_was_finite_and_the_last_known_one_after_that() -> None:
    speeds = Speeds(2)
    assert speeds.loss() is None
    for replica in (0, 1):
        speeds.update(0.0, replica, Progress())
    speeds.update(1.0, 0, Progress(losses=3, loss=6.0))
    speeds.update(1.0, 1, Progress(losses=1, loss=4.0))
    assert speeds.loss() == pytest.approx(2.5)
    speeds.restart(0)
    speeds.restart(1)
    assert speeds.loss() == pytest.approx(2.5)


def test_what_was_done_before_the_first_look_counts() -> None:
    speeds = Speeds(1)
    assert speeds.gradient_norm() is None
    speeds.update(0.1, 0, Progress(losses=2, loss=6.0, norms=1, norm=4.0))
    assert (speeds.loss(), speeds.gradient_norm()) == (3.0, 4.0)


def test_a_replica_that_begins_anew_has_no_negative_speed() -> None:
    speeds = Speeds(1)
    speeds.update(0.0, 0, Progress(examples=1000))
    speeds.restart(0)
    speeds.update(0.1, 0, Progress(examples=0))
    speeds.update(0.2, 0, Progress(examples=10))
    speeds.update(0.3, 0, Progress(examples=20))
    assert speeds.examples_per_second(0) == pytest.approx(100)


def test_the_time_before_the_first_batch_makes_nobody_slow() -> None:
    speeds = Speeds(1)
    for tenth in range(10):
        speeds.update(tenth / 10, 0, Progress())
    speeds.update(1.0, 0, Progress(examples=100))
    assert speeds.examples_per_second(0) == 0, "nobody knows yet"
    speeds.update(1.1, 0, Progress(examples=200))
    assert speeds.examples_per_second(0) == pytest.approx(1000)
