"""What a log of events tells, whatever stands in it."""

import json
from pathlib import Path

import numpy as np
import pytest

from distbelief.observe.report.log import Event, Log, in_order, number, read_log, whole
from tests.observe.report.logs import begun, died, evaluation, progress, resumed, started


def log_of(*events: Event) -> Log:
    log = Log()
    for event in events:
        log.add(event)
    return log


def examples(log: Log) -> list[tuple[list[float], list[float], list[float]]]:
    return [
        (
            [p.at[1] for p in log.evaluations],
            [p.at[1] for p in log.losses],
            [beat.examples for beat in log.beats],
        )
    ]


BEFORE = [
    started(),
    *(progress(t, 100 * t, (0, 50.0, 1)) for t in (1, 2, 3, 4)),
    *(evaluation(t, 100 * t, loss=1.0) for t in (1, 2, 3, 4)),
]


def test_what_was_told_after_the_checkpoint_is_superseded() -> None:
    log = log_of(*BEFORE, resumed(210, 2.1), started(2.1), progress(3.1, 310, (0, 50.0, 1)))
    assert examples(log) == [([100, 200], [100, 200, 310], [100, 200, 310])]


def test_what_was_told_later_than_the_checkpoint_is_superseded_whatever_was_used_by_then() -> None:
    log = log_of(*BEFORE, resumed(1000, 2.1), started(2.1))
    assert examples(log) == [([100, 200], [100, 200], [100, 200])]


def test_where_nothing_was_resumed_all_before_is_of_another_run() -> None:
    log = log_of(*BEFORE, resumed(None, 0.0), started(0.0), progress(1, 80))
    assert examples(log) == [([], [80], [])]


def test_lives_follow_one_another_and_what_was_lost_is_counted() -> None:
    log = log_of(*BEFORE, resumed(210, 2.1), started(2.1), progress(5, 500), resumed(400, 4.5), started(4.5))
    assert [(life.began, life.ended, life.resumed_after) for life in log.lives] == [
        (0.0, 4.0, None),
        (2.1, 5.0, 210.0),
        (4.5, 4.5, 400.0),
    ]
    assert [life.lost_before for life in log.lives] == pytest.approx([0.0, 1.9, 2.4])


def test_who_began_and_who_died_is_kept_of_every_life() -> None:
    first = [started(), begun(0, 1, 0.0), died(0, 1, 3.0), begun(0, 2, 3.5)]
    log = log_of(*first, resumed(10, 1.0), started(1.0), begun(0, 1, 1.0))
    (one, two), (three,) = (life.processes for life in log.lives)
    assert (one.began, one.ended, one.died_of) == (0.0, 3.0, "SIGKILL: the machine may be out of memory")
    assert (two.incarnation, two.ended, two.died_of) == (2, None, None)
    assert (three.incarnation, three.died_of) == (1, None)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ({"error": "as planned\nand more"}, "as planned"),
        ({"status": 3}, "exit code 3"),
        ({"status": -9999}, "signal 9999"),
        ({"status": "odd", "error": 7}, "unknown"),
    ],
)
def test_what_a_replica_died_of(how: dict[str, object], cause: str) -> None:
    log = log_of(started(), died(4, 2, 1.0, **how))
    (process,) = log.lives[0].processes
    assert (process.replica, process.incarnation, process.died_of) == (4, 2, cause), "its beginning was not told"


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[1, 2]\n",
        b"7\n",
        b"[" * 100_000 + b"\n",
        b'{"seconds": ' + b"9" * 5000 + b"}\n",
    ],
)
def test_a_damaged_line_is_counted_and_left_out(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(json.dumps(started()).encode() + b"\n" + line + json.dumps(progress(1, 10)).encode() + b"\n")
    log = read_log(file)
    assert (log.unread, len(log.losses)) == (1, 1)


def test_half_a_line_at_the_end_is_what_a_killed_writer_leaves(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(progress(1, 10)) + '\n{"event": "prog')
    log = read_log(file)
    assert (log.unread, len(log.losses)) == (0, 1)


def test_no_log_tells_nothing(tmp_path: Path) -> None:
    log = read_log(tmp_path / "events.jsonl")
    assert (log.lives, log.evaluations, log.unread) == ([], [], 0)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": ["progress"]},
        {"event": "progress", "seconds": "soon"},
        progress(1, 10, loss=None),
        {**progress(1, 10), "examples": None},
        {
            **progress(1, 10, loss=float("nan")),
            "replicas": [3, {}, {"replica": 1.5}, {"replica": 1e300}, {"replica": -1}],
        },
        {**progress(1, 10, loss=float("inf")), "replicas": "all"},
        evaluation(1, 10, loss=None, note="good", accuracy=True),
        {"event": "died", "seconds": 1, "replica": None},
        {"event": "replica", "seconds": 1, "replica": 1 << 70, "incarnation": 1},
    ],
)
def test_what_has_no_meaning_is_left_out(event: Event) -> None:
    log = log_of(started(), event)
    assert (log.evaluations, log.losses, log.beats) == ([], [], [])
    assert log.lives[0].processes == []


def test_a_number_is_finite_and_a_whole_one_names_something() -> None:
    odd = (None, True, "1", float("nan"), float("inf"), 1e101, 10**400)
    assert [number(value) for value in (*odd, 2, 0.5)] == [None] * 7 + [2.0, 0.5]
    assert [whole(value) for value in (*odd, -1, 1.0, 3)] == [None] * 9 + [3]


def test_an_axis_never_goes_back() -> None:
    places = np.array([0.0, 1, 5, 6, 2, 3, 3, 9])
    assert places[in_order(places)].tolist() == [0, 1, 2, 3, 3, 9]
    assert in_order(np.array([])).tolist() == []
