"""Folders that are whole or not there, whoever dies while making one."""

import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distbelief.errors import DataError
from distbelief.tasks import cache

MADE_FROM = {"format": 1, "hours": 2}


class Maker:
    """Fills folders, counts how often, and keeps what it is told."""

    def __init__(self) -> None:
        self.times = 0
        self.told: list[str] = []

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.times += 1
        (folder / "a.npy").write_bytes(b"aaaa")
        (folder / "b.npy").write_bytes(b"bb")
        return {"examples": 6}

    def provide(self, folder: Path, made_from: Mapping[str, Any] = MADE_FROM) -> Path:
        return cache.provide(folder, made_from, self, lambda message, fraction: self.told.append(message))


def test_it_is_made_once(tmp_path: Path) -> None:
    maker, folder = Maker(), tmp_path / "deep" / "corpus"
    assert maker.provide(folder) == maker.provide(folder) == folder
    assert maker.times == 1
    assert maker.told == []
    assert json.loads((folder / "manifest.json").read_text())["content"] == {"examples": 6}
    assert {path.name for path in folder.parent.iterdir()} == {"corpus", "corpus.lock"}


@pytest.mark.parametrize("name", ["a.npy", "b.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [b"", b"abba", None])
def test_a_damaged_folder_is_said_and_made_again(tmp_path: Path, name: str, damage: bytes | None) -> None:
    maker, folder = Maker(), tmp_path / "corpus"
    maker.provide(folder)
    (folder / name).unlink()
    if damage is not None:
        (folder / name).write_bytes(damage)
    maker.provide(folder)
    assert maker.times == 2
    assert (folder / "a.npy").read_bytes() == b"aaaa"
    (said,) = maker.told
    assert "damaged" in said
    assert name in said


def test_another_recipe_is_another_content(tmp_path: Path) -> None:
    maker, folder = Maker(), tmp_path / "corpus"
    maker.provide(folder)
    maker.provide(folder, {**MADE_FROM, "format": 2})
    assert maker.times == 2


def test_what_a_dead_maker_left_is_swept_away(tmp_path: Path) -> None:
    unfinished = tmp_path / "corpus.unfinished"
    unfinished.mkdir()
    (unfinished / "old.npy").write_bytes(b"old")
    folder = Maker().provide(tmp_path / "corpus")
    assert {path.name for path in folder.iterdir()} == {"a.npy", "b.npy", "manifest.json"}
    assert not unfinished.exists()


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "a.npy").write_bytes(b"a")
        raise RuntimeError("no voice")

    with pytest.raises(RuntimeError, match="no voice"):
        cache.provide(tmp_path / "corpus", MADE_FROM, fail, lambda message, fraction: None)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.lock"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written .*XDG_CACHE_HOME"):
        Maker().provide(blocked / "distbelief" / "corpus")


def _provide_slowly(folder: Path, log: Path) -> None:
    def make(at: Path) -> Mapping[str, Any]:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        (at / "a.npy").write_bytes(b"a")
        return {}

    cache.provide(folder, MADE_FROM, make, lambda message, fraction: None)


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "corpus", tmp_path / "log")
    processes = [context.Process(target=_provide_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert cache.fault(tmp_path / "corpus", MADE_FROM) is None
