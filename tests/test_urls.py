"""Whole runs whose directory is a URL: trained, killed, resumed, loaded and looked at."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

import distbelief as db
from distbelief.cli.commands import main
from distbelief.errors import DirectoryError, NotWritten
from distbelief.run.callbacks import Callback, Event, LiveRun
from distbelief.run.run import Run
from tests import buckets, problems
from tests.lives import complete

EXAMPLES = 640
SCRIPT = """
import os, signal, sys
import distbelief as db
from tests import buckets, problems

url, epochs, kill_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sent = 0

def kill(request, path):
    global sent
    sent += path.endswith("tensors.safetensors") and request == "write"
    if sent == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

buckets.register()
if kill_at:
    buckets.Bucket.before = staticmethod(kill)
db.train(
    problems.task(),
    db.Downpour(replicas=1, batch_size=16),
    until=db.Until(epochs=epochs),
    checkpoint_every=db.Every(examples=320),
    directory=url,
    resume=True,
)
"""


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    buckets.register()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train(url: str, epochs: int, callbacks: Sequence[Callback] = (), *, resume: bool = False) -> Run:
    return db.train(
        problems.task(validation=problems.points()),
        db.Downpour(replicas=1, batch_size=16),
        engine=db.Simulated(),
        until=db.Until(epochs=epochs),
        checkpoint_every=db.Every(examples=320),
        directory=url,
        resume=resume,
        callbacks=callbacks,
        progress=False,
    )


def test_a_run_goes_on_and_is_loaded(tmp_path: Path) -> None:
    url = f"bucket://{tmp_path}/run"
    first = train(url, 1)
    assert first.directory == url
    with pytest.raises(DirectoryError, match=f"{url} holds a run already"):
        train(url, 2)
    run = train(url, 2, resume=True)
    assert run.summary["resumed_at"] == EXAMPLES
    assert run.history[: len(first.history)] == first.history
    loaded = db.load(url, problems.task(validation=problems.points()))
    assert loaded.directory == url
    assert loaded.evaluate() == pytest.approx(run.evaluate())
    assert loaded.model("best") is not None
    with pytest.raises(DirectoryError, match=f"no average model in {url}"):
        loaded.model("average")
    started = db.train(
        problems.task(),
        db.Downpour(replicas=1, batch_size=16),
        engine=db.Simulated(),
        start=url,
        until=db.Until(examples=16),
        directory=tmp_path / "of",
        progress=False,
    )
    assert started.summary["examples"] == 16
    with pytest.raises(DirectoryError, match=f"{url}2 holds no run"):
        db.load(f"{url}2")
    assert not list((tmp_path / "cache" / "distbelief" / "runs").iterdir())


def test_after_kill_9_in_the_midst_of_sending_a_run_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "run"
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    killed = complete(["-c", SCRIPT, f"server://{place}", "100000", "3"], env=env)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    newest = max(int(state.parent.name) for state in (place / "checkpoints").rglob("state.json"))
    epochs = newest // EXAMPLES + 2
    resumed = complete(["-c", SCRIPT, f"server://{place}", str(epochs), "0"], env=env)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    summary = json.loads((place / "summary.json").read_text())
    assert summary["resumed_at"] == newest
    assert sum(summary["account"].values()) == epochs * EXAMPLES


def test_where_nothing_can_be_sent_for_a_while_training_goes_on(tmp_path: Path) -> None:
    """It is said once, and what could not be sent is there at the end."""
    seen: list[Event] = []

    def cut(event: Event, run: LiveRun) -> None:
        seen.append(event)
        failed = [event for event in seen if event["event"] == "checkpoint" and event["error"]]
        if event["event"] == "checkpoint":
            down = len(failed) < 2
            buckets.Bucket.before = staticmethod(unreachable if down else buckets.reachable)

    try:
        run = train(f"bucket://{tmp_path}/run", 3, [cut])
    finally:
        buckets.Bucket.before = staticmethod(buckets.reachable)
    errors = [event["error"] for event in seen if event["event"] == "checkpoint"]
    assert errors[:3] == [None, "[Errno 113] No route to host", "[Errno 113] No route to host"]
    assert errors[3:] == [None] * len(errors[3:])
    assert run.summary["examples"] == 3 * EXAMPLES
    assert db.load(f"bucket://{tmp_path}/run", problems.task()).summary == run.summary


def test_what_could_not_be_sent_at_the_end_is_said(tmp_path: Path) -> None:
    def cut(event: Event, run: LiveRun) -> None:
        if event["event"] == "evaluating":
            buckets.Bucket.before = staticmethod(unreachable)

    try:
        with pytest.raises(NotWritten, match=r"\(the newest files: No route to host\); resume .*; all of it is in /"):
            train(f"bucket://{tmp_path}/run", 1, [cut])
    finally:
        buckets.Bucket.before = staticmethod(buckets.reachable)


def unreachable(request: str, path: str) -> None:
    raise OSError(113, "No route to host")


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"bucket://{tmp_path}/run"
    arguments = ["train", "digits", "--engine", "simulated", "--replicas", "1", "--quiet", "--directory", url]
    for more in (["--examples", "640"], ["--examples", "1280", "--resume"]):
        done = CliRunner().invoke(main, [*arguments, *more])
        assert done.exit_code == 0, done.output
        assert done.output.endswith(f"written to {url}\n")
    done = CliRunner().invoke(main, ["evaluate", url])
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    done = CliRunner().invoke(main, ["report", url])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").is_file()
    done = CliRunner().invoke(main, ["report", f"{url}2"])
    assert done.output == f"Error: {url}2 holds no run: give the directory that is told where a run ends\n"
    done = CliRunner().invoke(main, ["train", "digits", "--directory", "never://mine", "--quiet"])
    assert done.exit_code == 2
    assert "Protocol not known: never" in done.output
