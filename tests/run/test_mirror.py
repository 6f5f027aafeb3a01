"""A run's files at a URL: at every moment a checkpoint is there that was whole, whoever dies, and whatever fails."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

from distbelief.errors import DirectoryError
from distbelief.run.checkpoint import KEPT, Draft, Image
from distbelief.run.directory import RunDirectory
from distbelief.run.lock import LOCK
from tests import buckets
from tests.states import state


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    buckets.register()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Processes are killed, not the machine.
    monkeypatch.setattr("os.fsync", lambda fd: None)


def draft(examples: int, mark: float = 0.0) -> Draft:
    """A checkpoint that is known by its tensors."""
    image = Image({"parameters/w": torch.empty(1001, device="meta")})
    image.tensors["parameters/w"].fill_(examples + mark)
    return Draft(examples, image, state())


def begin(url: str, *, resume: bool = False) -> RunDirectory:
    files = RunDirectory.open(url, resume=resume)
    try:
        files.begin({"kind": "Downpour"}, {"digest": "1"})
    except DirectoryError:
        files.close()
        raise
    return files


def names(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def numbers(place: Path) -> list[int]:
    """The checkpoints that are there, each with both of its files. No object store knows empty folders."""
    found = []
    for folder in (place / "checkpoints").iterdir():
        if folder.is_dir() and list(folder.iterdir()):
            assert {path.name for path in folder.iterdir()} == {"state.json", "tensors.safetensors"}
            found.append(int(folder.name.removeprefix(".partial-").removesuffix("-before")))
    return sorted(found)


def first_life(url: str, told: Callable[[int], None] = lambda examples: None) -> None:
    with closing(begin(url)) as files:
        for examples in (10, 20):
            files.event("progress", {"examples": examples})
            files.write_checkpoint(draft(examples))
            told(examples)
        files.write_json("summary.json", {"examples": 20})
        files.publish()


def second_life(url: str, told: Callable[[int], None] = lambda examples: None) -> None:
    """Goes on, and replaces the checkpoint that it goes on from twice."""
    with closing(begin(url, resume=True)) as files:
        for number, examples in enumerate((20, 20, 30, 40)):
            files.write_checkpoint(draft(examples, mark=(number + 1) / 8))
            told(examples)
        files.publish()


@pytest.mark.parametrize("scheme", ["bucket", "server"])
def test_what_is_there_is_what_was_written(tmp_path: Path, scheme: str) -> None:
    place = tmp_path / "a" / "run"
    url = f"{scheme}://{place}"
    first_life(url)
    assert numbers(place) == [10, 20]
    assert names(place) >= {"method.json", "task.json", "events.jsonl", "summary.json", ".checkpoints.json"}
    assert LOCK not in names(place)
    second_life(url)
    assert numbers(place) == [20, 30, 40]
    with closing(RunDirectory.open(url, resume=True)) as files:
        found, complaints = files.newest()
        assert complaints == []
        assert found is not None
        assert torch.equal(found.tensors["parameters/w"], torch.full((1001,), 40.5))
    lines = (place / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["examples"] for line in lines] == [10, 20]
    # A copy of it is a directory as any other.
    with closing(RunDirectory.open(shutil.copytree(place, tmp_path / "copy"), resume=True)) as files:
        assert files.newest()[0] is not None
    assert not list((tmp_path / "cache" / "distbelief" / "runs").iterdir())


def live(life: Callable[[str, Callable[[int], None]], None], url: str, kill_at: int) -> tuple[bool, list[int]]:
    """A life in a process that kills itself at a request to the store; whether it did, and what was whole by then."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        left = kill_at

        def before(request: str, path: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        def told_of(examples: int) -> None:
            os.write(writing, f"{examples}\n".encode())

        with suppress(BaseException):
            buckets.Bucket.before = staticmethod(before)
            life(url, told_of)
            os._exit(0)
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as lines:
        told = [int(line) for line in lines]
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return bool(status), told


@pytest.mark.parametrize("scheme", ["bucket", "server"])
@pytest.mark.parametrize("life", [first_life, second_life])
def test_a_kill_at_any_request_leaves_a_whole_checkpoint(
    tmp_path: Path, scheme: str, life: Callable[[str, Callable[[int], None]], None]
) -> None:
    place, before = tmp_path / "run", tmp_path / "before"
    url = f"{scheme}://{place}"
    if life is second_life:
        first_life(f"{scheme}://{before}")
    # Before a run has begun, half of its method says nothing to anybody.
    for kill_at in range(4 if life is first_life and scheme == "server" else 1, 1000):
        shutil.rmtree(place, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, place)
        killed, told = live(life, url, kill_at)
        least = max(told, default=20 if life is second_life else 0)
        # The machine knows that it is its own run that was killed, and asks nobody to wait.
        with closing(begin(url, resume=True)) as files:
            found, complaints = files.newest()
            # An object store never has half of a file; on another server the checksum finds it.
            assert complaints == [] or scheme == "server", kill_at
            assert (0 if found is None else found.examples) >= least, kill_at
            if found is not None:
                assert found.tensors["parameters/w"].unique().numel() == 1, kill_at
            for examples in (70, 80, 90):
                files.write_checkpoint(draft(examples))
            files.publish()
        # Half an index names none, and what it does not name is never removed.
        assert numbers(place)[-3 if scheme == "server" else 0 :] == [70, 80, 90], kill_at
        if not killed:
            break
    assert kill_at > 15


def failing(path_has: str = "") -> None:
    def before(request: str, path: str) -> None:
        if path_has in path:
            raise OSError(113, "No route to host")

    buckets.Bucket.before = staticmethod(before)


@pytest.fixture
def works_again() -> Iterator[Callable[[], None]]:
    def again() -> None:
        buckets.Bucket.before = staticmethod(buckets.reachable)

    yield again
    again()


def test_what_fails_for_a_while_is_sent_later(tmp_path: Path, works_again: Callable[[], None]) -> None:
    place = tmp_path / "run"
    with closing(begin(f"bucket://{place}")) as files:
        files.write_checkpoint(draft(10))
        failing("tensors")
        for examples in (20, 30, 40, 50):
            with pytest.raises(OSError, match="No route to host"):
                files.write_checkpoint(draft(examples))
            assert files.unwritten == {"the newest files": "No route to host"}
        assert numbers(place) == [10]
        assert files.missing() == (
            f"not all of bucket://{place} could be written (the newest files: No route to host); resume goes on after "
            "10 examples"
        )
        works_again()
        files.write_checkpoint(draft(60))
        assert files.unwritten == {}
        assert numbers(place) == [40, 50, 60]


def test_what_cannot_be_sent_at_the_end_is_kept_here(tmp_path: Path, works_again: Callable[[], None]) -> None:
    url = f"bucket://{tmp_path / 'run'}"
    for number in (1, 2):
        with closing(begin(url, resume=number == 2)) as files:
            files.write_checkpoint(draft(10 * number))
            failing()
            files.event("stopped", {})
            files.publish()
            told = files.missing()
        works_again()
        kept = Path(told.partition("; all of it is in ")[2])
        assert kept.name.endswith(f"-{number}")
        # It is a directory as any other.
        with closing(RunDirectory.open(kept, resume=True)) as files:
            found, _ = files.newest()
            assert found is not None
            assert found.examples == 10 * number
            assert "stopped" in (kept / "events.jsonl").read_text()
        # The lock could not be removed, and this machine knows whose it is no more.
        (tmp_path / "run" / LOCK).unlink()


def test_a_directory_that_is_removed_is_filled_again(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with closing(begin(f"bucket://{place}")) as files:
        files.write_checkpoint(draft(10))
        shutil.rmtree(place)
        files.write_checkpoint(draft(20))
        assert numbers(place) == [10, 20]
        assert names(place) >= {"method.json", "task.json", LOCK}


def test_a_folder_here_that_is_emptied_removes_nothing_there(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with closing(begin(f"bucket://{place}")) as files:
        files.write_checkpoint(draft(10))
        shutil.rmtree(files.path)
        files.publish()
        assert numbers(place) == [10]


def test_what_is_not_a_runs_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(DirectoryError, match=r"holds what no run has written \(mine.txt\)"):
        begin(f"bucket://{place}")
    assert names(place) == {"mine.txt"}
    (place / "mine.txt").unlink()
    first_life(f"bucket://{place}")
    shutil.copytree(place / "checkpoints" / f"{10:012}", place / "checkpoints" / f"{5:012}")
    (place / "checkpoints" / "mine.txt").write_text("mine")
    with pytest.raises(DirectoryError, match=rf"bucket://{place} holds a run already: .*resume=True"):
        begin(f"bucket://{place}")
    second_life(f"bucket://{place}")
    assert numbers(place) == [5, *(10 * number for number in (2, 3, 4))]
    assert len(numbers(place)) == 1 + KEPT
    assert (place / "checkpoints" / "mine.txt").read_text() == "mine"


def test_a_run_without_checkpoints_is_set_aside_there(tmp_path: Path) -> None:
    place = tmp_path / "run"
    first_life(f"bucket://{place}")
    for tensors in (place / "checkpoints").rglob("tensors.safetensors"):
        tensors.write_bytes(b"damaged")
    with closing(RunDirectory.open(f"bucket://{place}", resume=True)) as files:
        found, complaints = files.newest()
        assert found is None
        assert [f"bucket://{place}/checkpoints/" in complaint for complaint in complaints] == [True, True]
        assert files.set_aside() == files.path / "earlier-1"
        files.begin({"kind": "Downpour"}, {"digest": "1"})
        files.write_checkpoint(draft(5))
    assert numbers(place) == [5]
    assert names(place) >= {f"earlier-1/{name}" for name in ("summary.json", "method.json", "task.json")}
    assert (place / "earlier-1" / "checkpoints" / f"{10:012}" / "tensors.safetensors").read_bytes() == b"damaged"
    assert "summary.json" not in names(place)


def test_where_nothing_can_be_written_no_run_begins(tmp_path: Path, works_again: Callable[[], None]) -> None:
    failing()
    with pytest.raises(DirectoryError, match=r"cannot write to the run directory bucket://.* \(No route to host\)"):
        begin(f"bucket://{tmp_path / 'run'}")
    failing("task.json")
    with pytest.raises(DirectoryError, match="No route to host"):
        begin(f"bucket://{tmp_path / 'run'}")
    works_again()
    first_life(f"bucket://{tmp_path / 'run'}")


def test_a_run_of_another_machine_keeps_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, lock = f"bucket://{tmp_path / 'run'}", tmp_path / "run" / LOCK
    with closing(begin(url)) as first:
        with pytest.raises(DirectoryError, match="in use by a run that is at work"):
            begin(url, resume=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        with pytest.raises(DirectoryError, match="in use by a run that is at work"):
            begin(url, resume=True)
        assert names(tmp_path / "run") >= {"method.json", LOCK}
        # As after a minute in which nothing was heard of it.
        monkeypatch.setattr("distbelief.run.lock.STALE_S", -1.0)
        with closing(begin(url, resume=True)) as second:
            second.write_checkpoint(draft(10))
            with pytest.raises(OSError, match="another run has taken its place"):
                first.write_checkpoint(draft(20))
            word = lock.read_text()

            assert numbers(tmp_path / "run") == [10]
            assert lock.read_text() == word
    assert not lock.exists()


def test_a_lock_is_written_anew_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()
    monkeypatch.setattr("distbelief.run.lock._RENEWED_S", 0.001)
    with closing(begin(f"bucket://{tmp_path / 'run'}")):
        monkeypatch.setattr(buckets.Bucket, "before", staticmethod(lambda request, path: written.set()))
        assert written.wait(60)
