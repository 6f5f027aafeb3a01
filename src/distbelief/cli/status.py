"""What `distbelief status` prints: the runs that are at work on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distbelief.engines.ray import Ray
from distbelief.engines.ray.cluster import join_running, leave
from distbelief.observe.events import ReplicaStatus
from distbelief.observe.progress import count, headline, told

if TYPE_CHECKING:
    from distbelief.engines.ray.board import RunStatus

_OLD_S = 3.0
"""A status that is older says so."""


def show_runs(address: str | None) -> None:
    """Print the runs at work on a cluster. Raises `UsageError` where none answers."""
    joined = join_running(Ray(address=address).address)
    # Only now: where there is no Ray, joining says so.
    from distbelief.engines.ray.board import runs

    try:
        found = runs()
    finally:
        if joined:
            leave()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for number, (run, age_s) in enumerate(found):
        if number:
            console.print()
        for line in lines(run, age_s):
            console.print(line)
        console.print(table(run))
    if not found:
        console.print("No run is at work on this cluster.")


def lines(run: RunStatus, age_s: float) -> list[str]:
    """What is said of a run before its table."""
    age = f", as of {age_s:.0f} s ago" if age_s > _OLD_S else ""
    machines = count(len(run.machines), "machine")
    deaths = f", {count(run.deaths, 'death')}" if run.deaths else ""
    said = [
        f"{run.directory}, begun on {run.controller}{age}",
        f"{run.status.seconds:,.0f} s  {headline(run.status)}",
        f"{machines}, {count(len(run.status.replicas), 'replica')}, {run.status.updates:,} updates{deaths}",
    ]
    if run.evaluated_after is not None:
        said.append(f"evaluated after {run.evaluated_after:,} examples: {told(run.metrics)}")
    return said


def table(run: RunStatus) -> Table:
    """A row for each machine with shards only, and for each replica."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("machine", "shards", "replica", ""):
        drawn.add_column(name)
    for name in ("examples/s", "staleness", "restarts"):
        drawn.add_column(name, justify="right")
    left = {replica.replica: replica for replica in run.status.replicas}
    for machine in run.machines:
        name, shards = machine.name, ", ".join(map(str, machine.shards))
        for cells in [_cells(left.pop(number)) for number in machine.replicas if number in left] or [()]:
            drawn.add_row(name, shards, *cells)
            name = shards = ""
    for replica in left.values():
        drawn.add_row("", "", *_cells(replica))
    return drawn


def _cells(replica: ReplicaStatus) -> tuple[str, ...]:
    speed, restarts = f"{replica.examples_per_second:,.0f}", str(replica.restarts or "")
    return f"#{replica.replica}", replica.state, speed, str(replica.staleness), restarts
