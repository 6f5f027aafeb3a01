"""The rules of `WorkSource`, in the order of `distbelief.ports`."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from distbelief.allocation import Account
from distbelief.downpour.ledger import Ledger
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.worker import LeasedWork
from distbelief.engines.simulated.loop import simulate
from distbelief.ports import Outcome, Verdict, WorkSource
from tests.conformance.work_sources import SOURCES, exhaust, over_a_channel

Source = Callable[[Ledger], AbstractContextManager[WorkSource]]
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))


def small() -> Ledger:
    return Ledger(examples=95, batch_size=10, replicas=1, epochs=3)


@every_source
def test_rule_1_a_lease_is_work_or_the_end(source: Source) -> None:
    async def scenario() -> list[tuple[int, int]]:
        seen = await exhaust(work)
        assert await work.lease() is None, "the end is for good"
        return seen

    with source(ledger := small()) as work:
        assert simulate(scenario(), seed=0) == [(epoch, batch) for epoch in range(3) for batch in range(10)]
    assert ledger.finished
    assert ledger.total == Account(used=3 * 95)


@every_source
def test_rule_2_every_lease_that_is_worked_on_ends_in_one_done(source: Source) -> None:
    async def scenario() -> None:
        numbers = set()
        while (lease := await work.lease()) is not None:
            assert lease.number not in numbers
            numbers.add(lease.number)
            await work.done(lease, [Outcome(lease.start, lease.stop, Verdict.APPLIED)])

    with source(ledger := small()) as work:
        simulate(scenario(), seed=0)
    ledger.check()
    assert ledger.holders == set()


@every_source
def test_rule_3_what_is_left_out_is_leased_again_and_verdicts_arrive_as_they_are(source: Source) -> None:
    async def scenario() -> None:
        lease = await work.lease()
        assert lease is not None
        assert lease.stop - lease.start >= 3
        outcomes = [Outcome(0, 1, Verdict.APPLIED), Outcome(1, 2, Verdict.NOT_FINITE)]
        await work.done(lease, outcomes)
        seen = await exhaust(work, Verdict.LATE)
        assert sorted(seen) == [(e, b) for e in range(3) for b in range(10) if (e, b) not in ((0, 0), (0, 1))]

    with source(ledger := Ledger(examples=100, batch_size=10, replicas=1, epochs=3)) as work:
        simulate(scenario(), seed=0)
    assert ledger.total == Account(used=10, refused=10, dropped=280)


@every_source
def test_rule_3_a_lease_may_end_with_nothing_done(source: Source) -> None:
    async def scenario() -> None:
        lease = await work.lease()
        assert lease is not None
        await work.done(lease, [])
        await exhaust(work)

    with source(ledger := small()) as work:
        simulate(scenario(), seed=0)
    assert ledger.total == Account(used=3 * 95)


def test_the_next_lease_is_asked_for_ahead() -> None:
    """So that the answer lies there when it is wanted."""

    async def scenario() -> None:
        first, second = await work.lease(), await work.lease()
        assert first is not None
        assert second is not None
        assert first.stop == second.start
        for lease in (first, second):
            await work.done(lease, [Outcome(lease.start, lease.stop, Verdict.APPLIED)])
        await exhaust(work)

    with over_a_channel(ledger := small()) as work:
        simulate(scenario(), seed=0)
    assert ledger.finished


def test_without_a_controller_there_is_no_more_work() -> None:
    controller, worker = Channel.pair()
    controller.close()
    work = LeasedWork(worker, None, lambda: None)  # type: ignore[arg-type]
    assert simulate(work.lease(), seed=0) is None
    assert simulate(work.lease(), seed=0) is None
    worker.close()
