"""A few of the kills of `make kills`."""

from pathlib import Path

from tests.stress.kills import Kills


def test_a_few_kills(tmp_path: Path) -> None:
    kills = Kills(6, seed=1, epochs=20, folder=tmp_path)
    kills.run()
    assert kills.killed.total() == 6
    assert kills.runs >= 1
