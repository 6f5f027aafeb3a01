"""The server's end of the wire: who is let in, what harms nobody, and who is not waited for."""

import asyncio
import random
import socket

import msgspec
import pytest
import torch
import zmq

from distbelief.links import wire
from distbelief.links import wire_messages as m
from distbelief.links.transfers import FRAME
from distbelief.links.wire import Keys, WireClient, WireServer
from distbelief.ports import Capture, Fence, Restore, Slice, Verdict
from tests.links.wires import LARGE, SMALL, connected, play, serving, shards, until
from tests.shards import at, living, make_push

KEYS = Keys.generate()
HELLO = msgspec.msgpack.encode(m.Hello(m.PROTOCOL, ""))
STRANGERS = {
    "another client's key": KEYS._replace(**dict(zip(KEYS._fields[2:], Keys.generate()[2:], strict=True))),
    "another server's key": KEYS._replace(server_public=Keys.generate().server_public),
    "no key": None,
}


async def works(client: WireClient, sequence: int = 1) -> None:
    """A push by an honest client is served."""
    (like,) = shards(SMALL)
    push = make_push(torch.ones(SMALL), sequence, version=at(sequence - 1))
    assert (await client.link(0, like.spec).push(push)).verdict is Verdict.APPLIED


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients do not wait as long for a connection as they do for a server that is starting."""
    monkeypatch.setattr(wire, "CONNECT_S", 1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("keys", STRANGERS.values(), ids=list(STRANGERS))
def test_who_has_not_the_keys_is_not_let_in(keys: Keys | None) -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard, keys=KEYS) as server, connected(server, KEYS) as client:
            async with connected(server, keys) as stranger:
                with pytest.raises(ConnectionError, match="no server of this run answers"):
                    await stranger.link(0, shard.spec).push(make_push(torch.ones(SMALL), 1))
            assert shard.version == at(0)
            await works(client)

    play(scenario)


@pytest.mark.usefixtures("impatient")
def test_a_client_with_keys_does_not_talk_to_a_server_without() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server, KEYS) as client:
            with pytest.raises(ConnectionError, match="no server of this run answers"):
                await client.link(0, shard.spec).push(make_push(torch.ones(SMALL), 1))

    play(scenario)


def test_a_client_needs_no_secret_of_the_server() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard, keys=KEYS) as server, connected(server, KEYS.for_client()) as client:
            await works(client)

    play(scenario)


def test_a_client_of_another_run_and_a_shard_that_is_elsewhere_are_refused() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard, run="a") as server, connected(server, run="a") as client:
            async with connected(server, run="b") as stranger:
                with pytest.raises(ConnectionRefusedError, match="another run"):
                    await stranger.link(0, shard.spec).push(make_push(torch.ones(SMALL), 1))
            with pytest.raises(ConnectionRefusedError, match="shard 5 is not at this server"):
                await client.link(5, shard.spec).push(make_push(torch.ones(SMALL), 1))
            await works(client)

    play(scenario)
    assert shard.version == at(1)


@pytest.mark.parametrize("keys", [None, KEYS], ids=["open", "encrypted"])
def test_bytes_that_are_no_zeromq_harm_nobody(keys: Keys | None) -> None:
    (shard,) = shards(SMALL)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    garbage = [
        random.Random(0).randbytes(100_000),
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        greeting,
        greeting[:20],
        b"\xff" * 99,
    ]

    async def scenario() -> None:
        async with serving(shard, keys=keys) as server, connected(server, keys) as client:
            host, port = server.address.removeprefix("tcp://").split(":")
            strangers = []
            for content in garbage:
                strangers.append(socket.create_connection((host, int(port))))
                strangers[-1].sendall(content)
            await works(client)
            for stranger in strangers:
                stranger.close()
            await works(client, 2)

    play(scenario)


def foreign(server: WireServer, *messages: list[bytes]) -> "zmq.Socket[bytes]":
    """A ZeroMQ socket that has sent messages to a server."""
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(server.address)
    for message in messages:
        dealer.send_multipart(message)
    return dealer


def request(call: int, kind: str, *fields: object) -> bytes:
    return msgspec.msgpack.encode([kind, call, 0, *fields])


HUGE = 10**15
PUSH = (0, 1, 1, 0, 0, (1, 0, 1, 1, 0, 0))
GARBLED = {
    "nothing": [[b""]],
    "a single part": [[b"\x00"], [b"x" * 1000]],
    "chance": [[random.Random(n).randbytes(n)] for n in range(1, 200)],
    "deep nesting": [[b"\x91" * 100_000]],
    "before the hello": [[request(1, "FetchRequest", 0, 0)]],
    "a foreign type": [[HELLO], [msgspec.msgpack.encode(["Reboot", 1])]],
    "data of no transfer": [[HELLO], *[[msgspec.msgpack.encode(m.Data(n)), b"x" * 1000] for n in range(100)]],
    "credit for no transfer": [[HELLO], [msgspec.msgpack.encode(m.More(1, m.MOST))]],
    "credit without end": [[HELLO], [request(1, "FetchRequest", 0, 0)], [msgspec.msgpack.encode(m.More(1, m.MOST))]],
    "more parts than a header has": [[HELLO], [request(1, "FetchRequest", 0, 0), *[b"x"] * 1000]],
}
REFUSED = {
    "a push of 10^15 elements": [request(1, "PushRequest", 4 * HUGE, *PUSH, [(0, HUGE)], 0.0, "float32")],
    "a push of 10^15 bytes": [request(1, "PushRequest", HUGE, *PUSH, [(0, SMALL)], 0.0, "float32")],
    "a foreign codec": [request(1, "PushRequest", 4 * SMALL, *PUSH, [(0, SMALL)], 0.0, "pickle")],
    "a gradient that is not finite": [
        request(1, "PushRequest", 4 + SMALL, *PUSH, [(0, SMALL)], 0.0, "int8"),
        b"\xff" * (4 + SMALL),
    ],
    "more bytes than announced": [
        request(1, "PushRequest", 4 * SMALL, *PUSH, [(0, SMALL)], 0.0, "float32"),
        bytes(4 * SMALL),
        b"x",
    ],
    "a capture of 10^15 elements": [request(1, "CaptureRequest", [("sum", [(0, HUGE)])])],
    "a capture of a foreign vector": [request(1, "CaptureRequest", [("secrets", [(0, 1)])])],
    "a restoration of 10^15 bytes": [request(1, "RestoreRequest", HUGE, 1, ["sum"], [], (1, [], False))],
    "a fence of no replica": [request(1, "FenceRequest", 99, 1)],
    "living replicas that do not exist": [request(1, "LivingRequest", 1, [99], False)],
}


@pytest.mark.parametrize("messages", GARBLED.values(), ids=list(GARBLED))
def test_a_garbled_message_harms_nobody(messages: list[list[bytes]]) -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            dealer = foreign(server, *messages, [HELLO])
            await until(lambda: dealer.poll(0))
            await works(client)
            dealer.close()
            await works(client, 2)

    play(scenario)


@pytest.mark.parametrize("message", REFUSED.values(), ids=list(REFUSED))
def test_a_request_that_cannot_be_served_is_refused(message: list[bytes]) -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            dealer, found = foreign(server, [HELLO], message), []

            def answered() -> bool:
                while dealer.poll(0):
                    found.append(msgspec.msgpack.decode(dealer.recv_multipart()[0], type=m.ToClient))
                return isinstance(found[-1] if found else None, m.Refused)

            await until(answered)
            assert found[-1].call == 1
            assert shard.version == at(0)
            dealer.close()
            await works(client)

    play(scenario)


def test_a_giant_message_closes_its_own_connection_only() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            dealer = foreign(server)
            monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            dealer.send(bytes(2 * FRAME))
            await until(lambda: monitor.poll(0))
            await works(client)
            dealer.disable_monitor()
            monitor.close()
            dealer.close()

    play(scenario)


def test_half_a_push_is_none() -> None:
    (shard,) = shards(LARGE)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            half = request(1, "PushRequest", 4 * LARGE, *PUSH, [(0, LARGE)], 0.0, "float32")
            dealer = foreign(server, [HELLO], [half, bytes(FRAME)])
            await until(lambda: dealer.poll(0))
            dealer.close()
            push = make_push(torch.ones(LARGE), 1)
            assert (await client.link(0, shard.spec).push(push)).reason == "applied on arrival"

    play(scenario)
    assert shard.version == at(1)


def test_a_fetch_sees_what_others_push_through_mapped_memory() -> None:
    """The server is not told of it."""
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            link, into = client.link(0, shard.spec), torch.empty(SMALL)
            await link.fetch(into)
            waiting = asyncio.create_task(link.fetch(into, at(1)))
            await client.numbers(0)
            assert not waiting.done()
            shard.push(make_push(torch.ones(SMALL), 1))
            assert await waiting == at(1)

    play(scenario)


def waits(server: WireServer) -> int:
    """The number of fetches that wait at the hosts of a server."""
    return sum(len(served.host.waiting) for served in server._shards.values())


def test_a_fetch_that_is_given_up_does_not_wait() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            waiting = asyncio.create_task(client.link(0, shard.spec).fetch(torch.empty(SMALL), at(1)))
            await until(lambda: waits(server))
            waiting.cancel()
            await until(lambda: not waits(server))
            assert server._peers, "its connection is still there"

    play(scenario)


def test_a_client_that_has_gone_is_forgotten_with_its_fetches() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server:
            dealer = foreign(server, [HELLO], [request(1, "FetchRequest", 0, 1)])
            await until(lambda: waits(server))
            dealer.close()
            await until(lambda: not server._peers)
            assert waits(server) == 0

    play(scenario)


def test_a_peer_has_a_limited_number_of_calls() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            dealer = foreign(server, [HELLO], *[[request(n, "FetchRequest", 0, 1)] for n in range(1, 1000)])
            await until(lambda: dealer.poll(0) and b"at a time" in dealer.recv())
            assert waits(server) == 256
            await works(client)
            dealer.close()

    play(scenario)


def test_a_shard_that_has_lost_its_memory_obeys_nothing_until_it_is_restored() -> None:
    """What it holds until then is of nobody, and least of all of a checkpoint."""
    (shard,) = shards(SMALL)
    before = shard.snapshot()

    async def scenario() -> None:
        async with serving(shard, lost=True) as server, connected(server) as client:
            link, room = client.link(0, shard.spec), torch.full((SMALL,), 7.0)
            capture = Capture({"parameters": [(Slice(0, SMALL), room)]})
            for call in (link.execute(Fence(0, 1)), link.execute(living([0])), link.execute(capture)):
                with pytest.raises(ConnectionError):
                    await call
            with pytest.raises(ConnectionError):
                await link.push(make_push(torch.ones(SMALL), 1))
            assert shard.pushes == 0
            assert (room == 7.0).all()
            fetching = asyncio.create_task(link.fetch(room))
            await link.execute(Restore(0, before, (), living([0])))
            assert await fetching == at(0)
            assert (await link.push(make_push(torch.ones(SMALL), 1))).verdict is Verdict.APPLIED

    play(scenario)
