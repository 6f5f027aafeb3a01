"""The record of a run: what it has done so far, what is evaluated, written and told of it.

The controller decides; what it wants kept arrives here.
"""

import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from distbelief.allocation import Progress
from distbelief.engines.actions import Action, Evaluate, Left, Lost, SetAside, WriteCheckpoint
from distbelief.engines.controller import Controller
from distbelief.engines.due import CheckpointsDue, EvaluationsDue
from distbelief.engines.progress_table import ProgressTable, total
from distbelief.engines.replica_slot import REQUESTED_GRACE_S, ReplicaSlot
from distbelief.engines.shard_set import Shards
from distbelief.engines.signals import Requests
from distbelief.engines.speeds import Speeds
from distbelief.engines.stopwatch import Stopwatch
from distbelief.engines.supervision import Supervisor
from distbelief.errors import Diverged, InvariantViolated, UserCodeError
from distbelief.observe.events import Observer, ReplicaStatus, Status
from distbelief.ports import Capture, Fence, Snapshot
from distbelief.run import divergence
from distbelief.run.callbacks import Callback, Callbacks, LiveRun
from distbelief.run.checkpoint import Draft, image_of
from distbelief.run.checkpointing import Checkpoints
from distbelief.run.directory import RunDirectory
from distbelief.run.evaluating import Evaluations
from distbelief.run.prepare import Prepared
from distbelief.run.result import Result, summary_of, trimmed
from distbelief.run.state import BUFFERS, FROZEN, Totals, key, parameters_into_
from distbelief.server.block import AVERAGE, examples_of, updates_of
from distbelief.task.gradients import FlatModule, emulated
from distbelief.task.tensors import put_, tensors_of

_BUFFERS_S = 1.0
"""How long a replica that is in a batch is waited for before its buffers are taken as they were."""


def flat_at_start(prepared: Prepared, device: torch.device) -> FlatModule:
    """The model at its beginning, or as the run that is resumed left it."""
    flat = FlatModule(prepared.module, prepared.layout, prepared.mutable_buffers, device)
    if prepared.resumed is not None:
        parameters_into_(flat.vector, prepared.layout, prepared.resumed.tensors)
    return flat


def controller_of(prepared: Prepared) -> Controller:
    """The controller of a run: at its beginning, or where the run that is resumed stood."""
    method, until, resumed = prepared.method, prepared.until, prepared.resumed
    allocator = method.allocator(prepared.examples, epochs=until.epochs, limit=until.examples)
    if resumed is not None:
        allocator.restore_(resumed.state.method)
    evaluations = EvaluationsDue(prepared.evaluate_every, each=prepared.wait_for_evaluations)
    return Controller(
        allocator,
        incarnations=prepared.incarnations[: prepared.replicas],
        term=prepared.term,
        counts_living=method.admission.round > 1 or method.admission.lead is not None,
        evaluations=evaluations if prepared.sets else None,
        checkpoints=CheckpointsDue(prepared.checkpoint_every),
        supervisor=Supervisor(method.tolerate, prepared.name_batch),
        watch=Stopwatch(0.0 if resumed is None else resumed.state.totals.seconds, until.seconds),
    )


