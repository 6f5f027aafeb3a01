"""Callbacks: the user's own functions, told of everything that happens in a run.

They run where `train` was called, one after the other, between two messages of the controller. Replicas go on
meanwhile with the portions they hold; a callback that takes longer than that makes them wait.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from torch import nn

from distbelief.errors import UsageError, UserCodeError
from distbelief.run.result import STAMP
from distbelief.task.tracebacks import described, user_frames

Event = dict[str, Any]
"""A line of the log of events: "event", "seconds", and what belongs to the event."""


@final
class LiveRun:
    """A run at work, as callbacks see it.

    `directory`: a `Path`, or the text of a URL. `history`: one dict an evaluation so far. `model` copies what the
    server holds at this moment.
    """

    def __init__(self, directory: Path | Any, history: list[Event], model: Callable[[], nn.Module]) -> None:
        self.directory = directory
        self.history = history
        self.stopped_by: str | None = None
        """Why the run is to end, once a callback has asked for it."""
        self._model = model

    @property
    def metrics(self) -> dict[str, Any]:
        """The last evaluation's, None for what was not a finite number; none before the first."""
        last = self.history[-1] if self.history else {}
        return {name: value for name, value in last.items() if name not in STAMP}

    def model(self) -> nn.Module:
        """A fresh module, on the CPU, in eval mode, holding the server's parameters; the caller owns it."""
        return self._model()

    def stop(self, why: str = "a callback") -> None:
        """End the run as a limit would: replicas finish their batch, the result is evaluated and written."""
        if not isinstance(why, str) or not why:
            raise UsageError(f"stop needs a reason, as text, not {why!r}")
        self.stopped_by = self.stopped_by or why


Callback = Callable[[Event, LiveRun], object]


@final
class Callbacks:
    """Events wait here until the controller has a moment, so that no callback sees it in the midst of something."""

    def __init__(self, functions: Sequence[Callback], run: LiveRun) -> None:
        self.run = run
        self._functions = functions
        self._waiting: list[Event] = []

    def add(self, event: Event) -> None:
        """Something happened."""
        if self._functions:
            self._waiting.append(event)

    def call(self) -> None:
        """Tell what has happened since the last call.

        Raises `UserCodeError` for what a callback raises; none is called after that.
        """
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            for function in self._functions:
                try:
                    function(event, self.run)
                # Whatever the user's function raises. What is not an error, such as `sys.exit`, stays what it is.
                except BaseException as error:
                    self._functions = ()
                    if not isinstance(error, Exception):
                        raise
                    what = f"a callback failed with {described(error)} at the event {event['event']!r}"
                    raise UserCodeError(f"{what}\n\n{user_frames(error)}".rstrip()) from error
