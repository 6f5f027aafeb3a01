"""The shards of a simulated run: their hosts, how the controller reaches them, and what comes back after a death."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from distbelief.engines.actions import RestoreShard
from distbelief.engines.simulated.link import CONTROLLER, SimulatedLink, machine_of
from distbelief.engines.simulated.network import Wire
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import Answer, Capture, Command, Restore, Slice, Snapshot
from distbelief.server.host import ShardHost
from distbelief.server.patience import Patience, retry
from distbelief.server.shard import Shard


@final
class SimulatedShards:
    """Commands are repeated until they are answered. `mortal`: hosts may die, so that copies are kept for them."""

    def __init__(
        self, shards: Sequence[Shard], wire: Wire, trace: Trace, patience: Patience | None, *, mortal: bool
    ) -> None:
        self.hosts = [ShardHost(shard, number, trace) for number, shard in enumerate(shards)]
        self._wire = wire
        self._links = self.links(CONTROLLER)
        self._patience = patience
        self._copies = [shard.snapshot() for shard in shards] if mortal else []
        """What a host finds when it begins again: its shard in the last checkpoint, or at the beginning."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._restoring: dict[int, asyncio.Task[None]] = {}

    def links(self, machine: str) -> list[SimulatedLink]:
        """From a machine to each shard."""
        return [SimulatedLink(self._wire, machine, host) for host in self.hosts]

    def execute(self, commands: Sequence[Command], then: Callable[[list[Answer]], None]) -> None:
        """Have each shard obey its command, and hand on the answers when all are there."""

        async def execute() -> None:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._at(shard, command)) for shard, command in enumerate(commands)]
            then([task.result() for task in tasks])

        self._tasks.add(self._begin(execute()))

    def restore(self, action: RestoreShard, then: Callable[[], None]) -> None:
        """Give a shard that has lost its memory what was written down last."""
        if (earlier := self._restoring.pop(action.shard, None)) is not None:
            # What it carries was overtaken by another death of the shard's machine.
            earlier.cancel()

        self.hosts[action.shard].await_restoration(action.term)

        async def restore() -> None:
            command = Restore(action.term, self._copies[action.shard], action.fenced, action.living)
            await self._at(action.shard, command)
            then()

        self._restoring[action.shard] = task = self._begin(restore())
        self._tasks.add(task)

    def waiters(self) -> Iterator[tuple[str, str]]:
        """The machines that wait at a shard, and for what."""
        for host in self.hosts:
            for machine, (at_least, _) in host.waiting.items():
                come, is_at = at_least.updates, host.shard.reached.updates
                yield machine, f"{machine} waits for {machine_of(host)} to come to {come}, which is at {is_at}"

    def close(self) -> None:
        """Nothing is waited for any more."""
        for task in self._tasks:
            task.cancel()

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # What a checker has found ends the run.
            task.result()

    async def _at(self, shard: int, command: Command) -> Answer:
        link, copies = self._links[shard], dict[str, Tensor]()
        if self._copies and isinstance(command, Capture):
            # Beside what is wanted, a copy of all.
            whole, vectors = Slice(0, self.hosts[shard].shard.spec.elements), self.hosts[shard].shard.vectors
            copies = {name: torch.empty_like(vector) for name, vector in vectors.items()}
            command = Capture({name: [*command.into.get(name, ()), (whole, copy)] for name, copy in copies.items()})
        answer = await retry(self._patience, lambda: link.execute(command), link.transferring)
        if copies and isinstance(answer, Snapshot):
            self._copies[shard] = Snapshot(answer.numbers, copies)
        return answer
