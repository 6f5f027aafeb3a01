"""The command line."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from distbelief.cli.flags import (
    RATES,
    SectionedCommand,
    as_flags,
    at_once,
    downpour,
    end,
    engine_of,
    often,
    told_rates,
)
from distbelief.engines.signals import requests_raise
from distbelief.errors import DataError, DistBeliefError, Diverged, TaskError, UsageError
from distbelief.observe.streams import forgive
from distbelief.task.tracebacks import user_frames

if TYPE_CHECKING:
    from distbelief.engines.engine import Engine, Session
    from distbelief.run.run import Run

_WRONG_USAGE = 2
_INTERRUPTED = 130
_SETS = click.Choice(["test", "validation", "train"])
_PATH = click.Path(path_type=Path)
_PLACE = click.Path()
"""A folder, or a URL, which is no path."""
_TASK = click.option(
    "--task", metavar="TASK", help="The task of the run, as it is given to train.  [default: where it was found then]"
)
_RULE = click.Choice(sorted(RATES))
_PASSED = (
    "directory",
    "resume",
    "start",
    "precision",
    "evaluate_every",
    "wait_for_evaluations",
    "checkpoint_every",
    "seed",
)
"""Flags that are arguments of `distbelief.train` as they are."""


def _failing_in_words(command: Callable[..., None]) -> Callable[..., None]:
    """A command that says what went wrong in a line, and ends with a code; with --verbose also where."""

    @click.option("--verbose", is_flag=True, help="Show the whole trace of an error.")
    @functools.wraps(command)
    def run(verbose: bool, **given: Any) -> None:
        try:
            command(**given)
        # The one place where whatever went wrong, the user's code included, becomes a line and an exit code.
        except Exception as error:  # noqa: BLE001
            _fail(error, verbose=verbose)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="distbelief")
def main() -> None:
    """Train PyTorch models on machines that are slow, unlike each other, and die."""
    forgive()


@main.command(cls=SectionedCommand, short_help="Train a ready-made task, or one of a Python file.")
@click.argument("task")
@click.option("--method", type=click.Choice(["downpour"]), default="downpour", show_default=True)
@click.option("--engine", type=click.Choice(["local", "ray", "simulated"]), default="local", show_default=True)
@click.option(
    "--simulation",
    type=_PATH,
    metavar="FILE.toml",
    help="Laws of time, network and faults of the simulated engine.  [default: 0.1 s a batch, no faults]",
)
@click.option("--device", default="auto", show_default=True, help="Where replicas compute: auto, cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(["bf16"]), help="Compute in bfloat16 where torch finds it safe.")
@click.option("--threads", type=int, help="Threads of each replica.  [default: the cores, shared out]")
@click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster.  [default: RAY_ADDRESS, else this machine]")
@click.option("--cpus", type=int, help="CPUs of each replica on a Ray cluster.  [default: 1]")
@click.option("--gpus", type=int, help="GPUs of each replica on a Ray cluster.  [default: 0]")
@click.option("--spares", type=int, help="Replicas kept ready on a Ray cluster.  [default: 0]")
@click.option(
    "--codec",
    type=click.Choice(["float32", "bf16", "int8"]),
    help="How gradients travel between a Ray cluster's machines.  [default: float32]",
)
@click.option("--trusted-network", is_flag=True, help="Do not encrypt what goes between a Ray cluster's machines.")
@click.option(
    "--replicas",
    callback=at_once,
    metavar="NUMBER",
    help="Copies of the model that train at once; the least and the most: 4-16.  [default: cores, at most 4]",
)
@click.option("--shards", type=int, help="Parts of the parameter vector.  [default: 1; of a large one, a replica each]")
@click.option("--batch-size", type=int, help="Examples a batch and replica.  [default: 32]")
@click.option("--optimizer", type=_RULE, help="The rule in the shards.  [default: adagrad]")
@click.option("--lr", type=float, help=f"Its learning rate.  [default: {told_rates()}]")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "cosine", "linear"]),
    help="How the rate, which is its peak, comes down by the run's end.  [default: the task's; constant]",
)
@click.option("--warmup", type=float, help="Where it rises at first: a part of the run, or examples.  [default: 0]")
@click.option("--floor", type=float, help="What it comes down to, a part of the peak.  [default: 0]")
@click.option("--momentum", type=float, help="Its momentum (sgd).  [default: 0]")
@click.option("--weight-decay", type=float, help="Its weight decay.  [default: 0; adamw 0.01]")
@click.option("--n-fetch", type=int, help="Batches between fetches.  [default: 1]")
@click.option("--n-push", type=int, help="Batches between pushes; what is pushed is their sum.  [default: 1]")
@click.option("--warmstart", type=int, help="Examples that one replica works alone at first.  [default: 0]")
@click.option(
    "--admission",
    metavar="POLICY",
    help="asynchronous; staleness-scaled (the rate is divided by it); bounded:N (what is staler is refused); paced:N "
    "(nobody is more steps ahead of the slowest); buffered:M (the mean of M pushes is one update).  "
    "[default: asynchronous]",
)
@click.option(
    "--local-optimizer", type=_RULE, help="The replica's own step between fetches.  [default: as in the shards]"
)
@click.option("--local-lr", type=float, help="Its learning rate.")
@click.option("--clip-norm", type=float, help="Largest 2-norm of a push.  [default: no limit]")
@click.option("--tolerate", type=int, help="Batches at which replicas die that may be set aside.  [default: 0]")
@click.option("--overlap", type=click.Choice(["0", "1"]), help="Batches transfers may lag behind.  [default: 0; Ray 1]")
@click.option("--average", type=float, help="Decay of an average of the parameters, as 0.999.  [default: none]")
@click.option("--with", "arguments", multiple=True, metavar="NAME=VALUE", help="An argument of the task's function.")
@click.option("--epochs", type=int, help="Passes over the data.  [default: 10, if no end is given]")
@click.option("--seconds", type=float, help="Time of training.")
@click.option("--examples", type=int, help="Examples.")
@click.option("--target", multiple=True, metavar="NAME=VALUE", help="A metric as good as this, as accuracy=0.9.")
@click.option("--patience", type=int, help="Evaluations in a row that bring nothing better.")
@click.option("--monitor", metavar="NAME", help="The metric that says which is better.  [default: the first, or loss]")
@click.option("--min-delta", type=float, help="By how much an evaluation must be better for --patience.  [default: 0]")
@click.option("--directory", type=_PLACE, help="Where the run is written: a folder or URL.  [default: fresh, in runs/]")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the newest checkpoint of the directory, or begin. Ends count from the run's beginning.",
)
@click.option("--from", "start", type=_PLACE, metavar="DIR", help="Begin with the model of a run.")
@click.option(
    "--evaluate-every", callback=often, metavar="OFTEN", help="30s, 5m, or examples: 20000.  [default: each epoch]"
)
@click.option("--wait-for-evaluations", is_flag=True, help="One for each epoch: train on once it has begun.")
@click.option("--checkpoint-every", callback=often, metavar="OFTEN", help="The same.  [default: 60s, and at the end]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of data, model and chance.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@_failing_in_words
def train(task: str, quiet: bool, **flags: Any) -> None:
    """Train TASK: a ready-made task (digits, speech, speech-paper) or path/to/file.py[:name].

    A task may bring a method and an end of its own, which take the place of the defaults below.
    """
    try:
        engine = _engine(flags)
        # The first replica imports torch while this process does.
        with requests_raise(), engine.open() as session:
            session.expect(1, 1)
            click.echo(_report(_train(engine, session, task, quiet, flags)))
    except KeyboardInterrupt as interrupt:
        click.echo(str(interrupt) or "interrupted before training began", err=True)
        sys.exit(_INTERRUPTED)


@main.command(short_help="Evaluate a run's model on data of its task.")
@click.argument("directory", type=_PLACE)
@click.option("--set", "name", type=_SETS, help="Which of the task's data.  [default: test, else validation]")
@_TASK
@_failing_in_words
def evaluate(directory: str, name: str | None, task: str | None) -> None:
    """Evaluate the model of the run in DIRECTORY on data of its task."""
    from distbelief.observe.progress import told

    run = _load(directory, task)
    name = name or run.judged_by
    click.echo(f"{name}: {told(run.evaluate(name))}")


@main.command(short_help="Write what a run's model says of the rows of a .npy file.")
@click.argument("directory", type=_PLACE)
@click.argument("inputs", metavar="INPUT.npy", type=_PATH)
@click.option("--output", required=True, metavar="OUT.npy", type=_PATH, help="Where to write.")
@_TASK
@_failing_in_words
def predict(directory: str, inputs: Path, output: Path, task: str | None) -> None:
    """Write what the model of the run in DIRECTORY says of the rows of INPUT.npy."""
    run, rows = _load(directory, task), _read(inputs)
    # Before the work of predicting is done.
    if not output.parent.is_dir():
        raise UsageError(f"there is no folder {output.parent} to write {output.name} to")
    count = _write(output, run.predict(rows))
    click.echo(f"{count:,} predictions written to {output}")


@main.command(short_help="Write a page about runs: curves, staleness, speeds, deaths, settings.")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=_PLACE)
@click.option(
    "--output",
    metavar="FILE.html",
    type=_PATH,
    help="Where to write.  [default: report.html in the run's directory, of several runs here]",
)
@_failing_in_words
def report(directories: tuple[str, ...], output: Path | None) -> None:
    """Write a page about the run in DIR, or about several runs compared, and its pictures to a folder beside it.

    The page is one file and needs no network. Runs that are at work or were killed are shown as far as they came.
    """
    from distbelief.observe.report.output import write_report

    click.echo(write_report(directories, output))


@main.command(short_help="Show the runs that are at work on a Ray cluster.")
@click.option(
    "--address", metavar="HOST:PORT", help="Of the cluster.  [default: RAY_ADDRESS, else that of this machine]"
)
@_failing_in_words
def status(address: str | None) -> None:
    """Show each run that is at work on a Ray cluster: what is on which machine, how fast, how stale, how far."""
    from distbelief.cli.status import show_runs

    show_runs(address)


@main.command(short_help="Look whether this machine can train, and what is missing.")
def doctor() -> None:
    """Look at this machine, train for a moment, and say what is missing and what to do about it.

    Exit code 1 where nothing can be trained, else 0.
    """
    from distbelief.cli.doctor import examine, shown

    try:
        findings = shown(examine(Path("runs")))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(any(verdict.state == "wrong" for _, verdict in findings))


def _load(directory: str, task: str | None) -> Run:
    from distbelief.run import written
    from distbelief.run.run import load
    from distbelief.run.store import reading
    from distbelief.task import taskfile

    if task is None:
        return load(directory)
    with reading(directory, ["task.json"]) as folder:
        origin = folder / "task.json"
        arguments = written.content(origin).get("arguments", {}) if origin.is_file() else {}
    return load(directory, taskfile.find(task, arguments))


def _engine(flags: dict[str, Any]) -> Engine:
    try:
        return engine_of(flags)
    except UsageError as error:
        # Of a simulation's file, in its own words: not those of flags.
        raise click.UsageError(str(error)) from error


def _train(engine: Engine, session: Session, name: str, quiet: bool, flags: dict[str, Any]) -> Run:
    from distbelief.task import taskfile
    from distbelief.training import Request, fulfil, own_end

    try:
        task = taskfile.find(name, taskfile.parse_arguments(flags["arguments"]), progress=not quiet)
        until = end(flags, lambda: own_end(task))
        method = downpour(task, flags)
    except UsageError as error:
        raise click.UsageError(as_flags(str(error))) from error
    asked = {name: flags[name] for name in _PASSED}
    request = Request(task, method, engine=engine, until=until, progress=not quiet, **asked)
    return fulfil(request, session)


def _report(run: Run) -> str:
    """What a person wants to know of a run that has ended."""
    from distbelief.observe.progress import told
    from distbelief.run.result import left_outs, refusals

    s, staleness = run.summary, run.summary["staleness"]
    account = ", ".join(f"{count:,} {name}" for name, count in s["account"].items())
    simulated = " of simulated time" if "virtual_seconds" in s else ""
    speed = f"{s['seconds']:.1f} s{simulated} ({s['examples_per_second']:,.0f}/s)"
    stale = f"median {staleness['median']}, 99 % {staleness['p99']}, largest {staleness['max']}"
    lines = [
        f"{s['examples']:,} examples in {speed}, {s['updates']:,} updates, stopped by {s['stopped_by']}",
        f"account: {account}",
        f"staleness: {stale} updates between fetch and push",
    ]
    if s["restarts"] or s["rejected"]:
        lines.append(f"replicas replaced: {s['restarts']}; pushes rejected: {s['rejected']}")
    loss = {} if s["train_loss"] is None else {"train_loss": s["train_loss"]}
    if refused := refusals(s["account"]["refused"], s["train_loss"]):
        lines.append(refused)
    if left_out := left_outs(s["evaluations_left_out"]):
        lines.append(as_flags(left_out))
    if numbers := loss | s["metrics"]:
        lines.append(told(numbers))
    if s["resumed_at"] == sum(s["account"].values()):
        lines.append("nothing was left to do: the run had come to this end before; give a later one, such as --epochs")
    return "\n".join([*lines, f"written to {run.directory}"])


def _read(path: Path) -> Any:
    """The array of a .npy file, mapped."""
    import numpy as np

    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    # What numpy raises of files that are empty, cut short, of several arrays or objects, or something else altogether.
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as one array of numbers: write it with numpy.save") from error


def _write(path: Path, predictions: Any) -> int:
    """Write predictions under that very name, and return how many there are."""
    import numpy as np
    import torch

    if not isinstance(predictions, torch.Tensor):
        raise TaskError(
            f"the model gives {type(predictions[0]).__name__} and not a tensor, for which .npy has no place: "
            "use distbelief.load(directory).predict(x) in Python"
        )
    if predictions.dtype == torch.bfloat16:
        predictions = predictions.float()
    try:
        with path.open("wb") as file:
            np.save(file, predictions.numpy())
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}): name another place") from error
    return len(predictions)


def _fail(error: Exception, *, verbose: bool) -> NoReturn:
    """One line for what we detect ourselves, the user's own frames for what their code raised."""
    if verbose:
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        sys.exit(error.exit_code)
    ours = isinstance(error, DistBeliefError)
    if not ours:
        click.echo(user_frames(error), err=True, nl=False)
    message = str(error) if ours else "".join(traceback.format_exception_only(error)).strip()
    notes = getattr(error, "__notes__", ()) if ours and not isinstance(error, UsageError) else ()
    # As click itself says what was wrong with a flag.
    for line in (as_flags(message) if isinstance(error, UsageError | Diverged) else message, *notes):
        click.echo(f"Error: {line}", err=True)
    sys.exit(_WRONG_USAGE if type(error) is UsageError else 1)
