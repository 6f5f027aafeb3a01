"""Several processes are one shard: nothing is lost between them, and none can block the others by dying."""

import errno
import mmap
import os
import signal
from pathlib import Path

import pytest
import torch

from distbelief.links.mapped import RangeLock, SharedMemory, map_locks, map_shards, shards_bytes
from distbelief.ports import ORIGIN, Verdict, Work
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.rules import SGD
from tests.links.hammering import (
    ELEMENTS,
    PUSHES,
    count,
    die_inside,
    gradients,
    hammer,
    hold,
    new_shard,
    processes,
    running,
)
from tests.shards import at, fence, make_push

ME = os.getpid()


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_no_push_is_lost_between_processes() -> None:
    memory, spec, shard = new_shard()
    with running(hammer, *((ME, memory.fd, spec, replica) for replica in range(3))) as started:
        for sequence, gradient in enumerate(gradients(3), 1):
            shard.push(make_push(gradient, sequence, replica=3))
        for process in started:
            process.join()
        assert [process.exitcode for process in started] == [0, 0, 0]
    assert torch.equal(shard.parameters, -sum((gradients(replica).sum(0) for replica in range(4)), torch.zeros(1)))
    assert shard.version.updates == shard.pushes == int(shard.staleness.sum()) == 4 * PUSHES
    assert [fence(shard, replica, 1) for replica in range(4)] == [
        (PUSHES, Work(PUSHES, 0, 1, 1), Verdict.APPLIED, True)
    ] * 4
    shard.check()


def test_what_is_fetched_while_others_push_is_not_older_than_its_version() -> None:
    memory, spec, shard = new_shard()
    version, into = ORIGIN, torch.empty(ELEMENTS)
    with running(count, *((ME, memory.fd, spec, replica) for replica in range(2))) as started:
        while version < at(2 * PUSHES) and all(process.exitcode in (None, 0) for process in started):
            before, version = version, shard.fetch(into)
            assert before <= version
            assert (-into >= version.updates).all()
    assert version == at(2 * PUSHES)


def test_a_fetch_takes_no_lock() -> None:
    memory, _, shard = new_shard()
    held = processes.Event()
    with running(hold, (ME, memory.fd, 0, held)):
        assert held.wait(60)
        assert shard.fetch(torch.empty(ELEMENTS)) == ORIGIN


def test_a_process_killed_inside_the_kernel_frees_its_lock_and_the_others_go_on() -> None:
    memory, spec, shard = new_shard()
    place = ME, memory.fd, spec
    with running(die_inside, (*place, 0)) as (victim,), running(hammer, (*place, 1)) as (other,):
        victim.join()
        other.join()
        assert (victim.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    shard.push(make_push(torch.ones(ELEMENTS), 1, replica=2))

    record = fence(shard, 0, 1)
    assert record is not None
    assert (record.sequence, record.verdict, record.whole) == (2, Verdict.APPLIED, False)
    torn = torch.cat([torch.full((ELEMENTS // 2,), 3.0), torch.full((ELEMENTS // 2,), 2.0)])
    assert torch.equal(shard.parameters, -(gradients(1).sum(0) + torn))
    assert shard.version.updates == shard.pushes == PUSHES + 3
    assert shard.push(make_push(torch.ones(ELEMENTS), 2, replica=0)).verdict is Verdict.DUPLICATE
    shard.check()


def test_a_lock_names_the_process_that_holds_it_and_is_freed_with_it() -> None:
    memory = SharedMemory.create(4096, "test")
    locks = [RangeLock(memory.fd, byte) for byte in range(3)]
    held = processes.Event()
    with running(hold, (ME, memory.fd, 1, held)) as (holder,):
        assert held.wait(60)
        assert [lock.holder() for lock in locks] == [None, holder.pid, None]
        with locks[0], locks[2]:
            pass  # other bytes are other locks
    assert locks[1].holder() is None
    with locks[1]:
        assert locks[1].holder() is None, "a process does not see its own hold"


def test_who_waits_with_a_watch_is_told_who_is_in_the_way() -> None:
    memory = SharedMemory.create(4096, "test")
    held = processes.Event()
    told = []
    with running(hold, (ME, memory.fd, 0, held)) as (holder,):
        assert held.wait(60)

        def watch(pid: int) -> None:
            told.append(pid)
            holder.kill()

        with RangeLock(memory.fd, 0, watch):
            assert set(told) == {holder.pid}


def test_a_lock_is_freed_when_its_block_raises() -> None:
    memory, spec, shard = new_shard()
    with pytest.raises(ZeroDivisionError), shard.lock:
        raise ZeroDivisionError
    with running(hammer, (ME, memory.fd, spec, 0)) as (process,):
        process.join()
        assert process.exitcode == 0


def test_new_memory_is_zeroed_and_has_no_name_in_the_file_system() -> None:
    memory = SharedMemory.create(10_000, "test")
    assert memory.nbytes == len(memory.bytes) == 10_000
    assert not memory.bytes.any()
    assert "/memfd:distbelief-test (deleted)" in str(Path(f"/proc/self/fd/{memory.fd}").readlink())
    assert not os.get_inheritable(memory.fd)


def test_who_maps_the_descriptor_sees_the_same_memory() -> None:
    memory = SharedMemory.create(4096, "test")
    twin = SharedMemory(os.dup(memory.fd))
    memory.bytes[7] = 42
    assert twin.bytes[7] == 42


def test_what_is_mapped_privately_changes_nobody_elses() -> None:
    memory = SharedMemory.create(4096, "test")
    memory.bytes[7] = 1
    private = SharedMemory(os.dup(memory.fd), private=True)
    private.bytes[7] = 2
    assert memory.bytes[7] == 1


def test_memory_that_is_not_there_is_an_error_at_once_and_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = descriptors()
    with pytest.raises(OSError, match="No space left"):
        SharedMemory.create(1 << 20, "test")
    assert descriptors() == before


def test_shards_lie_side_by_side_on_pages_of_their_own() -> None:
    specs = [ShardSpec(elements, torch.float32, SGD(1.0), Asynchronous(), 2) for elements in (16, 5000, 48)]
    memory = SharedMemory.create(shards_bytes(specs), "test")
    assert memory.nbytes % mmap.PAGESIZE == 0
    shards = map_shards(memory, specs, map_locks(memory, 3))
    for number, shard in enumerate(shards):
        shard.initialise_(torch.full((shard.spec.elements,), float(number)))
        shard.push(make_push(torch.zeros(shard.spec.elements), 1))
    for number, shard in enumerate(map_shards(memory, specs, map_locks(memory, 3))):
        assert torch.equal(shard.parameters, torch.full((shard.spec.elements,), float(number)))
        assert shard.version == at(1)
        assert shard.parameters.data_ptr() % 64 == 0
        shard.check()
