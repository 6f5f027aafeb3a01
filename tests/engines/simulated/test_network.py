import asyncio
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from distbelief.engines.simulated.faults import Cut, Fault, Pause, Plan
from distbelief.engines.simulated.laws import Exponential
from distbelief.engines.simulated.loop import simulate
from distbelief.engines.simulated.network import Network, Wire
from distbelief.errors import UsageError

Message = tuple[float, str, str, int]
"""When it is sent, from where, to where, and of how many bytes."""


def arrivals(
    messages: list[Message], network: Network | None = None, *, faults: list[Fault] | None = None, down: str = ""
) -> list[list[float]]:
    """When each message arrived, as often as it did."""
    times: list[list[float]] = [[] for _ in messages]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wire = (network or Network(latency=1.0, bandwidth=math.inf)).wire(random.Random(0), Plan(faults or []))
        wire.down.add(down)

        def arrived(number: int) -> Callable[[], None]:
            return lambda: times[number].append(loop.time())

        for number, (at, source, target, nbytes) in enumerate(messages):
            loop.call_at(at, wire.send, source, target, nbytes, arrived(number))
        await asyncio.sleep(1000.0)

    simulate(main(), seed=0)
    return times


def test_a_message_takes_its_latency() -> None:
    assert arrivals([(0.0, "a", "b", 0), (2.0, "b", "a", 500)]) == [[1.0], [3.0]]


def test_bandwidth_is_shared_by_what_a_machine_sends() -> None:
    network = Network(latency=1.0, bandwidth=100.0)
    assert arrivals([(0.0, "a", "b", 100), (0.0, "a", "c", 300)], network) in (
        [[2.0], [5.0]],
        [[5.0], [4.0]],
    ), "one after the other, whichever comes first"


def test_bandwidth_is_shared_by_what_a_machine_receives() -> None:
    network = Network(latency=1.0, bandwidth=100.0)
    times = arrivals([(0.0, "a", "c", 100), (0.0, "b", "c", 100), (0.0, "a", "d", 0)], network)
    assert sorted(itertools.chain(*times[:2])) == [2.0, 3.0]
    assert times[2] == [1.0], "what holds no vector takes no bandwidth"


def test_machines_that_have_nothing_in_common_do_not_wait_for_each_other() -> None:
    network = Network(latency=1.0, bandwidth=100.0)
    assert arrivals([(0.0, "a", "b", 100), (0.0, "c", "d", 100), (0.0, "b", "a", 100)], network) == [[2.0]] * 3


def test_one_that_is_late_holds_up_nobody() -> None:
    network = Network(latency=Exponential(10.0), bandwidth=1000.0)
    times = arrivals([(float(n), "a", "b", 10) for n in range(50)], network)
    firsts = [time for (time,) in times]
    assert firsts != sorted(firsts), "messages of different calls overtake each other"


def test_messages_are_lost_and_doubled_as_often_as_was_said() -> None:
    network = Network(latency=0.1, loss=0.3, duplication=0.2)
    counts = [len(times) for times in arrivals([(0.1 * n, "a", "b", 0) for n in range(5000)], network)]
    assert counts.count(0) / 5000 == pytest.approx(0.3, abs=0.03)
    assert counts.count(2) / 5000 == pytest.approx(0.7 * 0.2, abs=0.03)


def test_messages_are_overtaken_as_often_as_was_said() -> None:
    times = arrivals([(float(n), "a", "b", 0) for n in range(500)], Network(latency=0.5, reordering=0.4))
    late = [time - n > 0.5 + 1e-9 for n, (time,) in enumerate(times)]
    assert sum(late) / 500 == pytest.approx(0.4, abs=0.07)
    assert max(time - n for n, (time,) in enumerate(times)) <= 0.5 * 11


def test_who_is_down_hears_nothing() -> None:
    assert arrivals([(0.0, "a", "b", 0), (0.0, "b", "a", 0)], down="b") == [[], [1.0]]


def test_who_is_paused_hears_it_afterwards() -> None:
    assert arrivals([(0.0, "a", "shard 0", 0)], faults=[Pause("shard 0", 0.5, 4.0)]) == [[4.5]]


def test_what_is_sent_across_a_cut_is_lost() -> None:
    sent: list[Message] = [(t, "replica 0", "shard 0", 0) for t in (0.0, 2.0, 4.0)]
    assert arrivals(sent, faults=[Cut(1.0, 2.0, ("replica 0",))]) == [[1.0], [], [5.0]]


def test_a_closed_wire_carries_nothing_more() -> None:
    heard = []

    async def main() -> None:
        wire = Wire(lambda: 1.0)
        wire.send("a", "b", 0, lambda: heard.append("before"))
        wire.close()
        wire.send("a", "b", 0, lambda: heard.append("after"))
        await asyncio.sleep(10.0)

    simulate(main(), seed=0)
    assert heard == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"latency": -1.0}, "latency must be a number of 0 or more"),
        ({"latency": "fast"}, "latency must be seconds or a law"),
        ({"bandwidth": 0}, "bandwidth must be a number of more than 0"),
        ({"bandwidth": math.nan}, "bandwidth must be a number"),
        ({"loss": -0.1}, "loss must be a number of 0 or more"),
        ({"loss": 0.9}, "loss must be 0.5 at most, not 0.9"),
        ({"duplication": 1.5}, "duplication must be 1 at most"),
        ({"reordering": math.inf}, "reordering must be a number"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Network(**fields)
