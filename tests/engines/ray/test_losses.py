"""What dies or falls silent on a cluster: processes, actors, machines, and those that hold shards."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import distbelief as db
from distbelief.engines import replica_slot
from tests.engines.ray.clusters import (
    EPOCHS,
    EXAMPLES,
    ON_ONE_CLUSTER,
    WHOLE,
    Events,
    Gate,
    Machines,
    check_gone,
    kill,
    meanwhile,
    train,
)

pytestmark = ON_ONE_CLUSTER
DIED_WITH_IT = "died with its actor or its machine"


def machine_of(events: Events, cluster: Machines) -> dict[int, Any]:
    """The machine of each replica's process: a process is the child of its actor."""
    actors = {actor["Pid"]: actor["Address"]["NodeID"] for actor in cluster.actors("ReplicaActor")}
    parents = {event["pid"]: parent_of(event["pid"]) for event in events.of("replica")}
    return {pid: actors[parent] for pid, parent in parents.items()}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_process_and_an_actor_that_are_killed_are_replaced(cluster: Machines, tmp_path: Path) -> None:
    """A process is seen to end by its actor, and an actor by Ray; its process does not outlive it."""
    gate, events = Gate(tmp_path), Events()

    def happen(pids: list[int]) -> None:
        here, away = sorted(pids, key=lambda pid: machine_of(events, cluster)[pid] == cluster.away.node_id)
        kill(cluster.pid_of("ReplicaActor", cluster.away))
        kill(here)
        gate.wait_for(4)
        check_gone([here, away])

    with meanwhile(gate, 2, happen):
        run = train(db.Ray(address=cluster.address), gate, asked={"callbacks": [events]})
    assert run.summary["account"] == WHOLE
    assert run.summary["restarts"] == 2
    deaths = {(death["status"], death["error"]) for death in events.of("died")}
    assert deaths == {(-signal.SIGKILL, None), (None, DIED_WITH_IT)}


def test_a_replica_whose_machine_is_gone_begins_on_the_next_that_comes(cluster: Machines, tmp_path: Path) -> None:
    gate, events = Gate(tmp_path), Events()
    with cluster.with_another() as victim:

        def happen(pids: list[int]) -> None:
            cluster.kill(victim)
            added.append(cluster.add())
            gate.wait_for(3)

        added = list[Any]()
        try:
            with meanwhile(gate, 2, happen):
                engine = db.Ray(address=cluster.address, device="cpu", gpus=1)
                run = train(engine, gate, asked={"callbacks": [events]})
        finally:
            for node in added:
                cluster.kill(node)
    assert run.summary["account"] == WHOLE
    assert run.summary["restarts"] == 1
    (death,) = events.of("died")
    assert (death["status"], death["error"]) == (None, DIED_WITH_IT)


def test_a_replica_that_is_stopped_is_replaced(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no lock of a shard, and all else about it is well."""
    monkeypatch.setattr(replica_slot, "_SILENCE_S", 1.0)
    gate, events = Gate(tmp_path), Events()

    def happen(pids: list[int]) -> None:
        os.kill(pids[0], signal.SIGSTOP)
        gate.wait_for(3)
        check_gone(pids[:1])

    with meanwhile(gate, 2, happen):
        run = train(db.Ray(address=cluster.address, encrypted=False), gate, asked={"callbacks": [events]})
    assert run.summary["account"] == WHOLE
    assert [death["status"] for death in events.of("died")] == [-signal.SIGKILL]
    assert run.summary["restarts"] == 1


@pytest.mark.parametrize("lost", ["actor", "machine"])
def test_shards_that_die_go_on_from_their_last_checkpoint(cluster: Machines, tmp_path: Path, lost: str) -> None:
    """One is on the head, and the other on another machine that was to stay: it comes back where the first one is."""
    gate, events = Gate(tmp_path), Events()
    with cluster.with_another(cpus=0, gpus=0, steady=True) as other:

        def happen(pids: list[int]) -> None:
            if lost == "actor":
                kill(cluster.pid_of("Machine", cluster.head))
            else:
                cluster.kill(other)
            gate.wait_for(4)

        with meanwhile(gate, 2, happen):
            run = train(db.Ray(address=cluster.address), gate, asked={"callbacks": [events]})
    # What had reached both shards, and is now in one of them, is partial.
    account = run.summary["account"]
    assert account == WHOLE | {"used": EPOCHS * EXAMPLES - account["partial"], "partial": account["partial"]}
    gone, back = events.of("machine")
    assert [gone["there"], back["there"]] == [False, True]
    assert gone["shards"] == back["shards"]
    assert len(gone["shards"]) == 1
    assert run.summary["restarts"] == 2