@final
@dataclass(eq=False)
class RunRecord:
    """What is kept of one run. `clock` is in seconds; `received` collects requests to end.

    Without `beside`, training stands still during evaluations and checkpoints.
    """

    prepared: Prepared
    controller: Controller
    _: KW_ONLY
    flat: FlatModule
    shards: Shards
    table: ProgressTable
    observer: Observer
    files: RunDirectory
    callbacks: Sequence[Callback]
    received: Requests
    clock: Callable[[], float]
    beside: bool

    def __post_init__(self) -> None:
        prepared, files, flat, beside = self.prepared, self.files, self.flat, self.beside
        resumed = prepared.resumed
        self._past = Totals() if resumed is None else resumed.state.totals
        self.table.buffers.copy_(flat.buffers().expand(prepared.replicas, -1))
        self._evaluations = Evaluations(
            prepared,
            flat,
            fetch=self._fetch,
            fetch_average=functools.partial(self.shards.fetch, vector=AVERAGE),
            keep=lambda: files.write_model(flat.module, files.best),
            tell=lambda row, best: self.tell("evaluation", **row, best=best),
            beside=beside,
        )
        self._image = image_of(flat, prepared.method.kept)
        self._checkpoints = Checkpoints(
            files.write_checkpoint, tell=lambda content: self.tell("checkpoint", **content), beside=beside
        )
        self._callbacks = Callbacks(self.callbacks, LiveRun(files.directory, self._evaluations.history, self._model))
        self._speeds = Speeds(prepared.replicas)
        self._waiting: list[tuple[float, Callable[[], None]]] = []
        """What waits for buffers, and until when."""
        self._retired = Progress()
        self._worked: set[int] = set()
        """Replicas that came to their natural end, and had worked until then."""
        before = self.controller.allocator.total
        self._resumed_at = before.used + before.partial
        self._born = self.clock()
        self._next_progress = 0.0
        self._heeded = 0
        self._errors: list[BaseException] = []
        """What has escaped from the run, and what was raised while it was written."""

    def close(self) -> None:
        """End the threads."""
        self._evaluations.close()
        self._checkpoints.close()

    # What happens

    def begin(self, engine: str, devices: Sequence[str]) -> None:
        """Tell what is about to be done."""
        prepared, until = self.prepared, self.prepared.until
        self.tell(
            "started",
            engine=engine,
            replicas=prepared.replicas,
            devices=list(devices),
            precision=prepared.precision,
            emulated=emulated(self.flat.device, prepared.precision),
            shards=prepared.layout.shards,
            parameters=prepared.layout.parameters,
            batch_size=prepared.batch_size,
            examples_per_epoch=prepared.examples,
            chosen_by=prepared.chosen_by,
            epochs=until.epochs,
            examples=until.examples,
            seconds_limit=until.seconds,
            seed=prepared.seed,
            monitor=prepared.judge[0] if prepared.sets else None,
            remarks=prepared.remarks,
        )

    def tell_resumed(self, complaints: Sequence[str], earlier: Path | None) -> None:
        """Say what the run goes on from, or that it begins, and what of the earlier run is of no use to it."""
        resumed, changes = self.prepared.resumed, self.prepared.changes
        self.tell(
            "resumed",
            examples=None if resumed is None else resumed.examples,
            damaged=list(complaints),
            **changes._asdict(),
            other_data=resumed is not None and resumed.state.data != self.prepared.data,
            earlier=None if earlier is None else str(earlier),
        )

    def keep(self, action: Action) -> None:
        """Keep what the controller wants kept."""
        match action:
            case Left(replica):
                self._left(replica)
            case Lost():
                self._lost(action)
            case SetAside(epoch, batch, error):
                indices = self.prepared.examples_of(epoch, batch)
                self.tell("poisoned", epoch=epoch, batch=batch, examples=indices, error=error)
            case Evaluate():
                self._with_buffers(lambda: self._evaluations.begin(self._stamp()))
            case WriteCheckpoint():
                draft = self._draft(action)
                self._with_buffers(lambda: self._write(draft))
            case _:
                raise InvariantViolated(f"{action} is nothing to keep")

    def _with_buffers(self, then: Callable[[], None]) -> None:
        """Do something as soon as the replicas at work have published the buffers that training changes."""
        if self.beside and self.prepared.mutable_buffers:
            self.table.request_buffers()
            self._waiting.append((self.clock() + _BUFFERS_S, then))
        else:
            then()

    def _look_for_buffers(self, now: float) -> None:
        slots = (slot for slot in self.controller.slots if slot.alive and slot.state == "working")
        if now >= self._waiting[0][0] or not any(self.table.awaits_buffers(slot.replica) for slot in slots):
            waiting, self._waiting = self._waiting, []
            for _, then in waiting:
                then()

    def started(self, replica: int, incarnation: int, pid: int | None) -> None:
        """A replica was started."""
        self._worked.discard(replica)
        self.tell("replica", replica=replica, incarnation=incarnation, pid=pid)

    def _left(self, replica: int) -> None:
        if self._retire(replica).examples:
            self._worked.add(replica)

    def _lost(self, lost: Lost) -> None:
        whole = lost.left and lost.status == 0
        if whole:
            # It has told its buffers to the last, and the next of its place goes on with them.
            self._left(lost.replica)
        else:
            self._retire(lost.replica)
        if lost.partial:
            self.shards.count_partial(lost.records)
        self.tell(
            "left" if lost.left else "died",
            replica=lost.replica,
            incarnation=lost.incarnation,
            status=lost.status,
            error=lost.error,
            account=vars(lost.account),
        )
        if not whole:
            self.table.buffers[lost.replica] = self._buffers()

    def _retire(self, replica: int) -> Progress:
        """Keep what an incarnation has done. Returns it."""
        row = self.table.retire(replica)
        self._retired = total((self._retired, row))
        self._speeds.restart(replica)
        return row

    def attend(self) -> None:
        """Look after everything that has a time of its own, and hear what callbacks and requests to end wish.

        What metrics, data and callbacks of the user's raise ends the run.
        """
        self.received.turn()
        try:
            self._look()
        except UserCodeError as error:
            self.controller.fail(self.clock(), error)
        if len(self.received) > self._heeded:
            self._heeded = len(self.received)
            why = self._requested or ""
            self.controller.stop(self.clock(), why, REQUESTED_GRACE_S if self._heeded == 1 else 0.0)

    def abandon(self, error: BaseException) -> None:
        """The run is over by what has escaped from it, and no replica lives: account for what was reached."""
        self._errors.append(error)
        why = self._requested or ("interrupted" if isinstance(error, KeyboardInterrupt) else "failure")
        shards = range(self.prepared.layout.shards)
        with self._kept():
            self.controller.abandon(
                self.clock(), why, lambda *who: self.shards.execute_each([Fence(*who) for _ in shards])
            )
            for action in self.controller.take():
                if isinstance(action, Lost):
                    self.keep(action)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep what a block raises, and go on: what comes after it is to be written all the same."""
        try:
            yield
        # Whatever it is. It is raised in the end.
        except BaseException as error:  # noqa: BLE001
            self._errors.append(error)

    @property
    def _requested(self) -> str | None:
        """Why the run is to end, where that was asked for."""
        if not self.received:
            return None
        return "interrupted" if self.received[0] == signal.SIGINT else "terminated"

    def tick(self) -> None:
        """Tell the controller that time has passed."""
        steps = [self.table.steps(slot.replica) for slot in self.controller.slots]
        self.controller.tick(self.clock(), self.examples, steps)

    def _look(self) -> None:
        controller, now = self.controller, self.clock()
        self.tick()
        if self._waiting:
            self._look_for_buffers(now)
        if self._checkpoints.turn():
            controller.written()
        if self._evaluations.turn():
            controller.evaluated(now, self._evaluations.verdict())
        self._callbacks.call()
        if controller.stopped_by is None and (wish := self._callbacks.run.stopped_by) is not None:
            controller.stop(now, wish)

    # Evaluation

    def _buffers(self) -> Tensor:
        """The module's buffers: of the replicas that have worked and not died, where what they hold is finite."""
        slots = range(self.prepared.replicas)
        worked = [replica for replica in slots if replica in self._worked or self.table.read(replica).examples]
        rows = self.table.buffers[worked]
        rows = rows[torch.isfinite(rows).all(1)]
        return self.flat.mean_buffers(rows if len(rows) else self.table.buffers[:1])

    def _fetch(self) -> Tensor:
        """Copy the server's parameters into the controller's module; returns the buffers that belong to them."""
        self.shards.fetch(self.flat.vector)
        return self._buffers()

    def _model(self) -> nn.Module:
        """A module of its own, with what the server holds now."""
        prepared = self.prepared
        module = prepared.task.build(prepared.seed)
        put_(module, tensors_of(self.flat.module))
        flat = FlatModule(module, prepared.layout, prepared.mutable_buffers)
        self.shards.fetch(flat.vector)
        flat.refresh()
        flat.load_buffers_(self._buffers())
        return module.eval()

    # Checkpoints

    @functools.cached_property
    def captures(self) -> list[Capture]:
        """The commands that copy each shard into the image of the next checkpoint."""
        return self.shards.captures(self._image.tensors)

    def capturing(self) -> None:
        """A checkpoint begins: the image is about to change."""
        self._checkpoints.capturing()

    def _draft(self, checkpoint: WriteCheckpoint) -> Draft:
        """The checkpoint as of this instant, but for the buffers that training changes."""
        self._checkpoints.captured()
        snapshots = [snapshot for snapshot in checkpoint.snapshots if isinstance(snapshot, Snapshot)]
        state = self.prepared.state(
            term=self.controller.term,
            method=checkpoint.state,
            incarnations=[slot.incarnation for slot in self.controller.slots],
            totals=self._totals(),
            updates=max(map(updates_of, snapshots)),
            examples=max(map(examples_of, snapshots)),
            history=self._evaluations.history,
        )
        return Draft(checkpoint.total.total, self._image, state)

    def _write(self, draft: Draft) -> None:
        for name, buffer in self.flat.named_buffers(self._buffers()).items():
            held = self._image.tensors
            held[key(BUFFERS if key(BUFFERS, name) in held else FROZEN, name)].copy_(buffer)
        self._checkpoints.begin(draft)

    def _write_last(self) -> None:
        """Write what the run has come to, with no replica left."""
        self._checkpoints.finish()
        self.capturing()
        allocator = self.controller.allocator
        last = WriteCheckpoint(self.shards.execute_each(self.captures), allocator.total, allocator.state())
        self._write(self._draft(last))
        self._checkpoints.finish()

    def _write_average(self) -> None:
        """Write the average as a model, with no replica left."""
        self._evaluations.load_average()
        self.files.write_model(self.flat.module, self.files.average)
        self._evaluations.load_last()

    # What is seen

    @property
    def seconds(self) -> float:
        """Over the run's life."""
        return self.controller.watch.seconds(self.clock())

    @property
    def _updates(self) -> int:
        return self._past.updates + self.shards.updates

    @property
    def examples(self) -> int:
        """Used over the run's life, by what replicas have told on the table."""
        return self._resumed_at + int(self._sums.examples)

    @property
    def _sums(self) -> Progress:
        """The table's rows of all replicas, the dead ones' included, added up."""
        return total((self._retired, *map(self.table.read, range(self.prepared.replicas))))

    def _totals(self) -> Totals:
        past, sums = self._past, self._sums
        staleness = self.shards.staleness.sum(0)
        staleness[: len(past.staleness)] += torch.tensor(past.staleness, dtype=torch.int64)
        return Totals(
            self._updates,
            self.controller.watch.worked,
            past.restarts + sum(max(0, slot.starts - 1) for slot in self.controller.slots),
            past.rejected + int(sums.rejected),
            trimmed(staleness),
            max(past.stalest, self.shards.stalest),
            past.fetched_bytes + int(sums.fetched_bytes),
            past.pushed_bytes + int(sums.pushed_bytes),
        )

    def _stamp(self) -> dict[str, Any]:
        return {
            "epoch": round(self.examples / self.controller.allocator.examples, 3),
            "examples": self.examples,
            "updates": self._updates,
            "seconds": round(self.seconds, 3),
        }

    def tell(self, event: str, **content: Any) -> None:
        """Something happened: for the log, the eye and the callbacks."""
        told = {"seconds": round(self.seconds, 3), **content}
        self.observer.event(event, **told)
        self._callbacks.add({"event": event, **told})

    def show(self, progress_s: float) -> None:
        """Let it be seen how the run stands, and tell of its progress once in so many seconds."""
        now = self.clock()
        for replica in range(self.prepared.replicas):
            self._speeds.update(now, replica, self.table.read(replica))
        status = self._status()
        self.observer.status(status)
        if now >= self._next_progress and self.controller.watch.began is not None:
            self._next_progress = now + progress_s
            self.tell(
                "progress",
                examples=status.examples,
                updates=status.updates,
                loss=status.loss,
                learning_rate=status.learning_rate,
                gradient_norm=status.gradient_norm,
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
        until, examples, now = self.prepared.until, self.examples, self.clock()
        fractions = [
            self.seconds / until.seconds if until.seconds else 0.0,
            examples / until.examples if until.examples else 0.0,
            examples / (until.epochs * self.controller.allocator.examples) if until.epochs else 0.0,
        ]
        replicas = tuple(
            ReplicaStatus(
                slot.replica,
                self._shown(slot, now),
                self._speeds.examples_per_second(slot.replica),
                int(self.table.read(slot.replica).staleness),
                max(0, slot.starts - 1),
            )
            for slot in self.controller.slots
        )
        return Status(
            self.seconds,
            examples,
            self._updates,
            examples / self.controller.allocator.examples,
            self._speeds.loss(),
            sum(replica.examples_per_second for replica in replicas),
            min(1.0, max(fractions)),
            replicas,
            self.shards.learning_rate,
            self._speeds.gradient_norm(),
        )

    def _shown(self, slot: ReplicaSlot, now: float) -> str:
        if slot.leaving and slot.alive:
            return "leaving"
        if slot.state in ("ready", "working") and self.controller.waits(slot.replica):
            return "waiting"
        return "silent" if slot.silent(now) else slot.state

    def result(self) -> Result:
        """Evaluate what was reached unless somebody is in a hurry, check every account, and write it all down."""
        controller, allocator = self.controller, self.controller.allocator
        account, totals = allocator.total, self._totals()
        used, limit = account.used + account.partial, self.prepared.until.examples
        stopped_by = controller.stopped_by or ("examples" if limit is not None and account.total >= limit else "epochs")
        stamp = {"epoch": round(used / allocator.examples, 3), "examples": used}
        stamp |= {"updates": totals.updates, "seconds": round(totals.seconds, 3)}
        if controller.error is None and not self.shards.finite:
            controller.error = Diverged("parameters have overflowed: lower lr, or set clip_norm")
        left_out = controller.due.left_out(self.clock())
        wanted = controller.error is None and not self._errors and not self.received
        with self._kept():
            if wanted and self.prepared.sets:
                self.tell("evaluating", seconds=stamp["seconds"])
            self._evaluations.finish(stamp if wanted else None, impatient=lambda: bool(self.received))
        with self._kept():
            self._write_last()
        if isinstance(controller.error, Diverged):
            with self._kept():
                note = divergence.set_aside(self.prepared, self.files.checkpoints)
                controller.error.add_note(self.files.told(note))
        if self.prepared.method.average is not None:
            with self._kept():
                self._write_average()
        with self._kept():
            loss = self._speeds.loss()
            shown = {"refused": account.refused, "train_loss": loss, "evaluations_left_out": left_out}
            self.tell("stopped", **stamp, stopped_by=stopped_by, **shown)
        with self._kept(), self.received.interruptible():
            self._callbacks.call()
        with self._kept():
            self._check()
        summary = summary_of(
            self.prepared,
            account,
            totals,
            self._evaluations.history,
            list(self.shards.staleness),
            stopped_by=stopped_by,
            train_loss=self._speeds.loss(),
            setup_seconds=round((controller.watch.began or self._born) - self._born, 3),
            evaluation_seconds=round(self._evaluations.seconds, 3),
            evaluations_left_out=left_out,
        )
        return Result(summary, next((error for error in (controller.error, *self._errors) if error), None))

    def _check(self) -> None:
        allocator = self.controller.allocator
        allocator.check()
        self.shards.check()
        if not allocator.finished:
            raise InvariantViolated("the run ended with leases outstanding")
