"""The rules of `WorkSource`, in the order of `distbelief.ports`."""

from collections.abc import Callable

import pytest

from distbelief.allocation import Account
from distbelief.downpour.ledger import Ledger
from distbelief.ports import Outcome, Verdict, WorkSource
from tests.conformance.work_sources import SOURCES, Source, exhaust

every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))


def small() -> Ledger:
    return Ledger(examples=95, batch_size=10, replicas=1, epochs=3)


def large() -> Ledger:
    """Of portions of 32 batches, of which a holder may have two."""
    return Ledger(examples=20_000, batch_size=10, replicas=1, epochs=1)


@every_source
def test_rule_1_a_lease_is_work_or_the_end(source: Source) -> None:
    async def scenario(work: WorkSource) -> list[tuple[int, int]]:
        seen = await exhaust(work)
        assert await work.lease() is None, "the end is for good"
        return seen

    ledger = small()
    assert source(ledger, scenario) == [(epoch, batch) for epoch in range(3) for batch in range(10)]
    assert ledger.finished
    assert ledger.total == Account(used=3 * 95)


@every_source
@pytest.mark.parametrize("make", [small, large], ids=["small", "large"])
def test_rule_2_every_lease_that_is_worked_on_ends_in_one_done(source: Source, make: Callable[[], Ledger]) -> None:
    async def scenario(work: WorkSource) -> None:
        numbers = set()
        while (lease := await work.lease()) is not None:
            assert lease.number not in numbers
            numbers.add(lease.number)
            await work.done(lease, [Outcome(lease.start, lease.stop, Verdict.APPLIED)])

    source(ledger := make(), scenario)
    ledger.check()
    assert ledger.holders == set()
    assert ledger.finished


@every_source
def test_rule_3_what_is_left_out_is_leased_again_and_verdicts_arrive_as_they_are(source: Source) -> None:
    async def scenario(work: WorkSource) -> None:
        lease = await work.lease()
        assert lease is not None
        assert lease.stop - lease.start >= 3
        outcomes = [Outcome(0, 1, Verdict.APPLIED), Outcome(1, 2, Verdict.NOT_FINITE)]
        await work.done(lease, outcomes)
        seen = await exhaust(work, Verdict.LATE)
        assert sorted(seen) == [(e, b) for e in range(3) for b in range(10) if (e, b) not in ((0, 0), (0, 1))]

    source(ledger := Ledger(examples=100, batch_size=10, replicas=1, epochs=3), scenario)
    assert ledger.total == Account(used=10, refused=10, dropped=280)


@every_source
def test_rule_3_a_lease_may_end_with_nothing_done(source: Source) -> None:
    async def scenario(work: WorkSource) -> None:
        lease = await work.lease()
        assert lease is not None
        await work.done(lease, [])
        await exhaust(work)

    source(ledger := small(), scenario)
    assert ledger.total == Account(used=3 * 95)


@every_source
def test_rule_3_done_returns_when_the_controller_has_heard_it(source: Source) -> None:
    """What is pushed afterwards is of a later lease, also for who has to account for a death at that moment."""
    ledger = large()

    async def scenario(work: WorkSource) -> None:
        while (lease := await work.lease()) is not None:
            assert lease.number in ledger.leases_of(0)
            before = ledger.total.used
            await work.done(lease, [Outcome(lease.start, lease.stop, Verdict.APPLIED)])
            assert lease.number not in ledger.leases_of(0)
            assert ledger.total.used == before + 10 * (lease.stop - lease.start)

    source(ledger, scenario)
    assert ledger.total == Account(used=20_000)
