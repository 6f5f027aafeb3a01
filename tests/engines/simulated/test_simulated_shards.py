"""Commands to all shards of a simulated run, and what a host finds when it begins again."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from distbelief.engines.actions import RestoreShard
from distbelief.engines.simulated.loop import simulate
from distbelief.engines.simulated.network import Network, Wire
from distbelief.engines.simulated.simulated_shards import SimulatedShards
from distbelief.engines.simulated.trace import Trace
from distbelief.ports import ORIGIN, Answer, Capture, Fence, PushRecord, Slice, Snapshot, Verdict
from distbelief.server.admission import Asynchronous
from distbelief.server.block import updates_of
from distbelief.server.patience import Patience
from tests.shards import at, living, make_push, make_shard

ONES = torch.ones(4)


def two(*, loss: float = 0.0, mortal: bool = True) -> SimulatedShards:
    shards = [make_shard(torch.zeros(4)) for _ in range(2)]
    wire = Wire(lambda: 0.1, network=Network(loss=loss))
    return SimulatedShards(shards, wire, Trace(Asynchronous()), Patience(1.0, 8.0), mortal=mortal)


def push_to_all(shards: SimulatedShards, sequence: int) -> None:
    for host in shards.hosts:
        host.push(make_push(ONES, sequence, version=host.shard.version), lambda reply, nbytes: None)


async def answers_of(shards: SimulatedShards, commands: Sequence[Any]) -> list[Answer]:
    future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
    shards.execute(commands, future.set_result)
    return await future


@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_every_shard_obeys_and_all_answers_come_together(loss: float) -> None:
    async def main() -> list[Answer]:
        shards = two(loss=loss)
        push_to_all(shards, 1)
        return await answers_of(shards, [Fence(0, 1), Fence(1, 1)])

    first, second = simulate(main(), seed=0)
    assert first == PushRecord(1, make_push(ONES, 1).work, Verdict.APPLIED, True)
    assert second is None


def test_a_capture_fills_what_is_wanted_and_keeps_a_copy_beside_it() -> None:
    async def main() -> None:
        shards = two()
        push_to_all(shards, 1)
        into = [torch.zeros(2), torch.zeros(2)]
        wanted = [Capture({"parameters": [(Slice(1, 3), target)]}) for target in into]
        for answer in await answers_of(shards, wanted):
            assert isinstance(answer, Snapshot)
            assert updates_of(answer) == 1
        assert [target.tolist() for target in into] == [[-1.0, -1.0]] * 2
        push_to_all(shards, 2)
        shards.hosts[1].lose()
        shards.restore(RestoreShard(1, 5, (0, 0, 0, 0), living([0])), lambda: None)
        await asyncio.sleep(10.0)
        assert shards.hosts[1].shard.version == at(1, term=5), "as it was when it was copied"
        assert shards.hosts[1].shard.parameters.tolist() == [-1.0] * 4
        assert shards.hosts[0].shard.version == at(2)

    simulate(main(), seed=0)


def test_before_a_checkpoint_a_host_finds_the_beginning() -> None:
    async def main() -> None:
        shards, restored = two(), []
        push_to_all(shards, 1)
        shards.hosts[0].lose()
        shards.restore(RestoreShard(0, 1, (1, 0, 0, 0), living([])), lambda: restored.append(True))
        await asyncio.sleep(10.0)
        assert restored == [True]
        assert shards.hosts[0].shard.version == at(0, term=1)
        push_to_all(shards, 2)
        assert shards.hosts[0].shard.version == at(0, term=1), "whose incarnation is fenced"

    simulate(main(), seed=0)


def test_where_no_host_dies_no_copy_is_kept() -> None:
    async def main() -> None:
        shards = two(mortal=False)
        await answers_of(shards, [Capture({"parameters": []}) for _ in range(2)])
        assert shards._copies == []

    simulate(main(), seed=0)


def test_who_waits_is_named_with_what_for() -> None:
    shards = two()
    shards.hosts[1].fetch(at(3), "replica 0", lambda value, nbytes: None)
    shards.hosts[0].fetch(ORIGIN, "replica 1", lambda value, nbytes: None)
    assert list(shards.waiters()) == [("replica 0", "replica 0 waits for shard 1 to come to 3, which is at 0")]


def test_when_it_is_closed_nothing_is_waited_for_any_more() -> None:
    async def main() -> None:
        shards = two()
        shards.hosts[0].lose()
        shards.execute([Fence(0, 1), Fence(0, 1)], lambda answers: pytest.fail("a host that is lost has answered"))
        await asyncio.sleep(5.0)
        shards.close()
        await asyncio.sleep(1.0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main(), seed=0)
