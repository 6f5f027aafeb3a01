"""The place of one replica, whichever of its incarnations is there."""

import math
from typing import final

from distbelief.engines.supervision import Failure

_SILENCE_S = 30.0
"""For how long a replica may say nothing before it is asked whether it is stopped."""
_BATCHES = 10
"""The same in batches of its longest so far: what is only slow is not suspect."""


@final
class ReplicaSlot:
    """What the controller knows of one replica."""

    def __init__(self, replica: int, incarnation: int = 0) -> None:
        self.replica = replica
        self.incarnation = incarnation
        self.starts = 0
        """How often it was started in this life of the controller."""
        self.state = "starting"
        """starting, ready, working, done or dead."""
        self.alive = False
        self.killed = False
        """Whether its end has been ordered."""
        self.fencing = False
        """Whether it is dead, and the shards do not all know that yet."""
        self.failure: Failure | None = None
        self.kill_at = math.inf
        """When to end it, if it has not ended by then."""
        self._heard_at = 0.0
        self._steps = 0
        self._longest_s = 0.0

    def begin(self, now: float) -> None:
        """The next incarnation begins."""
        self.incarnation += 1
        self.starts += 1
        self.state, self.alive, self.killed, self.failure = "starting", True, False, None
        self.kill_at = math.inf
        self._heard_at, self._steps = now, 0

    def never_came(self) -> None:
        """What was to be started has no machine."""
        self.state, self.alive = "dead", False
        self.starts -= 1

    def leave_by(self, when: float) -> None:
        """It is to have ended by then."""
        self.kill_at = min(self.kill_at, when)

    def heard(self, now: float) -> None:
        """The replica has said something."""
        self._heard_at = now

    def look(self, now: float, steps: int) -> None:
        """It has done so many steps by now."""
        if steps != self._steps:
            if self._steps:
                self._longest_s = max(self._longest_s, now - self._heard_at)
            self._steps, self._heard_at = steps, now

    def silent(self, now: float) -> bool:
        """Whether it has said nothing for longer than can be explained by a slow batch."""
        return self.alive and now - self._heard_at > max(_SILENCE_S, _BATCHES * self._longest_s)
