"""What a run has on one machine: the task, the shards that live there with their server, and the table of progress.

The processes of the machine map all three. They get the descriptors over a socket in the abstract namespace, which
answers processes of the same user only.
"""

import asyncio
import json
import os
import socket
import struct
import traceback
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple, final

import numpy as np
import ray
import torch

from distbelief.allocation import Progress
from distbelief.engines.mapped_shards import MappedShards
from distbelief.engines.memory import available, require
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.ray.cluster import settle_process, versions
from distbelief.links.mapped import SharedMemory
from distbelief.links.wire import Keys, WireServer
from distbelief.server.block import ShardSpec
from distbelief.server.host import ShardHost
from distbelief.server.shard import Shard

_LOOK_S = 0.1
_CREDENTIALS = struct.Struct("3i")


class About(NamedTuple):
    """What a machine says of itself."""

    name: str
    address: str
    versions: dict[str, str]
    niceness: int
    socket: str
    """Where its processes get the descriptors."""


class Row(NamedTuple):
    """What the table says of a replica."""

    progress: Progress
    batch: tuple[int, int] | None
    answered: float
    """As the table says it."""
    buffers: np.ndarray | None
    """Given once for each time that they are published."""


@final
class Machine:
    """An actor: one a machine and run."""

    def __init__(self) -> None:
        self._niceness = settle_process()
        torch.set_num_threads(1)
        self._memories: list[SharedMemory] = []
        """The settings, the task, and the table."""
        self._mapped: MappedShards | None = None
        self._shards: dict[int, Shard] = {}
        self._server: WireServer | None = None
        self._table: ProgressTable
        self._published: dict[int, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._name = f"distbelief-{uuid.uuid4().hex}"

    def __repr__(self) -> str:
        return f"machine {socket.gethostname()}"

    async def about(self) -> About:
        """Say what this machine is, and begin to hand out descriptors."""
        self._listener.bind(f"\0{self._name}")
        self._listener.listen()
        self._listener.setblocking(False)
        self._go_on(self._hand_out())
        address = ray.util.get_node_ip_address()
        return About(socket.gethostname(), address, versions(), self._niceness, self._name)

    async def receive(self, settings: np.ndarray, job: np.ndarray, replicas: int, buffers: int) -> None:
        """Keep the task of a run, in memory that is this machine's own, and make its table."""
        needed = {"the task": job.nbytes, "the table of progress": ProgressTable.nbytes(replicas, buffers)}
        require(needed, available())
        self._memories = [await asyncio.to_thread(_copied, array) for array in (settings, job)]
        table = SharedMemory.create(ProgressTable.nbytes(replicas, buffers), "progress")
        self._memories.append(table)
        self._table = ProgressTable(table.bytes, replicas, buffers)

    async def hold(self, specs: Mapping[int, ShardSpec], address: str, keys: Keys | None, term: int) -> str:
        """Make shards that await their restoration in a term, and serve them; returns their server's address."""
        require({"parameters and optimizer state": sum(spec.nbytes for spec in specs.values())}, available())
        self._mapped = MappedShards(list(specs.values()))
        self._shards = dict(zip(specs, self._mapped.shards, strict=True))
        hosts = {number: ShardHost(shard, number) for number, shard in self._shards.items()}
        for shard_host in hosts.values():
            shard_host.await_restoration(term)
        self._server = WireServer(hosts, host=address, keys=keys)
        self._go_on(self._server.run())
        self._go_on(self._watch_locks())
        return self._server.address

    async def look(self, requests: float, stopping: bool) -> dict[int, Row]:
        """How far the replicas of this machine are. They are asked for their buffers, or to stop, if that is new."""
        table, rows = self._table, {}
        table.requests = requests
        if stopping:
            table.stop()
        for replica in range(len(table.buffers)):
            answered, batch = table.answered(replica), table.batch(replica)
            fresh = answered != self._published.get(replica, 0.0)
            self._published[replica] = answered
            if batch is not None or fresh:
                buffers = table.buffers[replica].numpy().copy() if fresh else None
                rows[replica] = Row(table.read(replica), batch, answered, buffers)
        return rows

    async def retire(self, replica: int, buffers: np.ndarray) -> None:
        """Clear a replica's row for its next incarnation, which begins with these buffers."""
        self._table.retire(replica)
        self._table.buffers[replica] = torch.from_numpy(buffers.copy())

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something as long as the actor lives, which ends with it: half a machine would be waited for, for ever."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(_end_with)

    async def _watch_locks(self) -> None:
        while self._mapped is not None:
            self._mapped.look()
            await asyncio.sleep(_LOOK_S)

    async def _hand_out(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            with connection:
                packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                _, user, _ = _CREDENTIALS.unpack(packed)
                if user == os.getuid():
                    memories = [*self._memories, *([self._mapped.memory] if self._mapped else [])]
                    here = json.dumps(list(self._shards)).encode()
                    socket.send_fds(connection, [here], [memory.fd for memory in memories])


def _end_with(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


def _copied(array: np.ndarray) -> SharedMemory:
    """A copy, in anonymous memory, of what lies in Ray's object store."""
    memory = SharedMemory.create(array.nbytes, "task")
    memory.bytes.numpy()[: array.nbytes] = array
    return memory
