"""Every implementation of `ShardLink`, each in the world that it is made for."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import torch

from distbelief.engines.simulated.link import SimulatedLink
from distbelief.engines.simulated.loop import simulate
from distbelief.engines.simulated.network import Wire
from distbelief.links.mapped import MappedLink, SharedMemory, map_locks, map_shards, shards_bytes
from distbelief.links.staged import StagedLink
from distbelief.links.wire import Keys, WireClient, WireServer
from distbelief.ports import ShardLink
from distbelief.server.admission import Admission
from distbelief.server.block import ShardSpec
from distbelief.server.host import ShardHost
from distbelief.server.rules import SGD
from distbelief.server.shard import Shard
from tests.shards import ON_ARRIVAL, make_shard, set_living

T = TypeVar("T")
ELEMENTS = 48
Scenario = Callable[[list[ShardLink], Shard], Awaitable[T]]
"""What happens on some links to one shard; the shard itself is given to look at, not to push to."""


class World(Protocol):
    """Where links to one shard of zeros, whose rule is w ← w − g, are made, and scenarios run."""

    def run(self, scenario: Scenario[T], *, links: int = 1, admission: Admission = ON_ARRIVAL) -> T: ...


class Mapped:
    """Each link maps the shard's memory anew, as each process does."""

    def run(self, scenario: Scenario[T], *, links: int = 1, admission: Admission = ON_ARRIVAL) -> T:
        spec = ShardSpec(ELEMENTS, torch.float32, SGD(1.0), admission, links)
        memory = SharedMemory.create(shards_bytes([spec]), "conformance")
        shards = [map_shards(memory, [spec], map_locks(memory, 1))[0] for _ in range(links + 1)]
        shards[-1].initialise_(torch.zeros(ELEMENTS))
        set_living(shards[-1], range(links))

        async def main() -> T:
            return await scenario([MappedLink(shard) for shard in shards[:-1]], shards[-1])

        return simulate(main(), seed=0)


class Simulated:
    """Links with delays of up to a second each way."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def run(self, scenario: Scenario[T], *, links: int = 1, admission: Admission = ON_ARRIVAL) -> T:
        shard = make_shard(torch.zeros(ELEMENTS), SGD(1.0), admission, replicas=links)
        set_living(shard, range(links))
        chance = random.Random(self._seed)

        async def main() -> T:
            host, wire = ShardHost(shard), Wire(chance.random)
            return await scenario([SimulatedLink(wire, f"replica {n}", host) for n in range(links)], shard)

        return simulate(main(), seed=self._seed)


class Staged:
    """Mapped links, reached from tensors of another device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def run(self, scenario: Scenario[T], *, links: int = 1, admission: Admission = ON_ARRIVAL) -> T:
        part = torch.empty(ELEMENTS, device=self._device)

        async def staged(inner: list[ShardLink], shard: Shard) -> T:
            return await scenario([StagedLink(link, part) for link in inner], shard)

        return Mapped().run(staged, links=links, admission=admission)


class Wired:
    """Connections by TCP to a server in the same real loop."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    def run(self, scenario: Scenario[T], *, links: int = 1, admission: Admission = ON_ARRIVAL) -> T:
        shard = make_shard(torch.zeros(ELEMENTS), SGD(1.0), admission, replicas=links)
        set_living(shard, range(links))

        async def main() -> T:
            server = WireServer({3: ShardHost(shard, 3)}, keys=self._keys)
            serving = asyncio.create_task(server.run())
            clients = [WireClient(server.address, self._keys) for _ in range(links)]
            try:
                return await scenario([client.link(3, shard.spec) for client in clients], shard)
            finally:
                for client in clients:
                    client.close()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

        return asyncio.run(main())


WORLDS: dict[str, World] = {
    "mapped": Mapped(),
    "staged": Staged("cpu"),
    "wire": Wired(None),
    "wire, encrypted": Wired(Keys.generate()),
    **{f"simulated {seed}": Simulated(seed) for seed in range(3)},
}
