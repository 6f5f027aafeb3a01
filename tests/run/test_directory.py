"""The files of a run: whole, or not there at all, and never the end of a run."""

import json
import os
import shutil
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distbelief.errors import DirectoryError
from distbelief.run.directory import RunDirectory
from tests.lives import launch


def begun(path: Path | None) -> RunDirectory:
    files = RunDirectory.open(path)
    files.begin({"kind": "Downpour"}, {"digest": "1"})
    return files


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The disk is full, until this is undone."""
    monkeypatch.setattr("distbelief.run.checkpoint.sync", _fail)
    monkeypatch.setattr("distbelief.run.directory.os.write", _write_ten)
    return monkeypatch


def _fail(path: Path) -> None:
    raise OSError(28, "No space left on device")


_write = os.write


def _write_ten(fd: int, data: bytes) -> int:
    """Ten bytes are written, and then no more."""
    if data[:1] != b"{":
        raise OSError(28, "No space left on device")
    return _write(fd, data[:10])


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    begun(tmp_path).close()
    with pytest.raises(DirectoryError, match="holds a run already"):
        RunDirectory.open(tmp_path)


def test_fresh_directories_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = set()
    for _ in range(5):
        with closing(begun(None)) as files:
            paths.add(files.path)
    assert len(paths) == 5


@pytest.mark.parametrize("path", [None, "run"])
def test_where_no_run_has_begun_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    RunDirectory.open(None if path is None else Path(path)).close()
    assert list(tmp_path.glob("run/*")) == list(tmp_path.glob("runs/*")) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path).close()
    assert tmp_path.exists()


OTHERS = {
    "notes": "mine",
    ".hidden": "mine",
    ".lock": "12345",
    "method.json": '{"kind": "something else"}',
    "task.json": "[]",
    "summary.json": "{}",
    "model.safetensors": "my pretrained base model",
    "checkpoints/1000/pytorch_model.bin": "months of work",
    "checkpoints/000000001000/pytorch_model.bin": "months of work",
    "checkpoints/best.safetensors": "mine",
    "earlier/notes": "mine",
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_what_no_run_has_written_is_not_touched(tmp_path: Path, name: str, resume: bool) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text(OTHERS[name])
    first = name.partition("/")[0]
    with pytest.raises(DirectoryError, match=rf"holds what no run has written \({first}\): choose a directory that is"):
        RunDirectory.open(tmp_path / "mine", resume=resume)
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == OTHERS[name]


@pytest.mark.parametrize("name", [".lock", "events.jsonl", "summary.json", "checkpoints"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    begun(tmp_path / "run").close()
    target = tmp_path / "target"
    target.mkdir() if name == "checkpoints" else target.write_text("mine")
    path = tmp_path / "run" / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    with pytest.raises(DirectoryError, match=f"{path} is a link, which no run follows: remove it"):
        RunDirectory.open(tmp_path / "run", resume=True)
    assert target.is_dir() or target.read_text() == "mine"


def test_what_the_user_adds_to_a_run_stays_and_is_no_hindrance(tmp_path: Path) -> None:
    begun(tmp_path).close()
    (tmp_path / "notes").touch()
    (tmp_path / ".notes.partial").touch()
    with closing(RunDirectory.open(tmp_path, resume=True)) as files:
        files.begin({"kind": "Downpour"}, {"digest": "1"})
    assert (tmp_path / "notes").exists()
    assert (tmp_path / ".notes.partial").exists()


def test_the_users_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with closing(begun(tmp_path / "run")) as files:
            files.event("first", {})
            files.write_json("summary.json", {})
            files.write_model(nn.Linear(2, 2))
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o775 if path.is_dir() else 0o664), path


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    with closing(begun(Path("run"))) as files:
        monkeypatch.chdir(tmp_path / "other")
        files.event("next", {})
        files.write_json("summary.json", {})
    assert list((tmp_path / "other").iterdir()) == []
    assert {"events.jsonl", "summary.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("name", [".lock", "events.jsonl", "method.json", "task.json"])
def test_a_file_that_is_removed_is_written_anew_and_said_once(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        files.event("first", {})
        (run / name).unlink()
        files.event("second", {})
        files.write_json("summary.json", {})
        assert files.renewed == [name]
        assert files.unwritten == {}
        with pytest.raises(DirectoryError, match="in use"):
            RunDirectory.open(run, resume=True)
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["first", "second"]
    assert {".lock", "method.json", "task.json", "summary.json"} <= {path.name for path in run.iterdir()}


def test_a_lock_that_was_copied_is_still_the_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        (run / ".lock").rename(run / "before")
        shutil.copy(run / "before", run / ".lock")
        files.event("next", {})
        assert (files.renewed, files.unwritten) == ([], {})
        with pytest.raises(DirectoryError, match="in use"):
            RunDirectory.open(run, resume=True)


def test_where_another_process_has_the_lock_nothing_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        (run / ".lock").unlink()
        with closing(RunDirectory.open(run, resume=True)):
            files.write_json("summary.json", {})
            assert files.unwritten == {"summary.json": "another run has taken its place"}
    assert not (run / "summary.json").exists()


FORKS = """
import os, signal, sys
from distbelief.run.directory import RunDirectory
RunDirectory.open(sys.argv[1]).begin({"kind": "Downpour"}, {"digest": "1"})
ready, child_is = os.pipe()
if not (pid := os.fork()):
    os.write(child_is, b"1")
    signal.pause()
