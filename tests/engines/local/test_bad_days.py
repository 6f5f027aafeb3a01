"""Bad days of whole runs, as users have them: what they are told, what they keep, and that nothing is left behind."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import distbelief as db
from distbelief.errors import UserCodeError
from tests import problems
from tests.lives import Life, events, halves, summary

EXAMPLES, BATCH = 640, 16

SCRIPT = """
import json, os, resource, signal, sys, time
import torch
import distbelief as db
from tests import problems

given = json.loads(sys.argv[1])
for number in given["ignored"]:
    signal.signal(number, signal.SIG_IGN)
x, y = problems.points()


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return len(x)

    def __getitem__(self, i):
        return x[i], y[i]


def slow_loss(prediction, target):
    if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE":  # in a replica, and not in the try-out before it
        time.sleep(given["batch_s"])
    return torch.nn.functional.cross_entropy(prediction, target)


def slow_metric(prediction, target):
    time.sleep(given["evaluation_s"])
    return 0.0


def fill_the_disk(event, run):
    if event["event"] == given["full_at"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


time.sleep(given["prepare_s"])
task = problems.task(
    train=Points() if given["loaders"] else (x, y), loss=slow_loss, num_workers=given["loaders"],
    test=(x, y) if given["evaluation_s"] else None, metrics={"slow": slow_metric},
)
db.train(
    task, db.Downpour(replicas=given["replicas"], shards=2, batch_size=16, optimizer=db.SGD(0.05)),
    until=db.Until(epochs=given["epochs"]), directory=given["directory"], resume=given["resume"],
    checkpoint_every=db.Every(seconds=0.2), callbacks=[fill_the_disk],
)
"""
DEFAULTS: dict[str, Any] = {
    "replicas": 1,
    "batch_s": 0.002,
    "evaluation_s": 0.0,
    "prepare_s": 0.0,
    "epochs": 20,
    "loaders": 0,
    "resume": False,
    "full_at": None,
    "ignored": [],
}


def begin(directory: Path, **changes: Any) -> Life:
    given = {**DEFAULTS, "directory": str(directory), **changes}
    return Life(directory, ["-c", SCRIPT, json.dumps(given)])


def check_exact(directory: Path, epochs: int) -> None:
    account = summary(directory)["account"]
    died = [event for event in events(directory) if event["event"] == "died"]
    assert sum(account.values()) == epochs * EXAMPLES
    assert account["partial"] <= BATCH * len(died)


def test_a_replica_with_data_loaders_is_killed(tmp_path: Path) -> None:
    """Its children hold copies of its descriptors; they go with it, and another replica takes its place."""
    life = begin(tmp_path / "run", replicas=2, loaders=2, epochs=30)
    life.wait_for("progress", 2)
    os.kill(life.replicas[0], signal.SIGKILL)
    output = life.end()
    assert life.process.returncode == 0, output
    assert "died (SIGKILL: the machine may be out of memory); what it held is leased again" in output
    assert summary(tmp_path / "run")["restarts"] == 1
    check_exact(tmp_path / "run", 30)
    life.check_nothing_is_left()


def test_a_stopped_replica_is_waited_for_and_its_staleness_is_seen(tmp_path: Path) -> None:
    """Outside of any lock it is in no other's way; continued, its push is as stale as it was long away."""
    flag = str(tmp_path / "stopped")
    pids: list[int] = []

    def stop_once(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        # In a replica, and not in the try-out before it: between a fetch and the push that is computed from it.
        if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" and not Path(flag).exists():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.005)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def go_on(event: dict[str, Any], run: object) -> None:
        if event["event"] == "replica":
            pids.append(event["pid"])
        if event["event"] == "progress" and event["updates"] > 200:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    run = db.train(
        db.Task(problems.network, step=stop_once, train=problems.points()),
        db.Downpour(replicas=2, batch_size=4),
        until=db.Until(epochs=20),
        callbacks=[go_on],
        directory=tmp_path / "run",
        progress=False,
    )
    assert run.summary["restarts"] == 0
    assert run.summary["staleness"]["max"] >= 100
    check_exact(tmp_path / "run", 20)


def test_replicas_that_end_at_their_start_end_the_run_in_a_sentence(tmp_path: Path) -> None:
    def model() -> Any:
        if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE":  # in a replica, and not in the try-out before it
            os._exit(3)
        return problems.network()

    task = db.Task(model, problems.task().loss, train=problems.points())
    with pytest.raises(
        db.DistBeliefError, match=r"5 times in a row replicas died .* the last one ended with exit code 3"
    ):
        db.train(task, db.Downpour(replicas=1), directory=tmp_path / "run", progress=False)
    assert summary(tmp_path / "run")["examples"] == 0
    assert load_file(tmp_path / "run" / "model.safetensors")


def test_a_replica_that_fails_and_cannot_end_is_ended(tmp_path: Path) -> None:
    """A thread of the user's that never ends keeps a process from ending by itself."""

    def loss(prediction: Any, target: Any) -> Any:
        if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE":  # in a replica, and not in the try-out before it
            threading.Thread(target=threading.Event().wait).start()
            raise ArithmeticError("no more")
        return torch.nn.functional.cross_entropy(prediction, target)

    with pytest.raises(UserCodeError, match="failed twice at batch 0 of epoch 0 .* with ArithmeticError: no more"):
        db.train(problems.task(loss=loss), db.Downpour(replicas=1), directory=tmp_path / "run", progress=False)


@pytest.mark.parametrize("request_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_request_to_end_a_slow_run(tmp_path: Path, request_: signal.Signals) -> None:
    """A batch of many minutes is not waited for, and what was reached is written."""
    life = begin(tmp_path / "run", batch_s=600)
    life.wait_for("progress")
    life.process.send_signal(request_)
    output = life.end()
    assert life.process.returncode == -signal.SIGINT, output  # as Python ends after a KeyboardInterrupt
    assert f"KeyboardInterrupt: {request_.name}: what was reached is in {tmp_path / 'run'}" in output
    assert summary(tmp_path / "run")["stopped_by"] == ("interrupted" if request_ is signal.SIGINT else "terminated")
    assert load_file(tmp_path / "run" / "model.safetensors")
    assert halves(tmp_path / "run") == []
    life.check_nothing_is_left()


def test_a_request_to_end_during_the_last_evaluation(tmp_path: Path) -> None:
    """It is given up between two batches, and the program around the run ends, too."""
    life = begin(tmp_path / "run", batch_s=0, epochs=1, evaluation_s=0.5)
    life.wait_for("evaluating")
    output = life.end(signal.SIGTERM, timeout_s=20)
    assert "KeyboardInterrupt: SIGTERM: what was reached is in" in output
    told = summary(tmp_path / "run")
    assert (told["stopped_by"], told["examples"], told["history"]) == ("epochs", EXAMPLES, [])
    life.check_nothing_is_left()


@pytest.mark.parametrize("request_", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_request_to_end_before_training(tmp_path: Path, request_: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(
        "import time, pathlib\ndef task():\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n"
    )
    life = Life(tmp_path / "run", ["-m", "distbelief", "train", "slow.py", "--directory", "run"], cwd=tmp_path)
    life.wait_until((tmp_path / "begun").exists, "preparation")
    output = life.end(request_, timeout_s=10)
    assert (life.process.returncode, output) == (130, "interrupted before training began\n")
    assert not (tmp_path / "run").exists()
    life.check_nothing_is_left()


def test_what_a_shell_keeps_from_a_run_in_the_background_ends_nothing_of_it(tmp_path: Path) -> None:
    """`nohup distbelief train … &`: neither Ctrl-C nor the end of the terminal, whatever process they reach."""
    life = begin(tmp_path / "run", replicas=2, loaders=1, ignored=[signal.SIGINT, signal.SIGHUP])
    life.wait_for("progress", 2)
    life.wait_until(lambda: len(life.processes()) >= 5, "a controller, two replicas, and a loader of each")
    reached = life.processes()
    for pid, number in product(reached, (signal.SIGINT, signal.SIGHUP)):
        os.kill(pid, number)
    assert "stopped by epochs" in life.end()
    assert life.process.returncode == 0
    assert summary(tmp_path / "run")["restarts"] == 0


@pytest.mark.parametrize(
    ("full_at", "missing"),
    [
        ("started", ["events.jsonl", "model.safetensors", "summary.json", "the last checkpoint"]),
        ("stopped", ["model.safetensors", "summary.json"]),
    ],
)
def test_a_full_disk_does_not_end_a_run_and_is_said(tmp_path: Path, full_at: str, missing: list[str]) -> None:
    """Every example is used; at the end a sentence names the files that are missing, and none is half there."""
    life = begin(tmp_path / "run", full_at=full_at)
    output = life.end()
    assert life.process.returncode == 1, output
    assert output.count("events.jsonl could not be written: File too large; the run goes on") == (full_at == "started")
    assert f"stopped by epochs after {20 * EXAMPLES:,} examples" in output
    last = output.splitlines()[-1]
    assert last.startswith(f"distbelief.errors.NotWritten: not all of {tmp_path / 'run'} could be written (")
    assert f"({', '.join(missing)}: File too large)" in last
    assert halves(tmp_path / "run") == []
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "events.jsonl").read_bytes()[-1:] == b"\n"
    kept = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert last.endswith(f"resume goes on after {max(kept):,} examples" if kept else "no checkpoint is left")
    again = begin(tmp_path / "run", resume=True, batch_s=0)
    output = again.end()
    assert again.process.returncode == 0, output
    assert sum(summary(tmp_path / "run")["account"].values()) == 20 * EXAMPLES
    again.check_nothing_is_left()


def test_a_directory_that_is_removed_is_made_again(tmp_path: Path) -> None:
    """What is reached after that is kept, and it is said that what was there before is not."""
    run = tmp_path / "run"
    life = begin(run)
    life.wait_for("progress")
    # In one step: file by file, the run may have made it again before its last one is gone.
    shutil.rmtree(run.rename(tmp_path / "removed"))
    output = life.end()
    assert life.process.returncode == 1, output
    assert "events.jsonl could not be written: the directory was removed while the run was at work" in output
    assert f"resume goes on after {20 * EXAMPLES:,} examples" in output.splitlines()[-1]
    check_exact(run, 20)
    assert db.load(run, problems.task()).predict(problems.points()[0]).shape == (EXAMPLES, 4)
    assert halves(run) == []


def test_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    """As with `| head -1`: the run goes on."""
    life = begin(tmp_path / "run")
    assert life.process.stdout is not None
    life.process.stdout.readline()
    life.process.stdout.close()
    life.process.wait(timeout=60)
    check_exact(tmp_path / "run", 20)
