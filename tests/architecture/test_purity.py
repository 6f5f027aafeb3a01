"""The algorithms decide; they know no cluster, clock, process, file or chance."""

from pathlib import Path

import pytest

from tests.architecture.purity import violations
from tests.architecture.source import SOURCE, name, pure_modules


@pytest.mark.parametrize("path", pure_modules(), ids=name)
def test_a_pure_module_only_decides(path: Path) -> None:
    assert violations(path.read_text()) == []


def test_there_is_a_pure_part_to_check() -> None:
    found = {path.relative_to(SOURCE).as_posix() for path in pure_modules()}
    assert {"ports.py", "allocation.py", "server/shard.py", "downpour/ledger.py", "engines/controller.py"} <= found
    assert "engines/run_record.py" not in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import time", "imports time"),
        ("import os.path as p", "imports os.path"),
        ("from concurrent import futures", "imports concurrent.futures"),
        ("from numpy import random", "imports numpy.random"),
        ("import torch.multiprocessing", "imports torch.multiprocessing"),
        ("import logging", "imports logging"),
        ("import threading", "imports threading"),
        ("import numpy as np\nnp.random.rand(3)", "reaches numpy.random"),
        ("import torch\ntorch.distributed.barrier()", "reaches torch.distributed"),
        ("import torch\ntorch.default_generator.seed()", "reaches torch.default_generator"),
        ("import torch\ntorch.manual_seed(0)", "calls torch.manual_seed"),
        ("import torch\ntorch.rand(3)", "torch.rand draws without a generator"),
        ("from torch import randperm as r\nr(3)", "torch.randperm draws without a generator"),
        ("def f(w):\n    w.normal_()", ".normal_ draws without a generator"),
        ("import asyncio\nasyncio.to_thread(f)", "calls asyncio.to_thread"),
        ("loop.run_in_executor(None, f)", "starts a thread"),
        ("print(1)", "print() prints"),
        ("open('f')", "open() opens a file"),
        ("input()", "input() reads the terminal"),
        ("hash('shard')", "hash() differs from process to process"),
        ("def f():\n    global n", "changes a global"),
        ("try:\n    f()\nexcept Exception:\n    pass", "catches everything"),
        ("try:\n    f()\nexcept (OSError, BaseException):\n    pass", "catches everything"),
        ("try:\n    f()\nexcept:\n    pass", "catches everything"),
    ],
)
def test_each_breach_is_seen(text: str, reason: str) -> None:
    assert reason in [violation.partition(": ")[2] for violation in violations(text)]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.rand(3, generator=g)",
        "import torch\ntorch.Generator().manual_seed(0)",
        "def f(w, g):\n    w.normal_(generator=g)",
        "from torch.nn import init\ninit.normal_(w)",
        "import asyncio\nasyncio.get_running_loop().time()",
        "from distbelief.server import random",
        "shard.open()",
        "try:\n    f()\nexcept ValueError:\n    pass",
    ],
)
def test_what_is_pure_passes(text: str) -> None:
    assert violations(text) == []
