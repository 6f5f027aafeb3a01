"""A process of virtual time: expected, at work, ended, or only held to be dead."""

import asyncio

from distbelief.engines.simulated.loop import simulate
from distbelief.engines.simulated.simulated_process import SimulatedProcess


class Work:
    """Goes on for ever; writes down that it was ended."""

    def __init__(self) -> None:
        self.ended = False

    async def run(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended = True


def test_who_was_ended_before_it_begins_is_over() -> None:
    process = SimulatedProcess(2, 1)
    assert (process.machine, process.who) == ("replica 2", (2, 1))
    assert (process.at_work, process.over) == (False, False)
    process.end()
    assert (process.at_work, process.over) == (False, True)


def test_what_is_ended_ends_at_once() -> None:
    async def main() -> None:
        process, work = SimulatedProcess(2, 1), Work()
        process.begin(work.run())
        before = process.at_work
        await asyncio.sleep(1.0)
        process.end()
        assert (before, process.at_work, process.over) == (True, False, True)
        await asyncio.sleep(1.0)
        assert work.ended

    simulate(main(), seed=0)


def test_what_is_held_to_be_dead_goes_on_until_it_is_ended() -> None:
    async def main() -> None:
        process, work = SimulatedProcess(2, 1), Work()
        process.begin(work.run())
        process.over = True
        await asyncio.sleep(1.0)
        assert (process.at_work, work.ended) == (False, False)
        process.end()
        await asyncio.sleep(1.0)
        assert work.ended

    simulate(main(), seed=0)
