"""The process of a replica in virtual time: one incarnation, on the machine that all of them share."""

import asyncio
from collections.abc import Coroutine
from typing import Any, final


@final
class SimulatedProcess:
    """Expected, then at work, then over: ended, or held to be dead, which it goes on after until it can be reached."""

    def __init__(self, replica: int, incarnation: int) -> None:
        self.replica = replica
        self.who = replica, incarnation
        self.machine = f"replica {replica}"
        self.over = False
        self.leaving = False
        """Whether it has heard that it is to leave."""
        self._task: asyncio.Task[None] | None = None

    @property
    def at_work(self) -> bool:
        """Whether it has begun, and is not over."""
        return self._task is not None and not self.over

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """It begins."""
        self._task = asyncio.create_task(work, name="replica {}.{}".format(*self.who))

    def leave(self) -> None:
        """It hears that it is to leave."""
        self.leaving = True

    def end(self) -> None:
        """It ends at once, held to be dead or not; one that is only expected does not begin."""
        self.over = True
        if self._task is not None:
            self._task.cancel()
