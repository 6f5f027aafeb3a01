"""A session of the local engine: workers that were started before it was known what for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, final

from distbelief.engines.worker.worker_process import Workers

if TYPE_CHECKING:
    from distbelief.engines.local import Local
    from distbelief.engines.local.local_driver import LocalDriver
    from distbelief.run.prepare import Prepared


@final
class LocalSession:
    """Its workers import torch while the task is prepared, and end with it if no run took them."""

    def __init__(self, engine: Local) -> None:
        self._engine = engine
        self._workers = Workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def expect(self, least: int, most: int) -> None:
        """Have so many workers ready."""
        self._workers.start(most)

    def driver(self, prepared: Prepared, **shared: Any) -> LocalDriver:
        """A driver for a run."""
        # Not at the top: torch takes seconds to import, which the workers spend likewise.
        from distbelief.engines.local.local_driver import LocalDriver

        threads = self._engine.threads_each(prepared.replicas)
        return LocalDriver(prepared, devices=self._engine.devices, threads=threads, workers=self._workers, **shared)
