"""When the dead are replaced, and when that has become pointless."""

import itertools
from collections.abc import Iterable
from typing import Any

from distbelief.allocation import LastPush
from distbelief.downpour.ledger import Ledger
from distbelief.engines.supervision import Death, Ending, Failure, Supervisor
from distbelief.errors import DistBeliefError, Diverged, TaskError, UserCodeError, WorkerDied
from distbelief.ports import PushRecord, Verdict, Work

KILLED = "was ended by SIGKILL: the machine may be out of memory"


def failure(error: str) -> Failure:
    return Failure(error, "  File mine.py, line 3", "user")


def death(at: float, how: str = KILLED, failure: Failure | None = None, **more: Any) -> Death:
    last = more.pop("last", None)
    return Death(at, Ending(-9, how, **more), failure, last)


class Deaths:
    """A supervisor that is told of deaths ten seconds apart."""

    def __init__(self) -> None:
        self.supervisor = Supervisor()
        self._times = itertools.count(0, 10)

    def die(self, how: str = KILLED, failure: Failure | None = None) -> DistBeliefError | None:
        return self.supervisor.died(death(next(self._times), how, failure))


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
            assert supervisor.died(death(10 * event + replica / 10, KILLED, None)) is None
    assert isinstance(supervisor.died(death(50, KILLED, None)), WorkerDied)


def test_a_second_is_counted_from_the_first_death_of_an_event() -> None:
    """Deaths that never pause are no one event: a fault that kills on each start must end the run."""
    supervisor = Supervisor()
    errors = [supervisor.died(death(0.6 * number, KILLED, None)) for number in range(10)]
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
    assert supervisor.died(death(0, KILLED, failure("KeyError: 'a'"))) is None
    assert isinstance(supervisor.died(death(0, KILLED, failure("KeyError: 'a'"))), UserCodeError)


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


# Batches at which replicas die


class Waiting:
    """An allocator in which every batch waits to be given out, that notes what is asked of it."""

    def __init__(self) -> None:
        self.alone: list[tuple[int, int]] = []
        self.aside: list[tuple[int, int]] = []

    def isolate(self, epoch: int, batch: int) -> bool:
        self.alone.append((epoch, batch))
        return True

    def set_aside(self, epoch: int, batch: int) -> None:
        self.aside.append((epoch, batch))


def judge(supervisor: Supervisor, deaths: Iterable[Death]) -> tuple[Any, list[Any]]:
    """What the last death and those before it come to."""
    allocator: Any = Waiting()
    aside: list[Any] = []
    error = None
    for one in deaths:
        found, error = supervisor.judge(one, allocator)
        aside += found
    assert allocator.aside == [(epoch, batch) for epoch, batch, _ in aside]
    return error, aside


def test_a_third_death_at_a_batch_ends_the_run_and_says_where() -> None:
    supervisor = Supervisor()
    assert judge(supervisor, [death(0, batch=(1, 7)), death(10, batch=(1, 7))]) == (None, [])
    supervisor.worked()
    assert judge(supervisor, [death(20, batch=(0, 7)), death(25, batch=(1, 6))]) == (None, [])
    error, _ = judge(supervisor, [death(30, batch=(1, 7))])
    assert isinstance(error, WorkerDied)
    assert str(error).startswith("3 replicas died at batch 7 of epoch 1; the last one was ended by SIGKILL")
    assert "tolerate=1" in str(error)


