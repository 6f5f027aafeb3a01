"""Worker processes: started ahead, handed over, ended."""

import os
import signal
import time
from contextlib import closing

from distbelief.engines.local.process import Workers


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


def test_a_worker_whose_controller_hangs_up_before_the_job_ends_by_itself() -> None:
    with closing(Workers()) as workers:
        process = workers.take()
        process.channel.close()
        assert process._process.wait(timeout=60) == 0
        process.reap()
