"""The machine of one replica in virtual time, whichever incarnation is on it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, final

from distbelief.engines.simulated.laws import Draw


@final
class ReplicaMachine:
    """What the driver knows of it. `draw` gives the seconds that the next batch takes."""

    def __init__(self, replica: int, draw: Draw) -> None:
        self.replica = replica
        self.name = f"replica {replica}"
        self.draw = draw
        self.incarnation = 0
        self._expected = False
        self._task: asyncio.Task[None] | None = None
        self._abandoned: list[asyncio.Task[None]] = []

    @property
    def at_work(self) -> bool:
        """Whether a replica is on it that is not held to be dead."""
        return self._task is not None

    def expect(self, incarnation: int) -> None:
        """A replica will begin."""
        self.incarnation, self._expected = incarnation, True

    def is_expected(self, incarnation: int) -> bool:
        """Whether that replica will still begin."""
        return self._expected and self.incarnation == incarnation

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """It begins."""
        self._expected = False
        self._task = asyncio.create_task(work, name=f"{self.name}.{self.incarnation}")

    def stop(self) -> None:
        """What is on it ends at once, and what was expected does not begin."""
        self._expected = False
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        """All that is still at work on it ends, what is held to be dead included."""
        self.stop()
        for task in self._abandoned:
            task.cancel()

    def abandon(self) -> asyncio.Task[None]:
        """What is on it is held to be dead, and goes on until it can be reached."""
        assert self._task is not None
        task, self._task = self._task, None
        self._abandoned.append(task)
        return task

    def finished(self, incarnation: int) -> bool:
        """What was on it has come to its end; False if it was of another incarnation, or is held to be dead."""
        if self.incarnation != incarnation or self._task is None:
            return False
        self._task = None
        return True
