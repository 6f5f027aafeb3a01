import random
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distbelief.allocation import Account, LastPush, Reason
from distbelief.downpour.ledger import Ledger
from distbelief.errors import InvariantViolated
from distbelief.ports import Lease, Outcome, PushRecord, Verdict, Work

REFUSED = Verdict.NOT_FINITE
USED = Verdict.APPLIED


def ledger_of(batches: int, *, batch_size: int = 10, **options: int) -> Ledger:
    return Ledger(examples=batches * batch_size, batch_size=batch_size, **options)


def take(ledger: Ledger, holder: int = 0) -> Lease:
    lease, reason = ledger.lease(holder)
    assert lease is not None, reason
    return lease


def finish(ledger: Ledger, lease: Lease, verdict: Verdict = USED) -> None:
    ledger.done(lease.number, [Outcome(lease.start, lease.stop, verdict)])


def drain(ledger: Ledger, holder: int = 0) -> list[Lease]:
    """Take and finish everything."""
    leases = []
    while (lease := ledger.lease(holder).lease) is not None:
        finish(ledger, lease)
        leases.append(lease)
    ledger.check()
    return leases


def last(
    lease: Lease, start: int, stop: int, *, used: bool = True, partial: bool = False, refused: int = 0, dropped: int = 0
) -> LastPush:
    verdict = USED if used else Verdict.LATE
    record = PushRecord(1, Work(lease.number, start, stop, (stop - start) * 10, refused, dropped), verdict, not partial)
    return LastPush(record, used, partial)


# Portions


def test_the_batches_of_all_epochs_are_leased_in_order() -> None:
    ledger = ledger_of(100, epochs=3)
    leases = drain(ledger)
    covered = [(lease.epoch, batch) for lease in leases for batch in range(lease.start, lease.stop)]
    assert covered == [(epoch, batch) for epoch in range(3) for batch in range(100)]
    assert ledger.epochs_ended == 3
    assert ledger.accounts == {epoch: Account(used=1000) for epoch in range(3)}
    assert ledger.finished


def test_an_epoch_may_end_after_the_next_has_begun() -> None:
    ledger = ledger_of(2, epochs=2, replicas=1)
    leases = [take(ledger, holder) for holder in range(4)]
    assert [lease.epoch for lease in leases] == [0, 0, 1, 1]
    for lease in reversed(leases):
        assert ledger.epochs_ended == 0
        finish(ledger, lease)
        ledger.check()
    assert ledger.epochs_ended == 2


def test_without_an_end_there_is_always_more() -> None:
    ledger = ledger_of(3)
    for _ in range(100):
        finish(ledger, take(ledger))
    assert ledger.epochs_ended == 100
    assert not ledger.finished


def test_portions_shrink_towards_the_end_so_that_all_replicas_end_together() -> None:
    sizes = [lease.stop - lease.start for lease in drain(ledger_of(1000, epochs=1, replicas=4))]
    assert sizes[0] == 32
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert len([size for size in sizes if size == 1]) >= 4


def test_the_size_of_a_portion_depends_on_its_place_alone() -> None:
    alone = [lease[1:] for lease in drain(ledger_of(500, epochs=2, replicas=3))]
    ledger, chance, held, seen = ledger_of(500, epochs=2, replicas=3), random.Random(0), [], []
    while not ledger.finished:
        if (lease := ledger.lease(chance.randrange(3)).lease) is not None:
            held.append(lease)
            seen.append(lease[1:])
        if held and (lease is None or chance.random() < 0.5):
            finish(ledger, held.pop(chance.randrange(len(held))))
    assert seen == alone


def test_a_small_last_batch_counts_what_it_holds() -> None:
    ledger = Ledger(examples=25, batch_size=10, epochs=1)
    assert (ledger.batches, ledger.size(0, 3), ledger.size(2, 3)) == (3, 25, 5)
    drain(ledger)
    assert ledger.total == Account(used=25)


def test_a_batch_may_be_larger_than_the_data() -> None:
    ledger = Ledger(examples=5, batch_size=100, epochs=2)
    drain(ledger)
    assert ledger.total == Account(used=10)


@pytest.mark.parametrize("limit", [1, 10, 45, 250, 251])
def test_a_limit_ends_the_run_within_a_batch(limit: int) -> None:
    ledger = Ledger(examples=105, batch_size=10, limit=limit, replicas=2)
    drain(ledger)
    assert limit <= ledger.total.total < limit + 10


