"""Evaluation beside training: in a thread of the controller, on a copy of the server's parameters."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor

from distbelief.evaluation import evaluate
from distbelief.gradients import FlatModule
from distbelief.prepare import Prepared


@final
class BackgroundEvaluation:
    """At most one evaluation at a time; what is asked for meanwhile waits, and only the newest request is kept."""

    def __init__(self, prepared: Prepared, flat: FlatModule) -> None:
        self._prepared = prepared
        self._flat = flat
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._running: Future[dict[str, float]] | None = None

    @property
    def busy(self) -> bool:
        """Whether an evaluation is under way."""
        return self._running is not None

    def begin(self, buffers: Tensor) -> None:
        """Evaluate the module at what its vector holds now; the caller does not touch the vector until `result`."""
        self._running = self._pool.submit(self._evaluate, buffers, 1)

    def result(self, *, wait: bool = False) -> dict[str, float] | None:
        """The metrics of the evaluation that has ended, once; None if there is none. Raises what the metrics raised."""
        if self._running is None or not (wait or self._running.done()):
            return None
        ended, self._running = self._running, None
        return ended.result()

    def now(self, buffers: Tensor, threads: int) -> dict[str, float]:
        """Evaluate while the caller waits."""
        return self._pool.submit(self._evaluate, buffers, threads).result()

    def close(self) -> None:
        """Wait for the evaluation under way, and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _evaluate(self, buffers: Tensor, threads: int) -> dict[str, float]:
        # OpenMP's number of threads is the calling thread's own: this does not touch the user's.
        torch.set_num_threads(threads)
        flat = self._flat
        flat.refresh()
        flat.load_buffers_(buffers)
        found = {}
        for prefixes, rows in self._prepared.sets.items():
            metrics = evaluate(self._prepared.task, flat.module, rows)
            found.update({prefix + name: value for prefix in prefixes for name, value in metrics.items()})
        return found
