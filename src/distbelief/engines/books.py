"""The books of a run: what an engine's controller keeps, evaluates, writes and tells, whatever brings replicas to life.

The controller owns time, replicas and messages; what it hears of these it enters here.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from distbelief.downpour.ledger import Ledger, last_push
from distbelief.engines.board import Board, Row
from distbelief.engines.callbacks import Callback, Callbacks, LiveRun
from distbelief.engines.checkpointing import Checkpoints
from distbelief.engines.evaluating import Evaluations
from distbelief.engines.result import Result, trimmed
from distbelief.engines.server import Server
from distbelief.engines.speeds import Speeds
from distbelief.errors import DistBeliefError, Diverged, InvariantViolated, UserCodeError
from distbelief.observe.events import Observer, ReplicaStatus, Status
from distbelief.ports import Outcome
from distbelief.run.checkpoint import Draft, image_of
from distbelief.run.directory import RunDirectory
from distbelief.run.prepare import Prepared
from distbelief.run.state import BUFFERS, Totals, key, parameters_into_
from distbelief.task.gradients import FlatModule, emulated
from distbelief.task.tensors import put_, tensors_of


class Seat(Protocol):
    """The place of one replica, whoever sits on it."""

    replica: int
    incarnation: int
    state: str
    worked: bool
    """Whether it came to its natural end and had worked until then."""


def flat_at_start(prepared: Prepared, device: torch.device) -> FlatModule:
    """The model at its beginning, or as the run that is resumed left it."""
    flat = FlatModule(prepared.module, prepared.layout, prepared.moving, device)
    if prepared.resumed is not None:
        parameters_into_(flat.vector, prepared.layout, prepared.resumed.tensors)
    return flat


def ledger_at_start(prepared: Prepared) -> Ledger:
    """The data from their beginning, or from where the run that is resumed stood."""
    together = prepared.method.admission.round > 1
    ledger = Ledger(
        examples=len(prepared.rows),
        batch_size=prepared.batch_size,
        replicas=prepared.replicas,
        epochs=prepared.until.epochs,
        limit=prepared.until.examples,
        warmstart=prepared.method.warmstart,
        quorum=prepared.replicas if together else 1,
    )
    if prepared.resumed is not None:
        ledger.restore_(prepared.resumed.state.method)
    return ledger


@final
class Books:
    """What is kept of one run.

    `clock` is in seconds. `hear` reads what replicas have said by now, and `outcomes_of` waits for the account of a
    lease that a replica is known to have sent. Without `beside`, training stands still during evaluations and
    checkpoints.
    """

    def __init__(
        self,
        prepared: Prepared,
        seats: Sequence[Seat],
        *,
        flat: FlatModule,
        server: Server,
        board: Board,
        observer: Observer,
        files: RunDirectory,
        callbacks: Sequence[Callback],
        clock: Callable[[], float],
        hear: Callable[[], None],
        outcomes_of: Callable[[int], Sequence[Outcome]],
        beside: bool,
    ) -> None:
        self._prepared = prepared
        self._seats = seats
        self._flat = flat
        self._server = server
        self._board = board
        self._observer = observer
        self._files = files
        self._clock = clock
        self._hear = hear
        self._outcomes_of = outcomes_of
        self._past = Totals() if prepared.resumed is None else prepared.resumed.state.totals
        for seat, begun in zip(seats, prepared.incarnations, strict=False):
            seat.incarnation = begun
        board.buffers.copy_(flat.buffers().expand(prepared.replicas, -1))
        self.ledger = ledger_at_start(prepared)
        self._evaluations = Evaluations(prepared, flat, fetch=self._fetch, tell=self._tell_evaluation, beside=beside)
        self._image = image_of(flat, prepared.method.optimizer)
        self._checkpoints = Checkpoints(
            files.write_checkpoint,
            prepared.checkpoint_every,
            capture=self._capture,
            tell=lambda content: self.tell("checkpoint", **content),
            beside=beside,
        )
        self.callbacks = Callbacks(callbacks, LiveRun(files.path, self._evaluations.history, self._model))
        self._speeds = Speeds(prepared.replicas)
        self._retired = Row()
        self._resumed_at = self.ledger.total.total
        self._born = clock()
        self._began: float | None = None
        self._ended = 0.0
        self._living: tuple[set[int], bool] = set(), False
        self._next_progress = 0.0

    def close(self) -> None:
        """End the threads."""
        self._evaluations.close()
        self._checkpoints.close()

    # What happens

    def begin(self, engine: str, devices: Sequence[str]) -> None:
        """Tell what is about to be done."""
        prepared, until = self._prepared, self._prepared.until
        self.tell(
            "started",
            engine=engine,
            replicas=prepared.replicas,
            devices=list(devices),
            precision=prepared.precision,
            emulated=emulated(self._flat.device, prepared.precision),
            shards=prepared.layout.shards,
            parameters=prepared.layout.parameters,
            batch_size=prepared.batch_size,
            examples_per_epoch=len(prepared.rows),
            chosen_by=prepared.chosen_by,
            epochs=until.epochs,
            examples=until.examples,
            seconds_limit=until.seconds,
            seed=prepared.seed,
        )

    def tell_resumed(self, complaints: Sequence[str], earlier: Path | None) -> None:
        """Say what the run goes on from, or that it begins, and what of the earlier run is of no use to it."""
        resumed, changes = self._prepared.resumed, self._prepared.changes
        self.tell(
            "resumed",
            examples=None if resumed is None else resumed.examples,
            damaged=list(complaints),
            **changes._asdict(),
            other_data=resumed is not None and resumed.state.data != self._prepared.data,
            earlier=None if earlier is None else str(earlier),
        )

    def leased(self) -> None:
        """A replica is given work."""
        if self._began is None:
            self._began = self._clock()

    def done(self, lease: int, outcomes: Sequence[Outcome]) -> None:
        """A replica accounts for a lease."""
        self.ledger.done(lease, outcomes)
        self._ended = self._clock()

    def count_living(self) -> None:
        """Tell the shards which replicas hold leases, if that has changed."""
        living = set() if self.ledger.stopped else self.ledger.holders
        alone = self.ledger.warming_up
        if (living, alone) != self._living:
            self._living = living, alone
            self._server.set_living(living, alone=alone)

    def left(self, seat: Seat) -> Row:
        """Nobody sits on a seat any more: keep what was done there. Returns it."""
        row = self._board.read(seat.replica)
        self._retired = self._retired.plus(row)
        self._board.write(seat.replica, Row())
        self._speeds.restart(seat.replica)
        return row

    def died(self, seat: Seat, **how: Any) -> None:
        """A replica is dead that has left its seat early: account for its leases, by what the shards know of it."""
        account = self.ledger.died(seat.replica, self._server.died(seat.replica, seat.incarnation))
        if account.total:
            self._ended = self._clock()
        self.tell("died", replica=seat.replica, incarnation=seat.incarnation, **how, account=vars(account))
        self._board.buffers[seat.replica] = self._buffers()

    def turn(self) -> str | None:
        """Evaluate and write what is due; why the run should end by its limit of time or its evaluations, or None."""
        limit = self._prepared.until.seconds
        if self._began is not None and limit and self.seconds >= limit:
            return "seconds"
        self._evaluations.turn(self._stamp(), self.ledger.epochs_ended)
        self._checkpoints.turn(self._examples, self.seconds)
        return self._evaluations.verdict()

    # Evaluation

    def _buffers(self) -> Tensor:
        """The module's buffers: of the replicas that have worked and not died, where what they hold is finite."""
        worked = [seat.replica for seat in self._seats if seat.worked or self._board.read(seat.replica).examples]
        rows = self._board.buffers[worked]
        rows = rows[torch.isfinite(rows).all(1)]
        return self._flat.mean_buffers(rows if len(rows) else self._board.buffers[:1])

    def _fetch(self) -> Tensor:
        """Copy the server's parameters into the controller's module; returns the buffers that belong to them."""
        self._server.fetch(self._flat.vector)
        return self._buffers()

    def _model(self) -> nn.Module:
        """A module of its own, with what the server holds now."""
        prepared = self._prepared
        module = prepared.task.build(prepared.seed)
        put_(module, tensors_of(self._flat.module))
        flat = FlatModule(module, prepared.layout, prepared.moving)
        self._server.fetch(flat.vector)
        flat.refresh()
        flat.load_buffers_(self._buffers())
        return module.eval()

    def _tell_evaluation(self, row: dict[str, Any], best: bool) -> None:
        if best:
            self._files.write_model(self._flat.module, self._files.best)
        self.tell("evaluation", **row, best=best)

    # Checkpoints

    def _capture(self) -> Draft:
        """The run at this instant, as if every replica died now: nothing that a shard has is lost, or used again."""
        self._hear()
        snapshots = self._server.copy_out(self._image.tensors)
        ledger = copy.deepcopy(self.ledger)
        # All of them before anything more is heard: whoever has died by then is replaced by another incarnation.
        pushes = [
            last_push([snapshot.standing(seat.replica, seat.incarnation) for snapshot in snapshots])
            for seat in self._seats
        ]
        for seat, last in zip(self._seats, pushes, strict=True):
            for number in ledger.leases_of(seat.replica):
                # The snapshot holds a push of a later lease, so this one was accounted for, in a message not yet read.
                if last is not None and number < last.standing.work.lease:
                    ledger.done(number, self._outcomes_of(number))
            ledger.died(seat.replica, last)
        for name, buffer in self._flat.named_buffers(self._buffers()).items():
            self._image.tensors[key(BUFFERS, name)].copy_(buffer)
        return Draft(
            ledger.total.total,
            self._image,
            self._prepared.state(
                method=ledger.state(),
                incarnations=[seat.incarnation for seat in self._seats],
                totals=self._totals(),
                updates=max(snapshot.updates for snapshot in snapshots),
                examples=max(snapshot.examples for snapshot in snapshots),
                history=self._evaluations.history,
            ),
        )

    # What is seen

    @property
    def seconds(self) -> float:
        """Over the run's life."""
        return self._past.seconds + (0.0 if self._began is None else self._clock() - self._began)

    @property
    def _updates(self) -> int:
        return self._past.updates + self._server.updates

    @property
    def _examples(self) -> int:
        return self._resumed_at + int(self._sums.examples)

    @property
    def _sums(self) -> Row:
        """The board's rows of all replicas, the dead ones' included, added up."""
        rows = (self._board.read(seat.replica) for seat in self._seats)
        return functools.reduce(Row.plus, rows, self._retired)

    def _totals(self) -> Totals:
        past, sums = self._past, self._sums
        staleness = self._server.staleness.sum(0)
        staleness[: len(past.staleness)] += torch.tensor(past.staleness, dtype=torch.int64)
        return Totals(
            self._updates,
            past.seconds + (max(self._ended, self._began) - self._began if self._began is not None else 0.0),
            past.restarts + sum(map(self._restarts, self._seats)),
            past.rejected + int(sums.rejected),
            trimmed(staleness),
            max(past.stalest, self._server.stalest),
            past.fetched_bytes + int(sums.fetched_bytes),
            past.pushed_bytes + int(sums.pushed_bytes),
        )

    def _restarts(self, seat: Seat) -> int:
        """Of a replica in this life of the run."""
        return max(0, seat.incarnation - self._prepared.incarnations[seat.replica] - 1)

    def _stamp(self) -> dict[str, Any]:
        return {
            "epoch": round(self._examples / self.ledger.examples, 3),
            "examples": self._examples,
            "updates": self._updates,
            "seconds": round(self.seconds, 3),
        }

    def tell(self, event: str, **content: Any) -> None:
        """Something happened: for the log, the eye and the callbacks."""
        told = {"seconds": round(self.seconds, 3), **content}
        self._observer.event(event, **told)
        self.callbacks.add({"event": event, **told})

    def show(self, progress_s: float) -> None:
        """Let it be seen how the run stands, and tell of its progress once in so many seconds."""
        now = self._clock()
        for seat in self._seats:
            self._speeds.update(now, seat.replica, self._board.read(seat.replica))
        status = self._status()
        self._observer.status(status)
        if now >= self._next_progress and self._began is not None:
            self._next_progress = now + progress_s
            self.tell(
                "progress",
                examples=status.examples,
                updates=status.updates,
                loss=status.loss,
                examples_per_second=round(status.examples_per_second, 1),
                replicas=[
                    {
                        "replica": r.replica,
                        "examples_per_second": round(r.examples_per_second, 1),
                        "staleness": r.staleness,
                    }
                    for r in status.replicas
                ],
            )

    def _status(self) -> Status:
        until, examples = self._prepared.until, self._examples
        fractions = [
            self.seconds / until.seconds if until.seconds else 0.0,
            examples / until.examples if until.examples else 0.0,
            examples / (until.epochs * self.ledger.examples) if until.epochs else 0.0,
        ]
        replicas = tuple(
            ReplicaStatus(
                seat.replica,
                seat.state,
                self._speeds.examples_per_second(seat.replica),
                int(self._board.read(seat.replica).staleness),
                self._restarts(seat),
            )
            for seat in self._seats
        )
        return Status(
            self.seconds,
            examples,
            self._updates,
            examples / self.ledger.examples,
            self._speeds.loss(),
            sum(replica.examples_per_second for replica in replicas),
            min(1.0, max(fractions)),
            replicas,
        )

    def result(
        self, stopped_by: str | None, error: DistBeliefError | None, *, hurried: bool, impatient: Callable[[], bool]
    ) -> Result:
        """Evaluate what was reached unless somebody is in a hurry, check every account, and write it all down."""
        account, totals = self.ledger.total, self._totals()
        used = account.used + account.partial
        limit = self._prepared.until.examples
        stopped_by = stopped_by or ("examples" if limit is not None and account.total >= limit else "epochs")
        stamp = {"epoch": round(used / self.ledger.examples, 3), "examples": used}
        stamp |= {"updates": totals.updates, "seconds": round(totals.seconds, 3)}
        if error is None and not self._server.finite:
            error = Diverged("parameters have overflowed: lower lr, or set clip_norm")
        wanted = error is None and not hurried
        if wanted and self._prepared.sets:
            self.tell("evaluating", seconds=stamp["seconds"])
        try:
            self._evaluations.finish(stamp if wanted else None, impatient)
        except UserCodeError as failure:
            error = error or failure
        self._checkpoints.finish()
        self.tell("stopped", **stamp, stopped_by=stopped_by)
        try:
            self.callbacks.call()
        except UserCodeError as failure:
            error = error or failure
        self.ledger.check()
        self._server.check()
        if not self.ledger.finished:
            raise InvariantViolated("the run ended with leases outstanding")
        return Result(
            account,
            totals,
            stopped_by,
            self._speeds.loss(),
            (self._began or self._born) - self._born,
            self._evaluations.seconds,
            self._evaluations.history,
            [trimmed(shard) for shard in self._server.staleness],
            None if self._prepared.resumed is None else self._prepared.resumed.examples,
            error,
        )