def test_whichever_of_epochs_and_examples_comes_first_ends_the_run() -> None:
    for epochs, limit, total in ((1, 500, 100), (9, 50, 50)):
        ledger = Ledger(examples=100, batch_size=10, epochs=epochs, limit=limit)
        drain(ledger)
        assert ledger.total.total == total


def test_a_limit_counts_what_is_leased() -> None:
    ledger = ledger_of(100, limit=100)
    leases = []
    for holder in range(10):
        if (lease := ledger.lease(holder).lease) is not None:
            leases.append(lease)
    assert sum(lease.stop - lease.start for lease in leases) == 10
    assert ledger.lease(10) == (None, Reason.OUTSTANDING)
    for holder in range(10):
        ledger.died(holder, None)
    assert sum(lease.stop - lease.start for lease in drain(ledger, 1)) == 10
    assert ledger.total == Account(used=100)


# Who is given work


def test_the_warm_start_is_one_replicas_alone() -> None:
    ledger = ledger_of(100, epochs=1, replicas=2, warmstart=400)
    while ledger.total.total < 400:
        lease = take(ledger, 1)
        assert ledger.lease(0) == (None, Reason.WARM_START)
        finish(ledger, lease)
    assert ledger.lease(0).reason is Reason.GRANTED


def test_if_the_warm_starts_replica_dies_another_goes_on() -> None:
    ledger = ledger_of(100, epochs=1, replicas=2, warmstart=400)
    lease = take(ledger, 1)
    assert ledger.lease(0).reason is Reason.WARM_START
    ledger.died(1, None)
    assert take(ledger, 0)[1:] == lease[1:]
    assert ledger.lease(1).reason is Reason.WARM_START


def test_a_warm_start_longer_than_the_run_ends_for_all() -> None:
    ledger = ledger_of(10, epochs=1, replicas=2, warmstart=1000)
    assert ledger.lease(1).reason is Reason.GRANTED
    assert ledger.lease(0).reason is Reason.WARM_START
    ledger.died(1, None)
    drain(ledger, 0)
    assert ledger.finished
    assert ledger.lease(0) == ledger.lease(1) == (None, Reason.FINISHED)


def test_nobody_begins_before_the_quorum_is_there() -> None:
    ledger = ledger_of(100, epochs=1, replicas=3, quorum=3)
    for holder in (0, 1, 1, 0):
        assert ledger.lease(holder) == (None, Reason.GATHERING)
    assert ledger.lease(2).reason is Reason.GRANTED
    assert ledger.lease(0).reason is Reason.GRANTED
    assert ledger.holders == {0, 2}


def test_a_death_after_the_last_batch_keeps_nobody_waiting() -> None:
    ledger = ledger_of(10, epochs=1, replicas=2, quorum=2)
    ledger.lease(1)
    drain(ledger, 0)
    ledger.died(0, None)
    assert ledger.lease(1) == (None, Reason.FINISHED)


def test_after_a_stop_nothing_is_leased_and_what_is_leased_may_be_done() -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger)
    ledger.stop()
    assert ledger.lease(1) == (None, Reason.FINISHED)
    assert ledger.holders == {0}
    ledger.done(lease.number, [Outcome(lease.start, lease.start + 1, USED)])
    assert ledger.finished
    assert ledger.total == Account(used=10)
    ledger.check()


def test_near_the_end_nobody_is_given_a_second_lease() -> None:
    """A slow replica that held one would keep all others waiting for it."""
    ledger = ledger_of(330, epochs=1, replicas=2)
    first, second = take(ledger, 0), take(ledger, 0)
    assert first.stop - first.start == second.stop - second.start == 32
    finish(ledger, first)
    third = take(ledger, 0)
    assert ledger.lease(0) == (None, Reason.AHEAD)
    other = take(ledger, 1)
    assert other.stop - other.start < 32
    assert ledger.lease(1) == (None, Reason.AHEAD)
    finish(ledger, other)
    assert take(ledger, 1).start == other.stop
    for lease in (second, third):
        finish(ledger, lease)
    assert ledger.lease(0).reason is Reason.GRANTED
    ledger.check()


def test_what_was_released_near_the_end_is_nobodys_second_lease_either() -> None:
    ledger = ledger_of(100, epochs=1, replicas=4)
    take(ledger, 0)
    released = take(ledger, 1)
    ledger.died(1, None)
    assert ledger.lease(0) == (None, Reason.AHEAD)
    assert take(ledger, 2)[1:] == released[1:]


