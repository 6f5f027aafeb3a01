"""What is known of one replica: which life it is in, when it must have ended, and when its silence is suspect."""

import math

from distbelief.engines.replica_slot import ReplicaSlot
from distbelief.engines.supervision import Failure


def alive(now: float = 0.0) -> ReplicaSlot:
    slot = ReplicaSlot(3)
    slot.begin(now)
    return slot


def test_each_beginning_is_another_incarnation() -> None:
    slot = ReplicaSlot(3, 4)
    assert (slot.incarnation, slot.starts, slot.alive) == (4, 0, False)
    slot.begin(0.0)
    slot.begin(9.0)
    assert (slot.incarnation, slot.starts, slot.alive) == (6, 2, True)


def test_a_beginning_forgets_what_was_of_the_life_before() -> None:
    slot = alive()
    slot.failure = Failure("KeyError: 'a'", "", "user")
    slot.killed, slot.state = True, "dead"
    slot.leave_by(5.0)
    slot.begin(9.0)
    forgotten: list[object] = [slot.failure, slot.killed, slot.state, slot.kill_at]
    assert forgotten == [None, False, "starting", math.inf]


def test_the_earliest_of_several_ends_counts() -> None:
    slot = alive()
    for when in (9.0, 5.0, 7.0):
        slot.leave_by(when)
    assert slot.kill_at == 5.0


def test_silence_is_counted_from_what_was_said_or_done_last() -> None:
    slot = alive(100.0)
    assert not slot.silent(130.0)
    assert slot.silent(130.1)
    slot.heard(120.0)
    assert not slot.silent(150.0)
    slot.look(140.0, 1)
    assert not slot.silent(170.0)
    slot.look(160.0, 1)
    assert slot.silent(170.1), "it has done nothing since"


def test_who_is_slow_may_be_silent_for_ten_of_its_longest_batches() -> None:
    slot = alive()
    for step, now in enumerate((10.0, 14.0, 34.0, 37.0), 1):
        slot.look(now, step)
    assert not slot.silent(237.0)
    assert slot.silent(237.1)


def test_the_first_batch_is_no_measure() -> None:
    """Before it, modules are imported and data loaded."""
    slot = alive()
    slot.look(29.0, 1)
    assert slot.silent(59.1)


def test_the_dead_are_not_silent() -> None:
    slot = alive()
    slot.alive = False
    assert not slot.silent(1e6)


def test_what_has_no_machine_yet_is_awaited_and_neither_silent_nor_started() -> None:
    slot = alive()
    slot.placed(1.0, there=False)
    slot.placed(2.0, there=False)
    assert (slot.state, slot.starts, slot.expected, slot.silent(1e6)) == ("awaited", 0, True, False)
    slot.placed(1e6, there=True)
    slot.placed(1e6, there=True)
    assert (slot.state, slot.starts, slot.silent(1e6 + 29.0), slot.silent(1e6 + 31.0)) == ("starting", 1, False, True)
    slot.asked(1e6)
    slot.placed(2e6, there=False)
    assert (slot.state, slot.expected) == ("ready", False), "it has been heard: it is there"


def test_what_never_comes_was_not_started_awaited_or_not() -> None:
    for awaited in (False, True):
        slot = alive()
        if awaited:
            slot.placed(1.0, there=False)
        slot.never_came()
        assert (slot.state, slot.starts, slot.alive) == ("dead", 0, False)


def test_who_was_told_to_leave_is_not_whoever_comes_next() -> None:
    slot = alive()
    slot.leaving = True
    slot.begin(9.0)
    assert not slot.leaving
