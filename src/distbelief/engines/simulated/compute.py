"""Computing in virtual time: all replicas share one module, into which each one's parameters go for a moment."""

import asyncio
from typing import final

from torch import Tensor

from distbelief.engines.board import Board
from distbelief.engines.simulated.faults import Plan
from distbelief.engines.simulated.laws import Draw
from distbelief.ports import Gradient
from distbelief.run.prepare import Prepared
from distbelief.task.data import Batches
from distbelief.task.gradients import FlatModule, ModuleGradients

LEAST_S = 1e-6
"""Every batch takes some time, so that time passes whatever the law says."""
_EPOCHS = 3
"""Epochs in which replicas are at a time, some ahead of others."""


@final
class SharedModule:
    """One module that computes for every replica; what moves in it besides parameters lies on the board."""

    def __init__(self, prepared: Prepared, board: Board) -> None:
        self._flat = FlatModule(prepared.task.build(prepared.seed).train(), prepared.layout, prepared.moving)
        batches = Batches(prepared.rows, prepared.batch_size, prepared.seed, epochs=_EPOCHS)
        self._gradients = ModuleGradients(
            prepared.task, self._flat, batches, seed=prepared.seed, precision=prepared.precision
        )
        self.computing = 0
        """How many replicas are at it."""
        self._moving = board.buffers if prepared.moving else None

    async def gradient(self, replica: int, parameters: Tensor, epoch: int, batch: int) -> Gradient:
        """The gradient at a replica's parameters, in no time."""
        self._flat.vector.copy_(parameters)
        if self._moving is not None:
            self._flat.load_buffers_(self._moving[replica])
        gradient = await self._gradients.gradient(epoch, batch)
        if self._moving is not None:
            self._moving[replica] = self._flat.buffers()
        return gradient


@final
class TimedGradients:
    """`GradientSource` of one replica, for which a batch takes as long as its law and its machine's faults say."""

    def __init__(self, shared: SharedModule, replica: int, parameters: Tensor, *, draw: Draw, plan: Plan) -> None:
        self._shared = shared
        self._replica = replica
        self._parameters = parameters
        self._draw = draw
        self._plan = plan

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        """Take the time, then compute: nobody has touched the parameters meanwhile."""
        now = asyncio.get_running_loop().time()
        seconds = max(self._draw(), LEAST_S)
        self._shared.computing += 1
        try:
            await asyncio.sleep(self._plan.finish(f"replica {self._replica}", now, seconds) - now)
        finally:
            self._shared.computing -= 1
        return await self._shared.gradient(self._replica, self._parameters, epoch, batch)
