"""A Ray cluster: how it is joined or started, which settings of Ray's matter, and what is on which machine."""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbelief.errors import UsageError

NAMESPACE = "distbelief"
_ANSWER_S = 5.0
SPOT = ("ray.io/market-type", "spot")
"""The label by which Ray's own cluster managers mark a machine that may be taken away."""
_NO_TOKEN = (
    "it wants its token, and this process has another one or none: set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token "
    "from the cluster's head to this machine"
)
SETTINGS = {
    # Ray's workers would give way to every other process of their machine.
    "RAY_worker_niceness": "0",
    # Nothing is sent to the makers of Ray.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Each line a replica prints is shown, with its origin.
    "RAY_DEDUP_LOGS": "0",
    # Ray leaves the list of visible GPUs alone where none is asked for, as it will by default: else it warns of that.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What is set before Ray is started or joined."""


def join(address: str | None) -> bool:
    """Join a cluster, or start one here; returns whether this process has to leave it.

    Raises `UsageError` where there is no Ray, nothing answers, or the cluster runs other versions.
    """
    # Before the import, which is when Ray reads some of them.
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UsageError("the Ray engine needs Ray: pip install 'distbelief[ray]'") from error
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("local", "auto"):
        _require_answer(address)
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            logging_level=logging.ERROR,
            log_to_driver=True,
            configure_logging=False,
            include_dashboard=False if address == "local" else None,
        )
    # Ray tells of other versions by RuntimeError, and of everything else that goes wrong by these.
    except (RuntimeError, ConnectionError, TimeoutError, OSError, ValueError) as error:
        where = "Ray cannot be started here" if address == "local" else f"the Ray cluster at {address} cannot be joined"
        raise UsageError(f"{where}: {_NO_TOKEN if _lacks_token(error) else _first_sentence(error)}") from error
    return True


def join_running(address: str | None) -> bool:
    """Join a cluster that is there; without an address that in RAY_ADDRESS, or the one on this machine.

    Returns whether this process has to leave it. Raises `UsageError` where none answers.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        return join(address)
    except UsageError as error:
        if address != "auto":
            raise
        raise UsageError("no Ray cluster runs on this machine: give the --address of one, as HOST:PORT") from error


def leave() -> None:
    """Leave the cluster; one that was started here ends."""
    import ray

    ray.shutdown()


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"nothing answers at {address} ({error}): give the address that `ray start --head` shows, and see that "
            "this machine can reach it"
        ) from error


def _lacks_token(error: BaseException | None) -> bool:
    return error is not None and ("InvalidAuthToken" in str(error) or _lacks_token(error.__cause__))


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:500] or type(error).__name__


def nodes() -> list[dict[str, Any]]:
    """The machines that live, this one first."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: (n["NodeID"] != here, n["NodeID"]))


def room(resources: Mapping[str, float]) -> int:
    """How many replicas find room on the machines, if nothing else runs there."""
    fits = [min(int(n["Resources"].get(name, 0) // much) for name, much in resources.items()) for n in nodes()]
    return sum(fits)


def require_room(resources: Mapping[str, float], replicas: int, spares: int) -> None:
    """Raise `UsageError` where the cluster is too small."""
    if room(resources) >= replicas + spares:
        return
    asked = ", ".join(f"{much:g} {name}" for name, much in resources.items())
    there = "; ".join(
        f"{n['NodeManagerHostname']} ({n['NodeManagerAddress']}): "
        + ", ".join(f"{n['Resources'].get(name, 0):g} {name}" for name in resources)
        for n in nodes()
    )
    kept = f" and {spares} spare" if spares else ""
    raise UsageError(
        f"the cluster is too small for {replicas}{kept} replicas of {asked} each; there are: {there}. Choose fewer "
        "replicas, or less for each of them"
    )


def shard_nodes(shards: int) -> list[str]:
    """The machine of each shard, by its id: those that may be taken away only where there are no others."""
    living = nodes()
    steady = [n for n in living if n.get("Labels", {}).get(SPOT[0]) != SPOT[1]] or living
    return [steady[number % len(steady)]["NodeID"] for number in range(shards)]


async def answer(reference: Any) -> Any:
    """Await what an actor answers. What its method raised is raised as it was.

    Raises `RayActorError` where the actor has died, or its machine was gone before it could begin.
    """
    from ray.exceptions import ActorDiedError, ActorPlacementGroupRemoved, ActorUnschedulableError, RayTaskError

    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from error
    except (ActorUnschedulableError, ActorPlacementGroupRemoved) as error:
        raise ActorDiedError from error


def draining() -> set[str]:
    """The machines that are about to be taken away, by their ids. Ray tells its own libraries in no other way."""
    from ray._private import state

    return set(state.state.get_draining_nodes())


def on_node(node: str) -> Any:
    """The strategy that places an actor on a machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def settle_process() -> int:
    """Undo, in an actor, what Ray's defaults do to a process. Returns the niceness that is left."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.pop(name, None)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with suppress(OSError):
        # Where memory runs out, Ray and the kernel are to end replicas first: each sets a higher one for itself.
        Path("/proc/self/oom_score_adj").write_text("0")
    return os.getpriority(os.PRIO_PROCESS, 0)


def versions() -> dict[str, str]:
    """What has to be the same on all machines."""
    import platform
    from importlib import metadata

    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": metadata.version("torch"),
        "distbelief": metadata.version("distbelief"),
    }


def require_versions(machine: str, theirs: Mapping[str, str]) -> None:
    """Raise `UsageError` where a machine has other versions than this one."""
    ours = versions()
    if other := [name for name in ours if theirs[name] != ours[name]]:
        told: Sequence[str] = [f"{name} {theirs[name]}, and not {ours[name]} as here" for name in other]
        raise UsageError(f"{machine} has {'; '.join(told)}: install the same on all machines")
