"""A Ray cluster of several machines that are one, what may be done to it, and that nothing of a run is left there."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import pytest
from ray.cluster_utils import Cluster
from torch import Tensor, nn

import distbelief as db
from tests import problems

ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
SPOT = {"ray.io/market-type": "spot"}
"""Of machines that hold no shards where there are others."""
_PATIENCE_S = 120.0
ON_ONE_CLUSTER = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(400)]
"""The tests of a cluster share it, one after the other; the machines of it are a dozen processes of one machine."""


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"no {what} within {_PATIENCE_S} s"
        time.sleep(0.05)


@final
class Machines:
    """The cluster: a head with one CPU, on which the shards lie, and a machine that may be taken away, with a CPU and a
    GPU that is none: who asks for it is placed there.
    """

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        # The head ends with this process, however that ends, and other machines with the head. To have it so for each,
        # Ray would set handlers of signals, which a run has set, and which no other thread can.
        self._cluster._shutdown_at_exit = False
        try:
            self._away = self.add()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """That of its head."""
        return str(self._cluster.address)

    def add(self, *, cpus: int = 1, gpus: int = 1, steady: bool = False) -> Any:
        """Another machine."""
        labels = {} if steady else SPOT
        return self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, labels=labels, include_dashboard=False)

    def kill(self, node: Any) -> None:
        """A machine is gone, without a word."""
        if node in self._cluster.worker_nodes:
            self._cluster.remove_node(node, allow_graceful=False)
            wait_until(lambda: node.node_id not in self._living(), "notice of a death")

    def _living(self) -> set[str]:
        nodes: list[dict[str, Any]] = self._cluster.global_state.node_table()
        return {node["NodeID"] for node in nodes if node["Alive"]}

    @contextmanager
    def with_another(self, **what: Any) -> Iterator[Any]:
        """Another machine, for a while."""
        node = self.add(**what)
        try:
            yield node
        finally:
            self.kill(node)

    def actors(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The actors that live, or are to."""
        found = self._cluster.global_state.actor_table(None).values()
        return [actor for actor in found if actor["State"] != "DEAD" and kind in (None, actor["ActorClassName"])]

    def pid_of(self, kind: str, node: Any) -> int:
        """The process of the actor of a kind on a machine."""
        (pid,) = (actor["Pid"] for actor in self.actors(kind) if actor["Address"]["NodeID"] == node.node_id)
        return int(pid)

    @property
    def head(self) -> Any:
        """The machine that stays."""
        return self._cluster.head_node

    @property
    def away(self) -> Any:
        """The machine with the GPU."""
        return self._away

    def check_nothing_is_left(self) -> None:
        """No actor, no placement group, and all resources are free, some seconds after a run."""
        wait_until(lambda: not self._left(), f"end of {self._left()}")

    def _left(self) -> list[str]:
        state = self._cluster.global_state
        groups = [g["placement_group_id"] for g in state.placement_group_table().values() if g["state"] != "REMOVED"]
        available = state.available_resources_per_node()
        taken = [
            f"{total[name] - available.get(node, {}).get(name, 0.0):g} {name} of {node}"
            for node, total in state.total_resources_per_node().items()
            for name in total
            if name in ("CPU", "GPU") and available.get(node, {}).get(name, 0.0) != total[name]
        ]
        return [*(f"{a['ActorClassName']} {a['ActorID']}" for a in self.actors()), *groups, *taken]

    def close(self) -> None:
        """End it."""
        self._cluster.shutdown()


@dataclass(frozen=True)
class Gate:
    """A loss at whose batch `after` each process waits until it may pass; not the one that has made it."""

    folder: Path
    after: int = 5
    maker: int = field(default_factory=os.getpid)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        if os.getpid() != self.maker:
            count = _counts[self.folder] = _counts.get(self.folder, 0) + 1
            if count == self.after:
                (self.folder / f"waits-{os.getpid()}").touch()
                while not any((self.folder / name).exists() for name in ("open", f"passes-{os.getpid()}")):
                    time.sleep(0.01)
        return nn.functional.cross_entropy(prediction, target)

    @property
    def waiting(self) -> list[int]:
        """The processes that have come to it, in order."""
        paths = sorted(self.folder.glob("waits-*"), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.name.partition("-")[2]) for path in paths]

    def wait_for(self, processes: int) -> list[int]:
        """Wait until so many have come; returns them."""
        wait_until(lambda: len(self.waiting) >= processes or self._is_open, f"{processes} replicas at work")
        assert len(self.waiting) >= processes, f"the run ended before {processes} were at work"
        return self.waiting

    @property
    def _is_open(self) -> bool:
        return (self.folder / "open").exists()

    def let_pass(self, pid: int) -> None:
        """Let one of them pass."""
        (self.folder / f"passes-{pid}").touch()

    def open(self) -> None:
        """Let all pass, also those who come later."""
        (self.folder / "open").touch()


_counts: dict[Path, int] = {}


@contextmanager
def meanwhile(gate: Gate, replicas: int, happen: Callable[[list[int]], object]) -> Iterator[None]:
    """What happens beside a run once so many of its replicas wait at the gate, which is opened afterwards.

    `happen` is given their processes.
    """

    def wait_and_open() -> None:
        try:
            happen(gate.wait_for(replicas))
        finally:
            gate.open()

    with ThreadPoolExecutor(1) as pool:
        happened = pool.submit(wait_and_open)
        try:
            yield
        except BaseException:
            gate.open()
            raise
        happened.result()


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)


def check_gone(pids: Iterable[int]) -> None:
    """Processes have ended, or do so soon."""
    wait_until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], f"end of {pids}")


EXAMPLES, EPOCHS = 640, 2
WHOLE = {"used": EPOCHS * EXAMPLES, "refused": 0, "dropped": 0, "partial": 0, "poisoned": 0}


def train(engine: Any, loss: Any = None, **changes: Any) -> db.Run:
    """A run of two replicas that uses each example twice. `changes`: to the method, and `asked` of `train`."""
    given: dict[str, Any] = {"replicas": 2, "shards": 2, "batch_size": 16}
    asked = changes.pop("asked", {})
    return db.train(
        problems.task(loss=loss or nn.CrossEntropyLoss(), metrics={}),
        db.Downpour(**given | changes),
        engine=engine,
        until=db.Until(epochs=EPOCHS),
        progress=False,
        **asked,
    )


@final
class Events:
    """A callback that keeps what happens in a run."""

    def __init__(self) -> None:
        self._all: list[Mapping[str, Any]] = []

    def __call__(self, event: Mapping[str, Any], run: object) -> None:
        self._all.append(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Those of a kind, in order."""
        return [event for event in self._all if event["event"] == kind]
