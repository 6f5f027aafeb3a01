"""The parameter server on one machine: `python -m benchmarks.server [--quick] [--repeats N]`.

Everything goes the way of a replica: `Client`, `MappedLink`, `Shard`, shared memory, the lock. One thread.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import Comparison, machine, options, report
from benchmarks.networks import RATE, perceptron
from distbelief.links.mapped import MappedLink, RangeLock, SharedMemory, map_locks, map_shards, shards_bytes
from distbelief.ports import ORIGIN, Gradient, Work
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.client import Client, FrozenGradient, HandOver
from distbelief.server.layout import Layout
from distbelief.server.rules import Adagrad

_WARM_UP = 3
_WORK = Work(lease=1, start=0, stop=1, examples=128)
RULE = Adagrad(RATE)


class Server(NamedTuple):
    """A parameter server in shared memory, and a client of it."""

    memory: SharedMemory
    client: Client


def serve(parameters: list[Tensor], shards: int) -> Server:
    """A server for parameters, which are copied."""
    layout = Layout.of([(str(number), tensor) for number, tensor in enumerate(parameters)], shards)
    parts = [layout.part(torch.empty(layout.length, device="meta"), shard).numel() for shard in range(shards)]
    specs = [ShardSpec(elements, layout.dtype, RULE, Asynchronous(), 1) for elements in parts]
    memory = SharedMemory.create(shards_bytes(specs), "benchmark")
    mapped = map_shards(memory, specs, map_locks(memory, shards))
    vector = torch.zeros(layout.length)
    layout.gather_(vector, parameters)
    for number, shard in enumerate(mapped):
        shard.initialise_(layout.part(vector, number))
    return Server(memory, Client(layout, [MappedLink(shard) for shard in mapped], replica=0, incarnation=1))


class BareKernel:
    """The fused kernel on ordinary tensors: the least that an update can cost."""

    def __init__(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        self._parameters = [tensor.clone() for tensor in parameters]
        self._sums = [torch.full_like(tensor, Adagrad.INITIAL) for tensor in parameters]
        self._gradients = gradients
        self._step = torch.ones(())

    async def __call__(self) -> None:
        """One update."""
        RULE.update_(self._parameters, self._gradients, [self._sums], self._step, RATE)


async def _time(action: Callable[[], Awaitable[object]], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        await action()
    return (time.perf_counter() - began) / calls * 1e3


async def interleave(
    arms: dict[str, Callable[[], Awaitable[object]]], repeats: int, calls: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of a call of each arm, by turns, after a few that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(_WARM_UP + repeats):
        for name, action in list(arms.items())[:: 1 if turn % 2 == 0 else -1]:
            ms = await _time(action, calls)
            if turn >= _WARM_UP:
                taken[name].append(ms)
    return taken


async def compare_large(repeats: int) -> list[Comparison]:
    """Pushes to, fetches from and memory of a server of the speech network."""
    parameters = [p.detach() for p in perceptron([440, *[2560] * 4, 8192], nn.Sigmoid).parameters()]
    gradients = [1e-3 * torch.randn_like(tensor) for tensor in parameters]
    servers = {1: serve(parameters, 1), 2: serve(parameters, 2)}
    source = torch.zeros(servers[1].client.layout.length)
    vector = torch.zeros_like(source)

    async def hand_over() -> FrozenGradient:
        handed = HandOver()
        handed.accrue(Gradient(list(gradients), torch.zeros(()), _WORK.examples), (ORIGIN, ORIGIN))
        return handed.take()

    async def copy() -> None:
        vector.copy_(source)

    frozen = await hand_over()
    ms = await interleave(
        {
            "kernel": BareKernel(parameters, gradients),
            "push 1": lambda: servers[1].client.push(frozen, _WORK),
            "push 2": lambda: servers[2].client.push(frozen, _WORK),
            "hand-over": hand_over,
            "copy": copy,
            "fetch 1": lambda: servers[1].client.fetch(vector),
            "fetch 2": lambda: servers[2].client.fetch(vector),
        },
        repeats,
    )
    return [
        *(_beside(ms, f"push {n}", f"push to {_shards(n)}", "kernel", "the bare fused kernel") for n in servers),
        Comparison(what="hand-over: is the gradient finite?", unit="ms", ours=ms["hand-over"]),
        *(_beside(ms, f"fetch {n}", f"fetch from {_shards(n)}", "copy", "a bare copy_") for n in servers),
        *(
            Comparison(
                what=f"memory of {_shards(n)}",
                unit="MB",
                ours=[os.fstat(server.memory.fd).st_blocks * 512 / 1e6],
                rival="parameters + rule state",
                theirs=[sum(tensor.nbytes for tensor in parameters) * (1 + len(RULE.state)) / 1e6],
                bar=0.99,
                less_is_better=True,
            )
            for n, server in servers.items()
        ),
    ]


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count > 1)}, 42 M parameters"


def _beside(ms: dict[str, list[float]], ours: str, what: str, theirs: str, rival: str) -> Comparison:
    return Comparison(what=what, unit="ms", ours=ms[ours], rival=rival, theirs=ms[theirs], bar=0.9, less_is_better=True)


async def compare_small(repeats: int) -> list[Comparison]:
    """What a push costs where there is next to nothing to add."""
    parameters = [p.detach() for p in perceptron([64, 32, 10], nn.ReLU).parameters()]
    gradients = [1e-3 * torch.randn_like(tensor) for tensor in parameters]
    memory, client = serve(parameters, 1)
    frozen = FrozenGradient(list(gradients), (ORIGIN,), finite=True)
    vector = torch.zeros(client.layout.length)
    lock = RangeLock(memory.fd, 0)

    async def locked() -> None:
        with lock:
            pass

    us = await interleave(
        {
            "push": lambda: client.push(frozen, _WORK),
            "kernel": BareKernel(parameters, gradients),
            "fetch": lambda: client.fetch(vector),
            "lock": locked,
        },
        repeats,
        calls=1000,
    )
    us = {name: [1e3 * ms for ms in arm] for name, arm in us.items()}
    return [
        Comparison(
            what=f"push, {client.layout.parameters:,} parameters",
            unit="µs",
            ours=us["push"],
            rival="the bare fused kernel",
            theirs=us["kernel"],
            less_is_better=True,
        ),
        Comparison(what=f"fetch, {client.layout.parameters:,} parameters", unit="µs", ours=us["fetch"]),
        Comparison(what="a shard's lock, taken and released", unit="µs", ours=us["lock"]),
    ]


def main() -> None:
    """Measure everything and report."""
    quick, repeats = options(__doc__, 15)
    facts = machine()
    torch.set_num_threads(1)
    repeats = max(repeats, 5)
    found = [*asyncio.run(compare_large(repeats)), *asyncio.run(compare_small(repeats))]
    report("server", "The parameter server: the ratio is our speed to theirs", facts, found, quick=quick)


if __name__ == "__main__":
    main()
