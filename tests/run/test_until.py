from typing import Any

import pytest

from distbelief.errors import UsageError
from distbelief.run.until import Every, Until


def test_an_end_may_be_several() -> None:
    until = Until(epochs=3, seconds=0.5)
    assert (until.epochs, until.examples, until.seconds) == (3, None, 0.5)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "Until needs at least one of epochs"),
        ({"epochs": 0}, "epochs must be a whole number of 1 or more, not 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of 1 or more, not 1.5"),
        ({"epochs": True}, "epochs must be a whole number of 1 or more, not True"),
        ({"examples": -5}, "examples must be a whole number of 1 or more, not -5"),
        ({"examples": "many"}, "examples must be a whole number of 1 or more, not 'many'"),
        ({"seconds": 0}, "seconds must be a number of more than 0, not 0"),
        ({"seconds": float("inf")}, "seconds must be a number of more than 0, not inf"),
        ({"seconds": float("nan")}, "seconds must be a number of more than 0, not nan"),
    ],
)
def test_an_end_that_cannot_come_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Until(**given)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "exactly one of examples and seconds"),
        ({"examples": 1, "seconds": 1}, "exactly one of examples and seconds"),
        ({"examples": 0}, "examples must be a whole number of 1 or more, not 0"),
        ({"examples": 1.0}, "examples must be a whole number of 1 or more, not 1.0"),
        ({"seconds": -1}, "seconds must be a number of more than 0, not -1"),
    ],
)
def test_how_often_is_one_positive_number(given: dict[str, Any], complaint: str) -> None:
    assert Every(examples=10).seconds is None
    with pytest.raises(UsageError, match=complaint):
        Every(**given)
