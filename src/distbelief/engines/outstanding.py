"""The controller's commands under way: what each answer means, and what waits until snapshots have been taken."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import final

from distbelief.engines.actions import Execute, TakeSnapshots
from distbelief.ports import Answer, Command

Then = Callable[[float, Sequence[Answer]], None]
"""What to do with the answers, one a shard, at a time."""


@final
class Outstanding:
    """Numbers commands, and takes each number's answers once."""

    def __init__(self) -> None:
        self.capturing = False
        """Whether snapshots are being taken."""
        self._number = 0
        self._then: dict[int, Then] = {}
        self._deferred: deque[Callable[[], None]] = deque()

    def execute(self, command: Command, then: Then) -> Execute:
        """A command for every shard."""
        return Execute(self._expect(then), command)

    def snapshots(self, then: Then) -> TakeSnapshots:
        """Snapshots of every shard; until they are there, what `when_still` is given waits."""
        self.capturing = True
        return TakeSnapshots(self._expect(partial(self._captured, then)))

    def executed(self, now: float, number: int, answers: Sequence[Answer]) -> None:
        """The answers to a command; nothing happens where they come again."""
        if (then := self._then.pop(number, None)) is not None:
            then(now, answers)

    def when_still(self, change: Callable[..., None], *arguments: object) -> None:
        """Make a change now, or as soon as no snapshots are being taken."""
        if self.capturing:
            self._deferred.append(partial(change, *arguments))
        else:
            change(*arguments)

    def _expect(self, then: Then) -> int:
        self._number += 1
        self._then[self._number] = then
        return self._number

    def _captured(self, then: Then, now: float, answers: Sequence[Answer]) -> None:
        then(now, answers)
        self.capturing = False
        while self._deferred and not self.capturing:
            self._deferred.popleft()()
