"""What an engine is: a value that opens a session, in which a driver brings a run to life."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from distbelief.engines.run_record import RunRecord
from distbelief.engines.signals import Requests
from distbelief.observe.events import Observer
from distbelief.run.callbacks import Callback
from distbelief.run.directory import RunDirectory
from distbelief.run.prepare import Prepared
from distbelief.run.result import Result


class Driver(Protocol):
    """One run, ready to begin."""

    @property
    def record(self) -> RunRecord:
        """What is kept of it."""

    def run(self) -> Result:
        """Train to the end."""

    def close(self) -> None:
        """End all that it started, and give its memory back."""


class Session(Protocol):
    """What an engine has ready before it is known what will run."""

    def expect(self, least: int, most: int) -> None:
        """So many replicas will be started soon. Raises `UsageError` where there is no room for the least."""

    def driver(
        self,
        prepared: Prepared,
        *,
        observer: Observer,
        files: RunDirectory,
        received: Requests,
        callbacks: Sequence[Callback],
    ) -> Driver:
        """A driver for a run. `received` collects requests to end. Raises `UsageError` where memory is too small."""


@runtime_checkable
class Engine(Protocol):
    """An engine, as a value."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Where replicas compute, in turn. Raises `UsageError` where they cannot."""

    @property
    def replicas(self) -> int:
        """How many replicas "auto" stands for."""

    @property
    def overlap(self) -> int:
        """Batches by which fetches and pushes may lag behind where the method does not say."""

    @property
    def in_this_process(self) -> bool:
        """Whether the user's code runs here, and may want the terminal."""

    def open(self) -> AbstractContextManager[Session]:
        """Begin a session."""
