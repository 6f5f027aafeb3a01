"""The machine of a replica: who is on it, who is expected, and who is only held to be dead."""

import asyncio

from distbelief.engines.simulated.loop import simulate
from distbelief.engines.simulated.machines import ReplicaMachine


class Work:
    """Goes on for ever; writes down that it was ended."""

    def __init__(self) -> None:
        self.ended = False

    async def run(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended = True


def machine() -> ReplicaMachine:
    return ReplicaMachine(2, lambda: 0.1)


def test_a_replica_begins_once_unless_another_is_expected_or_it_was_ended_before() -> None:
    found = machine()
    assert found.name == "replica 2"
    found.expect(1)
    assert found.is_expected(1)
    found.expect(2)
    assert (found.is_expected(1), found.is_expected(2)) == (False, True)
    found.stop()
    assert not found.is_expected(2)


def test_what_is_stopped_ends_at_once() -> None:
    async def main() -> None:
        found, work = machine(), Work()
        found.expect(1)
        found.begin(work.run())
        before = found.at_work
        assert not found.is_expected(1)
        await asyncio.sleep(1.0)
        found.stop()
        assert (before, found.at_work) == (True, False)
        await asyncio.sleep(1.0)
        assert work.ended

    simulate(main(), seed=0)


def test_what_is_held_to_be_dead_goes_on_until_it_is_ended() -> None:
    async def main() -> None:
        found, old, new = machine(), Work(), Work()
        found.expect(1)
        found.begin(old.run())
        await asyncio.sleep(1.0)
        task = found.abandon()
        assert not found.at_work
        assert not found.finished(1), "its end is nobody's any more"
        found.expect(2)
        found.begin(new.run())
        await asyncio.sleep(1.0)
        found.stop()
        await asyncio.sleep(1.0)
        assert (old.ended, new.ended, task.done()) == (False, True, False)
        found.close()
        await asyncio.sleep(1.0)
        assert old.ended

    simulate(main(), seed=0)


def test_an_end_is_that_of_who_is_there() -> None:
    async def main() -> None:
        found = machine()
        found.expect(2)
        found.begin(asyncio.sleep(1.0))
        assert not found.finished(1)
        assert found.finished(2)
        assert not found.at_work
        assert not found.finished(2)

    simulate(main(), seed=0)
