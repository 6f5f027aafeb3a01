"""The wire between two processes of one machine: `python -m benchmarks.wire [--quick] [--repeats N]`.

A client fetches from and pushes to a shard over one connection by TCP loopback, beside the same bytes through bare
sockets: one request byte and `sendall` / `recv_into`. A push includes the shard's fused kernel (SGD), which the bare
socket has no part of; it is shown alone too. One torch thread a process, and the memory settings of our workers.
"""

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import Comparison, machine, options, report
from benchmarks.server import interleave
from distbelief.engines.worker.worker_process import ENVIRONMENT
from distbelief.links.codec import codec_of
from distbelief.links.transfers import bytes_of
from distbelief.links.wire import Keys, WireClient, WireLink, WireServer
from distbelief.ports import ORIGIN, Push, Slice, Work
from distbelief.server.admission import Asynchronous
from distbelief.server.block import ShardSpec
from distbelief.server.host import ShardHost
from distbelief.server.rules import SGD
from distbelief.server.shard import Shard

SIZES_MB = (10, 168)
RATE = 1e-3
RULE = SGD(RATE)
_WORK = Work(lease=1, start=0, stop=1, examples=128)
_FETCH, _PUSH = b"f", b"p"
Channel = multiprocessing.connection.Connection


class Addresses(NamedTuple):
    """Where a server listens."""

    open: str
    encrypted: str
    bare: tuple[str, int]


def spec_of(megabytes: int) -> ShardSpec:
    """A shard of float32 parameters."""
    return ShardSpec(megabytes * 10**6 // 4, torch.float32, RULE, Asynchronous(), 1)


def receive(source: socket.socket, into: memoryview) -> None:
    """Fill memory from a bare socket."""
    while into:
        into = into[source.recv_into(into) :]


def serve_bare(listening: socket.socket, vectors: list[memoryview]) -> None:
    """Answer requests for vectors, and take them, through a bare socket."""
    client, _ = listening.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while request := client.recv(1):
        vector = vectors[client.recv(1)[0]]
        if request == _FETCH:
            client.sendall(vector)
        else:
            receive(client, vector)
            client.sendall(b".")


def serve(channel: "Channel[Addresses, Any]", keys: Keys) -> None:
    """Be the server."""
    torch.set_num_threads(1)
    specs = [spec_of(size) for size in SIZES_MB]
    shards = [Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8)) for spec in specs]
    listening = socket.create_server(("127.0.0.1", 0))
    vectors = [bytes_of(torch.zeros(spec.elements)) for spec in specs]
    threading.Thread(target=serve_bare, args=(listening, vectors), daemon=True).start()

    async def main() -> None:
        servers = [
            WireServer({number: ShardHost(shard, number) for number, shard in enumerate(shards)}, keys=given)
            for given in (None, keys)
        ]
        channel.send(Addresses(servers[0].address, servers[1].address, listening.getsockname()))
        await asyncio.gather(*(server.run() for server in servers))

    asyncio.run(main())


