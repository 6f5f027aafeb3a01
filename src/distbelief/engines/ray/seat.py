"""The seat of a replica: resources that Ray has set aside on a machine, and an actor that is ready to be a replica."""

import asyncio
from contextlib import suppress
from typing import Any, final

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distbelief.engines.ray.cluster import answer
from distbelief.engines.ray.replica_actor import Place, ReplicaActor, Report

REACHABLE_S = 20.0
"""A machine that does not answer a call for so long is held to be out of reach."""
_ALIVE_S = 2.0
"""A spare that does not answer for so long is no spare."""
_STARTED_S = 120.0
"""For how long an actor may take to start, once it has a machine."""


@final
class Seat:
    """One placement group with one actor, for one incarnation of a replica, or for a spare."""

    def __init__(self, resources: dict[str, float], run: str) -> None:
        self._resources = resources
        self._run = run
        self._group: PlacementGroup | None = None
        self._reserved: asyncio.Future[Any]
        self._actor: Any = None
        self.place: Place

    async def reserve(self, within_s: float | None = None) -> bool:
        """Wait for the resources, for a while or however long; whether they are there."""
        if self._group is None:
            self._group = placement_group([self._resources], strategy="PACK")
            self._reserved = asyncio.ensure_future(answer(self._group.ready()))
        try:
            await asyncio.wait_for(asyncio.shield(self._reserved), within_s)
        except TimeoutError:
            return False
        return True

    async def occupy(self) -> None:
        """Start the actor where the resources are."""
        assert self._group is not None
        options = {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0),
            "num_cpus": self._resources["CPU"],
            "num_gpus": self._resources.get("GPU", 0),
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self._actor = ray.remote(ReplicaActor).options(**options).remote(self._run)
        self.place = await asyncio.wait_for(answer(self._actor.place.remote()), _STARTED_S)

    async def lives(self) -> bool:
        """Whether the actor answers."""
        try:
            await asyncio.wait_for(answer(self._actor.place.remote()), _ALIVE_S)
        except (RayActorError, TimeoutError):
            self.release()
            return False
        return True

    async def attempt(self, socket: str, path: list[str]) -> dict[str, Any] | None:
        """Have the task received, to see whether it can be."""
        told: dict[str, Any] | None = await answer(self._actor.attempt.remote(socket, path))
        return told

    async def begin(self, socket: str, assignment: dict[str, Any]) -> None:
        """Have the replica begin."""
        await asyncio.wait_for(answer(self._actor.begin.remote(socket, assignment)), REACHABLE_S)

    async def report(self) -> Report:
        """What the replica has said. Raises `TimeoutError` where its machine cannot be reached."""
        report: Report = await asyncio.wait_for(answer(self._actor.report.remote()), REACHABLE_S)
        return report

    def send(self, kind: str, content: dict[str, Any]) -> None:
        """Send the replica a message."""
        self._actor.send.remote(kind, content)

    def leave(self) -> None:
        """Tell the replica to leave: what it has is pushed, and what it holds is given back."""
        self._actor.leave.remote()

    def end_if_stopped(self) -> None:
        """Have the process killed if it is stopped."""
        if self._actor is not None:
            self._actor.end_if_stopped.remote()

    def release(self) -> None:
        """End the actor, and with it the replica, and give the resources back: at once, or when they can be reached."""
        with suppress(ValueError):
            if self._actor is not None:
                ray.kill(self._actor)
        if self._group is not None:
            # Of a group that is removed, Ray says so to who still waits for it.
            self._reserved.cancel()
            remove_placement_group(self._group)
        self._group = None
