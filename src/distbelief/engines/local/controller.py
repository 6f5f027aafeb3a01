"""The controller: hands out the data, watches and replaces replicas, evaluates, and ends the run."""

import copy
import functools
import selectors
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from distbelief.checkpoint import Draft, Image
from distbelief.directory import RunDirectory
from distbelief.downpour.ledger import Ledger, Reason, last_push
from distbelief.engines.callbacks import Callback, Callbacks, LiveRun
from distbelief.engines.checkpointing import Checkpoints
from distbelief.engines.evaluating import Evaluations
from distbelief.engines.local.board import Board, Row
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.job import Job
from distbelief.engines.local.memory import available, require
from distbelief.engines.local.process import WorkerProcess, Workers
from distbelief.engines.local.server import MappedServer, memory_needed, missing_state, shard_specs, state_like
from distbelief.engines.local.shipping import pack
from distbelief.engines.local.speeds import Speeds
from distbelief.engines.local.supervision import Failure, Supervisor
from distbelief.engines.result import Result, Totals
from distbelief.errors import DistBeliefError, Diverged, InvariantViolated, UserCodeError, WorkerDied
from distbelief.gradients import FlatModule, emulated
from distbelief.links.mapped import SharedMemory
from distbelief.observe.events import Observer, ReplicaStatus, Status
from distbelief.ports import Outcome, Verdict
from distbelief.prepare import Prepared
from distbelief.server.block import ShardSpec

_TICK_S = 0.1
_PROGRESS_S = 1.0
_GRACE_S = 30.0
"""How long replicas may take for the batch they are in, at the end of a run."""
_REQUESTED_GRACE_S = 5.0
"""The same where the run was asked to end: a machine that is taken away gives little time."""
_LEAVE_S = 5.0
"""How long a replica may take to end when it has nothing more to do: threads of the user's may never end."""
_STOPPED_S = 2.0
"""How long a stopped process may hold a shard's lock."""


class Seat:
    """The place of one replica, whichever process sits on it."""

    def __init__(self, replica: int) -> None:
        self.replica = replica
        self.incarnation = 0
        self.process: WorkerProcess | None = None
        self.state = "starting"
        self.waiting = False
        """Whether a request for work is unanswered."""
        self.failure: Failure | None = None
        self.kill_at = float("inf")
        """When to end its process, if it has not by then."""
        self.worked = False
        """Whether it came to its natural end and had worked until then."""

    def leave_by(self, seconds: float) -> None:
        """Give the process so much longer to end."""
        self.kill_at = min(self.kill_at, time.monotonic() + seconds)


def _job(
    prepared: Prepared, specs: list[ShardSpec], devices: tuple[str, ...], threads: int, overlap: int, buffers: int
) -> Job:
    return Job(
        task=prepared.task.without_data(),
        rows=prepared.rows,
        batch_size=prepared.batch_size,
        workers=prepared.workers,
        method=prepared.method,
        layout=prepared.layout,
        specs=specs,
        moving=prepared.moving,
        seed=prepared.seed,
        devices=devices,
        precision=prepared.precision,
        threads=threads,
        overlap=overlap,
        replicas=prepared.replicas,
        buffers=buffers,
    )


def _flat(prepared: Prepared, device: torch.device) -> FlatModule:
    """The model at its beginning, or as the run that is resumed left it."""
    flat = FlatModule(prepared.module, prepared.layout, prepared.moving, device)
    if prepared.resumed is not None:
        for name, view in prepared.layout.named(flat.vector).items():
            view.copy_(prepared.resumed.tensors[f"parameters/{name}"])
        flat.load_buffers_(prepared.resumed.tensors["buffers"])
    return flat


def _ledger(prepared: Prepared) -> Ledger:
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
        ledger.restore_(prepared.resumed.state["ledger"])
    return ledger


