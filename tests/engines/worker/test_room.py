"""Whether so many workers fit is known before the first of them is started."""

import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from distbelief.engines.worker import room
from distbelief.engines.worker.worker_process import Workers
from distbelief.errors import UsageError


@contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_more_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available", lambda: 10 * room.WORKER_BYTES + 5)
    room.require_room(10)
    told = (
        "room for 10 more processes of replicas here, and not for 99,999: each takes 150 MB .* 1.5 GB are free; choose"
    )
    with closing(Workers()) as workers, pytest.raises(UsageError, match=told):
        workers.start(99_999)
    assert workers._idle == []


def test_more_than_files_may_be_opened() -> None:
    there, told = len(list(Path("/proc/self/fd").iterdir())), r"may open \d+ files \(ulimit -n\)"
    with limited(resource.RLIMIT_NOFILE, there + 60), pytest.raises(UsageError, match=told):
        room.require_room(20)


def test_more_than_a_control_group_or_a_user_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc" / "self" / "fd").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/mine")
    group = tmp_path / "groups" / "mine"
    group.mkdir(parents=True)
    (group / "pids.max").write_text("100\n")
    (group / "pids.current").write_text("40\n")
    (group.parent / "pids.max").write_text("max\n")
    monkeypatch.setattr(room, "PROC", tmp_path / "proc")
    monkeypatch.setattr(room, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(room, "available", lambda: 1 << 50)
    room.require_room(20)
    with pytest.raises(UsageError, match=r"room for 20 more .* 100 processes and threads \(pids.max\)"):
        room.require_room(21)
    monkeypatch.setattr(room, "_threads", lambda proc: 1)
    monkeypatch.setattr("os.getuid", lambda: 1000)
    with limited(resource.RLIMIT_NPROC, 31), pytest.raises(UsageError, match=r"room for 10 .* \(ulimit -u\)"):
        room.require_room(11)
