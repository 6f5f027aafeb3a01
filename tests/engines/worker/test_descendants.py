"""What the user's code starts, in a replica or in the controller, does not outlive the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distbelief.engines.worker.descendants import MARK, end_descendants, new_mark
from distbelief.run.directory import RunDirectory
from tests.lives import Life

SCRIPT = """
import multiprocessing, os, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
import torch
import distbelief as db
from tests import problems

directory, where = sys.argv[1:]
x, y = problems.points()
PAUSE = [sys.executable, "-c", "import signal; signal.pause()"]


def start_some():
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    assert list(pool.map(abs, [-1])) == [1]
    if where == "replica":
        if not (child := os.fork()):
            subprocess.Popen(PAUSE, start_new_session=True)  # of no parent, in no group and no session of ours
            os._exit(0)
        os.waitpid(child, 0)
    return pool


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return len(x)

    def __getitems__(self, indices):
        if where == "replica" and os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" and not hasattr(os, "some"):
            os.some = start_some()
        time.sleep(0.01)
        return [(x[i], y[i]) for i in indices]


def callback(event, run):
    if where == "controller" and event["event"] == "checkpoint" and not hasattr(os, "some"):
        os.some = start_some()


db.train(
    problems.task(train=Points()), db.Downpour(replicas=1, batch_size=16), until=db.Until(seconds=60),
    directory=directory, checkpoint_every=db.Every(seconds=0.2), callbacks=[callback], progress=False,
)
"""


@pytest.mark.parametrize("where", ["replica", "controller"])
def test_nothing_outlives_a_controller_that_is_killed(tmp_path: Path, where: str) -> None:
    life = Life(tmp_path / "run", ["-c", SCRIPT, str(tmp_path / "run"), where])
    life.wait_for("checkpoint", 2)
    started = 4 if where == "replica" else 3
    life.wait_until(lambda: len(life.processes()) >= started, "children")
    life.end(signal.SIGKILL)
    life.check_nothing_is_left()
    RunDirectory.open(tmp_path / "run", resume=True).close()


def test_only_what_has_the_mark_is_ended() -> None:
    marks = [new_mark(), new_mark()]
    assert len(set(marks)) == 2
    pause = [sys.executable, "-c", "import signal; signal.pause()"]
    processes = [
        subprocess.Popen(pause, env={**os.environ, MARK: mark}, start_new_session=True) for mark in (*marks, marks[0])
    ]
    try:
        while not all(b"pause" in Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in processes):
            time.sleep(0.01)
        end_descendants(marks[0], spared=processes[2].pid)
        assert processes[0].wait(timeout=10) == -signal.SIGKILL
        assert [process.poll() for process in processes[1:]] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()
