"""Ready-made tasks by name."""

import pytest

import distbelief as db
from distbelief.errors import TaskError
from distbelief.tasks import find


def test_each_name_finds_its_function() -> None:
    assert find("digits") is db.tasks.digits
    assert find("speech") is db.tasks.speech
    assert find("speech-paper") is db.tasks.speech_paper


@pytest.mark.parametrize(
    ("name", "guess"),
    [("spech", " Did you mean speech?"), ("speech_paper", " Did you mean speech-paper?"), ("xyz", "")],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, guess: str) -> None:
    with pytest.raises(TaskError) as caught:
        find(name)
    assert str(caught.value) == (
        f"there is no ready-made task {name!r}; there are digits, speech, speech-paper.{guess}"
    )
