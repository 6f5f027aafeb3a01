"""A run in words and figures: what it came to, and what was asked for and decided."""

from typing import Any

from distbelief.observe.report.log import number
from distbelief.observe.report.record import Record

_DEEPEST = 8
"""Levels of a setting that are told of."""
_DECIDED = ("replicas", "shards", "batch_size")
_MORE = ("seed", "precision", "devices", "parameters", "examples_per_epoch", "chosen_by")
_LIMITS = {"epochs": "epochs", "examples": "examples", "seconds": "seconds_limit"}


def came_to(record: Record) -> dict[str, str]:
    """What a run came to, in words, by what each figure is."""
    found = record.reached
    told = {
        name.replace("_", " "): found.get(name)
        for name in ("stopped_by", "examples", "updates", "epochs", "seconds", "virtual_seconds")
    }
    told["examples/s"] = found.get("examples_per_second")
    told["training loss"] = found.get("train_loss")
    told |= _mapping(found.get("metrics"))
    told |= {"replicas replaced": found.get("restarts"), "deaths": found.get("deaths")}
    told["pushes rejected"] = found.get("rejected")
    told |= {f"staleness, {name}": value for name, value in _mapping(found.get("staleness")).items()}
    told |= {f"examples {name}": value for name, value in _mapping(found.get("account")).items()}
    told |= {f"{name}": _bytes(value) for name, value in _mapping(found.get("bytes")).items()}
    return {name: _number(value) for name, value in told.items() if value is not None}


def settings_of(record: Record) -> dict[str, str]:
    """Everything that was asked for and decided, in words, by its name."""
    started, summary, task = record.started, record.summary, record.task
    asked = {name: value for name, value in record.method.items() if name not in ("format", "kind")}
    told = {"task": record.what(), "method": record.method.get("kind"), **asked}
    told["engine"] = summary.get("engine", started.get("engine"))
    # Where these were asked for as they are, they are told of once.
    decided = {name: summary.get(name, started.get(name)) for name in _DECIDED}
    told |= {f"{name}, decided": value for name, value in decided.items() if asked.get(name) != value}
    told |= {name: summary.get(name, started.get(name)) for name in _MORE}
    told |= {f"limit: {name}": started.get(field) for name, field in _LIMITS.items()}
    told |= {"trace_digest": summary.get("trace_digest"), "arguments": task.get("arguments")}
    told |= {"digest of the model": task.get("digest"), "tensors of the model": task.get("tensors")}
    kept = {name: value for name, value in told.items() if name in asked or value not in (None, [], {})}
    return {name.replace("_", " "): worded(value) for name, value in kept.items()}


def worded(value: Any, depth: int = 0) -> str:
    """A setting in words: {"kind": "SGD", "lr": 0.1} is SGD(lr 0.1)."""
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        fields = ", ".join(f"{name} {worded(item, depth + 1)}" for name, item in value.items() if name != "kind")
        if "kind" not in value:
            return f"({fields})" if depth else fields
        return f"{value['kind']}({fields})" if fields else str(value["kind"])
    if isinstance(value, list):
        return f"[{', '.join(worded(item, depth + 1) for item in value)}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> str:
    found = number(value)
    if found is None:
        return str(value)
    if isinstance(value, int) or abs(found) >= 1000:
        return f"{found:,.0f}"
    return f"{found:.4g}"


def _bytes(value: object) -> str | None:
    found = number(value)
    if found is None:
        return None
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if found >= size:
            return f"{found / size:.3g} {unit}"
    return f"{found:.0f} B"
