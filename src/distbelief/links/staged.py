"""The staged link: any link, for a replica whose tensors are on a device of their own.

Bytes pass through host memory that the device can reach by itself (page-locked), one copy each way.
"""

from typing import final

import torch
from torch import Tensor

from distbelief.ports import ORIGIN, Answer, Command, Push, Reply, ShardLink, Version


@final
class StagedLink:
    """`ShardLink` that takes and gives tensors of the device, dtype and length of `part`, by way of `link`.

    It waits for its copies, which are ordered after what the caller has begun in its current stream; whoever computes
    in another stream meanwhile is not held up.
    """

    def __init__(self, link: ShardLink, part: Tensor) -> None:
        self.answers_at_once = link.answers_at_once
        self._link = link
        self._device = part.device
        pinned = part.device.type == "cuda"
        self._parameters = torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned)
        self._gradient = torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned)

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        """Fetch to the host, then copy to the device."""
        version = await self._link.fetch(self._parameters, at_least)
        into.copy_(self._parameters, non_blocking=True)
        self._wait()
        return version

    async def push(self, push: Push) -> Reply:
        """Copy to the host, then push from there."""
        staged = [self._gradient[s.start : s.stop] for s in push.slices]
        for host, gradient in zip(staged, push.gradients, strict=True):
            host.copy_(gradient, non_blocking=True)
        self._wait()
        return await self._link.push(push._replace(gradients=staged))

    async def execute(self, command: Command) -> Answer:
        """Pass a command on."""
        return await self._link.execute(command)

    def transferring(self) -> bool:
        """As the link that bytes go by."""
        return self._link.transferring()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
