"""A run that is killed at some operation on its files, here at some of them; `make kills` does it at each."""

from tests.lives import complete


def test_what_was_written_survives_a_kill_at_any_operation() -> None:
    done = complete(["-m", "tests.stress.operations", "21"], timeout_s=300.0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"wrong": []') == 3
