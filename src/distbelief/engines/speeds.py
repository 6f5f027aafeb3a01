"""How fast replicas are just now, from what they have written on the table."""

import math
from collections import deque
from typing import final

from distbelief.allocation import Progress

_WINDOW_S = 2.0
_LOOKS = 10
"""Where looks are rare, as in virtual time, speeds are over so many of them."""


@final
class Speeds:
    """Sums over the last two seconds of each replica's row; over the last ten looks, where these are longer ago."""

    def __init__(self, replicas: int) -> None:
        self._past: list[deque[tuple[float, Progress]]] = [deque() for _ in range(replicas)]
        self._known: dict[str, float] = {}

    def restart(self, replica: int) -> None:
        """Forget a replica whose process has ended."""
        self._past[replica].clear()

    def update(self, now: float, replica: int, row: Progress) -> None:
        """Take note of a row read at `now`, in seconds."""
        past = self._past[replica]
        if not past:
            # So that means are of all that it has done, until there are looks enough.
            past.append((-math.inf, Progress()))
        if past[-1][0] == now:
            past.pop()
        past.append((now, row))
        while len(past) > _LOOKS and now - past[0][0] > _WINDOW_S:
            past.popleft()

    def examples_per_second(self, replica: int) -> float:
        """A replica's speed, once it has worked on more than its first batches: what was before them is not counted."""
        past = [look for look in self._past[replica] if look[1] != Progress()]
        if len(past) < 2:
            return 0.0
        (then, first), (now, last) = past[0], past[-1]
        return (last.examples - first.examples) / (now - then)

    def loss(self) -> float | None:
        """The mean loss of all replicas' batches; the last known one if there were none, None if there never was."""
        return self._mean("loss", "losses")

    def gradient_norm(self) -> float | None:
        """The mean 2-norm of all replicas' pushes, of those that were looked at; the last known one, or None."""
        return self._mean("norm", "norms")

    def _mean(self, total: str, count: str) -> float | None:
        ends = [(past[0][1], past[-1][1]) for past in self._past if past]
        grown, counted = (sum(getattr(b, field) - getattr(a, field) for a, b in ends) for field in (total, count))
        if counted:
            self._known[total] = grown / counted
        return self._known.get(total)
