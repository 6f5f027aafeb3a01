"""The place of one replica, whichever of its incarnations is there."""

import math
from typing import final

from distbelief.engines.supervision import Failure

GRACE_S = 30.0
"""At the end of a run: seconds that replicas get to finish their current batch before they are killed."""
REQUESTED_GRACE_S = 5.0
"""`GRACE_S` for what was asked to end: a machine that is about to be preempted gives little time."""
EXIT_GRACE_S = 5.0
"""Seconds that a replica without work gets to exit before it is killed: a thread of the user's may never end."""
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
        """How often it was started on a machine in this life of the controller."""
        self.state = "starting"
        """awaited (there is no machine for it yet), starting, ready, working, done or dead."""
        self.alive = False
        self.killed = False
        """Whether its end has been ordered."""
        self.leaving = False
        """Whether it was told to leave."""
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
        self.state, self.alive, self.killed, self.leaving, self.failure = "starting", True, False, False, None
        self.kill_at = math.inf
        self._heard_at, self._steps = now, 0

    @property
    def expected(self) -> bool:
        """Whether it has not asked for anything yet."""
        return self.state in ("awaited", "starting")

    def placed(self, now: float, *, there: bool) -> None:
        """What was to be started has a machine, or has none yet."""
        if self.expected and there == (self.state == "awaited"):
            self.starts += 1 if there else -1
            self.state, self._heard_at = "starting" if there else "awaited", now

    def never_came(self) -> None:
        """What was to be started will have no machine."""
        self.starts -= self.state != "awaited"
        self.state, self.alive = "dead", False

    def asked(self, now: float) -> None:
        """The replica wants work."""
        self.heard(now)
        self.state = "ready" if self.expected else self.state

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
        waited = 0.0 if self.state == "awaited" else now - self._heard_at
        return self.alive and waited > max(_SILENCE_S, _BATCHES * self._longest_s)
