"""Limits that nobody checks decay."""

from collections import Counter
from pathlib import Path

import pytest

from tests.architecture import shape
from tests.architecture.source import ROOT, SOURCE, modules, name, pure_modules

CODE_BUDGET = {
    ".": 550,
    # Among them the flags of a cluster, and its status.
    "cli": 774,
    "downpour": 756,
    # Among them what the drivers in real time have in common, calls to other machines, and the shards that are there.
    "engines": 1872,
    "engines/local": 210,
    # Placement, machines with their shards, seats of replicas, the driver, and the board that shows a run.
    "engines/ray": 1050,
    "engines/simulated": 1366,
    "engines/worker": 480,
    # The wire is about 1,050: half of it are the messages, each with its checks, and the codecs.
    "links": 1252,
    "observe": 333,
    "observe/report": 852,
    # Among them a directory by URL: what is sent when, and what holds it meanwhile.
    "run": 2247,
    # Among them what a host does for a server that waits, looks and forgets.
    "server": 1236,
    "task": 1175,
    "tasks": 540,
}
"""Lines of code by folder. A newcomer reads all of it in a day or two. A new capability brings its own lines with its
reason; any other change that exceeds a folder's budget looks first for what could go."""

TESTED_ELSEWHERE: dict[str, str] = {
    "__init__.py": "every test that writes db.…",
    "run/evaluating.py": "tests/test_training.py: histories and metrics of whole runs",
    "engines/carrier.py": "the tests of each engine: it only lives in their drivers",
    "engines/local/__init__.py": "tests/engines/local/test_devices.py: a value and its sentences",
    "engines/local/local_driver.py": "tests/engines/local/test_deaths.py and test_bad_days.py: it only lives in runs",
    "engines/live_driver.py": "the tests of the engines in real time, as with the carrier",
    "engines/ray/__init__.py": "tests/engines/ray/test_bad_clusters.py: a value and its sentences",
    "engines/ray/cluster.py": "tests/engines/ray/test_bad_clusters.py, and test_clusters.py: what is said of clusters",
    "engines/ray/machine.py": "tests/engines/ray/test_clusters.py: it is an actor",
    "engines/ray/machines.py": "the same, and test_losses.py: it only lives in runs",
    "engines/ray/ray_driver.py": "the same",
    "engines/ray/ray_session.py": "the same: each run has one",
    "engines/ray/replica_actor.py": "the same: it is an actor",
    "engines/worker/boot.py": "tests/engines/local/test_bad_days.py and test_descendants.py: a process before torch",
    "links/keys.py": "tests/links/test_wire_server.py: who is let in",
    "links/loop_socket.py": "tests/links/test_wire.py and test_wire_server.py: it only lives in connections",
    "links/forks.py": "tests/engines/worker/test_descendants.py: what children may keep",
    "server/shard_numbers.py": "tests/server/test_shard.py: what a shard says of itself",
    "run/lock.py": "tests/run/test_directory.py and test_mirror.py: a directory's lock, here and at a URL",
    "engines/worker/job.py": "the same: what a worker is told",
    "engines/local/session.py": "tests/test_training.py and tests/cli/test_commands.py: each run has one",
    "engines/worker/worker.py": "tests/engines/local/test_deaths.py and test_process.py: it is a process",
    "engines/run_record.py": "tests/test_training.py and tests/test_resume.py: what is kept of whole runs",
    "engines/shard_set.py": "tests/test_training.py and tests/run/test_checkpoint.py: all shards of whole runs",
    "engines/mapped_shards.py": "tests/links/test_mapped.py: its parts; it only puts them together",
    "engines/signals.py": "tests/cli/test_commands.py and tests/test_resume.py: signals to whole runs",
    "engines/simulated/__init__.py": "test_simulation.py beside it: a value and its sentences",
    "engines/simulated/compute.py": "test_simulation.py: it only computes in runs",
    "engines/simulated/simulated_driver.py": "test_simulation.py: it only lives in runs",
    "engines/simulated/request_server.py": "tests/conformance/test_work_source.py, and test_simulation.py beside it",
    "engines/simulated/world.py": "test_simulation.py: what outlives the controller of a run",
    "server/block.py": "tests/server/test_shard.py: its numbers mean something to a shard only",
    "server/register.py": "the same, and test_shard_deaths.py",
    "engines/ray/metrics.py": "tests/engines/ray/test_board.py: the board sets them",
    "observe/events.py": "tests/observe/test_progress.py: values",
}
"""Modules without a test file of their own name: their path in the package, and which tests cover them and why."""


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_function_fits_a_screen(path: Path) -> None:
    assert shape.long_functions(path.read_text()) == []


