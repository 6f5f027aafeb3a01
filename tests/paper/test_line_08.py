"""Line 8. Per step the client: starts fetching if `step % n_fetch == 0`; takes a minibatch and its gradient; adds it to
the accrued gradient; also takes a local step w ← w − α·g; starts pushing the accrued gradient if `step % n_push == 0`.
"""

import pytest
import torch

from distbelief.downpour.method import Downpour
from distbelief.server.rules import SGD
from tests.replicas import Portions, run_replica, toward
from tests.shards import flat_layout

TARGETS = (1.0, -3.0, 2.0, 0.5, 4.0)
RATE, ALPHA = 0.25, 0.125


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (2, 3), (3, 2), (4, 4), (7, 1), (1, 7)])
def test_the_client_is_the_listing(n_fetch: int, n_push: int) -> None:
    recording = run_replica(
        Downpour(n_fetch=n_fetch, n_push=n_push, optimizer=SGD(RATE), local_optimizer=SGD(ALPHA)),
        Portions((0, 20)),
        toward(*TARGETS),
        layout=flat_layout(16),
    )

    server = local = accrued = torch.zeros(16)
    did = []
    for step in range(20):
        if step % n_fetch == 0:
            did.append(("fetch", step))
            local = server
        assert torch.equal(recording.seen[step], local)
        gradient = local - TARGETS[step % len(TARGETS)]
        accrued = accrued + gradient
        local = local - ALPHA * gradient
        if step % n_push == 0:
            did.append(("push", step + 1))
            server = server - RATE * accrued
            accrued = torch.zeros(16)
    if accrued.any():  # the portion has ended
        did.append(("push", 20))
        server = server - RATE * accrued
    assert [(event.what, event.step) for event in recording.of("fetch", "push")] == did
    assert torch.equal(recording.shards[0].parameters, server)
