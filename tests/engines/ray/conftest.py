from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.ray.clusters import ENVIRONMENT, Machines


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        machines = Machines()
        try:
            yield machines
        finally:
            machines.close()


@pytest.fixture
def cluster(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """The cluster, of which nothing may be in use after the test."""
    monkeypatch.chdir(tmp_path)
    yield machines
    machines.check_nothing_is_left()
