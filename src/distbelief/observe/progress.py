"""Progress for the eye: a live table on a terminal, plain lines elsewhere, on standard error."""

import io
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distbelief.observe.events import STAMP, Observer, ReplicaStatus, Status, died_of
from distbelief.observe.streams import Forgiving
from distbelief.run.result import left_outs, refusals

_LINE_S = 5.0
_LONGEST = 80
_EVALUATIONS_S = 1.0
"""How often evaluations are told of, at most: a small task makes dozens a second."""
_WHY = {"interrupted": "Ctrl-C", "terminated": "SIGTERM", "failure": "a failure"}
_REDRAWS_PER_S = 5
_NAMED = 4
"""Parameters that are named in a line."""
_SHOWN = 8
"""Replicas that are told of one by one; of more, how they are together."""


class _Told:
    """Events in sentences: evaluations once in a while, and the last one of a run always."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_evaluation = 0.0

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Print what a person wants to know of it."""
        now = time.monotonic()
        if event == "evaluation" and now < self._next_evaluation:
            return
        if event in ("evaluation", "evaluating"):
            self._next_evaluation = now + _EVALUATIONS_S if event == "evaluation" else 0.0
        if line := sentence(event, content):
            self._print(seconds, line)

    def _print(self, seconds: float, line: str) -> None:
        self._console.print(f"{_clock(seconds)}  {line}", soft_wrap=True)


@final
class Lines(_Told):
    """A line every few seconds, and one for each thing that happens."""

    _next = 0.0

    def status(self, status: Status) -> None:
        """Print a line, if the last one is some time ago."""
        now = time.monotonic()
        # The first waits until there is a speed to tell.
        if status.examples and now >= self._next and (self._next or status.examples_per_second):
            self._next = now + _LINE_S
            told = filter(None, [headline(status), steps(status), _each(status.replicas)])
            self._print(status.seconds, "  ".join(told))


@final
class LiveTable(_Told):
    """A live table, redrawn in place; events are printed above it."""

    def __init__(self, live: Live) -> None:
        super().__init__(live.console)
        self._live = live

    def status(self, status: Status) -> None:
        """Redraw."""
        self._live.update(_drawn(status))


