"""What outlives the controller of a simulated run: chance, the plan of faults, the clock, and the trace."""

import asyncio
import random
from functools import partial
from typing import final

from distbelief.chance import derive
from distbelief.engines.simulated import Simulated
from distbelief.engines.simulated.faults import Plan
from distbelief.engines.simulated.laws import Constant, PerReplica, law_of
from distbelief.engines.simulated.trace import Trace
from distbelief.errors import UsageError
from distbelief.run.prepare import Prepared
from distbelief.server.patience import Patience

_PATIENCE = Patience(1.0, 30.0)


@final
class World:
    """Raises `UsageError` where faults are meant for machines that the run does not have."""

    def __init__(self, engine: Simulated, prepared: Prepared) -> None:
        self.seed = prepared.seed if engine.seed is None else engine.seed
        self.plan = Plan(engine.faults)
        self.plan.check_targets(prepared.replicas, prepared.layout.shards)
        self.deaths = list(self.plan.deaths)
        """Those that have not come yet: one happens once, also if the controller is back at that very instant."""
        self.trace = Trace(prepared.method.admission)
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that gives the time, while the run goes on."""
        # Where no call can be lost, nobody watches the clock for one, and a deadlock is seen at once.
        self.patience = _PATIENCE if engine.network.loss or self.plan.loses_messages else None
        law = law_of("compute", engine.compute)
        if isinstance(law, PerReplica) and (alien := [number for number in law.laws if number >= prepared.replicas]):
            there = f"the run has {prepared.replicas} replicas"
            raise UsageError(f"compute has a law for replica {min(alien)}, but {there}: leave it out, or ask for more")
        until, still = prepared.until, law == law_of("latency", engine.network.latency) == Constant(0.0)
        if still and until.epochs is None and until.examples is None:
            raise UsageError("no time ever passes: give compute or latency more than 0 s, or an end in examples")
        chances = [random.Random(derive(self.seed, "compute", replica)) for replica in range(prepared.replicas)]
        self.draws = [law.draw(chance, replica) for replica, chance in enumerate(chances)]
        """How long the next batch takes, for each replica."""
        self.wire = partial(engine.network.wire, random.Random(derive(self.seed, "network")), self.plan)
        """Gives a wire on which nothing is under way."""
        self._stopped_at = 0.0

    def clock(self) -> float:
        """Virtual seconds."""
        return self._stopped_at if self.loop is None else self.loop.time()

    def stop_clock(self) -> None:
        """What comes now is no part of the run."""
        self._stopped_at, self.loop = self.clock(), None
