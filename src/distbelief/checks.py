"""Checks of numbers that people give."""

from distbelief.errors import UsageError


def check_whole(name: str, value: object, *, least: int = 1, error: type[UsageError] = UsageError) -> None:
    """Raise `error` with one sentence unless `value` is a whole number of `least` or more; True is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{name} must be a whole number of {least} or more, not {value!r}")
