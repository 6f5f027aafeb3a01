"""The mapped link: shards in anonymous shared memory, to which every process of one machine is its own server.

A push is the rule's kernel, run by the pushing process straight on the shared parameters, under a lock that the
operating system frees when its holder dies. A fetch is one copy. Nothing has a name in the file system, so nothing can
be left behind.
"""

import asyncio
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import final

import torch
from torch import Tensor

from distbelief.links import forks
from distbelief.ports import ORIGIN, Answer, Command, Push, Reply, Version
from distbelief.server.block import ShardSpec
from distbelief.server.shard import Shard

_POLL_S = 0.0005
"""How long a fetch that waits for a version sleeps between looks."""
_PAGE = mmap.PAGESIZE
_FLOCK = struct.Struct("@hhqqi4x")


@final
class SharedMemory:
    """Anonymous memory that is handed to other processes by its file descriptor.

    `fd` stays open as long as the process lives: closing any descriptor of the file would free the process's locks.
    Children that are forked have neither the descriptor nor, unless it is private, the memory: they would keep it from
    being freed.
    """

    def __init__(self, fd: int, *, private: bool = False) -> None:
        self.fd = fd
        self.nbytes = os.fstat(fd).st_size
        access = mmap.ACCESS_COPY if private else mmap.ACCESS_WRITE
        self._map = mmap.mmap(fd, self.nbytes, access=access)
        if not private:
            self._map.madvise(mmap.MADV_DONTFORK)
        forks.hold(fd)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def create(cls, nbytes: int, name: str) -> "SharedMemory":
        """New memory, zeroed. Its pages are taken at once, so that it cannot fail later; `OSError` if there are few."""
        fd = os.memfd_create(f"distbelief-{name}", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, max(nbytes, _PAGE))
        except OSError:
            os.close(fd)
            raise
        return cls(fd)

    def close(self) -> None:
        """Close the descriptor, and with it all locks; the mapping lives as long as tensors of it do."""
        forks.release(self.fd)
        os.close(self.fd)


@final
class RangeLock:
    """A POSIX lock on one byte of a file: about 2 µs, and freed when the process that holds it dies.

    It is the process's, not the thread's: one thread a process pushes. A data-loader child forked while it is held does
    not inherit it. With `watch`, `watch(holder)` is told again and again who is in the way.
    """

    def __init__(self, fd: int, byte: int, watch: Callable[[int], None] | None = None) -> None:
        self._fd = fd
        self._byte = byte
        self._watch = watch

    def __enter__(self) -> None:
        if self._watch is None:
            fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._byte)
            return
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte)
        except (BlockingIOError, PermissionError):
            # The lock is the process's, whichever thread takes it. Who only tries from time to time would never get it
            # from those who wait in the kernel.
            waiting = threading.Thread(target=fcntl.lockf, args=(self._fd, fcntl.LOCK_EX, 1, self._byte), daemon=True)
            waiting.start()
            while waiting.is_alive():
                if (pid := self.holder()) is not None:
                    self._watch(pid)
                waiting.join(_POLL_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._byte)

    def holder(self) -> int | None:
        """The process that holds the lock, or None; this process's own hold is not seen."""
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._byte, 1, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, question))
        return None if kind == fcntl.F_UNLCK else pid


def shards_bytes(specs: Sequence[ShardSpec]) -> int:
    """Bytes of memory that shards take side by side, each from a page border on."""
    return sum(-(-spec.nbytes // _PAGE) * _PAGE for spec in specs)


def map_locks(memory: SharedMemory, shards: int, watch: Callable[[int], None] | None = None) -> list[RangeLock]:
    """The locks of the shards that lie in a memory."""
    return [RangeLock(memory.fd, number, watch) for number in range(shards)]


def map_shards(memory: SharedMemory, specs: Sequence[ShardSpec], locks: Sequence[RangeLock]) -> list[Shard]:
    """The shards that lie in a memory."""
    shards, start = [], 0
    for spec, lock in zip(specs, locks, strict=True):
        shards.append(Shard(spec, memory.bytes[start : start + spec.nbytes], lock))
        start += shards_bytes([spec])
    return shards


@final
class MappedLink:
    """`ShardLink` to a shard in memory that this process maps."""

    answers_at_once = True

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        """Copy the parameters out; sleeps until the shard has come so far."""
        while at_least > ORIGIN and self._shard.reached < at_least:
            await asyncio.sleep(_POLL_S)
        return self._shard.fetch(into)

    async def push(self, push: Push) -> Reply:
        """Run the push here."""
        return self._shard.push(push)

    async def execute(self, command: Command) -> Answer:
        """Obey here."""
        return self._shard.execute(command)

    def transferring(self) -> bool:
        """Nothing is ever under way."""
        return False
