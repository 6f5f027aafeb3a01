"""A simulation as a file, for the command line: TOML, in which each table names its kind.

seed = 1
compute = {kind = "Lognormal", median = 0.1, sigma = 0.5}

[network]
latency = {kind = "Exponential", mean = 0.001}
bandwidth = 1e8

[[faults]]
kind = "Death"
machine = "replica 1"
at = 10.0
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from distbelief.engines.simulated import Simulated
from distbelief.engines.simulated.faults import Cut, Death, Join, Pause, Slow
from distbelief.engines.simulated.laws import Constant, Exponential, Lognormal, Measured, PerReplica, Spread
from distbelief.engines.simulated.network import Network
from distbelief.errors import UsageError

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Constant, Lognormal, Exponential, Measured, PerReplica, Spread, Death, Join, Pause, Slow, Cut)
}


def read(path: Path) -> Simulated:
    """The engine that a file describes. Raises `UsageError` where it does not, and says at which table."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    network = content.pop("network", {})
    try:
        if not isinstance(network, dict):
            raise UsageError("network must be a table")
        made = {name: _value(value, name) for name, value in content.items()}
        made["network"] = _make(Network, _values(network, "network"), "network")
        engine: Simulated = _make(Simulated, made, "the file")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return engine


def _value(value: Any, where: str) -> Any:
    """A table as what its kind says, with all that is in it."""
    if isinstance(value, list):
        return tuple(_value(item, f"{where}[{number}]") for number, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "kind" not in value:
        # The laws of single replicas: the keys of TOML are text.
        return {int(key) if key.isdecimal() else key: _value(item, f"{where}.{key}") for key, item in value.items()}
    fields = dict(value)
    kind = fields.pop("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(f"{where} is of a kind {kind!r}, which is none of {', '.join(sorted(_KINDS))}")
    return _make(_KINDS[kind], _values(fields, where), where)


def _values(fields: dict[str, Any], where: str) -> dict[str, Any]:
    return {name: _value(item, f"{where}.{name}") for name, item in fields.items()}


def _make(kind: type[Any], fields: dict[str, Any], where: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    if alien := fields.keys() - known:
        raise UsageError(f"{where} has no {', '.join(sorted(alien))}: {kind.__name__} takes {', '.join(known)}")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in fields]:
        raise UsageError(f"{where} needs {' and '.join(missing)}, as a {kind.__name__} does")
    return kind(**fields)
