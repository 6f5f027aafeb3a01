"""One run at a time in a process, whose generators it has only one of."""

from pathlib import Path
from typing import Any

import pytest

import distbelief as db
from distbelief.errors import UsageError
from tests import problems


def train(directory: Path, **options: Any) -> db.Run:
    method, until = db.Downpour(replicas=1), db.Until(epochs=1)
    return db.train(
        problems.task(), method, engine=db.Simulated(), until=until, directory=directory, progress=False, **options
    )


def test_a_second_run_is_refused_while_one_is_at_work(tmp_path: Path) -> None:
    told: list[str] = []

    def begin_another(event: dict[str, Any], run: Any) -> None:
        if not told:
            with pytest.raises(UsageError, match="another run is at work in this process") as refused:
                train(tmp_path / "second")
            told.append(str(refused.value))

    train(tmp_path / "first", callbacks=[begin_another])
    assert told
    assert not (tmp_path / "second").exists()
    assert train(tmp_path / "second").summary["examples"] == 640
