"""Evaluation beside training: in a thread of the controller, on a copy of the server's parameters."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, final

import torch
from torch import Tensor

from distbelief.chance import derive
from distbelief.data import seeded
from distbelief.evaluation import evaluate
from distbelief.gradients import FlatModule
from distbelief.prepare import Prepared

Row = dict[str, Any]


@final
class Evaluations:
    """Evaluates each epoch, or as often as was asked for, and keeps the history.

    Beside training only the set that chooses is evaluated; the test set, where it only reports, is left for the end.
    One evaluation runs at a time; what becomes due meanwhile is done once, afterwards. `fetch` copies the server's
    parameters into the module's vector and returns the buffers that belong to them; `tell` is given each new row.
    """

    def __init__(
        self, prepared: Prepared, flat: FlatModule, *, fetch: Callable[[], Tensor], tell: Callable[[Row], None]
    ) -> None:
        self.history: list[Row] = []
        self._prepared = prepared
        self._flat = flat
        self._fetch = fetch
        self._tell = tell
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._running: Future[dict[str, float]] | None = None
        self._stamp: Row = {}
        self._begun = 0

    def turn(self, stamp: Row, epochs: int) -> None:
        """Begin an evaluation if one is due, and record one that has ended. `epochs` is how many have ended."""
        if self._running is not None and self._running.done():
            self._record()
        due = self._due(stamp, epochs)
        if self._prepared.sets and self._running is None and due > self._begun:
            self._begun, self._stamp = due, stamp
            self._running = self._pool.submit(self._evaluate, self._fetch(), threads=1, everything=False)

    def finish(self, stamp: Row | None) -> None:
        """Wait for the evaluation under way, and make a last one, with all cores, if there is a stamp for it."""
        if self._running is not None:
            self._record()
        buffers = self._fetch()
        if self._prepared.sets and stamp is not None:
            self._stamp = stamp
            self._running = self._pool.submit(self._evaluate, buffers, torch.get_num_threads(), everything=True)
            self._record()
        else:
            self._load(buffers)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _due(self, stamp: Row, epochs: int) -> int:
        """How many evaluations should have been begun by now."""
        every = self._prepared.evaluate_every
        if every is None:
            return epochs
        return int(stamp["examples"] // every.examples if every.examples else stamp["seconds"] // (every.seconds or 1))

    def _record(self) -> None:
        assert self._running is not None
        ended, self._running = self._running, None
        row = {**self._stamp, **ended.result()}
        self.history.append(row)
        self._tell(row)

    def _load(self, buffers: Tensor) -> None:
        self._flat.refresh()
        self._flat.load_buffers_(buffers)

    def _evaluate(self, buffers: Tensor, threads: int, *, everything: bool) -> dict[str, float]:
        # OpenMP's number of threads is the calling thread's own: this does not touch the user's.
        torch.set_num_threads(threads)
        self._load(buffers)
        found = {}
        for prefixes, rows in self._prepared.sets.items():
            if "" not in prefixes and not everything:
                continue
            # The chance in making an evaluation's batches is the same in each evaluation.
            with seeded(derive(self._prepared.seed, "evaluation")):
                metrics = evaluate(self._prepared.task, self._flat.module, rows)
            found.update({prefix + name: value for prefix in prefixes for name, value in metrics.items()})
        return found
