"""What a replica asks of whatever carries its requests, and when."""

import asyncio
from collections.abc import Sequence

from distbelief.downpour.lease_client import LeaseClient
from distbelief.engines.simulated.loop import simulate
from distbelief.ports import Lease, Outcome, Verdict


class Carrier:
    """Requests that are answered when it is told."""

    def __init__(self) -> None:
        self.asked: dict[int, asyncio.Future[Lease | None]] = {}
        self.told: list[tuple[int, int, Sequence[Outcome]]] = []
        self.heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def lease(self, number: int) -> asyncio.Future[Lease | None]:
        assert number not in self.asked
        self.asked[number] = asyncio.get_running_loop().create_future()
        return self.asked[number]

    def done(self, number: int, lease: int, outcomes: Sequence[Outcome]) -> asyncio.Future[None]:
        self.told.append((number, lease, outcomes))
        return self.heard


def lease_of(number: int) -> Lease:
    return Lease(100 + number, 0, 4 * number, 4 * number + 4)


def test_the_next_lease_is_asked_for_as_soon_as_one_is_there() -> None:
    """So that the answer lies there when it is wanted. Nothing is asked before the first is wanted."""

    async def main() -> None:
        carrier = Carrier()
        work = LeaseClient(carrier)
        assert carrier.asked == {}
        first = asyncio.create_task(work.lease())
        await asyncio.sleep(1.0)
        assert list(carrier.asked) == [1]
        carrier.asked[1].set_result(lease_of(1))
        assert await first == lease_of(1)
        assert list(carrier.asked) == [1, 2]
        carrier.asked[2].set_result(lease_of(2))
        assert await work.lease() == lease_of(2)
        assert list(carrier.asked) == [1, 2, 3]

    simulate(main(), seed=0)


def test_after_the_end_nothing_is_asked_ahead() -> None:
    async def main() -> None:
        carrier = Carrier()
        work = LeaseClient(carrier)
        for number in (1, 2):
            asking = asyncio.create_task(work.lease())
            await asyncio.sleep(1.0)
            carrier.asked[number].set_result(None)
            assert await asking is None
            assert list(carrier.asked) == list(range(1, number + 1))

    simulate(main(), seed=0)


def test_each_lease_is_expected_once_when_it_is_taken() -> None:
    """The data are loaded ahead of it: not those of a lease that may never be worked on."""

    async def main() -> None:
        carrier, expected = Carrier(), list[Lease]()
        work = LeaseClient(carrier, expected.append)
        asking = asyncio.create_task(work.lease())
        await asyncio.sleep(1.0)
        carrier.asked[1].set_result(lease_of(1))
        await asking
        carrier.asked[2].set_result(lease_of(2))
        await asyncio.sleep(1.0)
        assert expected == [lease_of(1)]
        await work.lease()
        assert expected == [lease_of(1), lease_of(2)]
        carrier.asked[3].set_result(None)
        await work.lease()
        assert expected == [lease_of(1), lease_of(2)]

    simulate(main(), seed=0)


def test_accounts_are_numbered_and_each_waits_until_it_is_heard() -> None:
    async def main() -> None:
        carrier = Carrier()
        work, outcomes = LeaseClient(carrier), [Outcome(4, 8, Verdict.APPLIED)]
        telling = asyncio.ensure_future(work.done(lease_of(1), outcomes))
        await asyncio.sleep(1.0)
        assert not telling.done()
        outcomes.clear()
        carrier.heard.set_result(None)
        await telling
        await work.done(lease_of(2), [])
        assert carrier.told == [(1, 101, (Outcome(4, 8, Verdict.APPLIED),)), (2, 102, ())]

    simulate(main(), seed=0)


def test_a_client_that_is_closed_asks_for_nothing_more() -> None:
    async def main() -> None:
        carrier = Carrier()
        work = LeaseClient(carrier)
        work.close()
        asking = asyncio.create_task(work.lease())
        await asyncio.sleep(1.0)
        carrier.asked[1].set_result(lease_of(1))
        await asking
        work.close()
        assert carrier.asked[2].cancelled()

    simulate(main(), seed=0)


def test_who_leaves_is_given_what_it_has_asked_for_and_asks_for_nothing_more() -> None:
    """It gives that back: nobody else would know that it will not be worked on."""

    async def main() -> None:
        carrier, told = Carrier(), list[bool]()
        work = LeaseClient(carrier, leaving=lambda: bool(told))
        asking = asyncio.create_task(work.lease())
        await asyncio.sleep(1.0)
        carrier.asked[1].set_result(lease_of(1))
        await asking
        told.append(True)
        carrier.asked[2].set_result(lease_of(2))
        assert await work.lease() == lease_of(2)
        assert await work.lease() is None
        assert list(carrier.asked) == [1, 2]

    simulate(main(), seed=0)


def test_who_leaves_before_it_began_asks_for_nothing() -> None:
    async def main() -> None:
        carrier = Carrier()
        assert await LeaseClient(carrier, leaving=lambda: True).lease() is None
        assert carrier.asked == {}

    simulate(main(), seed=0)
