"""The flags of the command line: how they are taken, shown, spoken of, and what they mean."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, final

import click

from distbelief.errors import UsageError
from distbelief.run.until import ENDS, Every, Until

if TYPE_CHECKING:
    from collections.abc import Callable

    from distbelief.downpour.method import Downpour
    from distbelief.engines.engine import Engine
    from distbelief.server.admission import Admission
    from distbelief.server.rules import Rule
    from distbelief.server.schedules import Schedule
    from distbelief.task.task import Task

RATES = {"adagrad": 0.01, "adam": 0.001, "adamw": 0.001, "sgd": 0.1}
"""The learning rate of each rule, where neither the task nor the user has one."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SECTIONS = {
    "Method": (
        "method replicas shards batch_size optimizer lr schedule warmup floor momentum weight_decay n_fetch n_push "
        "warmstart admission local_optimizer local_lr clip_norm tolerate overlap average"
    ).split(),
    "Machine": "engine simulation device precision threads address cpus gpus spares codec trusted_network".split(),
    "End, whichever comes first": "epochs examples seconds target patience monitor min_delta".split(),
    "Run": "directory resume start evaluate_every wait_for_evaluations checkpoint_every seed".split(),
}


def often(ctx: click.Context, param: click.Parameter, value: str | None) -> Every | None:
    """What a person means by how often, in time or in examples: `30s`, `5m`, `1h`, `20000`."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)([smh])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is neither a time, such as 30s or 5m, nor examples, such as 20000")
    try:
        return Every(examples=int(match[1])) if match[1] else Every(seconds=float(match[2]) * _UNITS[match[3]])
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


def at_once(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, int] | None:
    """What a person means by how many replicas: `4`, or the least and the most, `4-16`."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is neither a number, such as 4, nor the least and the most, such as 4-16")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


@final
class SectionedCommand(click.Command):
    """A command whose help shows its many flags by what they are about."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each subject, and one for what is left."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {p.name: record for p in options if (record := p.get_help_record(ctx)) is not None}
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([records.pop(name) for name in names if name in records])
        with formatter.section("Other"):
            formatter.write_dl(list(records.values()))


def as_flags(sentence: str) -> str:
    """A sentence about keywords of Python as one about flags: `n_fetch=1` is --n-fetch 1, and `resume=True` --resume.

    A keyword of one word, such as replicas, is left as the word that it is.
    """
    names = "|".join(name for section in _SECTIONS.values() for name in section)
    sentence = re.sub(rf"(?<![\w-])({names})=True\b", lambda m: _flag(m[1]), sentence)
    sentence = re.sub(rf"(?<![\w-])({names})=(?=\w)", lambda m: f"{_flag(m[1])} ", sentence)
    return re.sub(rf"(?<![\w-])({names})(?![\w=-])", lambda m: _flag(m[1]) if "_" in m[1] else m[1], sentence)


def told_rates() -> str:
    """The rates in a line of help."""
    return ", ".join(f"{name} {rate:g}" for name, rate in RATES.items())


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def end(flags: dict[str, Any], otherwise: Callable[[], Until]) -> Until | None:
    """When the run is to end, and by what it is judged, if the flags say so; `otherwise`: its end without them."""
    names = ("epochs", "seconds", "examples", "patience", "monitor", "min_delta")
    given = {name: flags[name] for name in names if flags[name] is not None}
    if flags["target"]:
        given["target"] = dict(map(_target, flags["target"]))
    if not given:
        return None
    return Until(**given) if given.keys() & set(ENDS) else dataclasses.replace(otherwise(), **given)


def _target(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise UsageError(f"--target takes a metric and its value, such as accuracy=0.9, not {text!r}") from error


def downpour(task: Task, flags: dict[str, Any]) -> Downpour:
    """The method of the run that is resumed, or else the task's own, with what the flags say instead."""
    from distbelief.downpour.method import Downpour
    from distbelief.training import own_method

    method = own_method(task, flags["directory"] if flags["resume"] else None)
    fields = {field.name for field in dataclasses.fields(Downpour)}
    changes = {name: value for name, value in flags.items() if name in fields and value is not None}
    changes["optimizer"] = _rule(method.optimizer, flags)
    if "overlap" in changes:
        changes["overlap"] = int(flags["overlap"])
    if "admission" in changes:
        changes["admission"] = _admission(flags["admission"])
    if flags["local_optimizer"] is not None or flags["local_lr"] is not None:
        own = {"optimizer": flags["local_optimizer"], "lr": flags["local_lr"]}
        changes["local_optimizer"] = _rule(method.local_optimizer or method.optimizer, own)
    return dataclasses.replace(method, **changes)


