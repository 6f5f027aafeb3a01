"""Replicas in virtual time, on simulated links, with all that they do written down."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distbelief.allocation import Progress, Reason
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.downpour.replica import DownpourReplica
from distbelief.engines.simulated.loop import simulate
from distbelief.ports import ORIGIN, Answer, Command, Gradient, Lease, Outcome, Push, Reply, ShardLink, Version
from distbelief.server.client import Client
from distbelief.server.host import ShardHost
from distbelief.server.layout import Layout
from distbelief.server.shard import Shard
from tests.shards import linked, make_shards, set_living

BATCH = 8
"""Examples in a batch."""

Note = Callable[[str, object, int], None]
"""Writes down what happened, its detail, and at which shard."""

Compute = Callable[[Tensor, int, int], list[Tensor | None]]
"""The gradient at a flat vector for (epoch, batch)."""


class Event(NamedTuple):
    """Something that a replica did or was told; `step` counts the gradients that it had computed by then."""

    what: str
    step: int
    time: float
    detail: object = None
    shard: int = 0


class Recorded:
    """A link that writes down when its calls begin and end."""

    def __init__(self, inner: ShardLink, note: Note, shard: int = 0) -> None:
        self._inner = inner
        self._note = note
        self._shard = shard
        self.answers_at_once = inner.answers_at_once

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        self._note("fetch", at_least, self._shard)
        version = await self._inner.fetch(into, at_least)
        self._note("fetched", version, self._shard)
        return version

    async def push(self, push: Push) -> Reply:
        self._note("push", push, self._shard)
        reply = await self._inner.push(push)
        self._note("pushed", reply, self._shard)
        return reply

    def transferring(self) -> bool:
        return False

    async def execute(self, command: Command) -> Answer:
        return await self._inner.execute(command)


class Portions:
    """`WorkSource` of given portions [start, stop) of epoch 0; keeps what is done."""

    def __init__(self, *portions: tuple[int, int]) -> None:
        self._left = [Lease(n, 0, start, stop) for n, (start, stop) in enumerate(portions, 1)]
        self.outcomes: list[list[Outcome]] = []

    async def lease(self) -> Lease | None:
        return self._left.pop(0) if self._left else None

    def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        self.outcomes.append(list(outcomes))
        return heard()


def heard() -> asyncio.Future[None]:
    """What is acknowledged at once."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


class LedgerWork:
    """`WorkSource` straight on a ledger; tells the shards who lives, as an engine does."""

    def __init__(self, ledger: Ledger, replica: int, hosts: Sequence[ShardHost] = ()) -> None:
        self._ledger = ledger
        self._replica = replica
        self._hosts = hosts

    async def lease(self) -> Lease | None:
        while True:
            lease, reason = self._ledger.lease(self._replica)
            for host in self._hosts:
                set_living(host, self._ledger.holders)
            if lease is not None or reason is Reason.FINISHED:
                return lease
            await asyncio.sleep(0.1)

    def done(self, lease: Lease, outcomes: Sequence[Outcome]) -> Awaitable[None]:
        self._ledger.done(lease.number, outcomes)
        return heard()


class Computed:
    """`GradientSource` of a function of the replica's vector, which takes `seconds`."""

    def __init__(self, compute: Compute, vector: Tensor, seconds: float, note: Note) -> None:
        self._compute = compute
        self._vector = vector
        self._seconds = seconds
        self._note = note

    def keep(self) -> None:
        pass

    def undo(self) -> None:
        self._note("undo", None, 0)

    async def gradient(self, epoch: int, batch: int) -> Gradient:
        seen = self._vector.clone()
        self._note("compute", seen, 0)
        tensors = self._compute(self._vector, epoch, batch)
        await asyncio.sleep(self._seconds)
        assert torch.equal(seen, self._vector), "the parameters changed while a gradient was computed"
        self._note("computed", batch, 0)
        return Gradient(tensors, torch.zeros(()), BATCH)


