"""Checks of numbers that people give."""

import pytest

from distbelief.checks import check_seed, check_whole
from distbelief.errors import TaskError, UsageError


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(UsageError, match=f"^n must be a whole number of 1 or more, not {value!r}$"):
        check_whole("n", value)


def test_the_least_and_the_kind_of_error_are_the_callers() -> None:
    check_whole("n", 0, least=0)
    check_whole("n", 10**30)
    with pytest.raises(TaskError):
        check_whole("n", 1, least=2, error=TaskError)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**40, 1.0, True, None])
def test_what_is_no_seed(seed: object) -> None:
    for good in (-(2**63), 0, 2**64 - 1):
        check_seed(good)
    with pytest.raises(UsageError, match=r"^seed must be a whole number from -2\*\*63 to 2\*\*64 - 1, not "):
        check_seed(seed)
