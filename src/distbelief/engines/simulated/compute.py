"""Computing in virtual time: all replicas share one module, into which each one's parameters go for a moment."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from distbelief.allocation import Progress, Replica
from distbelief.engines.assembly import assemble
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.simulated.simulated_process import SimulatedProcess
from distbelief.engines.simulated.world import World
from distbelief.ports import Gradient, ShardLink, WorkSource
from distbelief.run.prepare import Prepared
from distbelief.task.gradients import FlatModule, ModuleGradients

Watch = Callable[[Progress], None]
LEAST_S = 1e-6
"""Every batch takes some time, so that time passes whatever the law says."""
_EPOCHS = 3
"""Epochs in which replicas are at a time, some ahead of others."""


@final
class SharedModule:
    """One module that computes for every replica; what moves in it besides parameters lies on the table."""

    def __init__(self, prepared: Prepared, world: World, table: ProgressTable) -> None:
        self._prepared = prepared
        self.world = world
        self._table = table
        self._flat = FlatModule(prepared.task.build(prepared.seed).train(), prepared.layout, prepared.mutable_buffers)
        batches = prepared.batches(epochs=_EPOCHS)
        self._gradients = ModuleGradients(
            prepared.task, self._flat, batches, seed=prepared.seed, precision=prepared.precision
        )
        self.computing = 0
        """How many replicas are at it."""

    def replica(self, process: SimulatedProcess, links: Sequence[ShardLink], work: WorkSource, watch: Watch) -> Replica:
        """The replica of a process, which computes with it."""
        parameters = torch.empty(self._prepared.layout.length, dtype=self._prepared.layout.dtype)
        return assemble(
            self._prepared,
            links,
            *process.who,
            source=TimedGradients(self, process.replica, parameters),
            work=work,
            parameters=parameters,
            stopping=lambda: process.leaving or self._table.stopping,
            watch=watch,
            patience=self.world.patience,
        )

    async def gradient(self, replica: int, parameters: Tensor, epoch: int, batch: int) -> Gradient:
        """The gradient at a replica's parameters, in no time."""
        self._table.begin(replica, epoch, batch)
        self._flat.vector.copy_(parameters)
        if self._prepared.mutable_buffers:
            self._flat.load_buffers_(self._table.buffers[replica])
        gradient = await self._gradients.gradient(epoch, batch)
        if self._prepared.mutable_buffers:
            self._table.buffers[replica] = self._flat.buffers()
        # A constraint in the module's forward changes the replica's own parameters, as on every engine.
        parameters.copy_(self._flat.vector)
        return gradient

    def buffers(self, replica: int) -> Tensor:
        """A replica's row of buffers."""
        return self._table.buffers[replica]


@final
@dataclass(eq=False)
class TimedGradients:
    """`GradientSource` of one replica, for which a batch takes as long as its law and its machine's faults say."""

    shared: SharedModule
    replica: int
    parameters: Tensor

    def __post_init__(self) -> None:
        self._kept = self.shared.buffers(self.replica).clone()

    def keep(self) -> None:
        """Keep the replica's mutable buffers as they are now."""
        self._kept.copy_(self.shared.buffers(self.replica))

    def undo(self) -> None:
        """Give them back the values that they had at the last `keep`."""
        self.shared.buffers(self.replica).copy_(self._kept)

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """Take the time, then compute: nobody has touched the parameters meanwhile."""
        now, world = asyncio.get_running_loop().time(), self.shared.world
        seconds = max(world.draws[self.replica](), LEAST_S)
        self.shared.computing += 1
        try:
            await asyncio.sleep(world.plan.finish(f"replica {self.replica}", now, seconds) - now)
        finally:
            self.shared.computing -= 1
        return await self.shared.gradient(self.replica, self.parameters, epoch, batch)
