"""The command line."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from distbelief.engines.local.process import Workers
from distbelief.errors import DistBeliefError, UsageError
from distbelief.frames import user_frames

if TYPE_CHECKING:
    from distbelief.downpour.method import Downpour
    from distbelief.observe.events import Observer
    from distbelief.run import Run
    from distbelief.server.admission import Admission
    from distbelief.server.rules import Rule
    from distbelief.task import Task
    from distbelief.until import Until

_WRONG_USAGE = 2
_INTERRUPTED = 130
_RATES = {"adagrad": 0.01, "adam": 0.001, "adamw": 0.001, "sgd": 0.1}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="distbelief")
def main() -> None:
    """Train PyTorch models on machines that are slow, unlike each other, and die."""


@main.command(short_help="Train a ready-made task, or one of a Python file.")
@click.argument("task")
@click.option("--method", type=click.Choice(["downpour"]), default="downpour", show_default=True)
@click.option("--engine", type=click.Choice(["local"]), default="local", show_default=True)
@click.option("--device", default="auto", show_default=True, help="Where replicas compute: auto, cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(["bf16"]), help="Compute in bfloat16 where torch finds it safe.")
@click.option("--threads", type=int, help="Threads of each replica.  [default: the cores, shared out]")
@click.option("--replicas", type=int, help="Copies of the model that train at once.  [default: cores, at most 4]")
@click.option("--shards", type=int, help="Parts of the parameter vector.")
@click.option("--batch-size", type=int, help="Examples a batch and replica.  [default: the task's, else 32]")
@click.option("--optimizer", type=click.Choice(sorted(_RATES)), help="The rule in the shards.  [default: the task's]")
@click.option("--lr", type=float, help="Its learning rate.")
@click.option("--momentum", type=float, help="Its momentum (sgd).")
@click.option("--weight-decay", type=float, help="Its weight decay.")
@click.option("--n-fetch", type=int, help="Batches between fetches.")
@click.option("--n-push", type=int, help="Batches between pushes; what is pushed is their sum.")
@click.option("--warmstart", type=int, help="Examples that one replica works alone before the others begin.")
@click.option("--admission", metavar="POLICY", help="asynchronous, or buffered:M (the mean of M pushes is one update).")
@click.option("--local-optimizer", type=click.Choice(sorted(_RATES)), help="The replica's own step between fetches.")
@click.option("--local-lr", type=float, help="Its learning rate.")
@click.option("--clip-norm", type=float, help="Largest 2-norm of a push.")
@click.option("--overlap", type=int, help="Batches that fetches and pushes may lag behind: 0 or 1.")
@click.option("--with", "arguments", multiple=True, metavar="NAME=VALUE", help="An argument of the task's function.")
@click.option("--epochs", type=int, help="Stop after so many passes over the data, counted from the run's beginning.")
@click.option("--seconds", type=float, help="Stop after so much time of training, resumed runs included.")
@click.option("--examples", type=int, help="Stop after so many examples, resumed runs included.")
@click.option("--target", multiple=True, metavar="NAME=VALUE", help="Stop when a metric is as good as this.")
@click.option("--patience", type=int, help="Stop after so many evaluations in a row that bring nothing better.")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where the run is written.  [default: fresh, in runs/]"
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the directory, or begin.")
@click.option("--from", "start", type=click.Path(path_type=Path), metavar="DIR", help="Begin with the model of a run.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option("--verbose", is_flag=True, help="Show the whole trace of an error.")
def train(task: str, quiet: bool, verbose: bool, **flags: Any) -> None:
    """Train TASK: a ready-made task (digits, speech, speech-paper) or path/to/file.py[:name]."""
    try:
        # The first replica imports torch while this process does.
        with Workers() as workers:
            workers.start(1)
            click.echo(_report(_train(workers, task, quiet, flags)))
    except KeyboardInterrupt as interrupt:
        click.echo(str(interrupt) or "interrupted before training began", err=True)
        sys.exit(_INTERRUPTED)
    # The one place where whatever went wrong, the user's code included, becomes a line and an exit code.
    except Exception as error:  # noqa: BLE001
        _fail(error, verbose=verbose)


@main.command(short_help="Evaluate a run's model on its task's test set.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--verbose", is_flag=True, help="Show the whole trace of an error.")
def evaluate(directory: Path, verbose: bool) -> None:
    """Evaluate the model of the run in DIRECTORY on its task's test set."""
    try:
        from distbelief.loading import load

        metrics = load(directory).evaluate()
    except Exception as error:  # noqa: BLE001
        _fail(error, verbose=verbose)
    click.echo("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


@main.command(short_help="Write what a run's model says of the rows of a .npy file.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT.npy", type=click.Path(path_type=Path))
@click.option("--output", required=True, metavar="OUT.npy", type=click.Path(path_type=Path), help="Where to write.")
@click.option("--verbose", is_flag=True, help="Show the whole trace of an error.")
def predict(directory: Path, inputs: Path, output: Path, verbose: bool) -> None:
    """Write what the model of the run in DIRECTORY says of the rows of INPUT.npy."""
    try:
        import numpy as np

        from distbelief.loading import load

        if not inputs.is_file():
            raise UsageError(f"there is no file {inputs}")
        predictions = load(directory).predict(np.load(inputs, mmap_mode="r", allow_pickle=False)).numpy()
        np.save(output, predictions)
    except Exception as error:  # noqa: BLE001
        _fail(error, verbose=verbose)
    click.echo(f"{len(predictions):,} predictions written to {output}")


def _train(workers: Workers, name: str, quiet: bool, flags: dict[str, Any]) -> Run:
    from distbelief import taskfile
    from distbelief.engines.local import Local
    from distbelief.observe.progress import watching
    from distbelief.training import Request, fulfil

    try:
        engine = Local(device=flags["device"], threads=flags["threads"])
        until = _until(flags)
        task = taskfile.find(name, taskfile.parse_arguments(flags["arguments"]), progress=not quiet)
        method = _method(task, flags)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    watch: AbstractContextManager[Observer] = watching(not quiet)
    request = Request(
        task=task,
        method=method,
        engine=engine,
        until=until,
        directory=flags["directory"],
        resume=flags["resume"],
        start=flags["start"],
        precision=flags["precision"],
        seed=flags["seed"],
    )
    return fulfil(request, workers, watch)


def _until(flags: dict[str, Any]) -> Until | None:
    from distbelief.taskfile import parse_arguments
    from distbelief.until import Until

    ends = {name: flags[name] for name in ("epochs", "seconds", "examples", "patience") if flags[name] is not None}
    if flags["target"]:
        ends["target"] = parse_arguments(flags["target"])
    return Until(**ends) if ends else None


def _method(task: Task, flags: dict[str, Any]) -> Downpour:
    """The task's own method, with what the flags say instead."""
    from distbelief.downpour.method import Downpour

    method = task.suggested_method or Downpour()
    composed = {"optimizer", "local_optimizer", "admission"}
    fields = {field.name for field in dataclasses.fields(Downpour)} & flags.keys() - composed
    changes = {name: flags[name] for name in fields if flags[name] is not None}
    if flags["admission"] is not None:
        changes["admission"] = _admission(flags["admission"])
    if flags["local_optimizer"] is not None or flags["local_lr"] is not None:
        own = {"optimizer": flags["local_optimizer"], "lr": flags["local_lr"]}
        changes["local_optimizer"] = _rule(method.local_optimizer or method.optimizer, own)
    return dataclasses.replace(method, optimizer=_rule(method.optimizer, flags), **changes)


def _admission(text: str) -> Admission:
    from distbelief.server.admission import Asynchronous, Buffered

    name, _, number = text.partition(":")
    if name == "asynchronous" and not number:
        return Asynchronous()
    if name == "buffered" and number.isdigit():
        return Buffered(int(number))
    raise UsageError(f'--admission takes "asynchronous" or "buffered:M", such as buffered:2, not {text!r}')


def _rule(rule: Rule, flags: dict[str, Any]) -> Rule:
    """The task's own rule, or the one that is asked for, with the numbers that are asked for."""
    from distbelief.server import rules

    kinds: dict[str, Any] = {"adagrad": rules.Adagrad, "adam": rules.Adam, "adamw": rules.AdamW, "sgd": rules.SGD}
    if (name := flags["optimizer"]) is not None and not isinstance(rule, kinds[name]):
        rule = kinds[name](_RATES[name])
    numbers = {n: flags[n] for n in ("lr", "momentum", "weight_decay") if flags.get(n) is not None}
    fields = {field.name for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    if alien := numbers.keys() - fields:
        raise UsageError(f"{type(rule).__name__} has no {', '.join(sorted(alien))}")
    return dataclasses.replace(rule, **numbers)  # type: ignore[type-var]


def _report(run: Run) -> str:
    """What a person wants to know of a run that has ended."""
    from distbelief.observe.progress import told

    s, staleness = run.summary, run.summary["staleness"]
    lines = [
        f"{s['examples']:,} examples in {s['seconds']:.1f} s ({s['examples_per_second']:,.0f}/s), "
        f"{s['updates']:,} updates, stopped by {s['stopped_by']}",
        f"staleness: median {staleness['median']}, 99 % {staleness['p99']}, largest {staleness['max']} updates",
    ]
    if s["train_loss"] is not None:
        lines.append(told({"train_loss": s["train_loss"], **s["metrics"]}))
    elif s["metrics"]:
        lines.append(told(s["metrics"]))
    if s["restarts"] or s["rejected"]:
        account = ", ".join(f"{count:,} {name}" for name, count in s["account"].items())
        lines.append(f"replicas replaced: {s['restarts']}; pushes rejected: {s['rejected']}; examples: {account}")
    return "\n".join([*lines, f"written to {run.directory}"])


def _fail(error: Exception, *, verbose: bool) -> NoReturn:
    """One line for what we detect ourselves, the user's own frames for what their code raised."""
    if verbose:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        sys.exit(error.exit_code)
    if type(error) is UsageError:
        click.echo(f"Error: {error}", err=True)
        sys.exit(_WRONG_USAGE)
    if not isinstance(error, DistBeliefError):
        click.echo(user_frames(error), err=True, nl=False)
    message = (
        str(error) if isinstance(error, DistBeliefError) else "".join(traceback.format_exception_only(error)).strip()
    )
    click.echo(f"distbelief: {message}", err=True)
    sys.exit(1)
