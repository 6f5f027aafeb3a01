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
back = "never"

`{kind = "Measured", directory = "runs/mine"}` takes the times from a run. The keys of a PerReplica's laws are numbers.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from distbelief.engines.simulated import Simulated, faults, laws
from distbelief.engines.simulated.network import Network
from distbelief.errors import DirectoryError, UsageError

_LAWS = (laws.Constant, laws.Lognormal, laws.Exponential, laws.Measured, laws.PerReplica, laws.Spread)
_FAULTS = (faults.Death, faults.Join, faults.Pause, faults.Slow, faults.Cut)


def read(path: Path) -> Simulated:
    """The engine that a file describes. Raises `UsageError` where it does not, and says at which table."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as TOML ({error}): mend it") from error
    try:
        engine: Simulated = _make(Simulated, {name: _value(value, name) for name, value in content.items()}, "the file")
    except (UsageError, DirectoryError) as error:
        raise UsageError(f"{path}: {error}") from error
    return engine


def _value(value: Any, where: str) -> Any:
    """What stands at a place of the file: tables as what they describe, anything else as it is."""
    if where == "faults":
        if not isinstance(value, list):
            raise UsageError("faults must be tables, each of them [[faults]] in double brackets")
        return [_of_kind(fault, f"faults[{number}]", _FAULTS) for number, fault in enumerate(value)]
    if where == "network":
        if not isinstance(value, dict):
            raise UsageError("network must be a table: [network]")
        return _make(Network, _fields(value, where), where)
    if not isinstance(value, dict):
        return value
    if where.endswith(".laws"):
        # The laws of single replicas: the keys of TOML are text.
        return {int(key) if key.isdecimal() else key: law for key, law in _fields(value, where).items()}
    return _of_kind(value, where, _LAWS)


def _fields(table: dict[str, Any], where: str) -> dict[str, Any]:
    return {name: _value(value, f"{where}.{name}") for name, value in table.items()}


def _of_kind(table: Any, where: str, kinds: tuple[type[Any], ...]) -> Any:
    """What a table describes, by its kind."""
    named = {kind.__name__: kind for kind in kinds}
    known = ", ".join(named)
    if not isinstance(table, dict) or "kind" not in table:
        raise UsageError(f"{where} needs a kind, one of {known}, as in {{kind = {kinds[0].__name__!r}, …}}")
    fields = _fields(table, where)
    name = fields.pop("kind")
    if not isinstance(name, str) or name not in named:
        raise UsageError(f"{where} is of a kind {name!r}, which is none of {known}")
    if name == "Measured" and isinstance(fields.get("directory"), str):
        return laws.Measured.of(fields["directory"])
    if name == "Death" and fields.get("back") == "never":
        fields["back"] = None
    return _make(named[name], fields, where)


def _make(kind: type[Any], fields: dict[str, Any], where: str) -> Any:
    known = {f.name: f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(kind)}
    if alien := fields.keys() - known:
        raise UsageError(f"{where}: {', '.join(sorted(alien))} is unknown, a {kind.__name__} takes {', '.join(known)}")
    if missing := [name for name, needed in known.items() if needed and name not in fields]:
        raise UsageError(f"{where} needs {' and '.join(missing)}, as a {kind.__name__} does")
    try:
        return kind(**fields)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
