"""Calls beside the controller's thread: what they find out is done in that one."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from ray.exceptions import ActorDiedError, ActorPlacementGroupRemoved, ActorUnschedulableError, RayTaskError

from distbelief.engines.calls import Calls
from distbelief.engines.ray.cluster import answer
from distbelief.errors import UsageError


async def nothing() -> None:
    pass


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    yield calls
    calls.close(nothing())


def test_what_is_posted_is_done_in_order_by_the_thread_that_turns(calls: Calls) -> None:
    done = list[tuple[int, int]]()

    async def call() -> None:
        for number in range(3):
            calls.post(lambda number=number: done.append((number, threading.get_ident())))  # type: ignore[misc]

    calls.wait(call())
    assert done == []
    calls.turn(0.0)
    assert done == [(number, threading.get_ident()) for number in range(3)]
    calls.turn(0.0)
    assert len(done) == 3


def test_an_answer_is_waited_for(calls: Calls) -> None:
    async def seven() -> int:
        return 7

    assert calls.wait(seven()) == 7


def test_an_error_is_raised_by_the_turn_that_hears_of_it(calls: Calls) -> None:
    async def fail() -> None:
        raise UsageError("no room")

    started = calls.start(fail())
    with pytest.raises(UsageError, match="no room"):
        started.result()
    with pytest.raises(UsageError, match="no room"):
        calls.turn(1.0)
    calls.turn(0.0)


def test_a_call_that_is_cancelled_is_no_error(calls: Calls) -> None:
    started = calls.start(asyncio.sleep(1000))
    started.cancel()
    calls.wait(nothing())
    calls.turn(0.0)


def test_the_end_comes_after_all_calls_have_cleaned_up() -> None:
    calls, order = Calls(), list[str]()

    async def call() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            order.append("cleaned up")

    async def last() -> None:
        order.append("last")

    started: Future[None] = calls.start(call())
    calls.wait(nothing())
    calls.close(last())
    assert order == ["cleaned up", "last"]
    assert started.cancelled()


def raised_by_an_actor(error: Exception) -> RayTaskError:
    return RayTaskError("look", "", error)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (raised_by_an_actor(UsageError("no room")), UsageError),
        (ActorUnschedulableError("the node is gone"), ActorDiedError),
        (ActorPlacementGroupRemoved(), ActorDiedError),
    ],
)
def test_what_an_actor_raises_is_raised_as_it_was(calls: Calls, raised: Exception, expected: type[Exception]) -> None:
    """And one that cannot even begin has died: who calls handles that alike."""

    async def fails() -> None:
        raise raised

    with pytest.raises(expected):
        calls.wait(answer(fails()))
