"""When evaluations and checkpoints are due."""

from itertools import pairwise

import pytest

from distbelief.downpour.ledger import Ledger
from distbelief.engines.due import CheckpointsDue, Due, EvaluationsDue
from distbelief.engines.stopwatch import Stopwatch
from distbelief.run.until import Every


@pytest.mark.parametrize("every", [Every(seconds=60), Every(examples=60)], ids=["seconds", "examples"])
@pytest.mark.parametrize("reached", [0, 1000], ids=["new", "resumed"])
def test_the_first_checkpoints_come_soon_and_then_as_often_as_asked_for(every: Every, reached: int) -> None:
    due, begun = CheckpointsDue(every), []
    for now in range(reached, reached + 400):
        if due.take(now if every.examples else 0, now if every.seconds else 0):
            begun.append(now - reached)
    assert [after - before for before, after in pairwise([0, *begun])] == [4, 4, 8, 16, 32, 60, 60, 60, 60, 60]


def test_a_checkpoint_that_is_begun_late_is_not_made_up_for() -> None:
    due = CheckpointsDue(Every(seconds=16))
    assert not due.take(0, 0)
    assert not due.take(0, 100, free=False)
    assert due.take(0, 101), "until it is begun"
    assert not due.take(0, 116)
    assert due.take(0, 117)


def test_an_evaluation_is_due_at_the_end_of_each_epoch() -> None:
    due = EvaluationsDue(None)
    assert [epoch for epoch in (0, 0, 1, 1, 2, 5, 5) if due.take(epoch, 0, 0.0)] == [1, 2, 5]


@pytest.mark.parametrize("unit", ["examples", "seconds"])
def test_an_evaluation_is_due_as_often_as_was_asked_for(unit: str) -> None:
    due = EvaluationsDue(Every(examples=10) if unit == "examples" else Every(seconds=10))
    examples = unit == "examples"
    found = [now for now in range(0, 60, 4) if due.take(0, now * examples, now * (not examples))]
    assert found == [12, 20, 32, 40, 52]


def test_a_run_that_goes_on_does_not_begin_with_an_evaluation() -> None:
    due = EvaluationsDue(Every(examples=10))
    assert [at for at in range(35, 60, 4) if due.take(0, at, 0.0)] == [43, 51]


def test_what_is_under_way_is_not_begun_again_until_it_has_ended() -> None:
    ledger = Ledger(examples=16, batch_size=16)
    due = Due(ledger, Stopwatch(0.0), EvaluationsDue(None), CheckpointsDue(Every(examples=16)))
    assert due.look(0.0, 0) == (False, False)
    ledger.epochs_ended = 1
    assert due.look(0.0, 16) == (True, True)
    ledger.epochs_ended = 3
    assert due.look(0.0, 64) == (False, False)
    due.evaluating = False
    assert due.look(0.0, 64) == (True, False), "what was missed is made up for once"
    assert due.left_out(0.0) == 1
    due.writing = False
    assert due.look(0.0, 64) == (False, True)


def test_without_anything_to_evaluate_no_evaluation_is_due() -> None:
    ledger = Ledger(examples=16, batch_size=16)
    due = Due(ledger, Stopwatch(0.0), None, CheckpointsDue(Every(examples=16)))
    for epochs in range(4):
        ledger.epochs_ended = epochs
        assert not due.look(0.0, 0)[0]
    assert due.left_out(0.0) == 0
    assert not due.holds()


def test_what_replicas_have_not_told_before_they_died_is_in_the_accounts() -> None:
    ledger = Ledger(examples=16, batch_size=16)
    due = Due(ledger, Stopwatch(0.0), EvaluationsDue(Every(examples=16)), CheckpointsDue(Every(examples=16)))
    assert not due.look(0.0, 0)[0]
    ledger.total.used = 16
    assert due.look(0.0, 0) == (True, True)


def test_what_is_left_out_is_counted() -> None:
    due = EvaluationsDue(None)
    taken = [epoch for epoch in range(9) if due.take(epoch, 0, 0.0, free=epoch not in (2, 3, 4))]
    assert taken == [1, 5, 6, 7, 8]
    assert due.left_out(8, 0, 0.0) == 3
    assert due.left_out(9, 0, 0.0) == 3, "the last one is made at the end of the run"
    assert due.left_out(11, 0, 0.0) == 5


@pytest.mark.parametrize("each", [False, True])
def test_work_waits_for_each_evaluation_where_that_is_asked_for(each: bool) -> None:
    due = EvaluationsDue(None, each=each)
    assert not due.holds(1), "nothing has begun"
    assert not due.take(0, 0, 0.0)
    assert [due.holds(epoch) for epoch in (0, 1, 2)] == [False, each, each]
    assert not due.take(1, 0, 0.0, free=False)
    assert due.holds(1) == each
    assert due.take(1, 0, 0.0)
    assert not due.holds(1)
