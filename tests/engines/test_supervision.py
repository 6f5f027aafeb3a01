"""When the dead are replaced, and when that has become pointless."""

import signal

import pytest

from distbelief.engines.supervision import Failure, Supervisor
from distbelief.errors import Diverged, UserCodeError, WorkerDied


def failure(error: str) -> Failure:
    return Failure(error, "  File mine.py, line 3", "user")


def test_deaths_by_signal_are_replaced_as_long_as_work_is_done() -> None:
    supervisor = Supervisor()
    for _ in range(100):
        supervisor.died(-signal.SIGKILL, None)
        supervisor.worked()


def test_deaths_without_work_between_end_the_run() -> None:
    supervisor = Supervisor()
    for _ in range(4):
        supervisor.died(-signal.SIGKILL, None)
    with pytest.raises(WorkerDied, match="SIGKILL: the machine may be out of memory"):
        supervisor.died(-signal.SIGKILL, None)


def test_an_error_that_repeats_ends_the_run_with_the_users_frames() -> None:
    supervisor = Supervisor()
    supervisor.died(1, failure("KeyError: 'a'"))
    supervisor.died(1, failure("KeyError: 'b'"))
    with pytest.raises(UserCodeError, match=r"KeyError: 'a'\n\n  File mine.py, line 3"):
        supervisor.died(1, failure("KeyError: 'a'"))


def test_divergence_ends_the_run_at_once() -> None:
    with pytest.raises(Diverged, match="lower lr"):
        Supervisor().died(1, Failure("lower lr", "", "diverged"))


def test_an_exit_by_the_users_code_is_named() -> None:
    supervisor = Supervisor()
    for _ in range(4):
        supervisor.died(7, None)
    with pytest.raises(WorkerDied, match="ended with exit code 7"):
        supervisor.died(7, None)
