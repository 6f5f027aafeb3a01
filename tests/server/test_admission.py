import pytest

from distbelief.errors import UsageError
from distbelief.ports import Verdict
from distbelief.server.admission import Admission, Asynchronous, Bounded, Buffered, Paced, StalenessScaled


def test_asynchronous_applies_everything_on_arrival() -> None:
    for staleness in (0, 1, 10**6):
        assert Asynchronous().admit(staleness, 0, 5).verdict is Verdict.APPLIED


def test_what_is_stale_moves_the_less() -> None:
    decisions = [StalenessScaled().admit(staleness, 0, 5) for staleness in (0, 1, 2, 10)]
    assert [decision.scale for decision in decisions] == [1.0, 1.0, 0.5, 0.1]
    assert all(decision.verdict is Verdict.APPLIED for decision in decisions)
    assert "1/10" in decisions[-1].reason


def test_what_is_older_than_the_bound_is_refused_and_why_is_said() -> None:
    verdicts = [Bounded(2).admit(staleness, 0, 5).verdict for staleness in range(5)]
    assert verdicts == [*[Verdict.APPLIED] * 3, *[Verdict.TOO_OLD] * 2]
    assert Bounded(2).admit(4, 0, 5).reason == "4 updates old, and 2 are allowed"


def test_pacing_refuses_nothing() -> None:
    assert all(Paced(0).admit(staleness, 0, 5).verdict is Verdict.APPLIED for staleness in (0, 1, 10**6))
    assert [policy.lead for policy in (Paced(3), Asynchronous(), Buffered(2))] == [3, None, None]


@pytest.mark.parametrize("policy", [Bounded, Paced])
@pytest.mark.parametrize("number", [-1, 0.5, "2", None, True])
def test_a_bound_is_a_whole_number(policy: type[Bounded | Paced], number: int) -> None:
    with pytest.raises(UsageError, match="must be a whole number of 0 or more"):
        policy(number)


def test_a_round_is_held_until_it_is_full() -> None:
    verdicts = [Buffered(3).admit(0, held, 5) for held in range(3)]
    assert [v.verdict for v in verdicts] == [Verdict.HELD, Verdict.HELD, Verdict.APPLIED]
    assert verdicts[0].reason == "1 of 3 pushes of the round"


@pytest.mark.parametrize(("living", "held"), [(2, 1), (1, 0), (0, 0)])
def test_a_round_takes_no_more_pushes_than_replicas_live(living: int, held: int) -> None:
    assert Buffered(4).admit(0, held, living).verdict is Verdict.APPLIED
    if held:
        assert Buffered(4).admit(0, held - 1, living).verdict is Verdict.HELD


def test_what_comes_after_its_round_is_dropped() -> None:
    decision = Buffered(2).admit(1, 0, 4)
    assert decision.verdict is Verdict.LATE
    assert "closed 1 updates ago" in decision.reason


def test_a_round_of_one_is_asynchronous() -> None:
    assert Buffered(1).admit(7, 0, 4).verdict is Verdict.APPLIED
    assert Buffered(1).round == Asynchronous().round == 1


@pytest.mark.parametrize("m", [0, -1, 2.0, "2"])
def test_a_round_is_a_whole_number_of_pushes(m: int) -> None:
    with pytest.raises(UsageError, match="m must be a whole number of 1 or more"):
        Buffered(m)


def test_policies_are_values() -> None:
    assert Buffered(2) == Buffered(2) != Buffered(3)
    assert isinstance(Asynchronous(), Admission)
    assert all(isinstance(policy, Admission) for policy in (Buffered(2), StalenessScaled(), Bounded(2), Paced(2)))
