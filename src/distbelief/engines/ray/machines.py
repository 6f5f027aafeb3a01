"""The machines of a run: an actor on each that holds a shard or a replica."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import ray
from ray.exceptions import RayActorError

from distbelief.engines.calls import Calls
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.ray.cluster import answer, on_node, require_versions, shard_nodes
from distbelief.engines.ray.machine import Machine, Row
from distbelief.engines.ray.seat import REACHABLE_S
from distbelief.engines.remote_shard import RemoteShard
from distbelief.engines.worker.worker_process import ENVIRONMENT
from distbelief.errors import UsageError
from distbelief.links.mapped import SharedMemory
from distbelief.links.wire import Keys, WireClient
from distbelief.server.block import ShardSpec

_LOOK_S = 0.2
_STARTED_S = 120.0


class Known(NamedTuple):
    """A machine that is ready for replicas."""

    node: str
    name: str
    socket: str
    actor: Any


@final
class Machines:
    """Made in the controller's thread, used in that of the calls, which posts `lost` and `rows`."""

    def __init__(
        self,
        calls: Calls,
        settings: SharedMemory,
        job: SharedMemory,
        table: ProgressTable,
        *,
        keys: Keys | None,
        lost: Callable[[Known, list[int]], object],
        rows: Callable[[Known, dict[int, Row]], object],
    ) -> None:
        self._calls = calls
        self._lost = lost
        self._rows = rows
        self.keys = keys
        # Once to a machine, by Ray's object store.
        self._sent = [ray.put(memory.bytes.numpy()) for memory in (settings, job)]
        self._known: dict[str, asyncio.Task[Known]] = {}
        self._clients: list[WireClient] = []
        self._specs: Sequence[ShardSpec] = ()
        self._shards: dict[int, RemoteShard] = {}
        self.servers: dict[int, str] = {}
        """The address by which each shard is served."""
        self._homes: dict[int, Known] = {}
        """The machine of each shard."""
        self._table = table

    async def at(self, node: str) -> Known:
        """The machine of a node. Raises `UsageError` where it has other versions, or not enough memory."""
        if (opening := self._known.get(node)) is None or _failed(opening):
            self._known[node] = opening = asyncio.create_task(self._open(node))
        # Others wait for it, too, when who waits here is ended.
        return await asyncio.shield(opening)

    async def hold(self, specs: Sequence[ShardSpec], term: int) -> list[RemoteShard]:
        """Make the shards of a run that begins in `term`, on machines that are there to stay where there are any."""
        self._specs = specs
        homes = shard_nodes(len(specs))
        for node in dict.fromkeys(homes):
            shards = [shard for shard, home in enumerate(homes) if home == node]
            try:
                await self._hold(node, shards, term)
            except (RayActorError, TimeoutError):
                await self.bring_back(shards, term)
        return [self._shards[shard] for shard in range(len(specs))]

    async def bring_back(self, shards: Sequence[int], term: int) -> Known:
        """Make shards, on any machine, whose own is gone. They will be restored in `term` or later."""
        while True:
            try:
                return await self._hold(shard_nodes(1)[0], shards, term)
            except (RayActorError, TimeoutError):
                # Ray has not yet noticed that this one is gone, too.
                await asyncio.sleep(1.0)

    async def _hold(self, node: str, shards: Sequence[int], term: int) -> Known:
        actor = _actor(node)
        about = await asyncio.wait_for(answer(actor.about.remote()), _STARTED_S)
        require_versions(about.name, about.versions)
        specs = {shard: self._specs[shard] for shard in shards}
        try:
            address = await answer(actor.hold.remote(specs, about.address, self.keys, term))
        except UsageError as error:
            raise UsageError(f"{about.name}: {error}") from error
        self._clients.append(client := WireClient(address, self.keys))
        for shard, spec in specs.items():
            self._shards.setdefault(shard, RemoteShard(shard, spec, self._calls)).connect(client)
            self.servers[shard] = address
        machine = Known(node, about.name, about.socket, actor)
        self._homes.update(dict.fromkeys(specs, machine))
        ready = asyncio.create_task(self._ready(machine))
        # Where there is one already, replicas go on with that, and reach these shards by their server.
        if node not in self._known or _failed(self._known[node]):
            self._known[node] = ready
        return await ready

    def shards_at(self, machine: Known) -> list[int]:
        """The shards whose memory a machine's actor hands out."""
        return [shard for shard, home in self._homes.items() if home is machine]

    @property
    def ready(self) -> list[Known]:
        """The machines that can be asked."""
        # A copy at once: the controller's thread asks, too.
        return [task.result() for task in list(self._known.values()) if task.done() and not _failed(task)]

    @property
    def all(self) -> list[Known]:
        """Also those that replicas use no more, and shards do."""
        return list(dict.fromkeys([*self.ready, *self._homes.values()]))

    async def look(self, machine: Known) -> None:
        """Have the progress of a machine's replicas put into the table."""
        call = machine.actor.look.remote(self._table.requests, self._table.stopping)
        rows = await asyncio.wait_for(answer(call), REACHABLE_S)
        self._calls.post(lambda: self._rows(machine, rows))

    async def close(self) -> None:
        """End the actors."""
        for client in self._clients:
            client.close()
        for machine in self.all:
            ray.kill(machine.actor)

    async def _open(self, node: str) -> Known:
        actor = _actor(node)
        about = await asyncio.wait_for(answer(actor.about.remote()), _STARTED_S)
        require_versions(about.name, about.versions)
        return await self._ready(Known(node, about.name, about.socket, actor))

    async def _ready(self, machine: Known) -> Known:
        """Send the task to a machine, and begin to watch it."""
        count, buffers = self._table.buffers.shape
        try:
            await answer(machine.actor.receive.remote(*self._sent, count, buffers))
        except UsageError as error:
            raise UsageError(f"{machine.name}: {error}") from error
        self._calls.start(self._watch(machine))
        return machine

    async def _watch(self, machine: Known) -> None:
        try:
            while True:
                await self.look(machine)
                await asyncio.sleep(_LOOK_S)
        except (RayActorError, TimeoutError):
            if machine in self.ready and self._known[machine.node].result() is machine:
                del self._known[machine.node]
            gone = self.shards_at(machine)
            for shard in gone:
                del self._homes[shard]
            self._calls.post(lambda: self._lost(machine, gone))


def _failed(opening: asyncio.Task[Known]) -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


def _actor(node: str) -> Any:
    # What arrives over the wire goes into memory that is kept: in fresh pages it costs the kernel twice as much.
    kept = {"env_vars": ENVIRONMENT}
    options = {"num_cpus": 0, "scheduling_strategy": on_node(node), "max_restarts": 0, "runtime_env": kept}
    return ray.remote(Machine).options(**options).remote()
