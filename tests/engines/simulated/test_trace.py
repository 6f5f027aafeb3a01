import logging

import pytest

from distbelief.allocation import Account
from distbelief.engines.simulated.trace import Trace
from distbelief.errors import InvariantViolated
from distbelief.ports import ORIGIN, Push, Reply, SetLiving, Verdict, Work
from distbelief.server.admission import Admission, Asynchronous, Bounded, Buffered
from distbelief.server.register import SEEN
from tests.shards import at


def pushed(trace: Trace, sequence: int = 1, *, shard: int = 0, incarnation: int = 1, **reply: object) -> None:
    """Tell of a push of replica 0 with four examples, and of its answer."""
    answer: dict[str, object] = {
        "verdict": Verdict.APPLIED,
        "reason": "",
        "staleness": 0,
        "version": at(1),
        "at_least": ORIGIN,
    }
    push = Push(0, incarnation, sequence, ORIGIN, Work(1, 0, 1, 4), (), ())
    trace.pushed(shard, push, Reply(**answer | reply))  # type: ignore[arg-type]


def test_equal_happenings_have_equal_digests_and_others_another() -> None:
    traces = [Trace(Asynchronous()) for _ in range(3)]
    for trace in traces:
        trace.note("lease", 0, 1)
    traces[2].note("end", 0)
    assert traces[0].digest == traces[1].digest != traces[2].digest
    assert [trace.notes for trace in traces] == [1, 1, 2]


def test_what_happened_in_another_order_has_another_digest() -> None:
    first, second = Trace(Asynchronous()), Trace(Asynchronous())
    for line in ("a", "b"):
        first.note(line)
    for line in ("b", "a"):
        second.note(line)
    assert first.digest != second.digest


def test_lines_are_shown_to_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "distbelief.trace"):
        Trace(Asynchronous()).note("lease", 3)
    assert caplog.messages == ["lease 3"]


def test_a_push_is_used_once_at_each_shard() -> None:
    trace = Trace(Asynchronous())
    pushed(trace)
    pushed(trace, shard=1)
    pushed(trace, reason=SEEN)
    with pytest.raises(InvariantViolated, match=r"shard 0 used push 1 of replica 0.1 twice, or after a later one"):
        pushed(trace)


def test_what_is_turned_away_may_come_again() -> None:
    trace = Trace(Asynchronous())
    pushed(trace, 2)
    pushed(trace, 1, verdict=Verdict.DUPLICATE)
    with pytest.raises(InvariantViolated, match="twice, or after a later one"):
        pushed(trace, 1)


def test_nothing_is_used_of_the_dead() -> None:
    trace = Trace(Asynchronous())
    pushed(trace)
    trace.fenced(0, 1)
    pushed(trace, 2, verdict=Verdict.DUPLICATE)
    pushed(trace, 1, incarnation=2)
    with pytest.raises(InvariantViolated, match=r"push 2 of replica 0.1, which was declared dead before"):
        pushed(trace, 2)


def test_no_shard_forgets_the_dead() -> None:
    trace, command = Trace(Asynchronous()), SetLiving(1, frozenset(), alone=False)
    trace.obeyed(0, command, 0, [0, 0])
    trace.fenced(1, 2)
    for fenced in ([0, 2], [1, 3]):
        trace.obeyed(0, command, 0, fenced)
    with pytest.raises(InvariantViolated, match=r"shard 1 has forgotten that replica 1.2 is dead"):
        trace.obeyed(1, command, 0, [1, 1])


def test_who_was_turned_away_at_one_shard_waits_at_none() -> None:
    trace = Trace(Buffered(2))
    for shard in range(2):
        pushed(trace, 1, shard=shard, verdict=Verdict.HELD, at_least=at(2))
    trace.asked(0, "replica 0", at(2))
    pushed(trace, 2, shard=0, verdict=Verdict.LATE)
    pushed(trace, 2, shard=1, verdict=Verdict.HELD, at_least=at(3))
    trace.asked(0, "replica 0", ORIGIN)
    trace.asked(1, "replica 0", at(2))
    trace.asked(1, "replica 1", at(3))
    with pytest.raises(InvariantViolated, match="replica 0 waits at shard 1, and shard 0 turned its push away"):
        trace.asked(1, "replica 0", at(3))


def test_what_is_held_and_then_lost_with_its_shard_was_not_turned_away() -> None:
    trace = Trace(Buffered(2))
    for shard in range(2):
        pushed(trace, 1, shard=shard, verdict=Verdict.HELD, at_least=at(2))
    pushed(trace, 1, shard=0, verdict=Verdict.TOO_OLD)
    trace.asked(1, "replica 0", at(2))


def test_who_is_held_to_be_dead_may_wait_for_the_round_of_the_next_incarnation() -> None:
    trace = Trace(Buffered(3))
    for incarnation in (1, 2):
        pushed(trace, 1, shard=1, incarnation=incarnation, verdict=Verdict.HELD, at_least=at(2))
    pushed(trace, 1, shard=0, incarnation=2, verdict=Verdict.LATE)
    trace.asked(1, "replica 0", at(2))


def test_versions_only_grow_at_each_shard() -> None:
    trace = Trace(Asynchronous())
    trace.saw(0, at(3))
    trace.saw(1, at(2))
    trace.saw(0, at(3))
    with pytest.raises(InvariantViolated, match=r"shard 0 went back from version .*updates=3\) to .*updates=2\)"):
        trace.saw(0, at(2))


def test_a_later_term_is_further_however_few_its_updates() -> None:
    trace = Trace(Asynchronous())
    trace.saw(0, at(3))
    trace.saw(0, at(1, term=1))
    with pytest.raises(InvariantViolated, match=r"went back from version .*term=1, .* to .*term=0, "):
        trace.saw(0, at(9))


@pytest.mark.parametrize(("admission", "allowed"), [(Bounded(2), 2), (Buffered(2), 0)])
def test_what_is_used_is_no_staler_than_the_bound(admission: Admission, allowed: int) -> None:
    trace = Trace(admission)
    pushed(trace, 1, staleness=allowed)
    pushed(trace, 2, staleness=allowed + 1, verdict=Verdict.TOO_OLD)
    with pytest.raises(InvariantViolated, match=f"whose staleness {allowed + 1} is beyond {allowed}"):
        pushed(trace, 3, staleness=allowed + 1)


def test_without_a_bound_everything_may_be_stale() -> None:
    pushed(Trace(Asynchronous()), staleness=10**6)


def test_the_ledgers_account_is_that_of_the_pushes() -> None:
    trace = Trace(Asynchronous())
    pushed(trace, 1)
    pushed(trace, 1, shard=1)
    pushed(trace, 2, shard=1)
    trace.check(Account(used=8, partial=0))
    trace.check(Account(used=4, partial=4))
    for used, partial in ((12, 0), (4, 0), (0, 4)):
        with pytest.raises(
            InvariantViolated, match=f"8 examples were in pushes that shards used; the ledger has {used}"
        ):
            trace.check(Account(used=used, partial=partial))


def test_after_a_shard_went_back_its_account_is_not_known() -> None:
    trace = Trace(Asynchronous())
    pushed(trace)
    trace.restored()
    trace.check(Account(used=100, partial=0))


def test_a_new_life_begins_with_nothing_used_and_the_digest_goes_on() -> None:
    trace = Trace(Asynchronous())
    pushed(trace, version=at(5))
    before = trace.digest
    trace.begin_life(Account(), 0)
    trace.check(Account(used=0, partial=0))
    pushed(trace, version=at(1))
    trace.check(Account(used=4, partial=0))
    assert trace.digest != before