class Recording:
    """One replica's run: what it did, and what it left behind."""

    def __init__(self, layout: Layout, shards: Sequence[Shard]) -> None:
        self.layout = layout
        self.shards = shards
        self.events: list[Event] = []
        self.progress = Progress()
        self._step = 0

    def note(self, what: str, detail: object = None, shard: int = 0) -> None:
        self.events.append(Event(what, self._step, asyncio.get_running_loop().time(), detail, shard))
        self._step += what == "computed"

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds, in order."""
        return [event for event in self.events if event.what in kinds]

    def pushes_to(self, shard: int) -> list[Push]:
        """What was pushed to a shard."""
        return [e.detail for e in self.of("push") if e.shard == shard and isinstance(e.detail, Push)]

    @property
    def pushes(self) -> list[Push]:
        """What was pushed to the first shard."""
        return self.pushes_to(0)

    @property
    def seen(self) -> list[Tensor]:
        """The parameters at which each gradient was computed."""
        return [event.detail for event in self.of("compute") if isinstance(event.detail, Tensor)]


def toward(*targets: float) -> Compute:
    """The gradient w − target, where each batch has its target; the padding has none."""
    return lambda vector, epoch, batch: [vector - targets[batch % len(targets)]]


def run_replicas(
    method: Downpour,
    ledger: Ledger,
    compute: Compute,
    *,
    layout: Layout,
    replicas: int,
    seed: int = 0,
    overlap: int = 0,
    slower: float = 1 / 3,
) -> list[Recording]:
    """Replicas share a ledger and shards of zeros; each is slower than the last, messages take up to half a second."""
    chance = random.Random(seed)
    shards = make_shards(layout, torch.zeros(layout.length), method.optimizer, method.admission, replicas=replicas)
    recordings = [Recording(layout, shards) for _ in range(replicas)]

    async def main() -> None:
        hosts = [ShardHost(shard) for shard in shards]
        async with asyncio.TaskGroup() as group:
            for number, recording in enumerate(recordings):
                vector = torch.zeros(layout.length)
                links = [
                    Recorded(linked(host, lambda: chance.random() / 2), recording.note, shard)
                    for shard, host in enumerate(hosts)
                ]
                replica = DownpourReplica(
                    method,
                    client=Client(layout, links, replica=number, incarnation=1),
                    source=Computed(compute, vector, 1 + number * slower, recording.note),
                    work=LedgerWork(ledger, number, hosts),
                    parameters=vector,
                    overlap=overlap,
                )
                recording.progress = replica.progress
                group.create_task(replica.run())

    simulate(main(), seed=seed)
    ledger.check()
    for shard in shards:
        shard.check()
    return recordings


def run_replica(
    method: Downpour,
    work: Portions,
    compute: Compute,
    *,
    layout: Layout,
    overlap: int = 0,
    compute_s: float = 1.0,
    delay_s: float = 0.25,
    stopping: Callable[[], bool] = lambda: False,
) -> Recording:
    """Run one replica on one shard that holds zeros, each message taking `delay_s`."""
    shards = make_shards(layout, torch.zeros(layout.length, dtype=layout.dtype), method.optimizer, method.admission)
    recording = Recording(layout, shards)

    async def main() -> None:
        vector = torch.zeros(layout.length, dtype=layout.dtype)
        links = [
            Recorded(linked(ShardHost(s), lambda: delay_s), recording.note, number) for number, s in enumerate(shards)
        ]
        replica = DownpourReplica(
            method,
            client=Client(layout, links, replica=0, incarnation=1),
            source=Computed(compute, vector, compute_s, recording.note),
            work=work,
            parameters=vector,
            overlap=overlap,
            stopping=stopping,
        )
        recording.progress = replica.progress
        await replica.run()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the replica left a task behind"
        recording.note("over")

    simulate(main(), seed=0)
    for shard in shards:
        shard.check()
    return recording
