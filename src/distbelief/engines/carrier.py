"""Carries out what the controller wants, as far as that is the same on every engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from distbelief.downpour.lease_server import LeaseReply
from distbelief.engines import actions
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.run_record import RunRecord, controller_of
from distbelief.engines.shard_set import HeldShard, Shards
from distbelief.ports import Command
from distbelief.run.prepare import Prepared
from distbelief.task.gradients import FlatModule


class Carrier(ABC):
    """What a driver is: it owns a controller and its record, whose `options` it is given, and adds events to actions.

    The caller owns the memory of shards and table.
    """

    def __init__(
        self, prepared: Prepared, flat: FlatModule, shards: Sequence[HeldShard], table: ProgressTable, **options: Any
    ) -> None:
        self._table = table
        self._controller = controller_of(prepared)
        held = Shards(prepared, flat.vector, shards)
        self.record = RunRecord(prepared, self._controller, flat=flat, shards=held, table=table, **options)

    def abandon(self, error: BaseException) -> None:
        """End the run because of what has escaped from it, whatever that is: no turn is gone on with."""
        self._end_processes()
        self.record.abandon(error)

    def _carry(self) -> None:
        """Carry out whatever the controller wants by now."""
        while taken := self._controller.take():
            for action in taken:
                self._do(action)

    def _do(self, action: actions.Action) -> None:
        match action:
            case LeaseReply() | actions.Acknowledge():
                self._answer(action)
            case actions.Execute(number, command):
                self._execute(number, [command] * self.record.prepared.layout.shards)
            case actions.TakeSnapshots(number):
                self.record.capturing()
                self._execute(number, self.record.captures)
            case actions.Start(replica, incarnation):
                self._start(replica, incarnation)
            case actions.Kill(replica, incarnation):
                self._kill(replica, incarnation)
            case actions.Suspect(replica, incarnation):
                self._suspect(replica, incarnation)
            case actions.StopWork():
                self._table.stop()
            case _:
                self.record.keep(action)

    @abstractmethod
    def _answer(self, reply: LeaseReply | actions.Acknowledge) -> None:
        """Answer a replica's request."""

    @abstractmethod
    def _execute(self, number: int, commands: Sequence[Command]) -> None:
        """Have each shard obey its command, and report what they answer."""

    @abstractmethod
    def _start(self, replica: int, incarnation: int) -> None:
        """Begin a replica."""

    @abstractmethod
    def _kill(self, replica: int, incarnation: int) -> None:
        """End a replica."""

    @abstractmethod
    def _end_processes(self) -> None:
        """End all replicas, and wait until they have ended."""

    @abstractmethod
    def _suspect(self, replica: int, incarnation: int) -> None:
        """A replica says nothing: end it where it is stopped or out of reach."""
