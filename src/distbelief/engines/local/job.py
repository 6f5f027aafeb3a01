"""What a worker is told: everything that the replicas of a run have in common."""

import dataclasses
from dataclasses import dataclass
from typing import Self

from torch import nn

from distbelief.run.prepare import Prepared
from distbelief.server.block import ShardSpec


@dataclass(frozen=True)
class Job:
    """A run, as its replicas see it."""

    run: Prepared
    """Without what only the controller needs: data but for `rows`, the module, and what the run goes on from."""
    specs: list[ShardSpec]
    devices: tuple[str, ...]
    """Where replicas compute, in turn."""
    threads: int
    buffers: int
    """Elements in the module's buffers."""

    @classmethod
    def of(cls, run: Prepared, specs: list[ShardSpec], devices: tuple[str, ...], threads: int, buffers: int) -> Self:
        """The job of a run that is about to begin."""
        task = run.task.without_data()
        sent = dataclasses.replace(run, task=task, origin=task, module=nn.Module(), sets={}, resumed=None)
        return cls(sent, specs, devices, threads, buffers)
