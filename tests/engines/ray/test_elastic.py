"""Replicas that come with machines, and that go when they are told to."""

import os
import signal
from pathlib import Path
from typing import Any

import distbelief as db
from tests.engines.ray.clusters import ON_ONE_CLUSTER, WHOLE, Events, Gate, Machines, check_gone, meanwhile, train

pytestmark = ON_ONE_CLUSTER


def test_a_replica_joins_with_a_machine_and_leaves_when_it_is_told_to(cluster: Machines, tmp_path: Path) -> None:
    """There is one GPU, and another comes. Nobody fails: who leaves finishes its batch and is replaced."""
    gate, events, added = Gate(tmp_path), Events(), list[Any]()

    def happen(first: list[int]) -> None:
        assert len(cluster.actors("ReplicaActor")) == 1
        added.append(cluster.add())
        gate.wait_for(2)
        os.kill(first[0], signal.SIGTERM)
        gate.let_pass(first[0])
        gate.wait_for(3)
        check_gone(first)

    try:
        with meanwhile(gate, 1, happen):
            run = train(
                db.Ray(address=cluster.address, device="cpu", gpus=1),
                gate,
                replicas=(1, 2),
                asked={"callbacks": [events]},
            )
    finally:
        for node in added:
            cluster.kill(node)
    assert run.summary["account"] == WHOLE
    # Not how it ended: on a machine that is busy enough it has no time to do so by itself.
    assert [left["incarnation"] for left in events.of("left")] == [1]
    assert events.of("died") == []
    assert run.summary["restarts"] == 1
