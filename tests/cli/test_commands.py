"""The command line: what it prints, and its exit codes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from distbelief.cli.commands import main
from tests.lives import launch

GOOD = """
import torch
from torch import nn
import distbelief as db

x = torch.randn(400, 8)
y = (x.sum(1) > 0).long()
loss = nn.CrossEntropyLoss()


def network():
    return nn.Linear(8, 2)


task = db.Task(network, loss, train=(x, y), test=(x, y), metrics={"accuracy": db.accuracy})
number = 3
module = db.Task(nn.Linear(8, 2), loss, train=(x, y))
unequal = db.Task(network, loss, train=(x, y[:3]))
empty = db.Task(network, loss, train=(x[:0], y[:0]))
misfit = db.Task(lambda: nn.Linear(9, 2), loss, train=(x, y))
no_parameters = db.Task(nn.ReLU(), loss, train=(x, y))
whole_numbers = db.Task(lambda: Whole(), loss, train=(x, y))
complex_numbers = db.Task(lambda: nn.Linear(8, 2, dtype=torch.complex64), loss, train=(x, y))
frozen = db.Task(lambda: nn.Linear(8, 2).requires_grad_(False), loss, train=(x, y))
infinite = db.Task(network, lambda prediction, target: prediction.sum() / 0, train=(x, y))
detached = db.Task(network, lambda prediction, target: prediction.sum().detach(), train=(x, y))
vector_loss = db.Task(network, nn.CrossEntropyLoss(reduction="none"), train=(x, y))


def make(rows=100):
    return db.Task(network, loss, train=(x[:rows], y[:rows]))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 2))

    def forward(self, x):
        return (x @ self.weight).reshape(3, -1)


own = db.Task(Own, loss, train=(x, y))


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 2))
        self.count = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        return x @ self.weight
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "failing.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    return tmp_path


