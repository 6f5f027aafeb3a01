"""The shards of one machine: in one shared memory, which every process of the machine maps."""

import time
from collections.abc import Sequence
from typing import final

from distbelief.engines.worker.worker_process import is_stopped, kill_group
from distbelief.links.mapped import SharedMemory, map_locks, map_shards, shards_bytes
from distbelief.server.block import ShardSpec

_STOPPED_S = 2.0
"""How long a stopped process may hold a shard's lock."""


@final
class MappedShards:
    """The memory of a machine's shards, their locks, and the shards in it.

    A worker that is stopped while it holds a lock is killed, since no other can push past it: `look` sees to that where
    nobody waits for the lock in this process.
    """

    def __init__(self, specs: Sequence[ShardSpec]) -> None:
        self.memory = SharedMemory.create(shards_bytes(specs), "shards")
        self._locks = map_locks(self.memory, len(specs), self._watch)
        self.shards = map_shards(self.memory, specs, self._locks)
        self._stopped_since: dict[int, float] = {}

    @property
    def holders(self) -> set[int]:
        """The processes that hold a shard's lock just now."""
        return {pid for lock in self._locks if (pid := lock.holder()) is not None}

    def look(self) -> None:
        """Kill whoever has been stopped for long with a lock."""
        holders = self.holders
        for pid in set(self._stopped_since) - holders:
            del self._stopped_since[pid]
        for pid in holders:
            self._watch(pid)

    def close(self) -> None:
        """Give the memory back, as soon as nobody looks into it any more."""
        self.memory.close()

    def _watch(self, pid: int) -> None:
        if not is_stopped(pid):
            self._stopped_since.pop(pid, None)
        elif time.monotonic() - self._stopped_since.setdefault(pid, time.monotonic()) > _STOPPED_S:
            kill_group(pid)
