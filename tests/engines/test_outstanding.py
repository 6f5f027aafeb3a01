"""Commands under way: each is answered once, and snapshots hold changes back."""

from collections.abc import Callable, Sequence
from typing import Any

from distbelief.engines.outstanding import Outstanding
from distbelief.ports import Answer, Fence


def noting(notes: list[Any], what: str) -> Callable[[float, Sequence[Answer]], None]:
    return lambda now, answers: notes.append((what, now, list(answers)))


def test_each_command_has_a_number_by_which_its_answers_are_known() -> None:
    notes: list[Any] = []
    outstanding = Outstanding()
    first, second = (outstanding.execute(Fence(replica, 1), noting(notes, f"fence {replica}")) for replica in (0, 1))
    assert first.number != second.number
    assert (first.command, second.command) == (Fence(0, 1), Fence(1, 1))
    outstanding.executed(5.0, second.number, [None])
    outstanding.executed(6.0, first.number, [None, None])
    assert notes == [("fence 1", 5.0, [None]), ("fence 0", 6.0, [None, None])]


def test_answers_that_come_again_and_those_to_nothing_are_ignored() -> None:
    notes: list[Any] = []
    outstanding = Outstanding()
    sent = outstanding.execute(Fence(0, 1), noting(notes, "fence"))
    for _ in range(3):
        outstanding.executed(5.0, sent.number, [])
    outstanding.executed(5.0, 99, [])
    assert notes == [("fence", 5.0, [])]


def test_changes_wait_for_snapshots_and_come_in_their_order() -> None:
    notes: list[Any] = []
    outstanding = Outstanding()
    outstanding.when_still(notes.append, "at once")
    taking = outstanding.snapshots(noting(notes, "snapshots"))
    for change in ("first", "second"):
        outstanding.when_still(notes.append, change)
    fence = outstanding.execute(Fence(0, 1), noting(notes, "fence"))
    outstanding.executed(6.0, fence.number, [])
    assert notes == ["at once", ("fence", 6.0, [])]
    outstanding.executed(7.0, taking.number, [])
    assert notes[2:] == [("snapshots", 7.0, []), "first", "second"]
    outstanding.when_still(notes.append, "at once again")
    assert notes[-1] == "at once again"


def test_a_change_that_begins_new_snapshots_leaves_the_others_waiting() -> None:
    notes: list[Any] = []
    outstanding = Outstanding()
    first = outstanding.snapshots(noting(notes, "first"))
    again = []
    outstanding.when_still(lambda: again.append(outstanding.snapshots(noting(notes, "second"))))
    outstanding.when_still(notes.append, "a change")
    outstanding.executed(1.0, first.number, [])
    assert notes == [("first", 1.0, [])]
    outstanding.executed(2.0, again[0].number, [])
    assert notes == [("first", 1.0, []), ("second", 2.0, []), "a change"]
