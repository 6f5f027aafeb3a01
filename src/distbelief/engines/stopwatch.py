"""The time of a run's life, from its first lease on; pauses between a run and its resumption do not count."""

import math
from typing import final


@final
class Stopwatch:
    """In seconds; `before`: of the run that this one goes on from. `limit`: after which the run is to end."""

    def __init__(self, before: float = 0.0, limit: float | None = None) -> None:
        self.began: float | None = None
        """When the first lease was granted; None before."""
        self.before = before
        self._limit = limit
        self._ended = 0.0

    def begin(self, now: float) -> None:
        """A lease is granted."""
        self.began = now if self.began is None else self.began

    def work(self, now: float) -> None:
        """Work has been accounted for."""
        self._ended = now

    def seconds(self, now: float) -> float:
        """Since the first lease."""
        return self.before + (0.0 if self.began is None else now - self.began)

    @property
    def ends_at(self) -> float:
        """When the limit is reached. Infinite without a limit, and before the first lease."""
        return math.inf if self._limit is None or self.began is None else self.began + self._limit - self.before

    @property
    def worked(self) -> float:
        """From the first lease to the last account of work."""
        return self.before + (0.0 if self.began is None else max(self._ended, self.began) - self.began)
