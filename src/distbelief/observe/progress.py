"""Progress for the eye: a live table on a terminal, plain lines elsewhere, on standard error."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TextIO, cast, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distbelief.observe.events import Observer, ReplicaStatus, Status, how_ended

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


@final
class Silent:
    """Shows nothing."""

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Nothing."""

    def status(self, status: Status) -> None:
        """Nothing."""


class _Throttle:
    """Lets evaluations pass once in a while, and the last one of a run always."""

    def __init__(self) -> None:
        self._next = 0.0

    def passes(self, event: str) -> bool:
        if event == "evaluating":
            self._next = 0.0
        if event != "evaluation":
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _EVALUATIONS_S
        return True


@final
class Lines:
    """A line every few seconds, and one for each thing that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._throttle = _Throttle()

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Print what a person wants to know of it."""
        if not self._throttle.passes(event):
            return
        if line := sentence(event, content):
            self._console.print(f"{_clock(seconds)}  {line}", soft_wrap=True)

    def status(self, status: Status) -> None:
        """Print a line, if the last one is some time ago."""
        now = time.monotonic()
        # The first waits until there is a speed to tell.
        if status.examples and now >= self._next and (self._next or status.examples_per_second):
            self._next = now + _LINE_S
            self._console.print(
                f"{_clock(status.seconds)}  {headline(status)}  {_each(status.replicas)}", soft_wrap=True
            )


@final
class LiveTable:
    """A live table, redrawn in place; events are printed above it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._throttle = _Throttle()

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Print it above the table."""
        if not self._throttle.passes(event):
            return
        if line := sentence(event, content):
            self._live.console.print(f"{_clock(seconds)}  {line}", soft_wrap=True)

    def status(self, status: Status) -> None:
        """Redraw."""
        self._live.update(_drawn(status))


def _each(replicas: Sequence[ReplicaStatus]) -> str:
    """How fast and how stale replicas are; of many, the least and the most."""
    if len(replicas) <= _SHOWN:
        return "  ".join(f"#{r.replica} {r.examples_per_second:,.0f}/s, staleness {r.staleness}" for r in replicas)
    return (
        f"each {_range(r.examples_per_second for r in replicas)}/s, staleness {_range(r.staleness for r in replicas)}"
    )


def _range(values: Iterable[float]) -> str:
    ordered = sorted(values)
    low, high = f"{ordered[0]:,.0f}", f"{ordered[-1]:,.0f}"
    return low if low == high else f"{low} to {high}"


def _row(name: str, replicas: Sequence[ReplicaStatus]) -> tuple[str, ...]:
    restarts = sum(r.restarts for r in replicas)
    speeds, staleness = (r.examples_per_second for r in replicas), (r.staleness for r in replicas)
    return name, replicas[0].state, _range(speeds), _range(staleness), str(restarts) if restarts else ""


def _drawn(status: Status) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("replica", "", "examples/s", "staleness", "restarts"):
        table.add_column(
            name, justify="left" if name in ("replica", "") else "right", style="cyan" if name == "replica" else ""
        )
    if len(status.replicas) <= _SHOWN:
        rows = [_row(f"#{r.replica}", [r]) for r in status.replicas]
    else:
        states = dict.fromkeys(r.state for r in status.replicas)
        alike = [[r for r in status.replicas if r.state == state] for state in states]
        rows = [_row(count(len(replicas), "replica"), replicas) for replicas in alike]
    for row in rows:
        table.add_row(*row)
    bar = ProgressBar(total=1.0, completed=status.fraction, width=60)
    return Group(table, bar, Text(f"{_clock(status.seconds)}  {headline(status)}"))


def headline(status: Status) -> str:
    """One line on how a run stands."""
    parts = [f"epoch {status.epoch:.2f}", f"{status.examples:,} examples", f"{status.examples_per_second:,.0f}/s"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if status.remaining_s is not None:
        parts.append(f"{_clock(status.remaining_s)} left")
    return "  ".join(parts)


def sentence(event: str, content: dict[str, Any]) -> str:
    """What a person is told of an event; nothing for those that the status shows anyway."""
    if event == "started":
        gpus = ", ".join(device for device in content["devices"] if device != "cpu")
        return (
            f"{count(content['replicas'], 'replica')}{gpus and f' on {gpus}'}, {count(content['shards'], 'shard')}, "
            f"{content['parameters']:,} parameters, batches of {content['batch_size']}"
            + ("; times are simulated" if content["engine"] == "simulated" else "")
            + ("; the test set chooses, since there is no validation set" if content["chosen_by"] == "test" else "")
            + (
                f"\nthis CPU has no {content['precision']} instructions: float32 is far faster"
                if content["emulated"]
                else ""
            )
        )
    if event == "resumed":
        return "\n".join([*content["damaged"], _resumed(content)])
    if event == "checkpoint" and content["error"]:
        return f"the checkpoint could not be written: {content['error']}"
    if event == "unwritten" and content["name"] != "the last checkpoint":
        return f"{content['name']} could not be written: {content['error']}; the run goes on"
    if event == "evaluating":
        return "training has ended; evaluating what was reached"
    if event == "evaluation":
        numbers = {k: v for k, v in content.items() if isinstance(v, float) and k not in ("epoch", "seconds")}
        return f"evaluated after {content['examples']:,} examples: {told(numbers)}"
    if event == "died":
        return f"replica #{content['replica']} died ({_why(content)}); what it held is leased again"
    if event == "machine":
        return f"{content['machine']} is {'back' if content['there'] else 'dead'}"
    if event == "stopped":
        why = _WHY.get(content["stopped_by"], content["stopped_by"])
        return f"stopped by {why} after {content['examples']:,} examples, {content['updates']:,} updates"
    return ""


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


def told(metrics: dict[str, float]) -> str:
    """Metrics in a line; the test set's are left out where they are those of the set that chooses."""
    return "  ".join(
        f"{name} {value:.4f}"
        for name, value in metrics.items()
        if not (name.startswith("test_") and metrics.get(name.removeprefix("test_")) == value)
    )


def _why(content: dict[str, Any]) -> str:
    if content["error"]:
        line = str(content["error"]).splitlines()[0]
        return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
    return how_ended(content["status"])


def count(number: int, noun: str) -> str:
    """A number of things: 1 replica, 2 replicas."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class _Forgiving:
    """Standard error as long as somebody reads it. A run does not end because nobody does any more."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _console(**options: Any) -> Console:
    return Console(file=cast("TextIO", _Forgiving(sys.stderr)), markup=False, **options)


@contextmanager
def _live() -> Iterator[Observer]:
    with Live(console=_console(), refresh_per_second=_REDRAWS_PER_S, transient=True) as live:
        yield LiveTable(live)


@contextmanager
def _plain(observer: Observer) -> Iterator[Observer]:
    yield observer


def watching(progress: bool, *, redrawn: bool = True) -> AbstractContextManager[Observer]:
    """The progress that fits where standard error goes; none if it is not wanted.

    Not `redrawn`: lines in any case, so that a debugger in this process has the terminal to itself.
    """
    if not progress:
        return _plain(Silent())
    if redrawn and sys.stderr.isatty():
        return _live()
    return _plain(Lines(_console(width=200, highlight=False)))
