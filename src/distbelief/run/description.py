"""What was asked for as JSON, and back: dataclasses are {"kind": name, fields…}."""

import dataclasses
import math
from typing import Any

from distbelief.downpour import method
from distbelief.server import admission, rules, schedules

_KINDS: dict[str, type[Any]] = {
    name: kind
    for module in (admission, method, rules, schedules)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}


def describe(value: Any) -> Any:
    """A value as JSON knows it: what is not finite is null, and what is neither ours nor plain is told as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **own}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | None) else str(value)


def revive(content: dict[str, Any]) -> Any:
    """The value that was described by an object of JSON, in which those below are revived already.

    `KeyError`, `TypeError` and `ValueError` say that it is a rule or policy of the user's own, or was not described.
    """
    if not isinstance(content.get("kind"), str):
        # Rates of `Steps`, or parameter groups, whose patterns may be any text.
        return content
    content.pop("format", None)
    kind = _KINDS[content.pop("kind")]
    if kind is schedules.Steps:
        # JSON's keys are text.
        content["rates"] = {int(start): rate for start, rate in content["rates"].items()}
    return kind(**{name: tuple(item) if isinstance(item, list) else item for name, item in content.items()})
