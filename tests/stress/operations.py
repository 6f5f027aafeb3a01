"""SIGKILL at each operation on the files of a run: at its beginning, when it is resumed, and when it sets one aside.

    python -m tests.stress.operations [every]

Each life is a process that is forked from this one, kills itself before its k-th operation, or in the midst of a write,
and is resumed. Whatever it was: the newest whole checkpoint is as new as before, nothing half is read or left, nothing
that an earlier run wrote is lost, and the resumed run comes to its end.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import distbelief as db
from distbelief.run.checkpoint import newest
from tests import problems
from tests.lives import halves, summary

EXAMPLES, EPOCHS = 80, 2
_AUDITED = frozenset("open os.rename os.mkdir os.remove os.rmdir os.truncate os.link os.symlink".split())
_ANEW, _AGAIN, _ASIDE = SCENARIOS = ("anew", "again", "aside")


def train(directory: Path, *, resume: bool) -> None:
    """A run of a moment, with a checkpoint each half epoch, and an evaluation each."""
    x, y = problems.points(EXAMPLES)
    db.train(
        problems.task(train=(x, y), validation=(x, y)),
        db.Downpour(replicas=1, batch_size=20),
        engine=db.Simulated(),
        until=db.Until(epochs=EPOCHS),
        checkpoint_every=db.Every(examples=EXAMPLES // 2),
        directory=directory,
        resume=resume,
        progress=False,
    )


def live(directory: Path, go: Callable[[], None], kill_at: int = 0) -> tuple[int, int]:
    """A life that kills itself at an operation; its exit status, and how many operations it had come to."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        try:
            _count(directory, kill_at, writing)
            go()
            os._exit(0)
        # Whatever it is, this process is not to go on as its parent does.
        except BaseException as error:  # noqa: BLE001
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    os.close(writing)
    operations = 0
    while chunk := os.read(reading, 65536):
        operations += len(chunk)
    os.close(reading)
    return os.waitpid(pid, 0)[1], operations


def _count(directory: Path, kill_at: int, told: int) -> None:
    """Have each operation below a directory, and each write and sync, tell a byte, and the `kill_at`-th kill."""
    counted = 0
    write = os.write

    def operation() -> bool:
        nonlocal counted
        counted += 1
        write(told, b".")
        return counted == kill_at

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        paths = (os.fspath(a) for a in arguments if isinstance(a, str | os.PathLike))
        if event in _AUDITED and any(str(directory) in path for path in paths) and operation():
            os.kill(os.getpid(), signal.SIGKILL)

    def half_written(fd: int, data: Any) -> int:
        if operation():
            write(fd, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(fd, data)

    def unsynced(fd: int, sync: Callable[[int], None] = os.fsync) -> None:
        if operation():
            os.kill(os.getpid(), signal.SIGKILL)
        sync(fd)

    os.write, os.fsync = half_written, unsynced  # type: ignore[assignment]
    sys.addaudithook(hook)


def settle(directory: Path, scenario: str, before: Path) -> None:
    """What is there before a life: nothing, a run that has ended, or one whose checkpoints are gone."""
    shutil.rmtree(directory, ignore_errors=True)
    if scenario == _ANEW:
        return
    if not before.exists():
        assert live(before, lambda: train(before, resume=False))[0] == 0
    shutil.copytree(before, directory)
    if scenario == _ASIDE:
        shutil.rmtree(directory / "checkpoints")
    else:
        # As after a run of less than a minute: one is left, and the last of the next life has its name.
        for old in sorted((directory / "checkpoints").glob("0*"))[:-1]:
            shutil.rmtree(old)


def kills(directory: Path, scenario: str, every: int = 1, first: int = 1) -> Iterator[str]:
    """Kill at each `every`-th operation; a sentence on each kill after which something is not right."""
    run, before = directory / "run", directory / "before"

    def go() -> None:
        train(run, resume=scenario != _ANEW)

    settle(run, scenario, before)
    status, operations = live(run, go)
    assert (status, operations > 20) == (0, True)
    reached = -1
    for kill_at in range(first, operations + 1, every):
        settle(run, scenario, before)
        written = _bytes(run) if scenario == _ASIDE else set()
        had = newest(run / "checkpoints")[0]
        reached = max(reached, -1 if had is None else had.examples)
        if live(run, go, kill_at)[0] == 0:
            # A thread of it was quicker than that of the first life.
            continue
        found, complaints = newest(run / "checkpoints")
        here = -1 if found is None else found.examples
        if here < reached or complaints:
            yield f"{scenario} at {kill_at}: {here} examples after {reached}, {complaints}"
        reached = max(reached, here) if scenario == _ANEW else reached
        status, _ = live(run, lambda: train(run, resume=True))
        if status or sum(summary(run)["account"].values()) != EPOCHS * EXAMPLES:
            yield f"{scenario} at {kill_at}: the run cannot be resumed to its end"
        elif halves(run):
            yield f"{scenario} at {kill_at}: {halves(run)} are left"
        elif lost := written - _bytes(run):
            yield f"{scenario} at {kill_at}: {len(lost)} files of the run before are lost"


def _bytes(run: Path) -> set[bytes]:
    """What a run has written for good, wherever it lies by now."""
    names = ("summary.json", "model.safetensors", "task.json", "method.json")
    return {file.read_bytes() for name in names for file in run.rglob(name)}


def main() -> int:
    """Kill everywhere, and say what is wrong."""
    torch.set_num_threads(1)
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for scenario in SCENARIOS:
            found = list(kills(Path(folder), scenario, every, first=every))
            print(json.dumps({"scenario": scenario, "wrong": found}), flush=True)
            wrong += found
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
