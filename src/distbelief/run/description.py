"""A method as JSON, and back: dataclasses are {"kind": name, fields…}."""

import dataclasses
from typing import Any

from distbelief.downpour.method import Downpour
from distbelief.errors import DirectoryError
from distbelief.server.admission import Asynchronous, Bounded, Buffered, Paced, StalenessScaled
from distbelief.server.rules import SGD, Adagrad, Adam, AdamW
from distbelief.server.schedules import Cosine, Steps

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Downpour, SGD, Adagrad, Adam, AdamW, Cosine, Steps),
        *(Asynchronous, StalenessScaled, Bounded, Paced, Buffered),
    )
}


def describe(value: Any) -> Any:
    """A value as JSON. What is neither ours nor plain is told as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **own}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    return value if isinstance(value, int | float | str | None) else repr(value)


def revive(content: Any) -> Any:
    """The value that was described. Raises `DirectoryError` where it holds a rule or policy of the user's own."""
    if isinstance(content, list):
        return tuple(revive(item) for item in content)
    if not isinstance(content, dict):
        return content
    if "kind" not in content:
        # The rates of `Steps`; JSON's keys are text.
        return {int(key): revive(item) for key, item in content.items()}
    fields = {name: revive(item) for name, item in content.items() if name != "kind"}
    try:
        return _KINDS[content["kind"]](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise DirectoryError(
            f"the run's own method cannot be read back from its method.json ({error}): give the method again"
        ) from error
