"""Programs as processes of their own, and a run as one, to be killed: how it is started, watched, and what must not be
left of it.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

ROOT = Path(__file__).resolve().parents[1]
_MARK = "DISTBELIEF_LIFE"
_PATIENCE_S = 60.0


def launch(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start Python with a command, as a person at a terminal does, where it can import the tests too.

    `options`: those of `Popen`; `env` is added to the environment.
    """
    env = {**os.environ, **options.pop("env", {})}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    return subprocess.Popen([sys.executable, *command], env=env, text=True, preexec_fn=_heed_requests, **options)


def complete(command: list[str], timeout_s: float = 100.0, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`launch`, and wait for the end; what is printed is in the result."""
    with launch(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def _heed_requests() -> None:
    # What `nohup`, or a shell that runs the tests in the background, ignores is ignored by all that is started below.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@final
class Life:
    """One process that trains in `directory`. Its descendants inherit a mark by which they are found."""

    def __init__(self, directory: Path, command: list[str], **options: Any) -> None:
        self.directory = directory
        self._mark = uuid.uuid4().hex
        self._before = len(events(directory))
        env = {_MARK: self._mark}
        self.process = launch(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What this life has told so far."""
        return events(self.directory)[self._before :]

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def replicas(self) -> list[int]:
        """The processes of its replicas that are there."""
        pids = [event["pid"] for event in self.events if event["event"] == "replica"]
        return [pid for pid in pids if pid in self.processes()]

    def wait_for(self, event: str, count: int = 1) -> None:
        """Wait until something has happened so often."""
        self.wait_until(lambda: self.has(event, count), event)

    def has(self, event: str, count: int = 1) -> bool:
        """Whether something has happened so often in this life."""
        return [e["event"] for e in self.events].count(event) >= count

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not true():
            assert self.running, f"it ended before {what}:\n{self.end()}"
            assert time.monotonic() < deadline, f"no {what} within {_PATIENCE_S} s"
            time.sleep(0.01)

    def end(self, with_signal: signal.Signals | None = None, timeout_s: float = _PATIENCE_S) -> str:
        """Wait for its end, of itself or by a signal; returns what it has printed."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        try:
            output: str = self.process.communicate(timeout=timeout_s)[0]
            return output
        finally:
            self.process.kill()

    def processes(self) -> set[int]:
        """It and everything it has started, as far as they live."""
        return {int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(path)}

    def _is_ours(self, path: Path) -> bool:
        try:
            return f"{_MARK}={self._mark}".encode() in (path / "environ").read_bytes()
        except OSError:
            return False

    def check_nothing_is_left(self) -> None:
        """No process some seconds after its end, and no shared memory that has the name of one."""
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"processes {left} have outlived their run"
        started = {str(event["pid"]) for event in self.events if event["event"] == "replica"}
        names = [path.name for path in Path("/dev/shm").iterdir()]
        assert not [name for name in names if started & set(name.split("_"))]


def events(directory: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log."""
    log = directory / "events.jsonl"
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def halves(directory: Path) -> list[str]:
    """Half written files below a directory."""
    return [path.name for path in directory.rglob(".*") if "partial" in path.name or path.name.startswith(".tmp")]


def summary(directory: Path) -> dict[str, Any]:
    """The summary of a run that has ended."""
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return found
