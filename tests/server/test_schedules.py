import math
from collections.abc import Callable

import pytest

from distbelief.errors import UsageError
from distbelief.server.schedules import Cosine, Schedule, Steps, check_rate, rate


def test_a_cosine_rises_over_the_warm_up_and_falls_to_nothing() -> None:
    cosine = Cosine(1.0, 1000, warmup=100)
    assert 0 < cosine(0) < cosine(50) < cosine(99) < cosine(100) == 1.0
    assert cosine(550) == pytest.approx(0.5)
    assert cosine(1000) == cosine(5000) == pytest.approx(0, abs=1e-15)


def test_a_cosine_without_warm_up_begins_at_its_peak() -> None:
    assert Cosine(0.3, 10)(0) == 0.3


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
