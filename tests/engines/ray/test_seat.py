"""A seat: resources that are set aside, the actor that takes them, and that both are given back."""

import asyncio
from collections.abc import Iterator

import pytest

from distbelief.engines.ray import cluster as clusters
from distbelief.engines.ray.seat import Seat
from tests.engines.ray.clusters import ON_ONE_CLUSTER, Machines, check_gone, kill

pytestmark = ON_ONE_CLUSTER
THE_GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.fixture
def joined(cluster: Machines) -> Iterator[Machines]:
    clusters.join(cluster.address)
    try:
        yield cluster
    finally:
        clusters.leave()


def test_a_seat_is_taken_and_given_back(joined: Machines) -> None:
    """Another waits until the first one has been released; an actor that has died is no spare."""

    async def scenario() -> None:
        first, second = Seat(THE_GPU, "a run"), Seat(THE_GPU, "a run")
        assert await first.reserve()
        assert not await second.reserve(0.2)
        await first.occupy()
        assert first.place.node == joined.away.node_id
        assert await first.lives()
        first.release()
        assert await second.reserve(60.0)
        check_gone([first.place.pid])
        await second.occupy()
        kill(joined.pid_of("ReplicaActor", joined.away))
        assert not await second.lives()
        check_gone([second.place.pid])

    asyncio.run(scenario())
    joined.check_nothing_is_left()


def test_a_seat_that_was_never_reserved_is_released(joined: Machines) -> None:
    Seat(THE_GPU, "a run").release()
    joined.check_nothing_is_left()


def test_a_seat_that_waits_in_vain_is_released(joined: Machines) -> None:
    async def scenario() -> None:
        seat = Seat({"CPU": 64.0}, "a run")
        assert not await seat.reserve(0.2)
        seat.end_if_stopped()
        seat.release()

    asyncio.run(scenario())
    joined.check_nothing_is_left()
