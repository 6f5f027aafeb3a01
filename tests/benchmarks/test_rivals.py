import json
import subprocess
import sys
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import TextIO

import pytest

from benchmarks.rivals import Assignment, Goal, Outcome, RivalFailed, outcome_of, pursue
from benchmarks.slowing import Law


@pytest.mark.parametrize(("law", "goal"), [(None, None), (Law(plain_s=0.1, slow=5), Goal(accuracy=0.65, every=512))])
def test_an_assignment_travels_as_json(law: Law | None, goal: Goal | None) -> None:
    given = Assignment(network="digits", framework="ddp", seconds=1, ranks=2, law=law, goal=goal)
    assert Assignment.from_json(json.dumps(asdict(given))) == given


def test_the_way_to_a_goal_ends_with_the_first_evaluation_that_reaches_it() -> None:
    accuracies = iter([0.2, 0.6, 0.7, 0.9])
    outcome = pursue(
        repeat(None),
        lambda: {"accuracy": next(accuracies)},
        lambda number: number,
        Goal(accuracy=0.65, every=1000),
        examples_a_step=256,
        limit_s=1000,
    )
    assert [(row["examples"], row["accuracy"]) for row in outcome.history] == [(768, 0.2), (1536, 0.6), (2304, 0.7)]


def test_the_way_to_a_goal_ends_at_the_limit() -> None:
    goal = Goal(accuracy=0.65, every=256)
    arguments = {"examples_a_step": 256, "limit_s": 0}
    outcome = pursue(repeat(None), lambda: {"accuracy": 0.1}, lambda number: number, goal, **arguments)
    assert len(outcome.history) == 1


def test_ranks_that_do_not_evaluate_go_by_the_first_ones_word() -> None:
    words = iter([1, 1, 0])
    goal = Goal(accuracy=0.65, every=256)
    outcome = pursue(repeat(None), dict, lambda number: next(words), goal, examples_a_step=256, limit_s=1000)
    assert len(outcome.history) == 3


def finish(code: str, errors: TextIO, timeout_s: float = 60) -> Outcome:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            return outcome_of(process, errors, timeout_s)
        finally:
            process.kill()


def test_the_last_line_that_a_rank_prints_is_its_outcome(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("w+") as errors:
        assert finish("print('hello'); print('{\"steps_per_second\": 2.5}')", errors) == Outcome(2.5)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("raise ValueError('no such network')", "ValueError: no such network"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(1000)", "no answer within 0 s"),
    ],
)
def test_a_rank_that_fails_says_why(tmp_path: Path, code: str, complaint: str) -> None:
    with (tmp_path / "errors").open("w+") as errors, pytest.raises(RivalFailed, match=complaint):
        finish(code, errors, timeout_s=0.01 if "sleep" in code else 60)
