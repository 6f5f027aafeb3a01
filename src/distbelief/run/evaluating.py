"""Evaluation beside training: in a thread of its own, on a copy of the server's parameters."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import torch
from torch import Tensor

from distbelief.chance import derive
from distbelief.errors import UserCodeError
from distbelief.run.evaluation import Abandoned, evaluate
from distbelief.run.prepare import OF_AVERAGE, Prepared
from distbelief.task.data import seeded
from distbelief.task.gradients import FlatModule
from distbelief.task.tracebacks import described, user_frames

Row = dict[str, Any]
_LOOK_S = 0.1
"""How often the wait for an evaluation looks whether it is still worth waiting for."""
_LEAVE_S = 2.0
"""How long an evaluation that is of no use any more may take to end before it is left behind."""


@final
@dataclass(eq=False)
class Evaluations:
    """Evaluates what the server holds, and keeps the history.

    Beside training only the set that chooses is evaluated; the test set, where it only reports, is left for the end.
    One evaluation runs at a time. `fetch` copies the server's parameters into the module's vector and returns the
    buffers that belong to them; `fetch_average` copies their average into another one, where there is one; `keep`
    writes the module where it is the best so far; `tell` is given each new row, and whether it is the best. Without
    `beside`, training stands still meanwhile.
    """

    prepared: Prepared
    flat: FlatModule
    _: KW_ONLY
    fetch: Callable[[], Tensor]
    fetch_average: Callable[[Tensor], None]
    keep: Callable[[], object]
    tell: Callable[[Row, bool], None]
    beside: bool = True

    def __post_init__(self) -> None:
        self.seconds = 0.0
        """Spent in evaluations."""
        self.history: list[Row] = list(self.prepared.past_history)
        self._task = self.prepared.task.placed(self.flat.device)
        averaged = self.prepared.method.average is not None
        self._average = torch.empty_like(self.flat.vector) if averaged else None
        self._running: Future[tuple[Row, bool]] | None = None
        self._abandoned = threading.Event()

    def begin(self, stamp: Row) -> None:
        """Begin an evaluation; none must be under way."""
        running = self._submit(stamp, threads=1, everything=False)
        if not self.beside:
            wait([running])

    def _submit(self, stamp: Row, threads: int, *, everything: bool) -> Future[tuple[Row, bool]]:
        buffers = self.fetch()
        if self._average is not None:
            self.fetch_average(self._average)
        self._running = self._start(stamp, buffers, threads, everything=everything)
        return self._running

    def turn(self) -> bool:
        """Record an evaluation that has ended; whether one has."""
        if self._running is None or not self._running.done():
            return False
        self._record()
        return True

    def finish(self, stamp: Row | None, impatient: Callable[[], bool]) -> None:
        """Make a last evaluation, of everything and with all cores, unless there is no stamp for it, or no patience."""
        if stamp is None:
            self._abandoned.set()
        try:
            self._wait(impatient)
        except UserCodeError:
            # What it evaluated is older than what is to be written.
            self.load_last()
            raise
        if self.prepared.sets and stamp is not None:
            self._submit(stamp, torch.get_num_threads(), everything=True)
            self._wait(impatient)
        self.load_last()

    def load_last(self) -> None:
        """Have the module hold what the server holds."""
        self._load(self.fetch())

    def load_average(self) -> None:
        """Have the module hold the average of that, with the same buffers."""
        buffers = self.fetch()
        self.fetch_average(self.flat.vector)
        self._load(buffers)

    def _start(self, *arguments: Any, **named: Any) -> Future[tuple[Row, bool]]:
        """Evaluate in a thread that does not keep the process from ending: the user's code may never come back."""
        future: Future[tuple[Row, bool]] = Future()

        def evaluate() -> None:
            try:
                future.set_result(self._evaluate(*arguments, **named))
            # The run's thread judges it, whatever it is.
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)

        threading.Thread(target=evaluate, name="evaluation", daemon=True).start()
        return future

    def _wait(self, impatient: Callable[[], bool]) -> None:
        """Wait for an evaluation; for a moment only, once it is abandoned. What it comes to is of no use then."""
        left_at = math.inf
        while self._running is not None and time.monotonic() < left_at:
            if impatient():
                self._abandoned.set()
            if left_at == math.inf and self._abandoned.is_set():
                left_at = time.monotonic() + _LEAVE_S
            if wait([self._running], timeout=_LOOK_S).done:
                self._record()
        self._running = None

    def verdict(self) -> str | None:
        """Why the run should end by its evaluations: "target", "patience", or None."""
        until, history = self.prepared.until, self.history
        if until.target and history and all(self._reached(name, value) for name, value in until.target.items()):
            return "target"
        return "patience" if until.out_of_patience(map(self._rank, history)) else None

    def _rank(self, row: Row) -> float:
        """By what a row is better than another; minus infinity where it has no finite number to be judged by."""
        name, mode = self.prepared.judge
        value = row.get(name)
        if value is None or not math.isfinite(value):
            return -math.inf
        return float(value) if mode == "max" else -float(value)

    def _reached(self, name: str, value: float) -> bool:
        # A run that is resumed may ask for a metric that it did not have before.
        found = self.history[-1].get(name)
        return found is not None and bool(found >= value if self.prepared.mode(name) == "max" else found <= value)

    def close(self) -> None:
        """Have an evaluation that is under way end soon."""
        self._abandoned.set()

    def _record(self) -> None:
        assert self._running is not None
        ended, self._running = self._running, None
        try:
            row, best = ended.result()
        except Abandoned:
            return
        # Whatever the user's metrics and data raise.
        except Exception as error:
            where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
            raise UserCodeError(
                f"an evaluation failed{where} with {described(error)}\n\n{user_frames(error)}".rstrip()
            ) from error
        self.history.append(row)
        self.tell(row, best)

    def _is_best(self, row: Row) -> bool:
        return self._rank(row) > max(map(self._rank, self.history), default=-math.inf)

    def _load(self, buffers: Tensor) -> None:
        self.flat.refresh()
        self.flat.load_buffers_(buffers)

    def _evaluate(self, stamp: Row, buffers: Tensor, threads: int, *, everything: bool) -> tuple[Row, bool]:
        # OpenMP's number of threads is the calling thread's own: this does not touch the user's.
        torch.set_num_threads(threads)
        began = time.monotonic()
        found = {}
        for prefix, vector in self._models():
            # The module is the run's again, once an evaluation is abandoned.
            if self._abandoned.is_set():
                raise Abandoned
            self.flat.vector.copy_(vector)
            self._load(buffers)
            found[prefix] = self._metrics(prefix, everything=everything)
        row = stamp | found[""] | found.get(OF_AVERAGE, {})
        self.seconds += time.monotonic() - began
        if self._abandoned.is_set():
            raise Abandoned
        # In this thread: while the best model is written, the controller answers replicas.
        if best := self._is_best(row):
            self.keep()
        return row, best

    def _models(self) -> list[tuple[str, Tensor]]:
        """The vectors to evaluate, and what their metrics begin with.

        The one that is judged comes last: then the module is that one, if it is to be kept as the best.
        """
        if self._average is None:
            return [("", self.flat.vector)]
        models = [(OF_AVERAGE, self._average), ("", self.flat.vector.clone())]
        return models[::-1] if self.prepared.of_average(self.prepared.judge[0]) else models

    def _metrics(self, of: str, *, everything: bool) -> Row:
        """The metrics of the model as it is, on each set, or only on the one that chooses."""
        row = {}
        for prefixes, (rows, batch_size) in self.prepared.sets.items():
            if "" not in prefixes and not everything:
                continue
            # The chance in making an evaluation's batches is the same in each evaluation.
            with seeded(derive(self.prepared.seed, "evaluation")):
                metrics = evaluate(
                    self._task,
                    self.flat.module,
                    rows,
                    batch_size,
                    self._abandoned.is_set,
                )
            # As it is written: JSON has no other numbers than finite ones.
            known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            row.update({prefix + of + name: value for prefix in prefixes for name, value in known.items()})
        return row