def engine_of(flags: dict[str, Any]) -> Engine:
    """The engine that the flags say."""
    from distbelief.cli.simulation_file import read
    from distbelief.engines.local import Local
    from distbelief.engines.ray import Ray
    from distbelief.engines.simulated import Simulated

    if flags["simulation"] is not None and flags["engine"] != "simulated":
        raise UsageError("--simulation is for the simulated engine: add --engine simulated")
    of_ray = {name: flags[name] for name in ("address", "cpus", "gpus", "spares", "codec") if flags[name] is not None}
    if flags["engine"] == "ray":
        if flags["threads"] is not None:
            raise UsageError("--threads is for the local engine: on a cluster a replica has as many as it has --cpus")
        return Ray(device=flags["device"], encrypted=not flags["trusted_network"], **of_ray)
    if of_ray or flags["trusted_network"]:
        raise UsageError(f"{_flag(next(iter([*of_ray, 'trusted_network'])))} is for a cluster: add --engine ray")
    if flags["engine"] == "local":
        return Local(device=flags["device"], threads=flags["threads"])
    if flags["device"] not in ("auto", "cpu") or flags["threads"] is not None:
        raise UsageError("the simulated engine computes with one thread of the CPU: leave out --device and --threads")
    return Simulated() if flags["simulation"] is None else read(flags["simulation"])


def _admission(text: str) -> Admission:
    from distbelief.server.admission import Asynchronous, Bounded, Buffered, Paced, StalenessScaled

    kinds: dict[str, Callable[..., Admission]] = {"asynchronous": Asynchronous, "staleness-scaled": StalenessScaled}
    kinds |= {"bounded:N": Bounded, "paced:N": Paced, "buffered:N": Buffered}
    name, colon, number = text.partition(":")
    kind = kinds.get(f"{name}:N" if colon else name)
    if kind is None or (colon and not number.isdigit()):
        raise UsageError(f"--admission takes one of {', '.join(kinds)}, such as buffered:2, not {text!r}")
    try:
        return kind(int(number)) if colon else kind()
    except UsageError as error:
        raise UsageError(f"--admission {text} cannot be: {error}") from error


def _rule(rule: Rule, flags: dict[str, Any]) -> Rule:
    """The task's own rule, or the one that is asked for, with the numbers that are asked for."""
    from distbelief.server import rules

    kinds: dict[str, Any] = {"adagrad": rules.Adagrad, "adam": rules.Adam, "adamw": rules.AdamW, "sgd": rules.SGD}
    if (name := flags["optimizer"]) is not None and not isinstance(rule, kinds[name]):
        rule = kinds[name](RATES[name], groups=getattr(rule, "groups", {}))
    numbers = {n: flags[n] for n in ("momentum", "weight_decay") if flags.get(n) is not None}
    if (lr := _rate(rule.lr, flags)) is not rule.lr:
        numbers["lr"] = lr
    fields = {field.name for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    if alien := numbers.keys() - fields:
        names = ", ".join(sorted(alien))
        raise UsageError(f"{type(rule).__name__} has no {names}: leave it out, or choose another --optimizer")
    return dataclasses.replace(rule, **numbers)  # type: ignore[type-var]


def _rate(lr: float | Schedule, flags: dict[str, Any]) -> float | Schedule:
    """A rule's own learning rate or schedule, or what the flags make of it."""
    from distbelief.server.schedules import Cosine, Linear

    name, shape = flags.get("schedule"), {n: flags[n] for n in ("warmup", "floor") if flags.get(n) is not None}
    own = lr if isinstance(lr, Cosine | Linear) else None
    peak: float | Schedule = flags["lr"] if flags["lr"] is not None else own.peak if own else lr
    if own and isinstance(peak, int | float) and name in (None, type(own).__name__.lower()):
        return dataclasses.replace(own, peak=peak, **shape)
    if name in (None, "constant"):
        if shape:
            raise UsageError(f"--{next(iter(shape))} belongs to a schedule: give --schedule cosine or linear")
        return peak
    if not isinstance(peak, int | float):
        raise UsageError(f"--schedule {name} takes the place of {lr!r}: give its peak, as in --lr 0.1")
    return Cosine(peak, **shape) if name == "cosine" else Linear(peak, **shape)
