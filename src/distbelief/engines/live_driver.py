"""A driver in real time: replicas are processes, which say in messages what they want, and are answered in messages."""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from distbelief.downpour.lease_server import LeaseReply
from distbelief.engines.actions import Acknowledge
from distbelief.engines.carrier import Carrier
from distbelief.engines.supervision import Failure
from distbelief.ports import Outcome, Verdict
from distbelief.run.result import Result

TICK_S = 0.1
"""For how long messages are waited for at a time."""
_PROGRESS_S = 1.0


class LiveDriver(Carrier):
    """What is the same wherever the processes are: the turns of a run, and what messages mean."""

    name: str
    """The engine's, for the log of events."""
    devices: Sequence[str]
    """Where replicas compute, in turn."""
    _next_look = 0.0

    def run(self) -> Result:
        """Train to the end. A request that is received ends the run early with what there is, a second one at once."""
        try:
            with self.record.received.interruptible():
                self._train()
        # Whatever it is: what was reached is written first, and then it goes on.
        except BaseException as error:  # noqa: BLE001
            self.abandon(error)
        return self.record.result()

    def _train(self) -> None:
        self.record.begin(self.name, self.devices)
        self._controller.begin(time.monotonic())
        self._carry()
        while not self._controller.over:
            self._listen()
            self.record.attend()
            if (now := time.monotonic()) >= self._next_look:
                self._next_look = now + TICK_S
                self._look()
                self.record.show(_PROGRESS_S)
            self._carry()

    def _hear(self, who: tuple[int, int], message: Mapping[str, Any]) -> None:
        """Hand the message of a replica, in an incarnation, to the controller, and carry out what that wants."""
        controller, now = self._controller, time.monotonic()
        match message["kind"]:
            case "lease":
                controller.requested(now, *who, message["number"])
            case "done":
                outcomes = [Outcome(a, b, Verdict(v)) for a, b, v in message["outcomes"]]
                controller.accounted(now, *who, message["number"], message["lease"], outcomes)
            case "leaving":
                controller.leaving(now, *who)
            case _:
                failure = Failure(message["error"], message["frames"], message["kind_of"])
                controller.failed(now, *who, failure)
        self._carry()

    def _answer(self, reply: LeaseReply | Acknowledge) -> None:
        who = reply.replica, reply.incarnation
        if isinstance(reply, LeaseReply):
            self._send(*who, "lease", number=reply.number, lease=reply.lease)
        else:
            self._send(*who, "done", number=reply.number)

    @abstractmethod
    def _send(self, replica: int, incarnation: int, kind: str, **content: Any) -> None:
        """Send a message to a replica, if it is there."""

    @abstractmethod
    def _listen(self) -> None:
        """Hear what has happened, and wait for that a moment if need be."""

    @abstractmethod
    def _look(self) -> None:
        """Look after what the engine has to watch, once in a tick."""
