"""The rules of `ShardLink`, in the order of `distbelief.ports`, kept by every link.

One suite for all of them is what lets the simulator speak for the rest.
"""

import asyncio

import pytest
import torch
from torch import Tensor

from distbelief.ports import (
    ORIGIN,
    Capture,
    Fence,
    PushRecord,
    Reply,
    Restore,
    ShardLink,
    Slice,
    Snapshot,
    Verdict,
    Work,
)
from distbelief.server.admission import Buffered
from distbelief.server.block import examples_of, record_of, updates_of
from distbelief.server.shard import Shard
from tests.conformance.shard_links import ELEMENTS, WORLDS, World
from tests.shards import at, living, make_push

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
        assert shard.version == at(1)
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
            version, into = ORIGIN, torch.empty(ELEMENTS)
            while version < at(60):
                before = shard.version
                version = await link.fetch(into)
                assert before <= version <= shard.version
                assert (-into >= version.updates).all()
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
        assert await links[0].fetch(room[1:-1]) == at(1)
        return room

    room = world.run(scenario)
    assert torch.equal(room[1:-1], -torch.arange(float(ELEMENTS)))
    assert room[0] == room[-1] == 7.0


@every_link
def test_rule_3_a_fetch_waits_for_the_version_it_is_asked_for(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        into = torch.empty(ELEMENTS)
        assert await links[1].fetch(into, at(0)) == at(0)
        waiting = asyncio.create_task(links[1].fetch(into, at(2)))
        await links[0].push(make_push(ONES, 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await links[0].push(make_push(ONES, 2))
        assert await waiting == at(2)
        assert torch.equal(into, -2 * ONES)
        assert await links[1].fetch(into, at(1)) == at(2), "a version that is long reached"

    world.run(scenario, links=2)


@every_link
def test_rule_3_a_push_never_waits_for_others(world: World) -> None:
    """The first of a round is answered while the round is open; it is the next fetch that waits."""

    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        held = await links[0].push(make_push(ONES, 1))
        assert (held.verdict, held.version, held.at_least) == (Verdict.HELD, at(0), at(1))
        into = torch.empty(ELEMENTS)
        waiting = asyncio.create_task(links[0].fetch(into, held.at_least))
        await asyncio.sleep(0.01)
        closed = await links[1].push(make_push(3 * ONES, 1, replica=1))
        assert (closed.verdict, closed.version, closed.at_least) == (Verdict.APPLIED, at(1), ORIGIN)
        assert await waiting == at(1)
        assert torch.equal(into, -2 * ONES)

    world.run(scenario, links=2, admission=Buffered(2))


@every_link
def test_rule_4_every_push_is_answered_in_order_with_its_verdict(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> list[Reply]:
        return [await links[0].push(make_push(ONES, sequence)) for sequence in (1, 2, 2, 1, 3)]

    replies = world.run(scenario)
    assert [(reply.verdict, reply.version, reply.staleness) for reply in replies] == [
        (Verdict.APPLIED, at(1), 0),
        (Verdict.APPLIED, at(2), 1),
        (Verdict.APPLIED, at(2), 1),
        (Verdict.DUPLICATE, at(2), 0),
        (Verdict.APPLIED, at(3), 2),
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
def test_rule_5_who_lives_is_whom_the_newest_command_names(world: World) -> None:
    """In whatever order they arrive, and however often."""

    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        older, newer = living([0]), living([0, 1])
        await asyncio.gather(*(link.execute(c) for link in links for c in (newer, older, newer)))
        assert (await links[0].push(make_push(ONES, 1))).verdict is Verdict.HELD
        for late in (older, newer, older):
            assert await links[1].execute(late) is None
        assert shard.version == at(0), "the round waits for two"

    world.run(scenario, links=2, admission=Buffered(2))


@every_link
def test_rule_5_a_round_that_the_living_cannot_fill_is_closed_once(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        await links[0].push(make_push(ONES, 1))
        command = living([0])
        await asyncio.gather(*(links[1].execute(command) for _ in range(3)))
        assert shard.version == at(1)
        assert torch.equal(shard.parameters, -ONES / 2)
        assert (await links[1].push(make_push(ONES, 2, version=at(1)))).verdict is Verdict.APPLIED
        await links[1].execute(command)
        assert shard.version == at(2)

    world.run(scenario, links=2, admission=Buffered(2))


@every_link
def test_rule_5_a_fence_answers_the_same_however_often_it_is_asked(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        push = make_push(ONES, 1, work=Work(4, 2, 3, 8))
        await links[0].push(push)
        answers = await asyncio.gather(*(links[1].execute(Fence(0, 1)) for _ in range(3)))
        assert answers == [PushRecord(1, push.work, Verdict.APPLIED, True)] * 3
        for sequence in (1, 2):
            reply = await links[0].push(make_push(ONES, sequence))
            assert (reply.verdict, reply.reason) == (Verdict.DUPLICATE, "its incarnation has been replaced")
        assert await links[1].execute(Fence(0, 1)) == answers[0]
        assert await links[1].execute(Fence(1, 1)) is None, "one that never pushed"
        assert torch.equal(shard.parameters, -ONES)

    world.run(scenario, links=2)


@every_link
def test_rule_5_a_fence_that_comes_late_lets_nobody_in_again(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        await asyncio.gather(*(links[0].execute(Fence(0, incarnation)) for incarnation in (3, 1, 2, 1)))
        for incarnation in (1, 2, 3):
            assert (await links[0].push(make_push(ONES, 1, incarnation=incarnation))).verdict is Verdict.DUPLICATE
        assert (await links[0].push(make_push(ONES, 1, incarnation=4))).verdict is Verdict.APPLIED
        await links[0].execute(Fence(0, 3))
        assert (await links[0].push(make_push(ONES, 2, incarnation=4))).verdict is Verdict.APPLIED

    world.run(scenario)


@every_link
def test_rule_5_a_capture_fills_the_senders_tensors_and_answers_with_the_integers(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        push = make_push(torch.arange(float(ELEMENTS)), 1)
        await links[0].push(push)
        room = torch.full((ELEMENTS + 2,), 7.0)
        low, high = Slice(0, 10), Slice(10, ELEMENTS)
        command = Capture({"parameters": [(high, room[11:-1]), (low, room[1:11])]})
        answers = [await links[0].execute(command) for _ in range(2)]
        for answer in answers:
            assert isinstance(answer, Snapshot)
            assert answer.vectors == {}
            assert (updates_of(answer), examples_of(answer)) == (1, 1)
            assert record_of(answer, 0, 1) == PushRecord(1, push.work, Verdict.APPLIED, True)
        assert torch.equal(room[1:-1], -torch.arange(float(ELEMENTS)))
        assert room[0] == room[-1] == 7.0
        assert shard.version == at(1)
        await links[0].push(make_push(ONES, 2))
        assert torch.equal(room[1:-1], -torch.arange(float(ELEMENTS))), "what was captured is a copy"
        assert isinstance(answers[0], Snapshot)
        assert updates_of(answers[0]) == 1

    world.run(scenario)


@every_link
def test_rule_5_a_restoration_is_done_once_and_never_by_one_that_was_overtaken(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        snapshots = [shard.snapshot()]
        for sequence in (1, 2):
            await links[0].push(make_push(ONES, sequence))
            snapshots.append(shard.snapshot())
        older, newer = (Restore(term, snapshots[term], (0, 0), living([0])) for term in (1, 2))
        await asyncio.gather(*(links[0].execute(command) for command in (newer, older, newer, older)))
        assert shard.version == at(2, term=2)
        assert torch.equal(shard.parameters, -2 * ONES)
        assert (await links[0].push(make_push(ONES, 3, version=at(2, term=2)))).verdict is Verdict.APPLIED
        for late in (older, newer):
            assert await links[0].execute(late) is None
        assert shard.version == at(3, term=2), "nothing that was done since is lost"
        assert torch.equal(shard.parameters, -3 * ONES)
        assert (await links[0].push(make_push(ONES, 4, version=at(2, term=1)))).verdict is Verdict.TOO_OLD

    world.run(scenario, links=2)


@every_link
def test_rule_5_a_restoration_brings_the_fences(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        await links[0].execute(Restore(1, shard.snapshot(), (2, 0), living([1])))
        version = at(0, term=1)
        for incarnation, verdict in ((1, Verdict.DUPLICATE), (2, Verdict.DUPLICATE), (3, Verdict.APPLIED)):
            push = make_push(ONES, 1, incarnation=incarnation, version=version)
            assert (await links[0].push(push)).verdict is verdict

    world.run(scenario, links=2)


@every_link
def test_rule_5_a_command_that_is_given_up_can_be_repeated(world: World) -> None:
    """Wherever it was when it was given up: before it reached the shard, or after."""

    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        for number in range(1, 21):
            version = shard.version
            push = make_push(ONES, number, version=version)
            assert (await links[0].push(push)).verdict is Verdict.HELD
            command = living([0, 1] if number % 2 else [0])
            try:
                async with asyncio.timeout(number / 10):
                    await links[0].execute(command)
            except TimeoutError:
                await links[0].execute(command)
            if number % 2:
                await links[1].push(make_push(ONES, number, replica=1, version=version))
            else:
                await links[1].execute(living([0, 1]))
            assert shard.version == at(number)

    world.run(scenario, links=2, admission=Buffered(2))


@every_link
def test_rule_6_a_link_that_answers_at_once_never_suspends_its_caller(world: World) -> None:
    async def scenario(links: list[ShardLink], shard: Shard) -> None:
        others = 0

        async def other() -> None:
            nonlocal others
            others += 1

        running = asyncio.create_task(other())
        await links[0].push(make_push(ONES, 1))
        await links[0].fetch(torch.empty(ELEMENTS))
        await links[0].fetch(torch.empty(ELEMENTS), at(1))
        await links[0].execute(Fence(0, 0))
        assert links[0].answers_at_once == (others == 0)
        await running

    world.run(scenario)
