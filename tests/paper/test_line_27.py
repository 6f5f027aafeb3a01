"""Line 27. Pushes carry (replica, incarnation, sequence); a shard applies each at most once."""

import asyncio
import random

import torch
from torch import Tensor

from distbelief.engines.simulated.loop import simulate
from distbelief.ports import ORIGIN, Push, Reply, Verdict
from distbelief.server.client import Client, FrozenGradient
from distbelief.server.host import ShardHost
from tests.replicas import Recorded
from tests.shards import NO_WORK, flat_layout, linked, make_push, make_shard, make_shards


def test_every_push_says_who_it_is_from_and_which_it_is() -> None:
    layout = flat_layout(32, 2)
    hosts = [ShardHost(shard) for shard in make_shards(layout, torch.zeros(32))]
    seen: list[Push] = []

    def note(what: str, detail: object, shard: int) -> None:
        if isinstance(detail, Push):
            seen.append(detail)

    async def main() -> None:
        links = [Recorded(linked(host, lambda: 0.1), note) for host in hosts]
        client = Client(layout, links, replica=2, incarnation=5)
        for _ in range(3):
            await client.push(FrozenGradient([torch.ones(32)], (ORIGIN, ORIGIN), True), NO_WORK)

    simulate(main(), seed=0)
    assert sorted((push.replica, push.incarnation, push.sequence) for push in seen) == [
        (2, 5, sequence) for sequence in (1, 2, 3) for _ in hosts
    ]


def test_whatever_is_repeated_overtaken_or_comes_from_the_dead_is_applied_at_most_once() -> None:
    """Every push of three lives of a replica goes out three times, over a network that reorders; each has an element of
    its own, which counts how often it was applied."""
    lives, pushes = 3, 16
    shard = make_shard(torch.zeros(lives * pushes))
    chance = random.Random(4)

    def one(life: int, number: int) -> Tensor:
        gradient = torch.zeros(lives * pushes)
        gradient[life * pushes + number] = 1.0
        return gradient

    async def main() -> list[Reply]:
        link = linked(ShardHost(shard), lambda: 20 * chance.random())

        async def send(life: int, number: int) -> Reply:
            await asyncio.sleep(20 * life + number + 10 * chance.random())
            return await link.push(make_push(one(life, number), number + 1, incarnation=life + 1))

        copies = [send(life, number) for life in range(lives) for number in range(pushes) for _ in range(3)]
        return await asyncio.gather(*copies)

    replies = simulate(main(), seed=0)
    new = [reply.verdict for reply in replies if reply.reason != "seen before"]
    times = -shard.parameters
    assert set(times.tolist()) == {0.0, 1.0}, "never twice; an overtaken one is refused, as its replica would not go on"
    assert new.count(Verdict.APPLIED) == int(times.sum()) == shard.version.updates
    assert new.count(Verdict.DUPLICATE) == len(new) - shard.version.updates
    shard.check()
