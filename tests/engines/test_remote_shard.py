"""A shard on another machine: its integers are copied, its vectors fetched, its commands obeyed there."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from distbelief.engines.calls import Calls
from distbelief.engines.remote_shard import RemoteShard
from distbelief.errors import InvariantViolated, WorkerDied
from distbelief.links.wire import WireClient, WireServer
from distbelief.ports import ORIGIN, Capture, Slice, Snapshot
from distbelief.run.state import PARAMETERS
from distbelief.server import block
from distbelief.server.host import ShardHost
from distbelief.server.rules import Adagrad
from distbelief.server.shard import Shard
from tests.shards import at, make_push, make_shard

START = torch.arange(1000.0)


class There:
    """A shard with its server, and what the controller has of it, both in the thread of the calls."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.calls = Calls()
        self.calls.wait(self._serve())
        self.remote = RemoteShard(0, shard.spec, self.calls)
        self.remote.connect(self._client)

    async def _serve(self) -> None:
        self.host = ShardHost(self.shard)
        server = WireServer({0: self.host}, keys=None)
        self.server = asyncio.ensure_future(server.run())
        self._client = WireClient(server.address, None)

    async def end(self) -> None:
        """The machine is gone."""
        self.server.cancel()
        await asyncio.gather(self.server, return_exceptions=True)

    async def close(self) -> None:
        self._client.close()

    def push(self) -> None:
        self.shard.push(make_push(torch.ones(len(START)), 1))


@pytest.fixture
def there() -> Iterator[There]:
    there = There(make_shard(START, Adagrad(1.0)))
    yield there
    there.calls.close(there.close())


def test_the_integers_are_as_old_as_the_last_refresh(there: There) -> None:
    there.push()
    assert there.remote.version == at(0)
    there.calls.wait(there.remote.refresh())
    assert there.remote.version == at(1)
    assert there.remote.pushes == 1
    assert torch.equal(there.remote.staleness, there.shard.staleness)


def test_a_command_is_obeyed_there(there: There) -> None:
    there.push()
    copies = {name: torch.empty(len(START)) for name in there.shard.vectors}
    whole = Slice(0, len(START))
    snapshot = there.remote.execute(Capture({name: [(whole, copy)] for name, copy in copies.items()}))
    assert isinstance(snapshot, Snapshot)
    # With its answer the integers have come.
    assert there.remote.version == at(1)
    assert all(torch.equal(copy, there.shard.vectors[name]) for name, copy in copies.items())


def test_vectors_are_copied_when_they_are_read(there: There) -> None:
    assert set(there.remote.vectors) == set(there.shard.vectors)
    assert len(there.remote.vectors) == len(there.shard.vectors)
    there.push()
    for name, vector in there.shard.vectors.items():
        assert torch.equal(there.remote.vectors[name], vector)


def test_a_vector_that_is_held_is_that_of_its_instant(there: There) -> None:
    there.calls.wait(there.remote.hold([PARAMETERS]))
    there.push()
    assert torch.equal(there.remote.vectors[PARAMETERS], START)
    there.remote.release()
    assert torch.equal(there.remote.vectors[PARAMETERS], there.shard.parameters)
    assert not torch.equal(there.shard.parameters, START)


def test_a_shard_whose_account_is_wrong_is_seen(there: There) -> None:
    there.remote.check()
    there.shard.numbers[block.VERSION] += 1
    with pytest.raises(InvariantViolated, match=r"shard 0 at .*: more updates than pushes"):
        there.remote.check()


def test_a_shard_that_is_gone_is_waited_for_once(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of what is written at the end of a run would else wait anew."""
    waits = list[Any]()
    wait_for = asyncio.wait_for

    def counted(call: Any, timeout: float) -> Any:
        waits.append(timeout)
        return wait_for(call, min(timeout, 0.1))

    monkeypatch.setattr(asyncio, "wait_for", counted)
    there.calls.wait(there.end())
    for _ in range(2):
        with pytest.raises(WorkerDied, match="the machine of shard 0 cannot be reached"):
            there.remote.copy(PARAMETERS)
    assert waits == [60.0, 0.0]


def test_a_new_shard_is_filled_over_its_link(there: There) -> None:
    """Until then nobody who maps its memory fetches from it, and its host obeys nothing else."""
    there.host.await_restoration(0)
    assert there.shard.reached < ORIGIN
    state = {"sum": torch.full_like(START, 3.0)}
    there.remote.initialise_(2 * START, state, updates=5, examples=40, term=2)
    assert there.shard.version == there.remote.version == at(5, term=2)
    assert torch.equal(there.shard.parameters, 2 * START)
    assert torch.equal(there.shard.vectors["sum"], state["sum"])
