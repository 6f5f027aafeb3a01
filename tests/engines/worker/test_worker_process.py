"""Worker processes: started ahead, handed over, ended."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path

from distbelief.engines.worker.worker_process import Workers

REQUESTS = (signal.SIGINT, signal.SIGHUP)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_that_nobody_took_end_with_the_block() -> None:
    with closing(Workers()) as workers:
        workers.start(2)
        taken = workers.take()
        (left,) = workers._idle
        assert is_running(taken.pid)
        assert is_running(left.pid)
    assert not is_running(left.pid)
    assert is_running(taken.pid)
    taken.kill()
    assert taken.reap() == -signal.SIGKILL
    assert not is_running(taken.pid)


def test_a_stopped_process_is_known_as_such() -> None:
    with closing(Workers()) as workers:
        process = workers.take()
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not process.stopped and time.monotonic() < deadline:
            os.sched_yield()
        assert process.stopped
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.reap()
        assert not process.stopped


def ignores(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigIgn:")[2].split()[0], 16) >> (number - 1) & 1)


def test_a_worker_leaves_requests_to_its_controller_and_ends_with_it() -> None:
    """However the run was started, and before it has a job: neither Ctrl-C nor the end of a terminal ends a worker."""
    with closing(Workers()) as workers:
        process = workers.take()
        assert os.getsid(process.pid) == process.pid
        deadline = time.monotonic() + 60
        while not all(ignores(process.pid, number) for number in REQUESTS) and time.monotonic() < deadline:
            time.sleep(0.01)
        for number in REQUESTS:
            os.kill(process.pid, number)
        process.channel.close()
        # It ends itself with whatever it has started.
        assert process._process.wait(timeout=60) == -signal.SIGKILL
        process.reap()
