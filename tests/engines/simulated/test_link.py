import asyncio
import itertools

import pytest
import torch

from distbelief.engines.simulated.loop import Deadlock, simulate
from distbelief.ports import Verdict, Version
from distbelief.server.admission import Buffered
from distbelief.server.host import ShardHost
from distbelief.server.rules import SGD
from tests.shards import at, linked, make_push, make_shard, set_living

ONES = torch.ones(16)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_each_message_takes_its_own_delay() -> None:
    async def main() -> list[float]:
        link = linked(ShardHost(make_shard(torch.zeros(16))), itertools.cycle([1.0, 10.0]).__next__)
        times = []
        await link.fetch(torch.empty(16))
        times.append(now())
        await link.push(make_push(ONES, 1))
        times.append(now())
        return times

    assert simulate(main(), seed=0) == [11.0, 22.0]


def test_a_fetch_holds_what_the_shard_held_when_it_was_asked() -> None:
    """Not what it holds when the answer arrives, and nothing is written before it arrives."""
    shard = make_shard(torch.zeros(16))
    into = torch.full((16,), 7.0)

    async def main() -> None:
        link = linked(ShardHost(shard), lambda: 1.0)
        fetching = asyncio.create_task(link.fetch(into))
        await asyncio.sleep(0.5)
        shard.push(make_push(ONES, 1))
        await asyncio.sleep(1.0)
        shard.push(make_push(ONES, 2))
        assert torch.equal(into, 7 * ONES)
        assert await fetching == at(1)
        assert torch.equal(into, -ONES)

    simulate(main(), seed=0)


def test_a_push_takes_effect_half_way() -> None:
    shard = make_shard(torch.zeros(16))

    async def main() -> None:
        pushing = asyncio.create_task(linked(ShardHost(shard), lambda: 1.0).push(make_push(ONES, 1)))
        await asyncio.sleep(0.9)
        assert shard.version == at(0)
        await asyncio.sleep(0.2)
        assert shard.version == at(1)
        assert not pushing.done()
        assert (await pushing).verdict is Verdict.APPLIED

    simulate(main(), seed=0)


def test_a_round_closed_by_a_death_wakes_who_waits_for_it() -> None:
    shard = make_shard(torch.zeros(16), SGD(1.0), Buffered(2))
    set_living(shard, [0, 1])

    async def main() -> tuple[Version, float]:
        host = ShardHost(shard)
        link = linked(host, lambda: 0.5)
        reply = await link.push(make_push(ONES, 1))
        fetching = asyncio.create_task(link.fetch(torch.empty(16), reply.at_least))
        await asyncio.sleep(4.0)
        set_living(host, [0])
        return await fetching, now()

    assert simulate(main(), seed=0) == (at(1), 5.5)


def test_a_version_that_never_comes_is_a_deadlock_and_not_a_hang() -> None:
    async def main() -> None:
        await linked(ShardHost(make_shard(torch.zeros(16))), lambda: 0.0).fetch(torch.empty(16), at(1))

    with pytest.raises(Deadlock, match=r"link\.py"):
        simulate(main(), seed=0)
