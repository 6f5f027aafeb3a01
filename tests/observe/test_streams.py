"""A run works whatever it is started with as standard input, output and error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
import sys
import torch
import distbelief as db
from tests import problems


class Model(torch.nn.Linear):
    def forward(self, x):
        print("hello … ünïcode", flush=True)  # in the controller and in each replica, at each step
        return super().forward(x)


task = problems.task(model=lambda: Model(16, 4), test=problems.points())
if __name__ == "__main__":
    db.train(task, db.Downpour(replicas=1), until=db.Until(epochs=1), directory=sys.argv[1])
"""
COMMAND = "{python} -m distbelief train {file} --epochs 1 --replicas 1 --directory {run}"
SCRIPT = "{python} {file} {run}"


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (f"{COMMAND} >&- 2>&- <&-", {}),
        (f"{SCRIPT} >&- 2>&- <&-", {}),
        (f"{COMMAND} 2>&1", {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}),
        # The exit code is that of the run.
        (f"set -o pipefail; {COMMAND} 2>&1 | true", {}),
    ],
    ids=["command without any", "script without any", "ASCII", "nobody reads"],
)
def test_a_run_works(tmp_path: Path, command: str, environment: dict[str, str]) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        ["bash", "-c", command.format(python=sys.executable, file=tmp_path / "mine.py", run=tmp_path / "run")],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["examples"] == 640
    # What is printed is in no file of the run, whose descriptors could have been those of the output.
    assert not [file for file in (tmp_path / "run").rglob("*") if file.is_file() and b"hello" in file.read_bytes()]
