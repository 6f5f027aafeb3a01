"""The processes of replicas: started, spoken to, ended. None outlives its controller."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import final

from distbelief.engines.worker.channel import Channel
from distbelief.engines.worker.descendants import MARK, end_descendants, new_mark
from distbelief.engines.worker.room import require_room
from distbelief.links import forks

ENVIRONMENT = {
    # Threads that wait for each other by spinning take the cores from those they wait for as soon as anything else
    # runs: on two busy cores a small model then makes ten steps a second instead of a thousand.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Gradients are allocated anew in every step. Kept in the heap, their pages are not given back to the kernel and
    # zeroed by it again, which costs a model of 42 million parameters about 70 ms of a step of 640 ms.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""What every worker's environment has in addition to the controller's."""


_HOME = str(Path(__file__).parents[3])
"""Where this package is imported from."""
_EXIT_S = 5.0
"""How long a process that has closed its channel may take to end."""


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_group(pid: int) -> bool:
    """Kill a worker and what is in its group; False where there is none."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@final
class WorkerProcess:
    """One worker. It begins to import torch at once, and waits for its job."""

    def __init__(self) -> None:
        self.channel, theirs = Channel.pair()
        path = os.pathsep.join(filter(None, (_HOME, os.environ.get("PYTHONPATH"))))
        self._mark = new_mark()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "distbelief.engines.worker.boot", str(theirs.fileno())],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path, MARK: self._mark},
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            # Out of the terminal's group: Ctrl-C is for the controller alone.
            start_new_session=True,
        )
        theirs.close()
        self.pidfd = os.pidfd_open(self._process.pid)
        """Readable when the process has ended."""
        # In a child of the user's it would hide from the worker that this process has died.
        self._end = self.channel.fileno()
        forks.hold(self._end)
        self.who = (-1, 0)
        """The replica and the incarnation that it was made."""

    @property
    def ended(self) -> bool:
        """Whether the process has ended; `reap` is still to be called."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def stopped(self) -> bool:
        """Whether the process is stopped (SIGSTOP)."""
        return is_stopped(self.pid)

    def kill(self) -> None:
        """End it and whatever it started, now."""
        if not kill_group(self.pid):
            self._process.kill()

    def reap(self) -> int:
        """Wait for the end of a process; returns its exit status, negative for a signal."""
        try:
            status = self._process.wait(timeout=_EXIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self._process.wait()
        # What it has started, such as data-loader processes, lives in its session; or elsewhere, with its mark.
        self.kill()
        end_descendants(self._mark)
        forks.release(self._end)
        self.channel.close()
        os.close(self.pidfd)
        return status


@final
class Workers:
    """Processes that were started before it was known what for."""

    def __init__(self) -> None:
        self._idle: list[WorkerProcess] = []

    def start(self, count: int) -> None:
        """Have this many processes ready. Raises `UsageError` where there is no room for them."""
        require_room(count - len(self._idle))
        while len(self._idle) < count:
            self._idle.append(WorkerProcess())

    def take(self) -> WorkerProcess:
        """A process, which the caller owns: the one that was started first, or a new one."""
        return self._idle.pop(0) if self._idle else WorkerProcess()

    def give_back(self, process: WorkerProcess) -> None:
        """Have a process taken again, as the next one."""
        self._idle.insert(0, process)

    def close(self) -> None:
        """End those that no run took."""
        for process in self._idle:
            process.kill()
            process.reap()
