"""When evaluations and checkpoints are due."""

from itertools import pairwise

import pytest

from distbelief.engines.due import CheckpointsDue, Due, EvaluationsDue
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
    due = Due(None, Every(examples=16), evaluates=True)
    assert due.look(0, 0, 0.0) == (False, False)
    assert due.look(1, 16, 0.0) == (True, True)
    assert due.look(3, 64, 0.0) == (False, False)
    due.evaluating = False
    assert due.look(3, 64, 0.0) == (True, False), "what was missed is made up for once"
    due.writing = False
    assert due.look(3, 64, 0.0) == (False, True)


def test_without_anything_to_evaluate_no_evaluation_is_due() -> None:
    due = Due(None, Every(examples=16), evaluates=False)
    assert [due.look(epochs, 0, 0.0)[0] for epochs in range(4)] == [False] * 4
