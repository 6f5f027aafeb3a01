"""The board of a run: a named actor on the cluster that holds how the run stands, for `distbelief status`.

It belongs to the driver, and dies with it. No two runs on a cluster have the same name.
"""

import functools
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from distbelief.engines.ray.cluster import NAMESPACE, nodes, on_node
from distbelief.engines.ray.metrics import Metrics
from distbelief.errors import UsageError
from distbelief.observe.events import STAMP, Observer, Status

_PREFIX = "run "
_SHOW_S = 1.0
_FREED_S = 5.0
"""For how long the name of a run whose process was killed may still be taken."""
_READ_S = 5.0


class MachineStatus(NamedTuple):
    """What of a run is on a machine."""

    name: str
    shards: tuple[int, ...]
    replicas: tuple[int, ...]


@dataclass(frozen=True)
class RunStatus:
    """A run on the cluster as seen at one moment."""

    directory: str
    controller: str
    """The machine of the run's own process."""
    status: Status
    machines: tuple[MachineStatus, ...]
    deaths: int
    evaluated_after: int | None
    """Examples before the last evaluation."""
    metrics: Mapping[str, float | None]
    """Of the last evaluation."""


@final
class BoardActor:
    """Holds the last status that it was given."""

    def __init__(self, controller: str) -> None:
        self.controller = controller
        self._shown: RunStatus | None = None
        self._at = time.monotonic()

    def whose(self) -> str:
        """The machine of the run's own process."""
        return self.controller

    def show(self, status: RunStatus) -> None:
        """Keep a status."""
        self._shown, self._at = status, time.monotonic()

    def read(self) -> tuple[RunStatus | None, float]:
        """The last status, None before the first, and how many seconds ago it was given."""
        return self._shown, time.monotonic() - self._at


@final
class Board:
    """An observer that also shows what it sees on the cluster, and tells Prometheus; `seen` is told everything."""

    def __init__(self, seen: Observer, directory: str) -> None:
        self._seen = seen
        self._directory = directory
        self._actor = _named(directory)
        self._metrics = Metrics(directory)
        self._machines: Callable[[], tuple[MachineStatus, ...]] = tuple
        self._deaths = 0
        self._evaluation: Mapping[str, Any] = {}
        self._next = 0.0

    def follow(self, machines: Callable[[], tuple[MachineStatus, ...]]) -> None:
        """Show from now on what is on which machine."""
        self._machines = machines

    def event(self, event: str, seconds: float, **content: Any) -> None:
        """Remember evaluations and deaths."""
        self._deaths += event == "died"
        if event == "evaluation":
            self._evaluation = content
        self._seen.event(event, seconds, **content)

    def status(self, status: Status) -> None:
        """Show it, about once a second."""
        self._seen.status(status)
        if (now := time.monotonic()) >= self._next:
            self._next = now + _SHOW_S
            self._metrics.set(status, self._deaths)
            self._actor.show.remote(self._status(status))

    def _status(self, status: Status) -> RunStatus:
        metrics = {name: value for name, value in self._evaluation.items() if name not in STAMP}
        after = self._evaluation.get("examples")
        here = socket.gethostname()
        return RunStatus(self._directory, here, status, self._machines(), self._deaths, after, metrics)

    def close(self) -> None:
        """End the actor."""
        ray.kill(self._actor)


def _named(directory: str) -> Any:
    """A new board. Raises `UsageError` where a run of that name is at work on the cluster."""
    start = functools.partial(
        ray.remote(BoardActor)
        .options(
            name=f"{_PREFIX}{directory}",
            namespace=NAMESPACE,
            num_cpus=0,
            scheduling_strategy=on_node(nodes()[0]["NodeID"]),
        )
        .remote,
        socket.gethostname(),
    )
    until = time.monotonic() + _FREED_S
    while True:
        try:
            return start()
        # Ray's word for a name that is taken.
        except ValueError as error:
            if time.monotonic() >= until:
                raise UsageError(
                    f"a run in {directory} is at work on this cluster, begun on {_begun_on(directory)}: choose another "
                    "directory, or wait for its end; if its machine is dead, Ray knows after a minute"
                ) from error
            time.sleep(0.5)


def _begun_on(directory: str) -> str:
    try:
        held: Any = ray.get_actor(f"{_PREFIX}{directory}", namespace=NAMESPACE)
        return str(ray.get(held.whose.remote(), timeout=_READ_S))
    except (ValueError, RayActorError, GetTimeoutError):
        return "a machine that does not answer"


def runs() -> list[tuple[RunStatus, float]]:
    """The runs at work on the cluster that this process has joined, and how old what is known of each is, in seconds.

    A run that is only beginning is not among them.
    """
    found: list[tuple[RunStatus, float]] = []
    for name in sorted(ray.util.list_named_actors()):
        if not name.startswith(_PREFIX):
            continue
        try:
            actor: Any = ray.get_actor(name, namespace=NAMESPACE)
            shown, age = cast("tuple[RunStatus | None, float]", ray.get(actor.read.remote(), timeout=_READ_S))
        # It has ended meanwhile, or its machine is gone.
        except (ValueError, RayActorError, GetTimeoutError):
            continue
        if shown is not None:
            found.append((shown, age))
    return found
