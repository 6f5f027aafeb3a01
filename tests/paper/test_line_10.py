"""Line 10. Fetch, push and compute run in three loosely synchronised threads. The listing clears the accrued gradient
inside the asynchronous push and so can lose a gradient: hand the buffer over, never share it."""

import pytest
import torch
from torch import Tensor

from distbelief.downpour.method import Downpour
from distbelief.server.rules import SGD
from tests.replicas import Portions, Recording, run_replica
from tests.shards import flat_layout


def record(n_push: int, delay_s: float) -> Recording:
    """Batch b has gradient 2ᵇ, so that a sum tells which gradients are in it."""

    def power(vector: Tensor, epoch: int, batch: int) -> list[Tensor | None]:
        return [torch.full((16,), 2.0**batch, dtype=torch.float64)]

    return run_replica(
        Downpour(n_push=n_push, optimizer=SGD(1.0)),
        Portions((0, 7), (7, 20)),
        power,
        layout=flat_layout(16, dtype=torch.float64),
        overlap=1,
        delay_s=delay_s,
    )


def test_a_fetch_and_a_push_are_under_way_while_a_gradient_is_computed() -> None:
    events = record(n_push=1, delay_s=0.4).events
    under_way: set[str] = set()
    beside = set()
    for event in events:
        match event.what:
            case "fetch" | "push" | "compute":
                under_way.add(event.what)
            case "fetched" | "pushed" | "computed":
                under_way.discard({"fetched": "fetch", "pushed": "push", "computed": "compute"}[event.what])
        beside.add(frozenset(under_way))
    assert frozenset({"fetch", "push", "compute"}) in beside


@pytest.mark.parametrize("delay_s", [0.01, 0.4, 3.0], ids=["fast", "middling", "slow"])
@pytest.mark.parametrize("n_push", [1, 3])
def test_no_gradient_is_lost_or_pushed_twice(n_push: int, delay_s: float) -> None:
    recording = record(n_push, delay_s)
    assert torch.equal(recording.shards[0].parameters, torch.full((16,), -(2.0**20 - 1), dtype=torch.float64))


@pytest.mark.parametrize("delay_s", [0.4, 3.0])
@pytest.mark.parametrize("n_push", [1, 3])
def test_what_was_handed_over_is_not_touched_again(n_push: int, delay_s: float) -> None:
    recording = record(n_push, delay_s)
    for push in recording.pushes:
        expected = sum(2.0**batch for batch in range(push.work.start, push.work.stop))
        assert push.gradients[0][0] == expected, "long after the replica went on"
    buffers = [push.gradients[0].data_ptr() for push in recording.pushes]
    assert len(set(buffers)) == len(buffers)