def test_without_an_end_a_holder_may_always_be_a_lease_ahead() -> None:
    ledger = ledger_of(3)
    assert [take(ledger).epoch for _ in range(3)] == [0, 1, 2]


def test_what_was_released_is_cut_to_what_a_limit_allows() -> None:
    """A run may go on with fewer examples to do than a portion that was released has."""
    ledger = ledger_of(1000, limit=10_000)
    lease = take(ledger)
    ledger.done(lease.number, [Outcome(0, 2, USED)])
    other = ledger_of(1000, limit=70)
    other.restore_(ledger.state())
    again = take(other)
    assert again[1:] == (0, 2, 7), "20 of 70 examples are done"
    other.check()
    assert other.lease(1) == (None, Reason.OUTSTANDING)
    finish(other, again)
    assert other.finished
    assert other.total == Account(used=70)
    longer = ledger_of(1000, epochs=1)
    longer.restore_(other.state())
    assert take(longer)[1:] == (0, 7, lease.stop), "the rest is not lost"
    longer.check()


# What became of a lease


def test_every_verdict_has_its_account() -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger)
    verdicts = [USED, Verdict.HELD, REFUSED, Verdict.LATE, Verdict.TOO_OLD, Verdict.DUPLICATE]
    ledger.done(lease.number, [Outcome(i, i + 1, verdict) for i, verdict in enumerate(verdicts)])
    assert ledger.total == Account(used=20, refused=10, dropped=30)
    ledger.check()


def test_what_a_lease_leaves_out_is_leased_again_first() -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger)
    ledger.done(lease.number, [Outcome(lease.start, 5, USED)])
    again = take(ledger, 1)
    assert again[1:] == (0, 5, lease.stop)
    assert again.number != lease.number


@pytest.mark.parametrize(
    "outcomes",
    [
        [Outcome(1, 2, USED)],
        [Outcome(0, 2, USED), Outcome(3, 4, USED)],
        [Outcome(0, 2, USED), Outcome(1, 4, USED)],
        [Outcome(0, 0, USED)],
        [Outcome(0, 99, USED)],
        [Outcome(0, 2, USED), Outcome(2, 1, USED)],
    ],
)
def test_an_account_that_cannot_be_is_a_bug(outcomes: list[Outcome]) -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger)
    with pytest.raises(InvariantViolated, match="was accounted for as"):
        ledger.done(lease.number, outcomes)


def test_a_lease_ends_once() -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger)
    finish(ledger, lease)
    with pytest.raises(InvariantViolated, match=f"lease {lease.number} is not outstanding"):
        finish(ledger, lease)
    other = take(ledger, 1)
    ledger.died(1, None)
    with pytest.raises(InvariantViolated, match="is not outstanding"):
        finish(ledger, other)


def test_an_account_that_does_not_add_up_fails_the_check() -> None:
    ledger = ledger_of(100, epochs=1)
    finish(ledger, take(ledger))
    ledger.check()
    ledger.accounts[0].used -= 1
    with pytest.raises(InvariantViolated, match=r"epoch 0: .* examples accounted for, .* issued"):
        ledger.check()


# Deaths


def test_a_death_before_any_push_gives_everything_back() -> None:
    ledger = ledger_of(1000, epochs=1)
    leases = [take(ledger, 1), take(ledger, 1)]
    assert ledger.died(1, None) == Account()
    assert ledger.holders == set()
    assert [take(ledger)[1:] for _ in leases] == [lease[1:] for lease in leases]
    ledger.check()


@pytest.mark.parametrize(
    ("make", "account"),
    [
        (lambda lease: last(lease, 3, 5), Account(used=50)),
        (lambda lease: last(lease, 3, 5, used=False), Account(used=30, dropped=20)),
        (lambda lease: last(lease, 3, 5, partial=True), Account(used=30, partial=20)),
        (lambda lease: last(lease, 3, 5, refused=10, dropped=20), Account(used=20, refused=10, dropped=20)),
        (lambda lease: last(lease, 0, 1), Account(used=10)),
    ],
    ids=["used", "turned away", "partial", "after refusals", "the first push"],
)
def test_what_the_last_push_holds_is_spent_and_the_rest_given_back(
    make: Callable[[Lease], LastPush], account: Account
) -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger, 1)
    push = make(lease)
    assert ledger.died(1, push) == ledger.total == account
    assert take(ledger)[1:] == (0, push.record.work.stop, lease.stop)
    ledger.check()


