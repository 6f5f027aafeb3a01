"""A session of the simulated engine, which has nothing to prepare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

if TYPE_CHECKING:
    from distbelief.engines.simulated import Simulated
    from distbelief.engines.simulated.simulation import Simulation
    from distbelief.run.prepare import Prepared


@final
class SimulatedSession:
    """Runs are simulated in the thread that asks for it."""

    def __init__(self, engine: Simulated) -> None:
        self._engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def expect(self, replicas: int) -> None:
        """Nothing is needed for them."""

    def driver(self, prepared: Prepared, **shared: Any) -> Simulation:
        """A simulation of a run."""
        from distbelief.engines.simulated.simulation import Simulation

        return Simulation(prepared, self._engine, **shared)
