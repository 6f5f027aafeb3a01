"""Random clusters, a few of them in every run of the tests. `make stress` runs as many as one likes."""

import re
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stress import clusters

T = TypeVar("T")


class Drawn:
    """Choices of Hypothesis, which looks for the smallest cluster that fails."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def whole(self, least: int, most: int) -> int:
        return self._data.draw(st.integers(least, most))

    def real(self, least: float, most: float) -> float:
        return round(self._data.draw(st.floats(least, most)), 3)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.whole(0, len(choices) - 1)]


# The same ones each time: what is new is looked for by `make stress`, and a test that fails fails always.
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_happens_the_rules_hold(data: st.DataObject) -> None:
    clusters.run(clusters.cluster(Drawn(data)))


def test_a_seed_that_passes_passes_twice_with_one_trace() -> None:
    assert clusters.attempt(0) is None, "a seed that ends in 0 is run twice, and its traces are compared"


def test_what_fails_is_told_with_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clusters, "run", lambda what: 1 / 0)
    seeds = range(3, 5)
    assert clusters.tell(seeds, map(clusters.attempt, seeds)) == 2
    told = capsys.readouterr().out
    assert "ZeroDivisionError" in told
    assert "replay with: python -m tests.stress.clusters --seed 3 --trace" in told
    assert "2 clusters, 2 failed" in told


def test_a_replay_shows_the_cluster_and_all_that_happens() -> None:
    command = [sys.executable, "-m", "tests.stress.clusters", "--seed", "3", "--trace"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "method: Downpour(" in told
    assert "engine: Simulated(" in told
    assert re.search(r"^push \d+ \d+", told, re.MULTILINE)
    assert told.endswith("passed\n")
