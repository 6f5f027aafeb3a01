"""The rules of `ShardLink`, in the order of `distbelief.ports`, kept by every link.

One suite for all of them is what lets the simulator speak for the rest.
"""

import asyncio

import pytest
import torch
from torch import Tensor

from distbelief.ports import Reply, ShardLink, Verdict
from distbelief.server.admission import Buffered
from distbelief.server.shard import Shard
from tests.conformance.shard_links import ELEMENTS, WORLDS, World
from tests.shards import make_push

every_link = pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
ONES = torch.ones(ELEMENTS)


@every_link
def test_rule_1_a_call_takes_effect_at_most_once(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        push = make_push(ONES, 1)
        first, second = await asyncio.gather(links[0].push(push), links[0].push(push))
        assert first.verdict is second.verdict is Verdict.APPLIED, "each is told what became of it"
        assert sum(reply.reason == "seen before" for reply in (first, second)) == 1
        assert (await links[0].push(push)).reason == "seen before"
        assert shard.version == 1
        assert torch.equal(shard.parameters, -ONES)

    world.run(scenario)


@every_link
def test_rule_1_a_call_that_is_given_up_can_be_repeated(world: World) -> None:
    """Wherever it was when it was given up: before it reached the shard, or after."""

    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        for sequence in range(1, 21):
            push = make_push(ONES, sequence)
            try:
                async with asyncio.timeout(sequence / 10):
                    await links[0].push(push)
            except TimeoutError:
                reply = await links[0].push(push)
                assert reply.verdict is Verdict.APPLIED
            assert torch.equal(shard.parameters, -sequence * ONES)

    world.run(scenario)


@every_link
def test_rule_2_what_is_fetched_is_not_older_than_its_version(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        async def pushing(link: ShardLink, replica: int) -> None:
            for sequence in range(1, 31):
                await link.push(make_push(ONES, sequence, replica=replica))

        async def fetching(link: ShardLink) -> None:
            version, into = 0, torch.empty(ELEMENTS)
            while version < 60:
                before = shard.version
                version = await link.fetch(into)
                assert before <= version <= shard.version
                assert (-into >= version).all()
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            group.create_task(pushing(links[0], 0))
            group.create_task(pushing(links[1], 1))
            group.create_task(fetching(links[2]))

    world.run(scenario, links=3)


@every_link
def test_rule_2_a_fetch_writes_the_whole_vector_and_nothing_else(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> Tensor:
        room = torch.full((ELEMENTS + 2,), 7.0)
        await links[0].push(make_push(torch.arange(float(ELEMENTS)), 1))
        assert await links[0].fetch(room[1:-1]) == 1
        return room

    room = world.run(scenario)
    assert torch.equal(room[1:-1], -torch.arange(float(ELEMENTS)))
    assert room[0] == room[-1] == 7.0


@every_link
def test_rule_3_a_fetch_waits_for_the_version_it_is_asked_for(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        into = torch.empty(ELEMENTS)
        assert await links[1].fetch(into, 0) == 0
        waiting = asyncio.create_task(links[1].fetch(into, 2))
        await links[0].push(make_push(ONES, 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await links[0].push(make_push(ONES, 2))
        assert await waiting == 2
        assert torch.equal(into, -2 * ONES)
        assert await links[1].fetch(into, 1) == 2, "a version that is long reached"

    world.run(scenario, links=2)


@every_link
def test_rule_3_a_push_never_waits_for_others(world: World) -> None:
    """The first of a round is answered while the round is open; it is the next fetch that waits."""

    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        held = await links[0].push(make_push(ONES, 1))
        assert (held.verdict, held.version, held.at_least) == (Verdict.HELD, 0, 1)
        into = torch.empty(ELEMENTS)
        waiting = asyncio.create_task(links[0].fetch(into, held.at_least))
        await asyncio.sleep(0.01)
        closed = await links[1].push(make_push(3 * ONES, 1, replica=1))
        assert (closed.verdict, closed.version, closed.at_least) == (Verdict.APPLIED, 1, 0)
        assert await waiting == 1
        assert torch.equal(into, -2 * ONES)

    world.run(scenario, links=2, admission=Buffered(2))


@every_link
def test_rule_4_every_push_is_answered_in_order_with_its_verdict(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> list[Reply]:
        return [await links[0].push(make_push(ONES, sequence, version=0)) for sequence in (1, 2, 2, 1, 3)]

    replies = world.run(scenario)
    assert [(reply.verdict, reply.version, reply.staleness) for reply in replies] == [
        (Verdict.APPLIED, 1, 0),
        (Verdict.APPLIED, 2, 1),
        (Verdict.APPLIED, 2, 1),
        (Verdict.DUPLICATE, 2, 0),
        (Verdict.APPLIED, 3, 2),
    ]
    assert all(reply.reason for reply in replies)


@every_link
def test_rule_4_the_pushers_tensors_are_left_as_they_are(world: World) -> None:
    gradient = torch.arange(float(ELEMENTS))

    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        for sequence in range(1, 5):
            await links[0].push(make_push(gradient, sequence, version=shard.version))

    world.run(scenario, links=2, admission=Buffered(2))
    assert torch.equal(gradient, torch.arange(float(ELEMENTS)))


@every_link
def test_rule_5_a_link_that_answers_at_once_never_suspends_its_caller(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        others = 0

        async def other() -> None:
            nonlocal others
            others += 1

        running = asyncio.create_task(other())
        await links[0].push(make_push(ONES, 1))
        await links[0].fetch(torch.empty(ELEMENTS))
        await links[0].fetch(torch.empty(ELEMENTS), 1)
        assert links[0].answers_at_once == (others == 0)
        await running

    world.run(scenario)