def test_a_last_push_of_an_earlier_lease_spends_nothing_of_the_present_one() -> None:
    ledger = ledger_of(1000, epochs=1)
    first, second = take(ledger, 1), take(ledger, 1)
    finish(ledger, first)
    assert ledger.died(1, last(first, first.start, first.stop)) == Account()
    assert take(ledger)[1:] == second[1:]
    ledger.check()


def test_a_lease_ahead_of_the_one_that_was_worked_on_is_given_back_whole() -> None:
    ledger = ledger_of(1000, epochs=1)
    first, second = take(ledger, 1), take(ledger, 1)
    assert ledger.died(1, last(first, 0, 4)) == Account(used=40)
    assert [take(ledger)[1:] for _ in range(2)] == [(0, 4, first.stop), second[1:]]


def test_a_lease_that_was_pushed_to_its_end_leaves_nothing() -> None:
    ledger = ledger_of(2, epochs=1)
    lease = take(ledger, 1)
    ledger.died(1, last(lease, lease.start, lease.stop))
    assert take(ledger)[1:] != lease[1:]


def test_deaths_of_others_change_nothing() -> None:
    ledger = ledger_of(100, epochs=1)
    lease = take(ledger, 0)
    assert ledger.died(1, None) == Account()
    assert ledger.holders == {0}
    finish(ledger, lease)


# Everything at once


class Holders(RuleBasedStateMachine):
    """Replicas lease, work, finish, die and come back in any order; every example stays in exactly one place."""

    ledger: Ledger
    held: dict[int, list[Lease]]

    @initialize(
        batches=st.integers(1, 90),
        last=st.integers(1, 4),
        epochs=st.none() | st.integers(1, 3),
        limit=st.none() | st.integers(1, 400),
        warmstart=st.integers(0, 100),
        quorum=st.integers(1, 3),
    )
    def begin(
        self, batches: int, last: int, epochs: int | None, limit: int | None, warmstart: int, quorum: int
    ) -> None:
        self.held = {0: [], 1: [], 2: []}
        self.ledger = Ledger(
            examples=4 * (batches - 1) + last,
            batch_size=4,
            replicas=3,
            epochs=epochs,
            limit=limit,
            warmstart=warmstart,
            quorum=quorum,
        )

    @rule(holder=st.integers(0, 2))
    def ask(self, holder: int) -> None:
        lease, reason = self.ledger.lease(holder)
        assert (lease is None) == (reason is not Reason.GRANTED)
        assert (reason is Reason.FINISHED) <= (self.ledger.stopped or self.ledger.finished)
        if lease is not None:
            assert not self.overlaps(lease)
            self.held[holder].append(lease)

    def overlaps(self, lease: Lease) -> bool:
        others = [o for leases in self.held.values() for o in leases if o.epoch == lease.epoch]
        return any(lease.start < other.stop and other.start < lease.stop for other in others)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), chance=st.integers(0, 2))
    def work(self, data: st.DataObject, chance: int) -> None:
        """Some holder ends its first lease, perhaps early, each batch with a verdict of its own."""
        busy = [leases for leases in self.held.values() if leases]
        lease = busy[chance % len(busy)].pop(0)
        stop = data.draw(st.integers(lease.start, lease.stop))
        count = stop - lease.start
        verdicts = data.draw(st.lists(st.sampled_from(Verdict), min_size=count, max_size=count))
        outcomes = [Outcome(batch, batch + 1, v) for batch, v in enumerate(verdicts, lease.start)]
        self.ledger.done(lease.number, outcomes)

    @rule(holder=st.integers(0, 2), data=st.data())
    def die(self, holder: int, data: st.DataObject) -> None:
        leases, self.held[holder] = self.held[holder], []
        push = None
        begun: bool = data.draw(st.booleans())
        if leases and begun:
            lease = leases[0]
            start = data.draw(st.integers(lease.start, lease.stop - 1))
            stop = data.draw(st.integers(start + 1, lease.stop))
            before = self.ledger.size(lease.start, start) if start > lease.start else 0
            refused = data.draw(st.integers(0, before))
            dropped = data.draw(st.integers(0, before - refused))
            work = Work(lease.number, start, stop, self.ledger.size(start, stop), refused, dropped)
            push = LastPush(PushRecord(1, work, USED, True), data.draw(st.booleans()), data.draw(st.booleans()))
        before_total = self.ledger.total.total
        spent = self.ledger.died(holder, push)
        assert self.ledger.total.total == before_total + spent.total

    @precondition(lambda self: not self.ledger.stopped)
    @rule(chance=st.integers(0, 19))
    def stop(self, chance: int) -> None:
        if chance == 0:
            self.ledger.stop()

    @invariant()
    def adds_up(self) -> None:
        ledger = self.ledger
        ledger.check()
        assert ledger.holders == {holder for holder, leases in self.held.items() if leases}
        assert ledger.total.total == sum(account.total for account in ledger.accounts.values())
        for epoch in range(ledger.epochs_ended):
            assert ledger.accounts[epoch].total == ledger.examples

    def teardown(self) -> None:
        """Whatever happened, the living come to an end, and everybody is told."""
        if not hasattr(self, "ledger"):
            return
        ledger = self.ledger
        for leases in self.held.values():
            for lease in leases:
                finish(ledger, lease)
        if ledger.epochs is None and ledger.limit is None:
            ledger.stop()
        for _ in range(2000):
            grants = [ledger.lease(holder) for holder in range(3)]
            for grant in grants:
                if grant.lease is not None:
                    finish(ledger, grant.lease)
            if all(grant.reason is Reason.FINISHED for grant in grants):
                break
        assert ledger.finished
        ledger.check()


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=60, stateful_step_count=40)