class Bare:
    """The client's end of the bare socket."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def fetch(self, number: int, into: Tensor) -> None:
        """Receive a vector."""
        self._socket.sendall(_FETCH + bytes([number]))
        receive(self._socket, bytes_of(into))

    async def push(self, number: int, gradient: Tensor) -> None:
        """Send a vector and wait for a byte."""
        self._socket.sendall(_PUSH + bytes([number]))
        self._socket.sendall(bytes_of(gradient))
        self._socket.recv(1)


class Pusher:
    """Pushes one gradient again and again. `sequence` counts for all links to the shard."""

    def __init__(self, gradient: Tensor) -> None:
        self._gradient = gradient
        self._slices = (Slice(0, len(gradient)),)
        self._sequence = 0

    def __call__(self, link: WireLink) -> Awaitable[object]:
        """One push."""
        self._sequence += 1
        return link.push(Push(0, 1, self._sequence, ORIGIN, _WORK, self._slices, [self._gradient]))


async def measure(addresses: Addresses, keys: Keys, repeats: int) -> list[Comparison]:
    """Be the client."""
    open_, encrypted, bare = (
        WireClient(addresses.open, None),
        WireClient(addresses.encrypted, keys),
        Bare(addresses.bare),
    )
    found = []
    for number, size in enumerate(SIZES_MB):
        spec = spec_of(size)
        into, gradient = torch.zeros(spec.elements), 1e-3 * torch.randn(spec.elements)
        push, parameters = Pusher(gradient), torch.zeros(spec.elements)
        links = {name: client.link(number, spec) for name, client in (("open", open_), ("encrypted", encrypted))}
        coded = {name: open_.link(number, spec, codec_of(name)) for name in ("bf16", "int8")}

        async def kernel(parameters: Tensor = parameters, gradient: Tensor = gradient) -> None:
            RULE.update_([parameters], [gradient], [], torch.ones(()), RATE)

        arms: dict[str, Callable[[], Awaitable[object]]] = {"kernel": kernel}
        arms["bare fetch"] = lambda number=number, into=into: bare.fetch(number, into)  # type: ignore[misc]
        arms["bare push"] = lambda number=number, gradient=gradient: bare.push(number, gradient)  # type: ignore[misc]
        for name, link in links.items():
            arms[f"{name} fetch"] = lambda link=link, into=into: link.fetch(into)  # type: ignore[misc]
        for name, link in {**links, **coded}.items():
            arms[f"{name} push"] = lambda link=link, push=push: push(link)  # type: ignore[misc]
        found += compare(size, await interleave(arms, repeats))
    open_.close()
    encrypted.close()
    return found


def compare(size: int, ms: dict[str, list[float]]) -> list[Comparison]:
    """What the figures of one size say."""

    def both(name: str) -> list[float]:
        return [a + b for a, b in zip(ms[f"{name} fetch"], ms[f"{name} push"], strict=True)]

    def beside(what: str, ours: list[float], theirs: list[float], bar: float | None = None) -> Comparison:
        return Comparison(
            what=f"{what}, {size} MB",
            unit="ms",
            ours=ours,
            rival="bare TCP, the same bytes of float32",
            theirs=theirs,
            bar=bar,
            less_is_better=True,
        )

    return [
        beside("fetch + push with kernel", both("open"), both("bare"), 0.8),
        beside("fetch + push with kernel, encrypted", both("encrypted"), both("bare"), 0.25),
        *(beside(f"{name} fetch", ms[f"{name} fetch"], ms["bare fetch"]) for name in ("open", "encrypted")),
        *(
            beside(f"{name} push with kernel", ms[f"{name} push"], ms["bare push"])
            for name in ("open", "encrypted", "bf16", "int8")
        ),
        Comparison(what=f"the kernel alone, {size} MB", unit="ms", ours=ms["kernel"]),
    ]


def run_client(channel: "Channel[list[Comparison], Any]", addresses: Addresses, keys: Keys, repeats: int) -> None:
    """Measure in a process of its own, whose memory settings are those of a worker."""
    torch.set_num_threads(1)
    channel.send(asyncio.run(measure(addresses, keys, repeats)))


def main() -> None:
    """Measure everything and report."""
    quick, repeats = options(__doc__, 5)
    facts, keys = machine(), Keys.generate()
    os.environ.update(ENVIRONMENT)
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    server = processes.Process(target=serve, args=(there, keys), daemon=True)
    server.start()
    addresses = here.recv()
    client = processes.Process(target=run_client, args=(there, addresses, keys, repeats), daemon=True)
    client.start()
    found = here.recv()
    client.join()
    server.kill()
    title = "The wire, over TCP loopback between two processes: the ratio is our speed to theirs"
    report("wire", title, facts, found, quick=quick)


if __name__ == "__main__":
    main()
