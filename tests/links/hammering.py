"""Processes that all push to one shard in shared memory. They are forked from a server that has imported torch once."""

import dataclasses
import fcntl
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from distbelief.chance import generator
from distbelief.links.mapped import SharedMemory, map_locks, map_shards
from distbelief.ports import Verdict
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.rules import SGD, Rule, Vectors
from distbelief.server.shard import Shard
from tests.shards import make_push

ELEMENTS = 5000
PUSHES = 200

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.links.hammering"])


@dataclasses.dataclass(frozen=True)
class KilledInside:
    """Plain SGD whose process is killed when half of the parameters are changed, in its second update."""

    lr = 1.0
    state: dict[str, float] = dataclasses.field(default_factory=dict)
    updates: list[int] = dataclasses.field(default_factory=list)

    def update_(
        self, parameters: Vectors, gradients: Vectors, state: Sequence[Vectors], step: Tensor, rate: float
    ) -> None:
        half = len(parameters[0]) // 2
        parameters[0][:half] -= rate * gradients[0][:half]
        if self.updates:
            os.kill(os.getpid(), signal.SIGKILL)
        parameters[0][half:] -= rate * gradients[0][half:]
        self.updates.append(1)


def new_shard() -> tuple[SharedMemory, ShardSpec, Shard]:
    """A shard of zeros in shared memory."""
    spec = ShardSpec(ELEMENTS, torch.float32, SGD(1.0), Asynchronous(), 8)
    memory = SharedMemory.create(spec.nbytes, "test")
    (shard,) = map_shards(memory, [spec], map_locks(memory, 1))
    shard.initialise_(torch.zeros(ELEMENTS))
    return memory, spec, shard


def gradients(replica: int) -> Tensor:
    """What a replica pushes (pushes, elements): whole numbers, so that no order of additions changes their sum."""
    drawn = torch.randint(-8, 9, (PUSHES, ELEMENTS), generator=generator(0, "hammer", replica))
    return drawn.float()


def mapped(controller: int, fd: int, spec: ShardSpec, rule: Rule | None = None) -> Shard:
    """The shard as another process maps it, with a descriptor and a file description of its own."""
    memory = SharedMemory(os.open(f"/proc/{controller}/fd/{fd}", os.O_RDWR))
    (shard,) = map_shards(memory, [dataclasses.replace(spec, rule=rule or spec.rule)], map_locks(memory, 1))
    return shard


def hammer(controller: int, fd: int, spec: ShardSpec, replica: int) -> None:
    """Push everything."""
    torch.set_num_threads(1)
    shard = mapped(controller, fd, spec)
    for sequence, gradient in enumerate(gradients(replica), 1):
        assert shard.push(make_push(gradient, sequence, replica=replica)).verdict is Verdict.APPLIED


def count(controller: int, fd: int, spec: ShardSpec, replica: int) -> None:
    """Push ones, so that every parameter counts the pushes."""
    torch.set_num_threads(1)
    shard = mapped(controller, fd, spec)
    for sequence in range(1, PUSHES + 1):
        shard.push(make_push(torch.ones(ELEMENTS), sequence, replica=replica))


def die_inside(controller: int, fd: int, spec: ShardSpec, replica: int) -> None:
    """Push twice, and be killed inside the second."""
    torch.set_num_threads(1)
    shard = mapped(controller, fd, spec, KilledInside())
    for sequence in (1, 2):
        shard.push(make_push(torch.ones(ELEMENTS), sequence, replica=replica))


def hold(controller: int, fd: int, byte: int, holding: "multiprocessing.synchronize.Event") -> None:
    """Hold a lock until killed."""
    own = os.open(f"/proc/{controller}/fd/{fd}", os.O_RDWR)
    fcntl.lockf(own, fcntl.LOCK_EX, 1, byte)
    holding.set()
    signal.pause()


@contextmanager
def running(target: object, *arguments: tuple[object, ...]) -> Iterator[list[multiprocessing.process.BaseProcess]]:
    """Processes that run a function, each with its arguments; killed at the end if they still run."""
    started = [processes.Process(target=target, args=given) for given in arguments]  # type: ignore[arg-type]
    for process in started:
        process.start()
    try:
        yield list(started)
    finally:
        for process in started:
            process.kill()
            process.join()
