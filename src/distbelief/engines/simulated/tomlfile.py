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

from distbelief.engines.simulated import Simulated
from distbelief.engines.simulated.faults import Cut, Death, Join, Pause, Slow
from distbelief.engines.simulated.laws import Constant, Exponential, Lognormal, Measured, PerReplica, Spread
from distbelief.engines.simulated.network import Network
from distbelief.errors import DirectoryError, UsageError

_LAWS = (Constant, Lognormal, Exponential, Measured, PerReplica, Spread)
_FAULTS = (Death, Join, Pause, Slow, Cut)


def read(path: Path) -> Simulated:
    """The engine that a file describes. Raises `UsageError` where it does not, and says at which table."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
    try:
        return _engine(content)
    except (UsageError, DirectoryError) as error:
        raise UsageError(f"{path}: {error}") from error


def _engine(content: dict[str, Any]) -> Simulated:
    network, faults = content.pop("network", {}), content.pop("faults", [])
    if not isinstance(network, dict):
        raise UsageError("network must be a table: [network]")
    if not isinstance(faults, list):
        raise UsageError("faults must be tables, each of them [[faults]] in double brackets")
    fields = {name: _law(value, name) for name, value in content.items()}
    laws = {name: _law(value, f"network.{name}") for name, value in network.items()}
    fields["network"] = _make(Network, laws, "network")
    fields["faults"] = [_of_kind(fault, f"faults[{number}]", _FAULTS) for number, fault in enumerate(faults)]
    engine: Simulated = _make(Simulated, fields, "the file")
    return engine


def _law(value: Any, where: str) -> Any:
    """A table as the law that it describes, with the laws in it; anything else as it is."""
    if not isinstance(value, dict):
        return value
    if where.endswith(".laws"):
        # The laws of single replicas: the keys of TOML are text.
        return {int(key) if key.isdecimal() else key: _law(law, f"{where}.{key}") for key, law in value.items()}
    return _of_kind(value, where, _LAWS)


def _of_kind(table: Any, where: str, kinds: tuple[type[Any], ...]) -> Any:
    """What a table describes, by its kind."""
    names = {kind.__name__: kind for kind in kinds}
    known = ", ".join(names)
    if not isinstance(table, dict) or "kind" not in table:
        raise UsageError(f"{where} needs a kind, one of {known}, as in {{kind = {kinds[0].__name__!r}, …}}")
    fields = {name: _law(value, f"{where}.{name}") for name, value in table.items() if name != "kind"}
    kind = table["kind"]
    if not isinstance(kind, str) or kind not in names:
        raise UsageError(f"{where} is of a kind {kind!r}, which is none of {known}")
    if kind == Measured.__name__ and isinstance(fields.get("directory"), str):
        return Measured.of(fields["directory"])
    if kind == Death.__name__ and fields.get("back") == "never":
        fields["back"] = None
    return _make(names[kind], fields, where)


def _make(kind: type[Any], fields: dict[str, Any], where: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    if alien := fields.keys() - known:
        raise UsageError(f"{where}: {', '.join(sorted(alien))} is unknown, a {kind.__name__} takes {', '.join(known)}")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in fields]:
        raise UsageError(f"{where} needs {' and '.join(missing)}, as a {kind.__name__} does")
    try:
        return kind(**fields)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