@final
class NotebookTable(_Told):
    """The same table in the output of a notebook's cell, replaced in place; events are printed below it."""

    def __init__(self, console: Console, kernel: Any) -> None:
        super().__init__(console)
        self._display = kernel.display_pub
        self._id = f"distbelief-{id(self)}"
        self._next = 0.0
        self._publish("", update=False)

    def status(self, status: Status) -> None:
        """Replace the table, a few times a second at the most."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + 1 / _REDRAWS_PER_S
            sheet = Console(file=io.StringIO(), width=100, color_system=None, force_jupyter=False)
            with sheet.capture() as drawn:
                sheet.print(_drawn(status))
            self._publish(drawn.get(), update=True)

    def _publish(self, text: str, *, update: bool) -> None:
        self._display.publish({"text/plain": text}, transient={"display_id": self._id}, update=update)


def _each(replicas: Sequence[ReplicaStatus]) -> str:
    """How fast and how stale replicas are; of many, the least and the most."""
    if len(replicas) <= _SHOWN:
        return "  ".join(f"#{r.replica} {r.examples_per_second:,.0f}/s, staleness {r.staleness}" for r in replicas)
    speed, staleness = _ranges(replicas)
    return f"each {speed}/s, staleness {staleness}"


def _ranges(replicas: Iterable[ReplicaStatus]) -> list[str]:
    """From the least to the most, if these differ: speed and staleness."""
    columns = zip(*((r.examples_per_second, r.staleness) for r in replicas), strict=True)
    return [" to ".join(dict.fromkeys(f"{end(column):,.0f}" for end in (min, max))) for column in columns]


def _drawn(status: Status) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("replica", style="cyan")
    table.add_column("")
    for name in ("examples/s", "staleness", "restarts"):
        table.add_column(name, justify="right")
    many = len(status.replicas) > _SHOWN
    kinds: dict[object, list[ReplicaStatus]] = {}
    for replica in status.replicas:
        kinds.setdefault(replica.state if many else replica.replica, []).append(replica)
    for kind, alike in kinds.items():
        name, restarts = count(len(alike), "replica") if many else f"#{kind}", sum(r.restarts for r in alike)
        table.add_row(name, alike[0].state, *_ranges(alike), str(restarts or ""))
    bar = ProgressBar(total=1.0, completed=status.fraction, width=60)
    return Group(table, bar, Text(f"{_clock(status.seconds)}  {headline(status)}"), Text(steps(status)))


def headline(status: Status) -> str:
    """One line on how a run stands."""
    loss = "" if status.loss is None else f"  loss {status.loss:.4f}"
    left = "" if status.remaining_s is None else f"  {_clock(status.remaining_s)} left"
    speed = f"{status.examples_per_second:,.0f}/s"
    return f"epoch {status.epoch:.2f}  {status.examples:,} examples  {speed}{loss}{left}"


def steps(status: Status) -> str:
    """How large the steps are: the learning rate, and the norm of the gradients."""
    known = {"lr": status.learning_rate, "gradient": status.gradient_norm}
    return "  ".join(f"{name} {value:.3g}" for name, value in known.items() if value is not None)


def sentence(event: str, content: dict[str, Any]) -> str:
    """What a person is told of an event; nothing for those that the status shows anyway."""
    match event:
        case "started":
            return _started(content)
        case "resumed":
            return "\n".join([*content["damaged"], _resumed(content)])
        case "checkpoint" if content["error"]:
            return f"the checkpoint could not be written: {content['error']}"
        case "unwritten" if content["name"] != "the last checkpoint":
            return f"{content['name']} could not be written: {content['error']}; the run goes on"
        case "renewed":
            return f"another program has removed {content['name']}: it is there again, and the run goes on"
        case "evaluating":
            return "training has ended; evaluating what was reached"
        case "evaluation":
            numbers = {k: v for k, v in content.items() if k not in STAMP}
            return f"evaluated after {content['examples']:,} examples: {told(numbers)}"
        case "died":
            why = died_of(content)
            why = why if len(why) <= _LONGEST else f"{why[:_LONGEST]}…"
            return f"replica #{content['replica']} died ({why}); what it held is leased again"
        case "left":
            return f"replica #{content['replica']} has left, as it was told to; what it held is leased again"
        case "poisoned":
            indices, why = _listed(list(map(str, content["examples"]))), content["error"].splitlines()[0]
            return f"batch {content['batch']} of epoch {content['epoch']} (examples {indices}) is set aside: {why}"
        case "machine":
            return f"{content['machine']} is {'back' if content['there'] else 'dead'}"
        case "stopped":
            why = _WHY.get(content["stopped_by"], content["stopped_by"])
            done = f"stopped by {why} after {content['examples']:,} examples, {content['updates']:,} updates"
            refused = refusals(content["refused"], content["train_loss"])
            return "; ".join(filter(None, [done, refused, left_outs(content["evaluations_left_out"])]))
        case _:
            return ""


def _started(content: dict[str, Any]) -> str:
    gpus = ", ".join(device for device in content["devices"] if device != "cpu")
    remarks = {
        "; times are simulated": content["engine"] == "simulated",
        "; the test set chooses, since there is no validation set": content["chosen_by"] == "test",
        f"\nthis CPU has no {content['precision']} instructions: float32 is far faster": content["emulated"],
    }
    replicas, shards = count(content["replicas"], "replica"), count(content["shards"], "shard")
    size = f"{content['parameters']:,} parameters, batches of {content['batch_size']}"
    remarked = "".join(
        [*(remark for remark, holds in remarks.items() if holds), *(f"\n{r}" for r in content["remarks"])]
    )
    return f"{replicas}{gpus and f' on {gpus}'}, {shards}, {size}{remarked}"


def _resumed(content: dict[str, Any]) -> str:
    if content["examples"] is None:
        moved = f"; what the earlier run wrote is in {content['earlier']}" if content["earlier"] else ""
        return f"no checkpoint to resume from: begins{moved}"
    fresh = ", ".join(content["fresh_state"])
    state = f"; the checkpoint holds no {fresh} for this optimizer: this state begins anew" if fresh else ""
    for names, what in (
        (content["newly_frozen"], "not trained any more, and kept as it was"),
        (content["newly_trained"], "trained from here on, with optimizer state that begins anew"),
    ):
        state += f"\n{_listed(names)}: {what}" if names else ""
    data = "\nthe training data are not those that the run began with; are they made without a seed?"
    return f"goes on after {content['examples']:,} examples{state}{data if content['other_data'] else ''}"


def _listed(names: Sequence[str]) -> str:
    """Names in a line: the first few, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {count(rest, 'other')}" if rest > 0 else "")


def told(metrics: Mapping[str, float | None]) -> str:
    """Metrics in a line; the test set's are left out where they are those of the set that chooses."""
    repeated = {f"test_{name}" for name, value in metrics.items() if metrics.get(f"test_{name}", math.nan) == value}
    return "  ".join(
        f"{name} {'not finite' if value is None else f'{value:.4f}'}"
        for name, value in metrics.items()
        if name not in repeated
    )


def count(number: int, noun: str) -> str:
    """A number of things: 1 replica, 2 replicas."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


@contextmanager
def watching(progress: bool, *, redrawn: bool = True) -> Iterator[Observer]:
    """The progress that fits where standard error goes; none if it is not wanted.

    Not `redrawn`: lines in any case, so that a debugger in this process has the terminal to itself.
    """
    # Python has none where a program is started without.
    stderr = sys.stderr or io.StringIO()
    file = cast("TextIO", Forgiving(stderr))
    if progress and redrawn and stderr.isatty():
        console = Console(file=file, markup=False, force_jupyter=False)
        with Live(console=console, refresh_per_second=_REDRAWS_PER_S, transient=True) as live:
            yield LiveTable(live)
        return
    lines = Console(file=file, markup=False, width=200, highlight=False, quiet=not progress, force_jupyter=False)
    kernel = _kernel() if progress and redrawn else None
    yield Lines(lines) if kernel is None else NotebookTable(lines, kernel)


def _kernel() -> Any:
    """The shell of the notebook that this code runs in, or None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") and threading.current_thread() is threading.main_thread() else None
