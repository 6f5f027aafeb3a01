"""What a replica says of an error before it ends; that it works is shown by runs."""

from distbelief.engines.assembly import failure_of
from distbelief.errors import Diverged


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as same:  # noqa: BLE001
        return same


def test_an_error_of_the_users_is_told_with_its_type_and_sentence() -> None:
    failure = failure_of(caught(KeyError("a")))
    assert (failure.error, failure.kind_of) == ("KeyError: 'a'", "user")
    assert "test_assembly.py" in failure.frames


def test_divergence_is_told_in_its_own_words() -> None:
    failure = failure_of(caught(Diverged("lower lr")))
    assert (failure.error, failure.kind_of) == ("lower lr", "diverged")


def test_what_is_told_fits_a_message() -> None:
    failure = failure_of(caught(ValueError("x" * 10**6)))
    assert failure.error.startswith("ValueError: xxx")
    assert len(failure.error) == 2000
    assert len(failure.frames) <= 8000
