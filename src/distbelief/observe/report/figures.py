"""A run in words and figures: what it came to, and what was asked for and decided."""

from typing import Any

from distbelief.observe.report.log import mapping, number
from distbelief.observe.report.picture import compact
from distbelief.observe.report.record import Record

_DEEPEST = 8
"""Levels of a setting that are told of."""
_FIGURES = (
    *("stopped_by", "examples", "updates", "epochs", "seconds", "virtual_seconds", "examples_per_second", "train_loss"),
    *("metrics", "restarts", "deaths", "rejected", "staleness", "account", "bytes"),
)
_CALLED = {
    "examples_per_second": "examples/s",
    "train_loss": "training loss",
    "restarts": "replicas replaced",
    "rejected": "pushes rejected",
}
_SEVERAL = {"metrics": "", "staleness": "staleness, ", "account": "examples ", "bytes": ""}
"""Those that are several figures, and what each of their names begins with."""
_DECIDED = ("replicas", "shards", "batch_size")
_MORE = ("seed", "precision", "devices", "parameters", "examples_per_epoch", "chosen_by")
_LIMITS = {"epochs": "epochs", "examples": "examples", "seconds": "seconds_limit"}


def came_to(record: Record) -> dict[str, str]:
    """What a run came to, in words, by what each figure is."""
    told: dict[str, Any] = {}
    for name in _FIGURES:
        value = record.reached.get(name)
        if name == "bytes":
            value = {which: _bytes(size) for which, size in mapping(value).items()}
        if name in _SEVERAL:
            told |= {f"{_SEVERAL[name]}{which}": one for which, one in mapping(value).items()}
        else:
            told[_CALLED.get(name, name.replace("_", " "))] = value
    return {name: _number(value) for name, value in told.items() if value is not None}


def settings_of(record: Record) -> dict[str, str]:
    """Everything that was asked for and decided, in words, by its name."""
    known, task = record.started | record.summary, record.task
    asked = {name: value for name, value in record.method.items() if name not in ("format", "kind")}
    told = {"task": record.what(), "method": record.method.get("kind"), **asked, "engine": known.get("engine")}
    # Where these were asked for as they are, they are told of once.
    told |= {f"{name}, decided": known.get(name) for name in _DECIDED if asked.get(name) != known.get(name)}
    told |= {name: known.get(name) for name in _MORE}
    told |= {f"limit: {name}": record.started.get(field) for name, field in _LIMITS.items()}
    told |= {"trace_digest": known.get("trace_digest"), "arguments": task.get("arguments")}
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


def _number(value: object) -> str:
    found = number(value)
    if found is None:
        return str(value)
    return f"{found:,.0f}" if isinstance(value, int) or abs(found) >= 1000 else f"{found:.4g}"


def _bytes(value: object) -> str | None:
    found = number(value)
    return None if found is None else f"{compact(found, gap=' ')}B"