def test_so_many_batches_are_set_aside_and_then_the_run_ends() -> None:
    supervisor = Supervisor(2)
    deaths = [death(10 * n, batch=(0, n // 3)) for n in range(8)]
    error, aside = judge(supervisor, deaths)
    assert error is None
    assert [found[:2] for found in aside] == [(0, 0), (0, 1)]
    assert aside[0].error == f"3 replicas died at it; the last one {KILLED}"
    error, _ = judge(supervisor, [death(100, batch=(0, 2))])
    assert "2 such batches have been set aside before" in str(error)
    assert "tolerate=3 or more" in str(error)


def test_a_second_failure_at_a_batch_is_enough_whatever_its_words() -> None:
    deaths = [death(10 * n, failure=failure(f"KeyError: {n}"), batch=(0, 3)) for n in range(2)]
    error, _ = judge(Supervisor(), deaths)
    assert isinstance(error, UserCodeError)
    assert "twice at batch 3 of epoch 0 with KeyError: 1: look at these" in str(error)
    assert str(error).endswith("File mine.py, line 3")
    error, aside = judge(Supervisor(1), deaths)
    assert error is None
    assert aside[0][:2] == (0, 3)


def test_the_same_failure_at_several_batches_is_tolerated_where_that_is_asked_for() -> None:
    deaths = [death(10 * n, failure=failure("KeyError: 'a'"), batch=(0, n // 2)) for n in range(4)]
    assert len(judge(Supervisor(2), deaths)[1]) == 2
    assert isinstance(judge(Supervisor(), deaths[:3:2])[0], UserCodeError)


def test_what_a_batch_is_no_cause_of_is_not_counted_for_it() -> None:
    planned = [death(10 * n, batch=(0, 3), cause="as planned") for n in range(3)]
    killed = [death(40 + 10 * n, batch=(0, 3))._replace(killed=True) for n in range(3)]
    diverged = Failure("lower lr", "", "diverged")
    supervisor = Supervisor()
    assert judge(supervisor, planned) == (None, [])
    supervisor.worked()
    assert judge(supervisor, killed) == (None, [])
    assert isinstance(judge(supervisor, [death(90, failure=diverged, batch=(0, 3))])[0], Diverged)


def test_what_is_refused_ends_the_run_at_once() -> None:
    refused = Failure("parameter w was untied", "", "refused")
    error, _ = judge(Supervisor(5), [death(0, failure=refused, batch=(0, 0))])
    assert isinstance(error, TaskError)
    assert str(error) == "parameter w was untied"


def test_replicas_that_die_after_a_push_at_most_end_the_run_though_others_work() -> None:
    supervisor = Supervisor()
    push = LastPush(PushRecord(1, Work(1, 0, 1, 10), Verdict.APPLIED, True), used=True, partial=False)
    for number in range(199):
        assert supervisor.died(death(10 * number, last=push)) is None
        supervisor.worked()
    assert "200 times in a row replicas died after one push or none" in str(supervisor.died(death(2000, last=push)))
    many = push._replace(record=push.record._replace(sequence=2))
    for number in range(300):
        assert supervisor.died(death(3000 + 10 * number, last=many)) is None
        supervisor.worked()


def test_who_was_told_to_leave_is_not_counted() -> None:
    supervisor, ledger = Supervisor(), Ledger(examples=10, batch_size=1)
    for number in range(300):
        left = death(10.0 * number)._replace(told=True, ending=Ending(-9, KILLED, batch=(0, 0)))
        assert left.left
        assert supervisor.judge(left, ledger) == ([], None)
    for number in range(4):
        assert supervisor.judge(death(1e4 + 10 * number), ledger) == ([], None)
    assert isinstance(supervisor.judge(death(2e4), ledger)[1], WorkerDied)


def test_who_fails_while_it_leaves_has_failed() -> None:
    supervisor, ledger = Supervisor(), Ledger(examples=10, batch_size=1)
    told = death(1.0, failure=failure("KeyError: 'a'"))._replace(told=True)
    assert (told.left, told.error) == (False, "KeyError: 'a'")
    assert supervisor.judge(told, ledger) == ([], None)
    assert isinstance(supervisor.judge(told._replace(at=9.0), ledger)[1], UserCodeError)


def test_what_a_death_is_known_to_be_of() -> None:
    assert death(1.0).error is None
    assert death(1.0, cause="out of reach").error == "out of reach"
    assert [death(1.0, last=last).torn for last in (None, *LASTS)] == [False, True, False]


LASTS = [LastPush(PushRecord(1, Work(1, 0, 1, 1), Verdict.APPLIED, whole), True, not whole) for whole in (False, True)]
