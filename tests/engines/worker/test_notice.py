"""SIGTERM as a notice, in processes of their own."""

import os
import signal
import subprocess
import sys

import pytest

from distbelief.engines.worker.notice import Notice

NOTICE = """
import os, signal
from distbelief.engines.worker.notice import Notice
notice, told = Notice(), []
notice.watch()
notice.pass_on(lambda: told.append(1))
assert not notice.given
{}
"""
ONCE = """
os.kill(os.getpid(), signal.SIGTERM)
assert notice.given and told == [1]
notice.pass_on(lambda: told.append(2))
assert told == [1, 2]
"""
FORKED = """
if (child := os.fork()) == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
assert not notice.given and told == []
"""


@pytest.mark.parametrize(
    ("does", "status"),
    [(ONCE, 0), (ONCE + "os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM), (FORKED, 0)],
    ids=["once", "twice", "in a child"],
)
def test_the_first_notice_is_heard_and_the_second_one_ends_the_process(does: str, status: int) -> None:
    assert Notice().given is False
    command = [sys.executable, "-c", NOTICE.format(does)]
    assert subprocess.run(command, env=os.environ, check=False).returncode == status
