"""A session of the Ray engine: the time in which this process is in the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

from distbelief.engines.ray import cluster

if TYPE_CHECKING:
    from distbelief.engines.ray import Ray
    from distbelief.engines.ray.ray_driver import RayDriver
    from distbelief.run.prepare import Prepared


@final
class RaySession:
    """It leaves the cluster at its end, if it joined it."""

    def __init__(self, engine: Ray) -> None:
        self._engine = engine
        self._joined = cluster.join(engine.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._joined:
            cluster.leave()

    def expect(self, least: int, most: int) -> None:
        """Look whether there is room for so many replicas. Others may come with machines that come."""
        cluster.require_room(self._engine.resources, least, self._engine.spares)

    def driver(self, prepared: Prepared, **shared: Any) -> RayDriver:
        """A driver for a run."""
        # Not at the top: torch takes seconds to import.
        from distbelief.engines.ray.ray_driver import RayDriver

        return RayDriver(prepared, engine=self._engine, **shared)
