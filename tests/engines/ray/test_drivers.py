"""The user's own process, with which a run stands and falls, and what a person at a terminal sees of that."""

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ray.cluster_utils import Cluster

import distbelief as db
from tests.engines.ray.clusters import ENVIRONMENT, ON_ONE_CLUSTER, WHOLE, Gate, Machines, check_gone, train
from tests.lives import Life, complete, summary

pytestmark = ON_ONE_CLUSTER
PROGRAM = f"import sys; from {__name__} import run; run(*sys.argv[1:])"


def run(address: str, folder: str) -> None:
    """A program that trains until it is killed at the gate."""
    asked = {"directory": f"{folder}/run", "checkpoint_every": db.Every(seconds=0.1)}
    train(db.Ray(address=address), Gate(Path(folder)), asked=asked)


@contextmanager
def living(directory: Path, command: list[str]) -> Iterator[Life]:
    """A driver that does not outlive its test."""
    life = Life(directory, command)
    try:
        yield life
    finally:
        life.process.kill()


def test_nothing_outlives_a_driver_that_is_killed_and_its_run_goes_on(cluster: Machines, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with living(tmp_path / "run", ["-c", PROGRAM, cluster.address, str(tmp_path)]) as life:
        pids = gate.wait_for(2)
        life.wait_for("checkpoint")
        life.end(signal.SIGKILL)
    cluster.check_nothing_is_left()
    check_gone(pids)
    gate.open()
    asked = {"directory": tmp_path / "run", "resume": True}
    assert train(db.Ray(address=cluster.address), asked=asked).summary["account"] == WHOLE


def test_ctrl_c_writes_what_was_reached(cluster: Machines, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = ["train", "digits", "--engine", "ray", "--address", cluster.address, "--replicas", "1"]
    command += ["--epochs", "100000", "--directory", str(directory)]
    with living(directory, ["-m", "distbelief", *command]) as life:
        life.wait_until(lambda: any(e["event"] == "progress" and e["examples"] for e in life.events), "progress")
        told = life.end(signal.SIGINT)
        assert life.process.returncode == 130, told
        life.check_nothing_is_left()
    assert "SIGINT" in told
    assert "Traceback" not in told
    found = summary(directory)
    assert found["stopped_by"] == "interrupted"
    assert 0 < found["examples"] == sum(found["account"].values())
    assert (directory / "model.safetensors").exists()


def run_with_a_token() -> None:
    """A program with a cluster of its own, one machine that lets in those who have its token."""
    one = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    address = str(one.address)
    try:
        there = train(db.Ray(address=address), replicas=1, overlap=0)
        join = f"from distbelief.engines.ray.cluster import join; join({address!r})"
        stranger = complete(["-c", join], env={"RAY_AUTH_MODE": "disabled"})
    finally:
        one.shutdown()
    here = train(db.Local(), replicas=1, overlap=0).state_dict()
    assert there.summary["account"] == WHOLE
    assert all(torch.equal(tensor, here[name]) for name, tensor in there.state_dict().items())
    assert f"UsageError: the Ray cluster at {address} cannot be joined: it wants its token" in stranger.stderr, (
        stranger.stderr
    )
    print("the same")


def test_a_cluster_that_asks_for_a_token(tmp_path: Path) -> None:
    """Who has none is not let in. And what is mapped on it gives the same bits as on one machine."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    # Ray reads them as it is imported.
    env = ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    process = complete(["-c", f"from {__name__} import run_with_a_token as run; run()"], 300.0, cwd=tmp_path, env=env)
    assert process.returncode == 0, process.stderr
    assert "the same" in process.stdout
