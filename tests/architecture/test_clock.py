"""A clock that jumps is in nobody's way: the time of day names a fresh directory, and nothing else asks for it."""

import ast
from pathlib import Path

import pytest

from tests.architecture.source import SOURCE, modules, name

WALL = frozenset(
    """ctime date datetime gmtime localtime strftime time_ns today utcnow st_mtime st_ctime st_atime getmtime utime
    CLOCK_REALTIME asctime""".split()
)
"""Names, of functions and of attributes, by which the time of day is read."""
ALLOWED = {"run/directory.py": {"datetime", "strftime"}}
"""The name of a default directory."""


def wall_clock(text: str) -> set[str]:
    """What a module's text reads the time of day by."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            found |= {node.attr} & WALL
            if isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("time", "time"):
                found.add("time.time")
        elif isinstance(node, ast.Name):
            found |= {node.id} & WALL
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found |= (names & WALL) | ({"time.time"} if node.module == "time" and "time" in names else set())
    return found


@pytest.mark.parametrize("path", modules(), ids=name)
def test_nothing_reads_the_time_of_day(path: Path) -> None:
    assert wall_clock(path.read_text()) <= ALLOWED.get(str(path.relative_to(SOURCE)), set())


@pytest.mark.parametrize(
    "text",
    [
        "import time\ntime.time()",
        "from time import time",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime as d",
        "import time\ntime.time_ns()",
        "path.stat().st_mtime",
        "import time\ntime.clock_gettime(time.CLOCK_REALTIME)",
    ],
)
def test_each_way_is_seen(text: str) -> None:
    assert wall_clock(text)


@pytest.mark.parametrize("text", ["import time\ntime.monotonic()", "asyncio.get_running_loop().time()", "self.time"])
def test_what_does_not_jump_passes(text: str) -> None:
    assert not wall_clock(text)
