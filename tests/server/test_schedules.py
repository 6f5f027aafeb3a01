import math
from collections.abc import Callable
from typing import Any

import pytest

from distbelief.errors import UsageError
from distbelief.server.schedules import Cosine, Linear, Schedule, Steps, check_rate, rate, resolved_lr


def test_a_cosine_rises_over_the_warm_up_and_falls_to_nothing() -> None:
    cosine = Cosine(1.0, 1000, warmup=100)
    assert 0 < cosine(0) < cosine(50) < cosine(99) < cosine(100) == 1.0
    assert cosine(550) == pytest.approx(0.5)
    assert cosine(1000) == cosine(5000) == pytest.approx(0, abs=1e-15)


def test_a_cosine_without_warm_up_begins_at_its_peak() -> None:
    assert Cosine(0.3, 10)(0) == 0.3


def test_a_line_comes_down_to_its_floor() -> None:
    linear = Linear(1.0, 1000, warmup=0.1, floor=0.2)
    assert 0 < linear(0) < linear(99) < linear(100) == 1.0
    assert linear(550) == pytest.approx(0.6)
    assert linear(1000) == linear(5000) == pytest.approx(0.2)
    assert Cosine(0.5, 1000, floor=0.1)(1000) == pytest.approx(0.05)
    assert Cosine(0.5, 1000, floor=1)(700) == 0.5


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_a_schedule_without_an_end_ends_with_the_run(kind: type[Cosine] | type[Linear]) -> None:
    assert resolved_lr(kind(0.1, warmup=0.05, floor=0.1), 2000) == kind(0.1, 2000, warmup=100, floor=0.1)
    assert resolved_lr(kind(0.1, warmup=300), 2000) == kind(0.1, 2000, warmup=300)
    assert resolved_lr(kind(0.1, 500, warmup=0.1), 2000) == resolved_lr(kind(0.1, 500, warmup=0.1), None)
    assert resolved_lr(0.1, None) == 0.1
    with pytest.raises(UsageError, match=r"neither in epochs nor in examples: .*\(0.1, 100_000\)"):
        resolved_lr(kind(0.1), None)
    with pytest.raises(UsageError, match="warms up over 3,000 examples, and the run ends after 2,000"):
        resolved_lr(kind(0.1, warmup=3000), 2000)
    with pytest.raises(UsageError, match="give it examples"):
        kind(0.1)(0)


@pytest.mark.parametrize("wrong", [math.nan, -1.0, None, "0.1"])
def test_a_schedule_that_gives_no_rate_is_refused_before_the_run(wrong: Any) -> None:
    with pytest.raises(UsageError, match="after so many examples as a number"):
        resolved_lr(lambda examples: wrong, 100)


def test_steps_hold_from_their_number_of_examples_on() -> None:
    steps = Steps({0: 0.1, 100: 0.01, 50: 0.05})
    assert [steps(n) for n in (0, 49, 50, 99, 100, 10**9)] == [0.1, 0.1, 0.05, 0.05, 0.01, 0.01]


def test_a_number_is_a_rate_and_so_is_any_function_of_examples() -> None:
    assert rate(0.5, 10) == 0.5
    assert rate(lambda examples: 1 / (1 + examples), 3) == 0.25
    assert isinstance(Cosine(1, 10), Schedule)
    check_rate(lambda examples: 0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(0, 10),
        lambda: Cosine(1, 0),
        lambda: Cosine(1, 10, warmup=10),
        lambda: Cosine(1, warmup=-0.1),
        lambda: Linear(1, floor=1.5),
        lambda: Linear("1"),  # type: ignore[arg-type]
        lambda: Cosine(math.nan, 10),
        lambda: Steps({}),
        lambda: Steps({5: 0.1}),
        lambda: Steps({0: 0.1, 10: -1}),
        lambda: Steps({0: math.nan}),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(UsageError, match="needs"):
        make()
