"""What a worker is told: everything that the replicas of a run have in common, and what is its own."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from distbelief.errors import TaskError
from distbelief.links.keys import Keys
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


def search_path() -> list[str]:
    """Where this process looks for modules: a worker looks there first."""
    return list(map(str, sys.path))


def assignment(
    replica: int,
    incarnation: int,
    here: Sequence[int],
    servers: Sequence[tuple[int, str]] = (),
    keys: Keys | None = None,
    codec: str = "float32",
) -> dict[str, Any]:
    """What is a worker's own, as its message says it.

    `here`: the shards in the memory that it is handed. `servers`: each other shard with the address that serves it, to
    which `keys` belong. `codec`: how gradients are encoded on the way there.
    """
    return {
        "replica": replica,
        "incarnation": incarnation,
        "here": here,
        "servers": servers,
        "keys": None if keys is None else [key.decode() for key in keys.for_client()],
        "codec": codec,
        "path": search_path(),
    }


def not_received(whom: str, answer: Mapping[str, Any]) -> TaskError:
    """The error of a task that could not be unpacked where it was sent, by a worker's answer to "try"."""
    told = f"{answer['error']}\n\n{answer['frames']}".strip()
    return TaskError(
        f"the task cannot be received by {whom}: define what is named here in a file that can be imported there, or "
        f"inside the function that uses it: {told}"
    )
