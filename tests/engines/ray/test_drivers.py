"""The user's own process, with which a run stands and falls, and what a person at a terminal sees of that."""

import json
import signal
from pathlib import Path

import distbelief as db
from tests.engines.ray.clusters import ON_ONE_CLUSTER, WHOLE, Gate, Machines, check_gone, train
from tests.lives import Life

pytestmark = ON_ONE_CLUSTER
PROGRAM = f"import sys; from {__name__} import run; run(*sys.argv[1:])"


def run(address: str, folder: str) -> None:
    """A program that trains until it is killed at the gate."""
    asked = {"directory": f"{folder}/run", "checkpoint_every": db.Every(examples=64)}
    train(db.Ray(address=address), Gate(Path(folder)), asked=asked)


def test_nothing_outlives_a_driver_that_is_killed_and_its_run_goes_on(cluster: Machines, tmp_path: Path) -> None:
    life = Life(tmp_path / "run", ["-c", PROGRAM, cluster.address, str(tmp_path)])
    gate = Gate(tmp_path)
    life.wait_until(lambda: len(gate.waiting) == 2, "replicas at work")
    life.wait_for("checkpoint")
    life.end(signal.SIGKILL)
    cluster.check_nothing_is_left()
    check_gone(gate.waiting)
    gate.open()
    asked = {"directory": tmp_path / "run", "resume": True}
    assert train(db.Ray(address=cluster.address), asked=asked).summary["account"] == WHOLE


def test_ctrl_c_writes_what_was_reached(cluster: Machines, tmp_path: Path) -> None:
    command = ["train", "digits", "--engine", "ray", "--address", cluster.address, "--replicas", "1"]
    life = Life(tmp_path / "run", ["-m", "distbelief", *command, "--directory", str(tmp_path / "run")])
    life.wait_until(lambda: any(e["event"] == "progress" and e["examples"] for e in life.events), "progress")
    told = life.end(signal.SIGINT)
    assert life.process.returncode == 130, told
    assert "SIGINT" in told
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["examples"] == sum(summary["account"].values())
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    life.check_nothing_is_left()
