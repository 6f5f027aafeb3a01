"""What can be seen of a run beside it: on the board, in the figures for Prometheus, before the lines that it prints."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import distbelief as db
from distbelief.cli.status import lines, table
from distbelief.engines.ray import cluster
from distbelief.engines.ray.board import Board, RunStatus, runs
from distbelief.errors import UsageError
from distbelief.observe.events import ReplicaStatus, Status
from distbelief.run.callbacks import LiveRun
from tests import problems

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    assert cluster.join("local")
    yield
    cluster.leave()


class Kept:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.seen: list[Status] = []

    def event(self, event: str, seconds: float, **content: Any) -> None:
        self.events.append(event)

    def status(self, status: Status) -> None:
        self.seen.append(status)


STATUS = Status(
    seconds=20.0,
    examples=6_400,
    updates=200,
    epoch=0.5,
    replicas=(ReplicaStatus(0, "working", 300.0, 2, 1), ReplicaStatus(1, "awaited")),
)


def test_a_board_shows_what_it_is_told(tmp_path: Path) -> None:
    kept = Kept()
    board = Board(kept, str(tmp_path))
    try:
        assert runs() == []
        board.event("evaluation", 3.0, epoch=0.4, examples=6_000, updates=190, loss=0.5, best=True)
        board.event("died", 3.5, replica=1)
        board.status(STATUS)
        [(shown, age_s)] = runs()
        assert (kept.events, kept.seen) == (["evaluation", "died"], [STATUS])
        assert (shown.directory, shown.status, shown.deaths) == (str(tmp_path), STATUS, 1)
        assert (shown.evaluated_after, shown.metrics) == (6_000, {"loss": 0.5})
        assert age_s >= 0
    finally:
        board.close()


def test_one_run_of_a_name_is_at_work_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distbelief.engines.ray.board._FREED_S", 0.0)
    first = Board(Kept(), str(tmp_path))
    with pytest.raises(
        UsageError, match=f"a run in {tmp_path} is at work on this cluster, begun on {os.uname().nodename}"
    ):
        Board(Kept(), str(tmp_path))
    first.close()
    monkeypatch.undo()
    # The name is waited for where the run that had it has only just ended.
    Board(Kept(), str(tmp_path)).close()


def test_a_run_is_on_its_board_until_it_ends(tmp_path: Path) -> None:
    found: list[RunStatus] = []

    def look(event: dict[str, Any], run: LiveRun) -> None:
        if event["event"] == "progress" and event["examples"]:
            found.extend(shown for shown, _ in runs() if shown.status.examples)
            if found:
                run.stop()

    db.train(
        problems.task(),
        db.Downpour(replicas=1, shards=1),
        engine=db.Ray(),
        until=db.Until(seconds=40),
        directory=tmp_path / "mine",
        callbacks=[look],
        progress=False,
    )
    [machine] = found[0].machines
    assert (found[0].directory, machine.shards, machine.replicas) == (str(tmp_path / "mine"), (0,), (0,))
    assert f"{tmp_path / 'mine'}, begun on {machine.name}" in lines(found[0], 0.0)[0]
    assert table(found[0]).row_count == 1
    assert runs() == []