@pytest.mark.parametrize("path", pure_modules(), ids=name)
def test_a_pure_module_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= shape.LONGEST_PURE_MODULE


@pytest.mark.parametrize("path", modules(), ids=name)
def test_reading_never_runs_what_is_read(path: Path) -> None:
    """Tasks travel as code, from the controller to its own workers. Whatever a run writes is data."""
    folders = path.relative_to(SOURCE).parts
    found = shape.unsafe_reads(
        path.read_text(),
        pickle_allowed=folders == ("engines", "shipping.py"),
        cloudpickle_allowed=folders[0] == "engines",
    )
    assert found == []


def test_nothing_is_called_utils() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    folders = (SOURCE, ROOT / "tests", ROOT / "benchmarks", ROOT / "examples")
    assert [
        name(path) for folder in folders for path in modules(folder) if drawers & {path.stem, path.parent.name}
    ] == []


def test_no_two_modules_share_a_name() -> None:
    stems = [path.stem for path in modules() if not path.stem.startswith("__")]
    assert [stem for stem, count in Counter(stems).items() if count > 1] == []


def test_no_notes_to_self() -> None:
    notes = ("TODO", "FIXME", "XXX")
    assert [name(path) for path in modules() if any(note in path.read_text() for note in notes)] == []


def test_every_module_has_its_tests() -> None:
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    need = {path for path in modules() if shape.does_something(path.read_text()) and path.stem.strip("_") not in tested}
    assert {path.relative_to(SOURCE).as_posix() for path in need} == TESTED_ELSEWHERE.keys()


def test_each_folder_stays_small() -> None:
    found = dict.fromkeys(CODE_BUDGET, 0)
    for path in modules():
        found[path.relative_to(SOURCE).parent.as_posix()] += shape.code_lines(path.read_text())
    assert {folder: lines for folder, lines in found.items() if lines > CODE_BUDGET[folder]} == {}


def test_a_long_function_is_seen() -> None:
    limit = "def f():\n" + "    x = 1\n" * (shape.LONGEST_FUNCTION - 1)
    assert shape.long_functions(limit) == []
    assert shape.long_functions(limit + "    x = 2\n") == ["1: f has 61 lines, more than 60"]
    assert shape.long_functions("async " + limit + "    x = 2\n")


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle",
        "import joblib",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_an_unsafe_read_is_seen(text: str) -> None:
    assert shape.unsafe_reads(text, pickle_allowed=False, cloudpickle_allowed=False)


def test_a_safe_read_passes() -> None:
    text = "import cloudpickle\ntorch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)"
    assert shape.unsafe_reads(text, pickle_allowed=False, cloudpickle_allowed=True) == []


def test_only_code_is_counted() -> None:
    assert shape.code_lines('"""Why."""\n\n# Because.\nx = (\n    1,  # one\n)\n') == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", False),
        ('class P(Protocol):\n    def f(self) -> int:\n        """Said, not done."""', False),
        ("class P(Protocol):\n    def f(self) -> int: ...", False),
        ("def f():\n    return 1", True),
        ("class A:\n    async def f(self):\n        return 1", True),
    ],
)
def test_what_needs_a_test(text: str, expected: bool) -> None:
    assert shape.does_something(text) is expected