# What is set aside


def test_a_batch_is_leased_by_itself_and_what_was_around_it_too() -> None:
    ledger = ledger_of(400, epochs=1)
    first = take(ledger)
    ledger.died(0, last(first, first.start, first.start + 2))
    assert ledger.isolate(0, 10)
    assert [take(ledger)[1:] for _ in range(3)] == [(0, 2, 10), (0, 10, 11), (0, 11, 32)]
    ledger.check()


@pytest.mark.parametrize("batch", [1, 32, 99])
def test_what_is_done_or_leased_is_not_isolated(batch: int) -> None:
    ledger = ledger_of(100, epochs=1)
    first = take(ledger)
    ledger.died(0, last(first, first.start, first.start + 2))
    assert not ledger.isolate(0, batch)
    assert not ledger.isolate(1, 5)
    with pytest.raises(InvariantViolated, match="cannot be set aside"):
        ledger.set_aside(0, batch)


def test_what_is_set_aside_is_accounted_for_and_never_leased_again() -> None:
    ledger = ledger_of(5, epochs=1)
    take(ledger)
    ledger.died(0, None)
    ledger.set_aside(0, 0)
    leases = drain(ledger)
    assert all((lease.epoch, lease.start) != (0, 0) for lease in leases)
    assert ledger.total == Account(used=40, poisoned=10)
    assert ledger.epochs_ended == 1
    assert ledger.finished


def test_what_is_set_aside_stays_so_in_a_run_that_goes_on() -> None:
    ledger, other = ledger_of(5, epochs=1), ledger_of(5, epochs=1)
    take(ledger)
    ledger.died(0, None)
    ledger.set_aside(0, 0)
    other.restore_(ledger.state())
    drain(other)
    assert other.total == Account(used=40, poisoned=10)


def test_of_more_that_may_come_only_the_quorum_is_waited_for() -> None:
    ledger = ledger_of(1000, epochs=1, replicas=4, quorum=2)
    assert ledger.lease(3) == (None, Reason.GATHERING)
    assert take(ledger, 1)
    assert take(ledger, 3)
    for holder in (1, 3):
        ledger.died(holder, None)
    assert take(ledger, 0), "once begun, nobody is waited for"


def test_who_died_before_the_beginning_is_not_there() -> None:
    ledger = ledger_of(1000, epochs=1, replicas=4, quorum=2)
    ledger.lease(0)
    ledger.died(0, None)
    assert ledger.lease(1) == (None, Reason.GATHERING)
    assert take(ledger, 0)


def test_those_that_never_come_lower_the_quorum_to_those_that_may() -> None:
    ledger = ledger_of(1000, epochs=1, replicas=4, quorum=3)
    ledger.leave(0)
    ledger.leave(0)
    assert [ledger.lease(holder).reason for holder in (1, 2)] == [Reason.GATHERING] * 2
    ledger.leave(3)
    assert take(ledger, 1)
