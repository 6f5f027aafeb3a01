import math
from typing import Any

import pytest

from distbelief.errors import UsageError
from distbelief.run.until import Every, Until


def test_an_end_may_be_several() -> None:
    until = Until(epochs=3, seconds=0.5)
    assert (until.epochs, until.examples, until.seconds) == (3, None, 0.5)


def test_the_end_in_examples_is_whichever_comes_first() -> None:
    assert Until(epochs=3, examples=1000).in_examples(400) == 1000
    assert Until(epochs=2, examples=1000).in_examples(400) == 800
    assert Until(seconds=3, patience=2).in_examples(400) is None


def test_patience_takes_for_better_what_is_so_by_more_than_min_delta() -> None:
    def after(until: Until, *ranks: float) -> bool:
        return until.out_of_patience(ranks)

    strict, lax = Until(patience=2), Until(patience=2, min_delta=0.1)
    creeping = (0.1, 0.15, 0.19, 0.26, 0.3)
    assert not after(strict, *creeping)
    assert after(lax, *creeping[:3]), "each is better, and none by so much"
    assert not after(lax, 0.1, 0.15, 0.21, 0.25), "it is compared with the last that was better by so much"
    assert after(strict, 0.3, 0.2, 0.3), "equal is not better"
    assert not after(strict, 0.3, -math.inf, -math.inf, 0.2), "what is no number counts neither for nor against"
    assert not after(strict)
    assert not after(Until(epochs=1), 0.3, 0.2, 0.1)


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
        ({"monitor": "loss", "min_delta": 0.1}, "Until needs at least one of epochs"),
        ({"epochs": 1, "monitor": 3}, 'monitor must be the name of a metric, such as "loss", or None, not 3'),
        ({"epochs": 1, "min_delta": -0.1}, "min_delta must be a number of 0 or more, not -0.1"),
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
