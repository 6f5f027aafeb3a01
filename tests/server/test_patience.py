"""Repeating is above the link: whatever is lost, a push is applied exactly once, and its client is told so."""

import asyncio
import random

import pytest
import torch
from torch import Tensor

from distbelief.engines.simulated.loop import simulate
from distbelief.ports import ORIGIN, Answer, Command, Push, Reply, Verdict, Version
from distbelief.server.admission import Bounded
from distbelief.server.client import Client, FrozenGradient
from distbelief.server.patience import Patience, retry
from distbelief.server.rules import SGD
from distbelief.server.shard import Shard
from tests.shards import NO_WORK, at, flat_layout, make_shards, vector_of


class Losing:
    """A link that loses half of all messages, on their way there or back, and fails sometimes."""

    answers_at_once = False

    def __init__(self, shard: Shard, chance: random.Random) -> None:
        self._shard = shard
        self._chance = chance

    async def _message(self) -> None:
        await asyncio.sleep(self._chance.random())
        if (draw := self._chance.random()) < 0.2:
            raise ConnectionResetError
        if draw < 0.5:
            await asyncio.get_running_loop().create_future()

    async def fetch(self, into: Tensor, at_least: Version = ORIGIN) -> Version:
        await self._message()
        version = self._shard.fetch(into)
        await self._message()
        return version

    async def push(self, push: Push) -> Reply:
        await self._message()
        reply = self._shard.push(push)
        await self._message()
        return reply

    def transferring(self) -> bool:
        return False

    async def execute(self, command: Command) -> Answer:
        await self._message()
        answer = self._shard.execute(command)
        await self._message()
        return answer


@pytest.mark.parametrize("seed", range(5))
def test_over_a_link_that_loses_every_push_is_applied_once_and_its_verdict_is_known(seed: int) -> None:
    layout = flat_layout(48, 3)
    shards = make_shards(layout, torch.zeros(48), SGD(1.0), Bounded(0))
    chance = random.Random(seed)

    async def main() -> list[Verdict]:
        links = [Losing(shard, chance) for shard in shards]
        client = Client(layout, links, replica=0, incarnation=1, patience=Patience(1.0, 8.0))
        into, verdicts = torch.zeros(48), []
        for number in range(30):
            versions = await client.fetch(into)
            assert torch.equal(into, vector_of(layout, shards)), "nobody else pushes"
            stale = number % 3 == 2
            frozen = FrozenGradient(
                [torch.ones(48)], tuple(at(v.updates - 1) for v in versions) if stale else versions, True
            )
            verdicts += [reply.verdict for reply in await client.push(frozen, NO_WORK)]
        return verdicts

    verdicts = simulate(main(), seed=seed)
    assert verdicts == [v for n in range(30) for v in [Verdict.TOO_OLD if n % 3 == 2 else Verdict.APPLIED] * 3]
    assert torch.equal(vector_of(layout, shards), torch.full((48,), -20.0))


def test_the_time_between_attempts_doubles_up_to_the_limit() -> None:
    times = []

    async def attempt() -> int:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 7:
            await asyncio.sleep(1000)
        return len(times)

    assert simulate(retry(Patience(1.0, 8.0), attempt), seed=0) == 7
    assert times == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0]


def test_a_link_that_fails_at_once_is_given_the_same_time() -> None:
    times = []

    async def attempt() -> int:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 4:
            raise ConnectionRefusedError
        return len(times)

    assert simulate(retry(Patience(1.0, 8.0), attempt), seed=0) == 4
    assert times == [0.0, 1.0, 3.0, 7.0]


def test_without_patience_there_is_one_attempt() -> None:
    async def attempt() -> int:
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        simulate(retry(None, attempt), seed=0)


def test_other_errors_are_not_repeated() -> None:
    async def attempt() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        simulate(retry(Patience(1.0, 8.0), attempt), seed=0)


def test_a_transfer_that_makes_progress_is_waited_for_however_long_it_takes() -> None:
    attempts = 0
    until = 100.0

    async def transfer() -> str:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(until)
        return "arrived"

    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        answer = await retry(Patience(1.0, 4.0), transfer, lambda: loop.time() < until)
        return answer, loop.time()

    assert simulate(main(), seed=0) == ("arrived", until)
    assert attempts == 1


def test_a_transfer_that_stands_still_is_begun_anew() -> None:
    begun: list[float] = []

    async def transfer() -> str:
        begun.append(asyncio.get_running_loop().time())
        if len(begun) == 1:
            await asyncio.get_running_loop().create_future()
        return "arrived"

    async def main() -> str:
        loop = asyncio.get_running_loop()
        return await retry(Patience(1.0, 4.0), transfer, lambda: loop.time() < 10.0)

    assert simulate(main(), seed=0) == "arrived"
    assert begun[0] == 0.0
    assert 10.0 < begun[1] < 12.0
