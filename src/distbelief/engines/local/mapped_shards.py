"""The shards of one machine: in one shared memory, which every process maps."""

from collections.abc import Callable
from typing import final

from distbelief.engines.shard_set import shard_specs
from distbelief.links.mapped import SharedMemory, map_locks, map_shards, shards_bytes
from distbelief.run.prepare import Prepared


@final
class MappedShards:
    """The memory of all shards of a run, their locks, and the shards in it. `watch` is told who is in a lock's way."""

    def __init__(self, prepared: Prepared, watch: Callable[[int], None]) -> None:
        self.specs = shard_specs(prepared)
        self.memory = SharedMemory.create(shards_bytes(self.specs), "shards")
        self._locks = map_locks(self.memory, len(self.specs), watch)
        self.shards = map_shards(self.memory, self.specs, self._locks)

    @property
    def holders(self) -> set[int]:
        """The processes that hold a shard's lock just now."""
        return {pid for lock in self._locks if (pid := lock.holder()) is not None}

    def close(self) -> None:
        """Give the memory back, as soon as nobody looks into it any more."""
        self.memory.close()