os.read(ready, 1)
print(pid, flush=True)
signal.pause()
"""


def test_a_child_that_the_user_forks_does_not_hold_the_lock(tmp_path: Path) -> None:
    with launch(["-c", FORKS, str(tmp_path / "run")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            RunDirectory.open(tmp_path / "run", resume=True).close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_move_that_was_cut_short_before_its_last_file_keeps_the_method(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun(run).close()
    with closing(RunDirectory.open(run, resume=True)) as files:
        files.set_aside()
    (run / "earlier-1" / "method.json").rename(run / "earlier-1" / ".method.json.partial")
    with closing(RunDirectory.open(run, resume=True)) as files:
        assert files.set_aside() == run / "earlier-1"
        files.begin({"kind": "another"}, {"digest": "1"})
    assert json.loads((run / "earlier-1" / "method.json").read_text())["kind"] == "Downpour"
    assert not list((run / "earlier-1").glob(".*"))


def test_a_move_that_was_cut_short_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        files.event("first", {})
        files.write_json("summary.json", {"a": 1})
    before = {path.name for path in run.iterdir()} - {".lock"}
    rename = Path.rename

    def cut(path: Path, target: Path) -> Path:
        if path.name == "events.jsonl":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    with closing(RunDirectory.open(run, resume=True)) as files, monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(DirectoryError, match="No space left"):
            files.set_aside()
    with closing(RunDirectory.open(run, resume=True)) as files:
        assert files.set_aside() == run / "earlier-1"
        files.begin({"kind": "Downpour"}, {"digest": "1"})
    assert {path.name for path in (run / "earlier-1").iterdir()} == before
    assert not (run / "earlier-2").exists()


def test_what_is_no_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(DirectoryError, match=rf"cannot write to the run directory {path} \("):
            RunDirectory.open(path)


def test_a_disk_that_is_full_from_the_beginning_is_said(tmp_path: Path, full: pytest.MonkeyPatch) -> None:
    with (
        closing(RunDirectory.open(tmp_path / "run")) as files,
        pytest.raises(DirectoryError, match=r"cannot write to the run directory .* \(.*No space left on device"),
    ):
        files.begin({}, {})
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_when_a_run_is_resumed_leaves_what_was_there(
    tmp_path: Path, full: pytest.MonkeyPatch
) -> None:
    full.undo()
    begun(tmp_path / "run").close()
    full.setattr("distbelief.run.checkpoint.sync", _fail)
    with (
        closing(RunDirectory.open(tmp_path / "run", resume=True)) as files,
        pytest.raises(DirectoryError, match="cannot write to the run directory"),
    ):
        files.begin({"kind": "another"}, {})
    assert json.loads((tmp_path / "run" / "method.json").read_text())["kind"] == "Downpour"


def test_what_is_written_is_json_whatever_it_holds(tmp_path: Path) -> None:
    with closing(begun(tmp_path / "run")) as files:
        files.write_json(
            "summary.json", {"loss": float("nan"), "rates": (1, 2.5), "path": tmp_path, "3": [float("inf")]}
        )
        files.event("evaluation", {"loss": float("-inf")})
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text) == {"loss": None, "rates": [1, 2.5], "path": str(tmp_path), "3": [None]}
    assert "Infinity" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_what_cannot_be_written_is_not_half_there_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        files.event("first", {})
        files.write_json("summary.json", {"a": 1})
        monkeypatch.setattr("distbelief.run.checkpoint.sync", _fail)
        monkeypatch.setattr("distbelief.run.directory.os.write", _write_ten)
        files.event("second", {"much": "x" * 50})
        files.write_json("summary.json", {"a": 2})
        files.write_model(nn.Linear(2, 2))
        assert set(files.unwritten) == {"events.jsonl", "summary.json", "model.safetensors"}
        assert files.missing() == (
            f"not all of {run} could be written (events.jsonl, model.safetensors, summary.json: No space left on "
            "device); no checkpoint is left"
        )
        monkeypatch.undo()
        files.write_model(nn.Linear(2, 2))
        assert set(files.unwritten) == {"events.jsonl", "summary.json"}
    assert json.loads((run / "summary.json").read_text()) == {"a": 1}
    assert [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()] == ["first"]
    assert not list(run.glob(".*.partial"))


def test_what_a_killed_writer_left_half_written_goes(tmp_path: Path) -> None:
    begun(tmp_path).close()
    (tmp_path / "events.jsonl").write_text('{"event": "whole"}\n{"event": "ha')
    halves = [tmp_path / ".summary.json.partial", tmp_path / "checkpoints" / ".best.safetensors.partial"]
    for half in halves:
        half.touch()
    with closing(RunDirectory.open(tmp_path, resume=True)) as files:
        files.event("next", {})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["whole", "next"]
    assert not any(half.exists() for half in halves)


def test_a_directory_that_is_removed_is_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        shutil.rmtree(run)
        files.event("next", {})
        files.write_model(nn.Linear(2, 2))
        assert files.unwritten == {"events.jsonl": "the directory was removed while the run was at work"}
        with pytest.raises(DirectoryError, match="in use"):
            RunDirectory.open(run, resume=True)
    assert {path.name for path in run.iterdir()} == {
        ".lock", "checkpoints", "events.jsonl", "method.json", "model.safetensors", "task.json"
    }  # fmt: skip


def test_another_runs_directory_is_left_to_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with closing(begun(run)) as files:
        shutil.rmtree(run)
        begun(run).close()
        before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
        files.event("next", {})
        files.write_json("summary.json", {})
        assert set(files.unwritten.values()) == {"another run has taken its place"}
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_task_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    begun(tmp_path).close()
    (tmp_path / "task.json").write_text("[")
    with (
        closing(RunDirectory.open(tmp_path, resume=True)) as files,
        pytest.raises(DirectoryError, match="cannot be read"),
    ):
        files.check_model(nn.Linear(2, 2))


def test_tied_tensors_are_written_under_each_name(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    with closing(begun(tmp_path / "run")) as files:
        files.write_model(module)
    state = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])
    module.load_state_dict(state)
