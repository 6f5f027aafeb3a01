"""The client's end of the wire: large vectors, calls beside each other, connections that are lost."""

import asyncio
import os
import signal

import pytest
import torch

from distbelief.errors import InvariantViolated
from distbelief.links.codec import CODECS, codec_of
from distbelief.links.transfers import FRAME
from distbelief.links.wire import Keys, WireClient
from distbelief.ports import ORIGIN, Capture, Fence, Restore, Slice, Snapshot, Verdict
from distbelief.server.block import updates_of
from distbelief.server.patience import Patience, retry
from distbelief.server.rules import SGD
from tests.links.hammering import processes
from tests.links.wires import LARGE, SMALL, connected, play, serve_rounds, serving, shards
from tests.shards import at, living, make_push, make_shard

every_key = pytest.mark.parametrize("keys", [None, Keys.generate()], ids=["open", "encrypted"])


@every_key
def test_large_vectors_arrive_whole_both_ways(keys: Keys | None) -> None:
    shard = make_shard(torch.zeros(LARGE), SGD(1.0))
    gradient = torch.arange(float(LARGE))

    async def scenario() -> None:
        async with serving(shard, keys=keys) as server, connected(server, keys) as client:
            link, into = client.link(0, shard.spec), torch.empty(LARGE)
            for sequence in (1, 2):
                reply = await link.push(make_push(gradient, sequence, version=at(sequence - 1)))
                assert reply.verdict is Verdict.APPLIED
                assert await link.fetch(into) == at(sequence)
                assert torch.equal(into, -sequence * gradient)

    play(scenario)


