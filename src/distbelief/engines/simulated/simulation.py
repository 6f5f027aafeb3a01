"""A simulated run from its beginning to its end, through all the lives of its controller."""

import asyncio
from dataclasses import dataclass
from typing import Any, final

import torch

from distbelief.engines.memory import available, require
from distbelief.engines.run_record import RunRecord
from distbelief.engines.shard_set import memory_needed
from distbelief.engines.simulated import Simulated
from distbelief.engines.simulated.link import CONTROLLER
from distbelief.engines.simulated.loop import Deadlock, simulate
from distbelief.engines.simulated.simulated_driver import SimulatedDriver
from distbelief.engines.simulated.world import World
from distbelief.errors import InvariantViolated
from distbelief.run.directory import RunDirectory
from distbelief.run.prepare import Prepared, go_on
from distbelief.run.result import Result
from distbelief.task.data import seeded


@final
class Simulation:
    """One run in virtual time, in this thread."""

    def __init__(self, prepared: Prepared, engine: Simulated, *, files: RunDirectory, **shared: Any) -> None:
        require(memory_needed(prepared, models_here=True), available())
        self._prepared = prepared
        self._files = files
        self._world = World(engine, prepared)
        self._parts: dict[str, Any] = {"world": self._world, "files": files, **shared}
        self._driver = SimulatedDriver(prepared, **self._parts)

    @property
    def record(self) -> RunRecord:
        """That of the present life of the controller."""
        return self._driver.record

    def run(self) -> Result:
        """Train to the end.

        Raises `Deadlock` where the controller is dead for good: nobody is left to write down what was reached.
        """
        world, threads = self._world, torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with seeded(world.seed):
                lost: Deadlock | None = None
                try:
                    with self.record.received.interruptible():
                        lost = simulate(self._lives(), seed=world.seed)
                    if lost is None:
                        world.trace.check(self.record.controller.allocator.total)
                except Deadlock as error:
                    world.stop_clock()
                    simulate(self._driver.wind_up(error), seed=world.seed)
                # Whatever it is: what was reached is written first, and then it goes on.
                except BaseException as error:  # noqa: BLE001
                    world.stop_clock()
                    self._driver.abandon(error)
                if lost is not None:
                    raise lost
                result = self.record.result()
        finally:
            torch.set_num_threads(threads)
        result.summary.update(virtual_seconds=round(world.clock(), 3), trace_digest=world.trace.digest)
        return result

    def close(self) -> None:
        """End the threads."""
        self.record.close()

    async def _lives(self) -> Deadlock | None:
        """Live until the run is over; or until the controller is dead for good, and say so."""
        self._world.loop = asyncio.get_running_loop()
        while (death := await self._driver.live()) is not None:
            self._world.trace.note("death of controller")
            self.record.tell("machine", machine=CONTROLLER, there=False)
            if death.back is None:
                return Deadlock(
                    f"no progress is possible after {death.at:g} s: the controller is dead for good; "
                    "what it had written down can be resumed"
                )
            self.record.close()
            await asyncio.sleep(death.back)
            self._resume()
        # Whatever was cancelled has ended once any time has passed, which is no part of the run.
        self._world.stop_clock()
        await asyncio.sleep(1.0)
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            raise InvariantViolated(f"the run is over, and {min(task.get_name() for task in left)} is not")
        return None

    def _resume(self) -> None:
        """A new controller goes on from the newest checkpoint, or begins anew."""
        resumed, complaints = self._files.newest()
        prepared = go_on(self._prepared, resumed)
        self._driver = SimulatedDriver(prepared, **self._parts)
        self.record.tell("machine", machine=CONTROLLER, there=True)
        self.record.tell_resumed(complaints, None)


@final
@dataclass(frozen=True)
class SimulatedSession:
    """A session, which has nothing to prepare: runs are simulated in the thread that asks for it."""

    engine: Simulated

    def expect(self, least: int, most: int) -> None:
        """Nothing is needed for them."""

    def driver(self, prepared: Prepared, **shared: Any) -> Simulation:
        """A simulation of a run."""
        return Simulation(prepared, self.engine, **shared)
