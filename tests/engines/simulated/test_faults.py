import math
from typing import Any

import pytest

from distbelief.engines.simulated.faults import Cut, Death, Fault, Join, Pause, Plan, Slow
from distbelief.errors import UsageError

NONSENSE: list[Any] = [
    (lambda: Death("replica", 1.0), 'a machine is "replica N", "shard N" or "controller", not \'replica\''),
    (lambda: Death("replica -1", 1.0), "a machine is"),
    (lambda: Death(3, 1.0), "a machine is"),  # type: ignore[arg-type]
    (lambda: Death("replica 0", -1.0), "at must be a number of 0 or more, not -1.0"),
    (lambda: Death("replica 0", math.nan), "at must be a number"),
    (lambda: Death("replica 0", 1.0, -2.0), "back must be a number of 0 or more"),
    (lambda: Death("replica 0", 1.0, math.inf), "back must be a number"),
    (lambda: Death("replica 0", 1.0, 2.0, -1.0), "notice_s must be a number of 0 or more, not -1.0"),
    (lambda: Death("replica 0", 1.0, 2.0, None), "notice_s must be a number"),  # type: ignore[arg-type]
    (lambda: Death("shard 0", 1.0, 2.0, 0.5), "only a replica can be told to leave: leave notice_s of shard 0 out"),
    (lambda: Death("controller", 1.0, notice_s=0.5), "leave notice_s of controller out"),
    (lambda: Join("shard 0", 1.0), "shard 0 is no replica"),
    (lambda: Pause("replica 0", 1.0, 0.0), "seconds must be a number of more than 0"),
    (lambda: Pause("replica 0", 1.0, math.inf), "seconds must be a number"),
    (lambda: Pause("shard 0", 1.0, 1e9), "seconds must be at most 100,000 seconds, not 1000000000.0"),
    (lambda: Death("controller", 1.0, 1e300), "back must be at most 1,000,000 seconds"),
    (lambda: Death("controller", 1e300), "at must be at most 1,000,000 seconds"),
    (lambda: Slow("controller", 1.0, 1.0, 2.0), "controller is no replica"),
    (lambda: Slow("replica 0", 1.0, 1.0, 0.0), "factor must be a number of more than 0"),
    (lambda: Cut(1.0, 1.0, "replica 0"), "machines must be machines, such as"),  # type: ignore[arg-type]
    (lambda: Cut(1.0, 1.0, ()), "machines must be machines"),
    (lambda: Cut(1.0, 1.0, ("replica x",)), "a machine is"),
    (lambda: Cut(1.0, 1.0, ("replica 0",), ("replica 0", "shard 0")), "replica 0 cannot be cut off from itself"),
    (lambda: Cut(1.0, math.inf, ("replica 0",)), "seconds must be a number"),
    (lambda: Plan(["death"]), "a fault is a value such as"),  # type: ignore[list-item]
    (lambda: Plan([Join("replica 0", 1.0), Join("replica 0", 2.0)]), "replica 0 joins twice"),
    (
        lambda: Plan([Join("replica 0", 5.0), Death("replica 0", 2.0)]),
        "replica 0 cannot die at 2 s: it is there from 5 s on",
    ),
    (
        lambda: Plan([Death("shard 1", 1.0, 3.0), Death("shard 1", 2.0)]),
        "shard 1 cannot die at 2 s: it is there from 4 s on",
    ),
    (
        lambda: Plan([Death("controller", 1.0, None), Death("controller", 2.0)]),
        "controller cannot die at 2 s: it is dead for good by then",
    ),
]


@pytest.mark.parametrize(("make", "sentence"), NONSENSE, ids=[sentence for _, sentence in NONSENSE])
def test_a_fault_that_cannot_be_is_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Death("replica 4", 1.0), "a fault is meant for replica 4, but the run has replicas 0 to 3 only"),
        (Pause("shard 2", 1.0, 1.0), "a fault is meant for shard 2, but the run has shards 0 to 1 only"),
        (Cut(1.0, 1.0, ("replica 0",), ("replica 9",)), "meant for replica 9"),
        (Join("replica 7", 1.0), "meant for replica 7"),
    ],
)
def test_a_fault_for_a_machine_that_is_not_there_is_refused(fault: Fault, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Plan([fault]).check_targets(4, 2)


def test_of_one_shard_it_is_said_which_one_there_is() -> None:
    with pytest.raises(UsageError, match="meant for shard 3, but the run has shard 0 only"):
        Plan([Death("shard 3", 1.0)]).check_targets(4, 1)


def test_who_is_away_is_away_until_it_is_back() -> None:
    plan = Plan([Death("replica 0", 1.0, 2.0), Death("replica 0", 5.0, None)])
    found = [plan.away("replica 0", now) for now in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)]
    assert [death and death.at for death in found] == [None, None, 1.0, None, None, 5.0]
    assert plan.away("replica 1", 2.0) is None


def test_what_is_there_is_not_refused() -> None:
    faults: list[Fault] = [
        Death("replica 3", 1.0),
        Death("shard 1", 1.0),
        Death("controller", 1.0),
        Cut(1.0, 1.0, ("shard 0",)),
    ]
    Plan(faults).check_targets(4, 2)


