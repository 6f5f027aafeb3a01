"""A worker's requests over its channel, with the controller's end in the same thread."""

import asyncio

from distbelief.downpour.lease_client import LeaseClient
from distbelief.engines.worker.channel import Channel
from distbelief.engines.worker.requests import ChannelRequests
from distbelief.ports import Lease, Outcome, Verdict

FIRST, SECOND = Lease(7, 0, 0, 4), Lease(8, 0, 4, 8)


def test_requests_are_messages_that_are_answered_under_their_numbers() -> None:
    controller, worker = Channel.pair()

    async def main() -> None:
        requests = ChannelRequests(worker)
        asked, told = requests.lease(1), requests.done(3, 7, [Outcome(0, 4, Verdict.APPLIED)])
        asked_again = requests.lease(2)
        assert [{**message, "fds": None} for message in controller.pending()] == [
            {"kind": "lease", "number": 1, "fds": None},
            {"kind": "done", "number": 3, "lease": 7, "outcomes": [[0, 4, 1]], "fds": None},
            {"kind": "lease", "number": 2, "fds": None},
        ]
        controller.send("lease", number=2, lease=SECOND)
        assert await asked_again == SECOND
        assert not asked.done()
        assert not told.done()
        controller.send("done", number=3)
        controller.send("lease", number=1, lease=FIRST)
        await told
        assert await asked == FIRST
        last = requests.lease(3)
        controller.send("lease", number=3, lease=None)
        assert await last is None

    asyncio.run(main())
    controller.close()
    worker.close()


def test_without_a_controller_there_is_no_more_work() -> None:
    controller, worker = Channel.pair()

    async def main() -> None:
        controller.close()
        work = LeaseClient(ChannelRequests(worker))
        assert await work.lease() is None
        assert await work.lease() is None
        await work.done(FIRST, [])

    asyncio.run(main())
    worker.close()


def test_a_controller_that_goes_away_answers_all_that_is_asked() -> None:
    controller, worker = Channel.pair()

    async def main() -> None:
        requests = ChannelRequests(worker)
        asked, told = requests.lease(1), requests.done(1, 7, [])
        await asyncio.sleep(0)
        controller.send("lease", number=1, lease=FIRST)
        controller.close()
        assert await asked == FIRST, "what it said before is heard"
        await told

    asyncio.run(main())
    worker.close()
