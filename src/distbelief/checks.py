"""Checks of numbers that people give."""

import math

from distbelief.errors import UsageError


def check_whole(name: str, value: object, *, least: int = 1, error: type[UsageError] = UsageError) -> None:
    """Raise `error` with one sentence unless `value` is a whole number of `least` or more; True is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{name} must be a whole number of {least} or more, not {value!r}")


def check_seed(value: object) -> None:
    """Raise `UsageError` unless torch's generators take `value` as a seed."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise UsageError(f"seed must be a whole number from -2**63 to 2**64 - 1, not {value!r}")


def check_number(name: str, value: object, *, least: float = 0.0, above: float | None = None) -> None:
    """Raise `UsageError` unless `value` is a finite number of `least` or more, or, if that is given, above `above`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (value >= least if above is None else value > above):  # type: ignore[operator]
        which = f"{least:g} or more" if above is None else f"more than {above:g}"
        raise UsageError(f"{name} must be a number of {which}, not {value!r}")
