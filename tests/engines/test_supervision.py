"""When the dead are replaced, and when that has become pointless."""

import itertools

from distbelief.engines.supervision import Failure, Supervisor
from distbelief.errors import DistBeliefError, Diverged, UserCodeError, WorkerDied

KILLED = "was ended by SIGKILL: the machine may be out of memory"


def failure(error: str) -> Failure:
    return Failure(error, "  File mine.py, line 3", "user")


class Deaths:
    """A supervisor that is told of deaths ten seconds apart."""

    def __init__(self) -> None:
        self.supervisor = Supervisor()
        self._times = itertools.count(0, 10)

    def die(self, how: str = KILLED, failure: Failure | None = None) -> DistBeliefError | None:
        return self.supervisor.died(next(self._times), how, failure)


def test_deaths_by_signal_are_replaced_as_long_as_work_is_done() -> None:
    deaths = Deaths()
    for _ in range(100):
        assert deaths.die() is None
        deaths.supervisor.worked()


def test_deaths_without_work_between_end_the_run() -> None:
    deaths = Deaths()
    assert [deaths.die() for _ in range(4)] == [None] * 4
    error = deaths.die()
    assert isinstance(error, WorkerDied)
    assert str(error).startswith("5 times in a row replicas died before they finished any work")
    assert "SIGKILL: the machine may be out of memory" in str(error)


def test_deaths_within_a_second_of_each_other_count_once() -> None:
    """A machine that is taken away takes its replicas with it."""
    supervisor = Supervisor()
    for event in range(4):
        for replica in range(10):
            assert supervisor.died(10 * event + replica / 10, KILLED, None) is None
    assert isinstance(supervisor.died(50, KILLED, None), WorkerDied)


def test_a_second_is_counted_from_the_first_death_of_an_event() -> None:
    """Deaths that never pause are no one event: a fault that kills on each start must end the run."""
    supervisor = Supervisor()
    errors = [supervisor.died(0.6 * death, KILLED, None) for death in range(10)]
    assert any(isinstance(error, WorkerDied) for error in errors)


def test_an_error_that_repeats_ends_the_run_with_the_users_frames() -> None:
    deaths = Deaths()
    assert deaths.die(failure=failure("KeyError: 'a'")) is None
    assert deaths.die(failure=failure("KeyError: 'b'")) is None
    error = deaths.die(failure=failure("KeyError: 'a'"))
    assert isinstance(error, UserCodeError)
    assert str(error) == "replicas failed twice with KeyError: 'a'\n\n  File mine.py, line 3"


def test_an_error_that_repeats_ends_the_run_however_much_work_is_done_between() -> None:
    deaths = Deaths()
    assert deaths.die(failure=failure("KeyError: 'a'")) is None
    deaths.supervisor.worked()
    assert isinstance(deaths.die(failure=failure("KeyError: 'a'")), UserCodeError)


def test_an_error_that_repeats_is_one_although_it_comes_at_the_same_instant() -> None:
    """All replicas stumble over the same batch of code when they begin."""
    supervisor = Supervisor()
    assert supervisor.died(0, KILLED, failure("KeyError: 'a'")) is None
    assert isinstance(supervisor.died(0, KILLED, failure("KeyError: 'a'")), UserCodeError)


def test_the_same_words_from_another_place_are_another_error() -> None:
    deaths = Deaths()
    assert deaths.die(failure=Failure("KeyError: 'a'", "  File mine.py, line 3", "user")) is None
    assert deaths.die(failure=Failure("KeyError: 'a'", "  File mine.py, line 9", "user")) is None


def test_errors_that_all_differ_end_the_run_as_deaths_do() -> None:
    deaths = Deaths()
    assert [deaths.die(failure=failure(f"KeyError: {n}")) for n in range(4)] == [None] * 4
    error = deaths.die(failure=failure("KeyError: 4"))
    assert isinstance(error, WorkerDied)
    assert "the last one failed with KeyError: 4\n\n  File mine.py, line 3" in str(error)


def test_divergence_ends_the_run_at_once() -> None:
    error = Deaths().die(failure=Failure("lower lr", "", "diverged"))
    assert isinstance(error, Diverged)
    assert str(error) == "lower lr"


def test_an_exit_by_the_users_code_is_named() -> None:
    deaths = Deaths()
    for _ in range(4):
        deaths.die("ended with exit code 7")
    assert "ended with exit code 7" in str(deaths.die("ended with exit code 7"))