def test_a_gradient_of_many_slices_arrives_in_its_places() -> None:
    shard = make_shard(torch.zeros(LARGE), SGD(1.0))
    lengths = [3, FRAME // 4 + 1, *[7] * 300, 2 * FRAME // 4 - 5]
    starts = [sum(lengths[:n]) + 2 * n for n in range(len(lengths))]
    slices = tuple(Slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
    gradients = [torch.randn(length) for length in lengths]

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            push = make_push(torch.empty(0), 1)._replace(slices=slices, gradients=gradients)
            await client.link(0, shard.spec).push(push)

    play(scenario)
    expected = torch.zeros(LARGE)
    for part, gradient in zip(slices, gradients, strict=True):
        expected[part.start : part.stop] = -gradient
    assert torch.equal(shard.parameters, expected)


def test_a_gradient_of_nothing_is_a_push() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            push = make_push(torch.empty(0), 1)._replace(slices=(), gradients=[])
            assert (await client.link(0, shard.spec).push(push)).verdict is Verdict.APPLIED

    play(scenario)
    assert shard.version == at(1)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_encoded_gradients_arrive(name: str, elements: int) -> None:
    shard = make_shard(torch.zeros(elements), SGD(1.0))
    gradients = [torch.randn(elements) for _ in range(3)]

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            link = client.link(0, shard.spec, codec_of(name))
            for sequence, gradient in enumerate(gradients, 1):
                push = make_push(gradient, sequence, version=at(sequence - 1))
                first, again = await asyncio.gather(link.push(push), link.push(push))
                assert first.verdict is again.verdict is Verdict.APPLIED

    play(scenario)
    assert shard.version == at(3)
    missing = (shard.parameters + sum(gradients, torch.zeros(elements))).abs().max().item()
    assert missing <= {"float32": 1e-5, "bf16": 0.1, "int8": 0.1}[name]


def test_an_encoded_gradient_that_is_sent_again_counts_once_with_what_is_lost_of_it() -> None:
    """Encoded anew, it would be added to its own error."""
    shard, gradient = make_shard(torch.zeros(LARGE), SGD(1.0)), torch.randn(LARGE)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            link, push = client.link(0, shard.spec, codec_of("int8")), make_push(gradient, 1)
            given_up = asyncio.create_task(link.push(push))
            while not link.transferring():
                await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            await link.push(push)
            await link.push(make_push(torch.zeros(LARGE), 2))

    play(scenario)
    assert shard.version == at(2)
    assert (shard.parameters + gradient).abs().max() < 0.001


@every_key
def test_captures_and_restorations_carry_all_vectors(keys: Keys | None) -> None:
    """The first server's shard becomes the second's, by way of the client's memory."""
    source, target = shards(LARGE, LARGE)
    source.initialise_(torch.randn(LARGE), {"sum": torch.rand(LARGE)}, updates=7)

    async def scenario() -> None:
        async with serving(source, target, keys=keys) as server, connected(server, keys) as client:
            links = [client.link(number, source.spec) for number in (0, 1)]
            for term in (1, 2):
                copies = {name: torch.zeros(LARGE) for name in source.vectors}
                half = LARGE // 2
                cut = [Slice(half, LARGE), Slice(0, half)]
                into = {name: [(part, copy[part.start : part.stop]) for part in cut] for name, copy in copies.items()}
                answer = await links[0].execute(Capture(into))
                assert isinstance(answer, Snapshot)
                assert updates_of(answer) == 7
                for name, copy in copies.items():
                    assert torch.equal(copy, source.vectors[name])
                await links[1].execute(Restore(term, Snapshot(answer.numbers, copies), (0, 3), living([0])))
                assert target.version == at(7, term)
                for name, vector in target.vectors.items():
                    assert torch.equal(vector, source.vectors[name])

    play(scenario)
    assert (target.living, target.version.term) == (1, 2)


def test_the_integers_of_a_shard_can_be_read_while_it_works() -> None:
    first, second = shards(SMALL, SMALL)

    async def scenario() -> None:
        async with serving(first, second) as server, connected(server) as client:
            await client.link(1, second.spec).push(make_push(torch.ones(SMALL), 1))
            found = [await client.numbers(number) for number in (0, 1)]
            assert [updates_of(Snapshot(numbers, {})) for numbers in found] == [0, 1]
            assert torch.equal(found[1], second.numbers)

    play(scenario)


def test_other_calls_are_answered_while_a_large_vector_travels() -> None:
    small, large = shards(SMALL, LARGE)

    async def scenario() -> None:
        async with serving(small, large) as server, connected(server) as client:
            links, order = [client.link(number, shard.spec) for number, shard in enumerate((small, large))], []

            async def fetch(number: int, elements: int) -> None:
                await links[number].fetch(torch.empty(elements))
                order.append(number)

            async def push(number: int, elements: int) -> None:
                await links[number].push(make_push(torch.ones(elements), 1))
                order.append(number)

            for call in (fetch, push):
                await asyncio.gather(call(1, LARGE), call(0, SMALL))
            assert order == [0, 1] * 2

    play(scenario)


def test_a_transfer_is_under_way_while_it_moves_and_a_fetch_that_waits_is_none() -> None:
    (shard,) = shards(LARGE)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            link, into = client.link(0, shard.spec), torch.empty(LARGE)
            waiting = asyncio.create_task(link.fetch(into, at(1)))
            await client.numbers(0)
            assert not link.transferring()
            for call in (link.push(make_push(torch.ones(LARGE), 1)), link.fetch(into)):
                moving, seen = asyncio.create_task(call), False
                while not moving.done():
                    seen = seen or link.transferring()
                    await asyncio.sleep(0)
                assert seen
            assert await waiting == at(1)
            assert not link.transferring()

    play(scenario)


def test_a_push_that_does_not_fit_the_shard_is_a_bug_and_said_so() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            link = client.link(0, shard.spec)
            with pytest.raises(InvariantViolated, match="replica 4 has no slot among 4"):
                await link.push(make_push(torch.ones(SMALL), 1, replica=4))
            with pytest.raises(InvariantViolated, match="not among the shard's 1000"):
                await link.push(make_push(torch.ones(SMALL + 1), 1))
            assert (await link.push(make_push(torch.ones(SMALL), 1))).verdict is Verdict.APPLIED

    play(scenario)


def test_a_fetch_of_another_size_is_refused_before_anything_is_written() -> None:
    small, large = shards(SMALL, LARGE)
    room = torch.full((SMALL,), 7.0)

    async def scenario() -> None:
        async with serving(large) as server, connected(server) as client:
            with pytest.raises(ConnectionError, match="it has another shard"):
                await client.link(0, small.spec).fetch(room)

    play(scenario)
    assert room.eq(7.0).all()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_falls_silent_ends_the_calls_to_it(death: signal.Signals) -> None:
    receiving, sending = processes.Pipe(duplex=False)
    server = processes.Process(target=serve_rounds, args=(sending,))
    server.start()
    assert server.pid is not None
    (shard,) = shards(SMALL)
    try:
        address = receiving.recv()

        async def scenario() -> None:
            assert server.pid is not None
            client = WireClient(address, None)
            link, into = client.link(0, shard.spec), torch.empty(SMALL)
            assert await link.fetch(into) == ORIGIN
            waiting = asyncio.create_task(link.fetch(into, at(1)))
            await link.push(make_push(torch.ones(SMALL), 1))
            os.kill(server.pid, death)
            with pytest.raises(ConnectionError, match="was lost"):
                await waiting
            with pytest.raises(ConnectionError, match="no server of this run answers at"):
                await link.push(make_push(torch.ones(SMALL), 2))
            client.close()

        play(scenario)
    finally:
        server.kill()
        server.join()


def test_a_client_finds_its_server_again_when_it_comes_back() -> None:
    """As after a network that was down for longer than the heartbeats wait."""
    receiving, sending = processes.Pipe(duplex=False)
    server = processes.Process(target=serve_rounds, args=(sending,))
    server.start()
    (shard,) = shards(SMALL)
    try:
        address = receiving.recv()

        async def scenario() -> None:
            assert server.pid is not None
            client = WireClient(address, None)
            link = client.link(0, shard.spec)
            push = make_push(torch.ones(SMALL), 1)
            assert (await link.push(push)).verdict is Verdict.HELD
            os.kill(server.pid, signal.SIGSTOP)
            with pytest.raises(ConnectionError, match="was lost"):
                await link.fetch(torch.empty(SMALL), at(1))
            os.kill(server.pid, signal.SIGCONT)
            again = await retry(Patience(0.5, 2.0), lambda: link.push(push), link.transferring)
            assert (again.verdict, again.reason) == (Verdict.HELD, "seen before")
            client.close()

        play(scenario)
    finally:
        server.kill()
        server.join()


def test_closing_a_client_ends_its_calls() -> None:
    (shard,) = shards(SMALL)

    async def scenario() -> None:
        async with serving(shard) as server, connected(server) as client:
            link = client.link(0, shard.spec)
            await link.execute(Fence(0, 1))
            waiting = asyncio.create_task(link.fetch(torch.empty(SMALL), at(1)))
            await asyncio.sleep(0)
            client.close()
            with pytest.raises(ConnectionError, match="closed"):
                await waiting
            with pytest.raises(ConnectionError, match="closed"):
                await link.execute(Fence(0, 1))

    play(scenario)