@final
class Controller:
    """One run on this machine. It owns the processes that it takes from `workers`."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        devices: tuple[str, ...],
        threads: int,
        overlap: int,
        observer: Observer,
        workers: Workers,
        files: RunDirectory,
        received: list[signal.Signals],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        require(memory_needed(prepared, models_here=devices == ("cpu",)), available())
        self._prepared = prepared
        self._observer = observer
        self._files = files
        self._workers = workers
        self._devices = devices
        resumed = prepared.resumed
        self._flat = _flat(prepared, torch.device(devices[0]))
        self._past = Totals() if resumed is None else Totals(**resumed.state["totals"])
        count, buffers = prepared.replicas, self._flat.buffers()
        # First, since it may be refused: nothing has to be given back by then.
        self._job = pack(_job(prepared, shard_specs(prepared), devices, threads, overlap, len(buffers)))
        self._server = MappedServer(prepared, self._flat.vector, self._waiting_for)
        self._board = Board(SharedMemory.create(Board.nbytes(count, len(buffers)), "board"), count, len(buffers))
        self._board.buffers.copy_(buffers.expand(count, -1))
        self._ledger = _ledger(prepared)
        self._seats = [Seat(replica) for replica in range(count)]
        self._selector = selectors.DefaultSelector()
        self._evaluations = Evaluations(prepared, self._flat, fetch=self._fetch, tell=self._tell_evaluation)
        like = state_like(prepared.layout, prepared.method.optimizer)
        self._image = Image({**like, "buffers": buffers})
        self._checkpoints = Checkpoints(
            files.write_checkpoint,
            prepared.checkpoint_every,
            capture=self._capture,
            tell=lambda content: self._tell("checkpoint", **content),
        )
        self._callbacks = Callbacks(callbacks, LiveRun(files.path, self._evaluations.history, self._model))
        self._speeds = Speeds(count)
        self._supervisor = Supervisor()
        self._retired = Row()
        self._resumed_at = self._ledger.total.total
        self._born = time.monotonic()
        self._began: float | None = None
        self._ended = 0.0
        self._stopped_by: str | None = None
        self._error: DistBeliefError | None = None
        self._kill_at = float("inf")
        self._received = received
        self._requests = 0
        self._stopped_since: dict[int, float] = {}
        self._heard: dict[int, list[Outcome]] = {}
        """The accounts of leases that have come in this turn."""
        self._living = 0
        self._next_progress = self._next_look = 0.0

    def tell_resumed(self, complaints: Sequence[str], earlier: Path | None) -> None:
        """Say what the run goes on from, or that it begins, and what of the earlier run is of no use to it."""
        resumed, rule = self._prepared.resumed, self._prepared.method.optimizer
        self._tell(
            "resumed",
            examples=None if resumed is None else resumed.examples,
            damaged=list(complaints),
            fresh_state=[] if resumed is None else missing_state(rule, resumed.tensors),
            other_data=resumed is not None and resumed.state["data"] != self._prepared.data,
            earlier=None if earlier is None else str(earlier),
        )

    # The loop

    def run(self) -> Result:
        """Train to the end. A request that is received ends the run early with what there is, a second one at once."""
        self._start()
        while any(seat.process for seat in self._seats):
            try:
                self._turn(_TICK_S)
            except (Diverged, UserCodeError, WorkerDied) as error:
                self._error = self._error or error
                self._stop("failure", grace_s=0.0)
            if len(self._received) > self._requests:
                self._requests = len(self._received)
                why = "interrupted" if self._received[0] == signal.SIGINT else "terminated"
                self._stop(why, grace_s=_REQUESTED_GRACE_S if self._requests == 1 else 0.0)
        return self._result()

    def close(self) -> None:
        """End every process, and give all memory back."""
        for seat in self._seats:
            if seat.process:
                seat.process.kill()
                seat.process.reap()
        self._evaluations.close()
        self._checkpoints.close()
        self._selector.close()
        self._server.close()
        self._board.memory.close()
        self._job.close()

    def _start(self) -> None:
        prepared, until = self._prepared, self._prepared.until
        self._tell(
            "started",
            replicas=prepared.replicas,
            devices=self._devices,
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
        for seat in self._seats:
            self._fill(seat)

    def _turn(self, timeout: float) -> None:
        """Wait a moment for messages, answer them, and look after everything that has a time."""
        self._heard.clear()
        self._listen(timeout)
        self._answer_waiting()
        now = time.monotonic()
        seconds = self._prepared.until.seconds
        if self._stopped_by is None and self._began is not None and seconds and self._seconds >= seconds:
            self._stop("seconds", grace_s=_GRACE_S)
        for seat in self._seats:
            if seat.process and now >= min(self._kill_at, seat.kill_at):
                seat.process.kill()
        if self._ledger.finished:
            self._dismiss_latecomers()
        if self._stopped_by is None and not self._ledger.finished:
            self._evaluations.turn(self._stamp(), self._ledger.epochs_ended)
            self._checkpoints.turn(self._examples, self._seconds)
            if (verdict := self._evaluations.verdict()) is not None:
                self._stop(verdict, grace_s=_GRACE_S)
        self._callbacks.call()
        if self._stopped_by is None and (wish := self._callbacks.run.stopped_by) is not None:
            self._stop(wish, grace_s=_GRACE_S)
        if now >= self._next_look:
            self._next_look = now + _TICK_S
            self._watch_locks()
            self._show(now)

    def _stop(self, why: str, grace_s: float) -> None:
        self._stopped_by = why
        self._kill_at = time.monotonic() + grace_s
        self._ledger.stop()
        self._board.stop()
        self._answer_waiting()

    def _dismiss_latecomers(self) -> None:
        """End replicas that are still starting when there is no more work: nobody is to wait for them."""
        for seat in self._seats:
            if seat.process and seat.state == "starting":
                seat.state = "done"
                seat.process.kill()

    # Replicas

    def _fill(self, seat: Seat) -> None:
        """Start a process on a seat."""
        try:
            process = self._workers.take()
        except OSError as error:
            raise WorkerDied(f"no process could be started for replica #{seat.replica}: {error}") from error
        seat.process, seat.state, seat.failure, seat.waiting = process, "starting", None, False
        seat.incarnation += 1
        seat.kill_at = float("inf")
        self._selector.register(process.channel, selectors.EVENT_READ, seat)
        self._selector.register(process.pidfd, selectors.EVENT_READ, seat)
        process.channel.send(
            "job",
            replica=seat.replica,
            incarnation=seat.incarnation,
            path=sys.path,
            fds=(self._job.fd, self._server.memory.fd, self._board.memory.fd),
        )
        self._tell("replica", replica=seat.replica, incarnation=seat.incarnation, pid=process.pid)

    def _listen(self, timeout: float) -> bool:
        """Hear what replicas have to say, and which of them have ended; False if it was nothing."""
        ready = self._selector.select(timeout)
        for seat in {key.data.replica: key.data for key, _ in ready}.values():
            # The end is seen by the process, not by its socket, which children that it has forked hold open too.
            ended = seat.process.ended
            for message in seat.process.channel.pending():
                self._hear(seat, message)
            if ended:
                self._ended_process(seat)
            elif seat.process.channel.over:
                self._forget(seat.process.channel)
                seat.leave_by(_LEAVE_S)
        return bool(ready)

    def _forget(self, end: Channel | int) -> None:
        if end in self._selector.get_map():
            self._selector.unregister(end)

    def _hear(self, seat: Seat, message: dict[str, Any]) -> None:
        if message["kind"] == "lease":
            seat.waiting = True
            seat.state = "working" if seat.state != "starting" else "ready"
        elif message["kind"] == "done":
            outcomes = [Outcome(a, b, Verdict(v)) for a, b, v in message["outcomes"]]
            self._ledger.done(message["lease"], outcomes)
            self._heard[message["lease"]] = outcomes
            if seat.state == "done":
                seat.leave_by(_LEAVE_S)
            self._ended = time.monotonic()
            self._supervisor.worked()
        else:
            seat.leave_by(_LEAVE_S)
            seat.failure = Failure(message["error"], message["frames"], message["kind_of"])

    def _answer_waiting(self) -> None:
        """Answer all requests for work that can be answered now."""
        grants = [(seat, self._ledger.lease(seat.replica)) for seat in self._seats if seat.waiting and seat.process]
        # Before any of them can push: a round counts the holders of leases.
        self._count_living()
        for seat, (lease, reason) in grants:
            if lease is None and reason is not Reason.FINISHED:
                seat.state = "waiting"
                continue
            if lease is not None and self._began is None:
                self._began = time.monotonic()
            seat.waiting = False
            seat.state = "working" if lease else "done"
            if lease is None and seat.replica not in self._ledger.holders:
                seat.leave_by(_LEAVE_S)
            if seat.process:
                seat.process.channel.send("lease", lease=lease)

    def _count_living(self) -> None:
        """Tell the shards how many replicas hold leases, if that has changed."""
        living = 0 if self._ledger.stopped else len(self._ledger.holders)
        if living != self._living:
            self._living = living
            self._server.set_living(living)

    def _ended_process(self, seat: Seat) -> None:
        process = seat.process
        assert process is not None
        self._forget(process.channel)
        self._forget(process.pidfd)
        status = process.reap()
        seat.process = None
        row = self._board.read(seat.replica)
        self._retired = self._retired.plus(row)
        self._board.write(seat.replica, Row())
        self._speeds.restart(seat.replica)
        if seat.state == "done" and seat.replica not in self._ledger.holders:
            seat.worked = bool(row.examples)
            return
        account = self._ledger.died(seat.replica, self._server.died(seat.replica, seat.incarnation))
        if account.total:
            self._ended = time.monotonic()
        seat.state = "dead"
        self._tell(
            "died",
            replica=seat.replica,
            incarnation=seat.incarnation,
            status=status,
            error=seat.failure.error if seat.failure else None,
            account=vars(account),
        )
        self._board.buffers[seat.replica] = self._buffers()
        if self._stopped_by is None and not self._ledger.finished:
            self._supervisor.died(status, seat.failure)
            self._fill(seat)

    def _watch_locks(self) -> None:
        """Kill a process that is stopped while it holds a shard's lock, since nobody can push past it."""
        holders = self._server.holders
        for pid in set(self._stopped_since) - holders:
            del self._stopped_since[pid]
        for pid in holders:
            self._waiting_for(pid)

    def _waiting_for(self, pid: int) -> None:
        seat = next((seat for seat in self._seats if seat.process and seat.process.pid == pid), None)
        if seat is None or seat.process is None or not seat.process.stopped:
            self._stopped_since.pop(pid, None)
        elif time.monotonic() - self._stopped_since.setdefault(pid, time.monotonic()) > _STOPPED_S:
            seat.process.kill()

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
        module.load_state_dict(self._flat.module.state_dict())
        flat = FlatModule(module, prepared.layout, prepared.moving)
        self._server.fetch(flat.vector)
        flat.refresh()
        flat.load_buffers_(self._buffers())
        return module.eval()

    def _tell_evaluation(self, row: dict[str, Any], best: bool) -> None:
        if best:
            self._files.write_model(self._flat.module, self._files.best)
        self._tell("evaluation", **row, best=best)

    # Checkpoints

    def _capture(self) -> Draft:
        """The run at this instant, as if every replica died now: nothing that a shard has is lost, or used again."""
        while self._listen(0):
            pass
        snapshots = self._server.copy_out(self._image.tensors)
        ledger = copy.deepcopy(self._ledger)
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
        self._image.tensors["buffers"].copy_(self._buffers())
        return Draft(
            ledger.total.total,
            self._image,
            {
                "seed": self._prepared.seed,
                "data": self._prepared.data,
                "ledger": ledger.state(),
                "totals": asdict(self._totals()),
                "version": max(snapshot.version for snapshot in snapshots),
                "examples": max(snapshot.examples for snapshot in snapshots),
                "history": list(self._evaluations.history),
            },
        )

    def _outcomes_of(self, lease: int) -> list[Outcome]:
        """What became of a lease whose account the replica has sent."""
        while lease not in self._heard:
            self._listen(_TICK_S)
        return self._heard[lease]

    # What is seen

    @property
    def _seconds(self) -> float:
        """Over the run's life."""
        return self._past.seconds + (0.0 if self._began is None else time.monotonic() - self._began)

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
        staleness = self._server.staleness
        staleness[: len(past.staleness)] += torch.tensor(past.staleness, dtype=torch.int64)
        return Totals(
            self._updates,
            past.seconds + (max(self._ended, self._began) - self._began if self._began is not None else 0.0),
            past.restarts + sum(max(0, seat.incarnation - 1) for seat in self._seats),
            past.rejected + int(sums.rejected),
            staleness[: int(staleness.nonzero().max()) + 1].tolist() if staleness.any() else [],
            max(past.stalest, self._server.stalest),
            past.fetched_bytes + int(sums.fetched_bytes),
            past.pushed_bytes + int(sums.pushed_bytes),
        )

    def _stamp(self) -> dict[str, Any]:
        return {
            "epoch": round(self._examples / self._ledger.examples, 3),
            "examples": self._examples,
            "updates": self._updates,
            "seconds": round(self._seconds, 3),
        }

    def _tell(self, event: str, **content: Any) -> None:
        told = {"seconds": round(self._seconds, 3), **content}
        self._observer.event(event, **told)
        self._callbacks.add({"event": event, **told})

    def _show(self, now: float) -> None:
        for seat in self._seats:
            self._speeds.update(now, seat.replica, self._board.read(seat.replica))
        status = self._status()
        self._observer.status(status)
        if now >= self._next_progress and self._began is not None:
            self._next_progress = now + _PROGRESS_S
            self._tell(
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
            self._seconds / until.seconds if until.seconds else 0.0,
            examples / until.examples if until.examples else 0.0,
            examples / (until.epochs * self._ledger.examples) if until.epochs else 0.0,
        ]
        replicas = tuple(
            ReplicaStatus(
                seat.replica,
                seat.state,
                self._speeds.examples_per_second(seat.replica),
                int(self._board.read(seat.replica).staleness),
                seat.incarnation - 1,
            )
            for seat in self._seats
        )
        return Status(
            self._seconds,
            examples,
            self._updates,
            examples / self._ledger.examples,
            self._speeds.loss(),
            sum(replica.examples_per_second for replica in replicas),
            min(1.0, max(fractions)),
            replicas,
        )

    def _result(self) -> Result:
        """Evaluate what was reached, check every account, and write it all down."""
        account, totals = self._ledger.total, self._totals()
        used = account.used + account.partial
        stopped_by = self._stopped_by or ("examples" if self._limit_reached else "epochs")
        stamp = {"epoch": round(used / self._ledger.examples, 3), "examples": used}
        stamp |= {"updates": totals.updates, "seconds": round(totals.seconds, 3)}
        if self._error is None and not self._server.finite:
            self._error = Diverged("parameters have overflowed: lower lr, or set clip_norm")
        wanted = self._error is None and self._requests == 0
        if wanted and self._prepared.sets:
            self._tell("evaluating", seconds=stamp["seconds"])
        try:
            self._evaluations.finish(stamp if wanted else None, impatient=lambda: len(self._received) > 0)
        except UserCodeError as error:
            self._error = self._error or error
        self._checkpoints.finish()
        self._tell("stopped", **stamp, stopped_by=stopped_by)
        try:
            self._callbacks.call()
        except UserCodeError as error:
            self._error = self._error or error
        self._ledger.check()
        self._server.check()
        if not self._ledger.finished:
            raise InvariantViolated("the run ended with leases outstanding")
        return Result(
            account,
            totals,
            stopped_by,
            self._speeds.loss(),
            (self._began or self._born) - self._born,
            self._evaluations.seconds,
            self._evaluations.history,
            self._error,
        )

    @property
    def _limit_reached(self) -> bool:
        limit = self._prepared.until.examples
        return limit is not None and self._ledger.total.total >= limit
