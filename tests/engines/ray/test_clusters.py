"""Whole runs on a cluster: the account, the same bits as on one machine, and what Ray's defaults are not to do."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import distbelief as db
from tests.engines.ray.clusters import ON_ONE_CLUSTER, WHOLE, Events, Gate, Machines, meanwhile, train

pytestmark = ON_ONE_CLUSTER
ALONE = {"replicas": 1, "shards": 2, "batch_size": 16, "overlap": 0}


def environment_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_replicas_and_shards_on_several_machines(cluster: Machines, tmp_path: Path) -> None:
    """A shard of each machine that stays; each replica maps those of its own, and reaches the others over the wire."""
    gate, events, seen = Gate(tmp_path), Events(), dict[str, Any]()

    def look(pids: list[int]) -> None:
        seen["processes"] = [(os.getpriority(os.PRIO_PROCESS, pid), environment_of(pid)) for pid in pids]
        seen["machines"] = {actor["Address"]["NodeID"] for actor in cluster.actors("Machine")}
        seen["replicas"] = {actor["Address"]["NodeID"] for actor in cluster.actors("ReplicaActor")}
        seen["actors"] = [os.getpriority(os.PRIO_PROCESS, actor["Pid"]) for actor in cluster.actors()]

    with cluster.with_another(cpus=0, gpus=0, steady=True) as other, meanwhile(gate, 2, look):
        run = train(db.Ray(address=cluster.address), gate, asked={"callbacks": [events]})
    assert run.summary["account"] == WHOLE
    assert run.summary["restarts"] == 0
    assert seen["machines"] == {cluster.head.node_id, cluster.away.node_id, other.node_id}
    assert seen["replicas"] == {cluster.head.node_id, cluster.away.node_id}
    # Ray's own defaults: a niceness of 15, and one thread.
    assert set(seen["actors"]) == {0}
    assert [nice for nice, _ in seen["processes"]] == [0, 0]
    assert not [variables for _, variables in seen["processes"] if "OMP_NUM_THREADS" in variables]
    (started,) = events.of("started")
    assert started["engine"] == "ray"
    local = train(db.Local())
    assert run.summary.keys() == local.summary.keys()


def parameters(run: db.Run) -> dict[str, Tensor]:
    return dict(run.state_dict())


def test_the_wire_changes_no_bit(cluster: Machines) -> None:
    """The one replica is on the machine with the GPU, and the shards are not."""
    run = train(db.Ray(address=cluster.address, device="cpu", gpus=1), **ALONE)
    local = train(db.Local(), **ALONE)
    assert run.summary["account"] == WHOLE
    assert parameters(run).keys() == parameters(local).keys()
    assert all(torch.equal(tensor, parameters(local)[name]) for name, tensor in parameters(run).items())