def train(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


WRONG_USAGE = [
    ("none.py", "there is no file none.py"),
    ("good.py:nope", 'good.py defines nothing named "nope"; say good.py:task'),
    ("good.py:number", "is no distbelief.Task"),
    ("spech", "speech"),
    ("good.py --replicas 0", "replicas must be a whole number of 1 or more, not 0"),
    ("good.py --batch-size -1", "--batch-size must be a whole number of 1 or more"),
    ("good.py --shards 99", "99 shards do not fit 18 parameters: use between 1 and 2"),
    ("good.py --lr -1", "lr must be a positive number"),
    ("good.py --seconds 0", "seconds must be a number of more than 0"),
    ("good.py --overlap 3", "'3' is not one of '0', '1'"),
    ("good.py --admission buffered:0", "m must be a whole number of 1 or more"),
    ("good.py --admission often", "takes one of asynchronous, staleness-scaled, bounded:N"),
    ("good.py --optimizer adam --momentum 0.5", "Adam has no momentum"),
    ("good.py --evaluate-every often", "'often' is neither a time, such as 30s or 5m, nor examples"),
    ("good.py --checkpoint-every 0", "examples must be a whole number of 1 or more"),
    ("good.py --target accuracy=high", "--target takes a metric and its value, such as accuracy=0.9"),
    ("good.py --admission buffered:2 --n-fetch 3", "needs --overlap 0 and --n-fetch 1"),
    ("good.py --resume", "needs the directory"),
    ("good.py --nope", "No such option '--nope'"),
    ("good.py --device tpu", 'device must be "auto", "cpu", "cuda"'),
    ("good.py:make --with nope=1", "it takes (rows=100)"),
    ("good.py:make --with nope", "--with takes name=value"),
    ("good.py --with rows=1", "takes no arguments"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_USAGE)
def test_wrong_usage_is_one_sentence_and_2(folder: Path, arguments: str, sentence: str) -> None:
    result = train(*arguments.split())
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert "Error: " in result.output
    assert not (folder / "runs").exists()


FAILURES = [
    ("good.py:unequal", "train: its arrays differ in length, 3, 400 rows"),
    ("good.py:empty", "train is empty"),
    ("good.py:no_parameters", "the model has no parameters to train"),
    ("good.py:frozen", "none of its parameters has requires_grad=True"),
    ("good.py:complex_numbers", "which cannot be trained: keep it as pairs of real numbers"),
    ("good.py:detached", "does not depend on any trainable parameter"),
    ("good.py:vector_loss", "loss must return a scalar tensor"),
    ("good.py --directory /proc/nowhere", "cannot write to the run directory /proc/nowhere"),
]


@pytest.mark.parametrize(("arguments", "sentence"), FAILURES)
def test_what_cannot_work_is_one_sentence_and_1(folder: Path, arguments: str, sentence: str) -> None:
    result = train(*arguments.split())
    assert result.exit_code == 1, result.output
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert result.output.startswith("Error: ")


def test_an_import_that_fails_shows_the_users_own_line(folder: Path) -> None:
    result = train("failing.py")
    assert result.exit_code == 1
    assert "failing.py" in result.output
    assert "No module named 'nothing_of_that_name'" in result.output
    assert "taskfile.py" not in result.output


def test_a_file_that_is_not_python_shows_where(folder: Path) -> None:
    result = train("broken.py")
    assert result.exit_code == 1
    assert "def f(:" in result.output
    assert "SyntaxError" in result.output


def test_a_model_that_does_not_fit_its_data_shows_the_shapes(folder: Path) -> None:
    result = train("good.py:misfit")
    assert result.exit_code == 1
    assert "on the first batch of train: (float32 (32, 8), int64 (32,))" in result.output


def test_an_error_in_the_users_model_shows_its_frames(folder: Path) -> None:
    result = train("good.py:own")
    assert result.exit_code == 1
    assert "return (x @ self.weight).reshape(3, -1)" in result.output
    assert "gradients.py" not in result.output


def test_verbose_adds_the_whole_trace(folder: Path) -> None:
    result = train("good.py:own", "--verbose")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.output
    assert "prepare.py" in result.output


def test_a_loss_that_is_not_finite_is_advised_upon(folder: Path) -> None:
    result = train("good.py:infinite", "--replicas", "1", "--directory", "run")
    assert result.exit_code == 1
    assert "Lower lr" in result.output
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "failure"
    assert summary["updates"] == 0


def test_a_run_from_a_file_with_arguments(folder: Path) -> None:
    result = train(
        "good.py:make", "--with", "rows=64", "--epochs", "3", "--replicas", "1", "--directory", "run", "--quiet"
    )
    assert result.exit_code == 0, result.output
    assert "192 examples" in result.output
    assert "account: 192 used, 0 refused, 0 dropped, 0 partial" in result.output
    assert "updates between fetch and push" in result.output
    assert "nothing was left to do" not in result.output
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["examples"] == 192
    task = json.loads((folder / "run" / "task.json").read_text())
    assert task["path"] == str(folder / "good.py")
    assert (task["name"], task["arguments"]) == ("make", {"rows": 64})
    again = train("good.py:make", "--directory", "run")
    assert again.exit_code == 1
    assert "run holds a run already: choose another directory, or go on with it (--resume)" in again.output


def test_a_bare_module_and_a_model_with_frozen_whole_numbers_work(folder: Path) -> None:
    for name in ("module", "whole_numbers"):
        result = train(f"good.py:{name}", "--epochs", "1", "--replicas", "1", "--quiet")
        assert result.exit_code == 0, result.output


def test_flags_replace_fields_of_the_method(folder: Path) -> None:
    flags = "--optimizer sgd --lr 0.5 --momentum 0.9 --n-push 2 --n-fetch 3 --clip-norm 1 --warmstart 32"
    flags += " --admission buffered:1 --local-lr 0.1"
    result = train("good.py", *flags.split(), "--replicas", "1", "--epochs", "1", "--directory", "run")
    assert result.exit_code == 0, result.output
    method = json.loads((folder / "run" / "method.json").read_text())
    rule = {"kind": "SGD", "lr": 0.5, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "groups": {}}
    assert method["optimizer"] == rule
    assert (method["n_push"], method["n_fetch"], method["clip_norm"], method["warmstart"]) == (2, 3, 1.0, 32)
    assert method["local_optimizer"]["lr"] == 0.1
    assert method["admission"] == {"kind": "Buffered", "m": 1}


def test_without_a_terminal_progress_is_plain_lines(folder: Path) -> None:
    result = train("good.py", "--replicas", "1", "--epochs", "2", "--directory", "run")
    assert "1 replica, 1 shard, 18 parameters, batches of 32" in result.stderr
    assert "evaluated after 400 examples" in result.stderr
    assert "stopped by epochs after 800 examples, 26 updates" in result.stderr
    assert "\x1b" not in result.stderr
    assert f"written to {folder / 'run'}" in result.stdout.replace("\n", "")


def test_ctrl_c_writes_what_was_reached_and_exits_with_130(folder: Path) -> None:
    command = ["-m", "distbelief", "train", "good.py", "--seconds", "600", "--directory", "run"]
    process = launch(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    log = folder / "run" / "events.jsonl"
    while time.monotonic() < deadline and '"evaluation"' not in (log.read_text() if log.exists() else ""):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "interrupted"
    assert summary["updates"] > 0
    assert (folder / "run" / "model.safetensors").exists()


def test_a_resumed_run_keeps_its_method_but_for_what_the_flags_say(folder: Path) -> None:
    flags = ("--directory", "run", "--replicas", "1")
    train("good.py", *flags, "--epochs", "1", "--optimizer", "adam", "--lr", "0.003", "--n-push", "2")
    result = train("good.py", "--directory", "run", "--epochs", "2", "--resume", "--lr", "0.001")
    assert result.exit_code == 0, result.output
    method = json.loads((folder / "run" / "method.json").read_text())
    assert (method["replicas"], method["n_push"]) == (1, 2)
    assert (method["optimizer"]["kind"], method["optimizer"]["lr"]) == ("Adam", 0.001)


def test_a_resumed_run_whose_end_is_reached_says_so(folder: Path) -> None:
    flags = "--replicas 1 --directory run --quiet --evaluate-every 5m --checkpoint-every 10000".split()
    assert train("good.py", *flags, "--epochs", "2").exit_code == 0
    result = train("good.py", *flags, "--epochs", "2", "--resume")
    assert result.exit_code == 0, result.output
    assert "nothing was left to do" in result.output
    # Neither an epoch nor a minute was over: what was asked for is what was done.
    history = json.loads((folder / "run" / "summary.json").read_text())["history"]
    assert [row["examples"] for row in history] == [800, 800]


def test_help_fits_80_columns_and_shows_every_flag() -> None:
    text = CliRunner().invoke(main, ["train", "--help"], terminal_width=80).output
    assert all(len(line) <= 80 for line in text.splitlines())
    for option in main.commands["train"].params:
        assert not isinstance(option, click.Option) or option.opts[0] in text, option
    assert "[default: each" in text


def report(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["report", *arguments])


def test_a_report_is_written_where_it_says(folder: Path) -> None:
    assert train("good.py", "--replicas", "1", "--epochs", "1", "--directory", "run", "--quiet").exit_code == 0
    result = report("run")
    assert (result.exit_code, result.output) == (0, "run/report.html\n")
    assert (folder / "run" / "report" / "loss-examples.png").exists()
    (folder / "young").mkdir()
    (folder / "young" / "method.json").write_text("{}")
    result = report("young", "--output", "mine.html")
    assert (result.exit_code, result.output) == (0, "mine.html\n")
    assert (folder / "mine.html").read_text().startswith("<!doctype html>")


def test_a_report_of_nothing_is_one_sentence(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "run").mkdir()
    (folder / "run" / "method.json").write_text("{}")
    wanted = {
        "nowhere": (1, "there is no directory nowhere"),
        "empty": (1, "empty holds no run"),
        "run run": (2, "run is given twice"),
        "run --output none/report.html": (2, "there is no folder none"),
    }
    for arguments, (code, sentence) in wanted.items():
        result = report(*arguments.split())
        assert result.exit_code == code, result.output
        assert result.output.startswith(f"Error: {sentence}")
        assert len(result.output.splitlines()) == 1
    assert report().exit_code == 2


def test_the_doctor_says_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "fine   training         a tiny run took" in result.output
    assert list(tmp_path.iterdir()) == []