# How long work takes


def test_undisturbed_work_takes_as_long_as_it_takes() -> None:
    plan = Plan([Pause("replica 0", 10.0, 5.0), Slow("replica 0", 0.0, 1.0, 100.0)])
    assert plan.finish("replica 1", 3.0, 2.0) == 5.0
    assert plan.finish("replica 0", 3.0, 2.0) == 5.0
    assert plan.finish("replica 0", 3.0, 0.0) == 3.0


def test_a_pause_is_added() -> None:
    plan = Plan([Pause("replica 0", 10.0, 5.0), Pause("replica 0", 20.0, 1.0)])
    assert plan.finish("replica 0", 8.0, 2.0) == 10.0
    assert plan.finish("replica 0", 8.0, 3.0) == 16.0
    assert plan.finish("replica 0", 12.0, 1.0) == 16.0
    assert plan.finish("replica 0", 8.0, 8.0) == 22.0


def test_overlapping_pauses_count_once() -> None:
    plan = Plan([Pause("replica 0", 10.0, 5.0), Pause("replica 0", 12.0, 6.0)])
    assert plan.finish("replica 0", 9.0, 2.0) == 19.0
    assert plan.awake("replica 0", 11.0) == 18.0


def test_slow_work_takes_its_factor() -> None:
    plan = Plan([Slow("replica 0", 10.0, 8.0, 4.0), Slow("replica 0", 14.0, 100.0, 0.5)])
    assert plan.finish("replica 0", 9.0, 1.5) == 12.0
    # One second as it is, one at a quarter until 14, then at a half until 18, then twice as fast.
    assert plan.finish("replica 0", 9.0, 6.0) == pytest.approx(19.0)


def test_who_is_paused_hears_it_later() -> None:
    plan = Plan([Pause("shard 0", 1.0, 2.0)])
    assert [plan.awake("shard 0", now) for now in (0.5, 1.0, 2.9, 3.0)] == [0.5, 3.0, 3.0, 3.0]
    assert plan.awake("shard 1", 2.0) == 2.0


# Cuts


def test_a_cut_holds_both_ways_and_for_its_time_only() -> None:
    plan = Plan([Cut(1.0, 2.0, ("replica 0", "replica 1"), ("shard 0",))])
    for one, other in (("replica 0", "shard 0"), ("shard 0", "replica 1")):
        assert [plan.cut_off(one, other, now) for now in (0.9, 1.0, 2.9, 3.0)] == [False, True, True, False]
    assert not plan.cut_off("replica 0", "shard 1", 2.0)
    assert not plan.cut_off("replica 0", "replica 1", 2.0)


def test_a_cut_from_all_others_leaves_those_within_together() -> None:
    plan = Plan([Cut(1.0, 2.0, ("replica 0", "shard 0"))])
    assert plan.cut_off("replica 0", "shard 1", 2.0)
    assert plan.cut_off("controller", "shard 0", 2.0)
    assert not plan.cut_off("replica 0", "shard 0", 2.0)
    assert not plan.cut_off("replica 1", "shard 1", 2.0)


# What follows from a plan


def test_deaths_come_in_the_order_of_time() -> None:
    deaths = [Death("replica 0", 5.0), Death("shard 0", 1.0), Death("replica 0", 1.0, 0.5)]
    assert [death.at for death in Plan(deaths).deaths] == [1.0, 1.0, 5.0]


def test_it_is_known_when_a_plan_is_over() -> None:
    assert Plan([]).quiet_from == 0.0
    assert Plan([Death("replica 0", 5.0, 3.0), Pause("shard 0", 1.0, 2.0)]).quiet_from == 8.0
    assert Plan([Death("replica 0", 5.0, None), Join("replica 1", 7.0)]).quiet_from == 7.0


def test_messages_are_lost_where_hosts_die_or_machines_are_cut_off() -> None:
    assert not Plan([Death("replica 0", 1.0), Death("controller", 1.0), Pause("shard 0", 1.0, 1.0)]).loses_messages
    assert Plan([Death("shard 0", 1.0)]).loses_messages
    assert Plan([Cut(1.0, 1.0, ("replica 0",))]).loses_messages


def test_on_a_machine_that_is_to_be_taken_away_nothing_begins() -> None:
    plan = Plan([Join("replica 0", 1.0), Death("replica 0", 5.0, 2.0, 1.0), Death("replica 0", 8.0, 1.0, 2.0)])
    assert plan.deaths[0].told_at == 4.0
    # It is back at 7, when it has been told of its next death, and again at 9.
    expected = {0.0: 1.0, 1.0: 1.0, 3.0: 3.0, 4.0: 4.0, 4.1: 9.0, 6.0: 9.0, 7.5: 9.0, 9.0: 9.0}
    assert {now: plan.there_from("replica 0", now) for now in expected} == expected
    assert plan.there_from("replica 1", 4.5) == 4.5


def test_what_is_dead_for_good_is_never_there() -> None:
    plan = Plan([Death("replica 0", 5.0, None, 1.0), Join("replica 1", 3.0)])
    assert [plan.there_from("replica 0", now) for now in (4.0, 4.5, 9.0)] == [4.0, math.inf, math.inf]
