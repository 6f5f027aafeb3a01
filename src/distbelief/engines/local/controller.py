"""The controller: hands out the data, watches and replaces replicas, evaluates, and ends the run."""

import selectors
import sys
import time
from typing import Any, final

import torch
from torch import Tensor

from distbelief.downpour.ledger import Ledger, Reason, last_push
from distbelief.engines.evaluating import Evaluations
from distbelief.engines.local.board import Board, Row
from distbelief.engines.local.job import Job
from distbelief.engines.local.process import WorkerProcess, Workers
from distbelief.engines.local.shipping import pack
from distbelief.engines.local.speeds import Speeds
from distbelief.engines.local.supervision import Failure, Supervisor
from distbelief.engines.result import Result
from distbelief.errors import DistBeliefError, Diverged, InvariantViolated, UserCodeError, WorkerDied
from distbelief.gradients import FlatModule
from distbelief.links.mapped import SharedMemory, map_locks, map_shards, shards_bytes
from distbelief.observe.events import Observer, ReplicaStatus, Status
from distbelief.ports import Outcome, Verdict
from distbelief.prepare import Prepared
from distbelief.server.shard import ShardSpec

_TICK_S = 0.1
_PROGRESS_S = 1.0
_GRACE_S = 30.0
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


@final
class Controller:
    """One run on this machine. It owns the processes that it takes from `workers`."""

    def __init__(self, prepared: Prepared, *, threads: int, overlap: int, observer: Observer, workers: Workers) -> None:
        self._prepared = prepared
        self._observer = observer
        self._workers = workers
        method, layout = prepared.method, prepared.layout
        self._flat = FlatModule(prepared.module, layout)
        count, buffers = prepared.replicas, self._flat.buffers()
        specs = [
            ShardSpec(high - low, layout.dtype, method.optimizer, method.admission, count)
            for low, high in zip(layout.borders, layout.borders[1:], strict=False)
        ]
        self._memory = SharedMemory.create(shards_bytes(specs), "shards")
        self._locks = map_locks(self._memory, len(specs), self._waiting_for)
        self._shards = map_shards(self._memory, specs, self._locks)
        for number, shard in enumerate(self._shards):
            shard.initialise_(layout.part(self._flat.vector, number))
        self._board = Board(SharedMemory.create(Board.nbytes(count, len(buffers)), "board"), count, len(buffers))
        self._board.buffers.copy_(buffers.expand(count, -1))
        task = prepared.task.without_data()
        self._job = pack(
            Job(
                task, prepared.rows, prepared.batch_size, prepared.workers, method, layout, specs,
                prepared.seed, threads, overlap, count, len(buffers),
            )
        )  # fmt: skip
        until = prepared.until
        self._ledger = Ledger(
            examples=len(prepared.rows),
            batch_size=prepared.batch_size,
            replicas=count,
            epochs=until.epochs,
            limit=until.examples,
            warmstart=method.warmstart,
            quorum=count if method.admission.round > 1 else 1,
        )
        self._seats = [Seat(replica) for replica in range(count)]
        self._selector = selectors.DefaultSelector()
        self._evaluations = Evaluations(
            prepared, self._flat, fetch=self._fetch, tell=lambda row: self._tell("evaluation", **row)
        )
        self._speeds = Speeds(count)
        self._supervisor = Supervisor()
        self._retired = Row()
        self._partial = [0] * len(specs)
        self._began: float | None = None
        self._ended = 0.0
        self._stopped_by: str | None = None
        self._error: DistBeliefError | None = None
        self._kill_at = float("inf")
        self._stopped_since: dict[int, float] = {}
        self._living = 0
        self._next_progress = self._next_look = 0.0

    # The loop

    def run(self) -> Result:
        """Train to the end. Ctrl-C ends the run early with what there is, a second one at once."""
        try:
            self._start()
            while any(seat.process for seat in self._seats):
                try:
                    self._turn(_TICK_S)
                except KeyboardInterrupt:
                    self._stop("interrupted", grace_s=0.0 if self._stopped_by == "interrupted" else 10.0)
                except (Diverged, UserCodeError, WorkerDied) as error:
                    self._error = error
                    self._stop("failure", grace_s=0.0)
            return self._result()
        finally:
            for seat in self._seats:
                if seat.process:
                    seat.process.kill()
                    seat.process.reap()
            self._evaluations.close()
            self._selector.close()
            for memory in (self._memory, self._board.memory, self._job):
                memory.close()

    def _start(self) -> None:
        prepared, until = self._prepared, self._prepared.until
        self._tell(
            "started",
            replicas=prepared.replicas,
            shards=prepared.layout.shards,
            parameters=prepared.layout.parameters,
            batch_size=prepared.batch_size,
            examples_per_epoch=len(prepared.rows),
            epochs=until.epochs,
            examples=until.examples,
            seconds_limit=until.seconds,
            seed=prepared.seed,
        )
        for seat in self._seats:
            self._fill(seat)

    def _turn(self, timeout: float) -> None:
        """Wait a moment for messages, answer them, and look after everything that has a time."""
        for key, _ in self._selector.select(timeout):
            self._listen(key.data)
        self._answer_waiting()
        now = time.monotonic()
        seconds = self._prepared.until.seconds
        if self._stopped_by is None and self._began is not None and seconds and now >= self._began + seconds:
            self._stop("seconds", grace_s=_GRACE_S)
        if now >= self._kill_at:
            for seat in self._seats:
                if seat.process:
                    seat.process.kill()
        if self._ledger.finished:
            self._dismiss_latecomers()
        if self._stopped_by is None and not self._ledger.finished:
            self._evaluations.turn(self._stamp(), self._ledger.epochs_ended)
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
        process = self._workers.take()
        seat.process, seat.state, seat.failure, seat.waiting = process, "starting", None, False
        seat.incarnation += 1
        self._selector.register(process.channel, selectors.EVENT_READ, seat)
        process.channel.send(
            "job",
            replica=seat.replica,
            incarnation=seat.incarnation,
            path=sys.path,
            fds=(self._job.fd, self._memory.fd, self._board.memory.fd),
        )
        self._tell("replica", replica=seat.replica, incarnation=seat.incarnation, pid=process.pid)

    def _listen(self, seat: Seat) -> None:
        assert seat.process is not None
        message = seat.process.channel.receive()
        if message is None:
            self._ended_process(seat)
        elif message["kind"] == "lease":
            seat.waiting = True
            seat.state = "working" if seat.state != "starting" else "ready"
        elif message["kind"] == "done":
            self._ledger.done(message["lease"], [Outcome(a, b, Verdict(v)) for a, b, v in message["outcomes"]])
            self._ended = time.monotonic()
            self._supervisor.worked()
        else:
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
            if seat.process:
                seat.process.channel.send("lease", lease=lease)

    def _count_living(self) -> None:
        """Tell the shards how many replicas hold leases, if that has changed."""
        living = 0 if self._ledger.stopped else len(self._ledger.holders)
        if living != self._living:
            self._living = living
            for shard in self._shards:
                shard.set_living(living)

    def _ended_process(self, seat: Seat) -> None:
        process = seat.process
        assert process is not None
        self._selector.unregister(process.channel)
        status = process.reap()
        seat.process = None
        row = self._board.read(seat.replica)
        self._retired = Row(*(a + b for a, b in zip(self._retired, row, strict=True)))
        self._board.write(seat.replica, Row())
        self._speeds.restart(seat.replica)
        if seat.state == "done" and seat.replica not in self._ledger.holders:
            return
        standings = [shard.standing(seat.replica, seat.incarnation) for shard in self._shards]
        last = last_push(standings)
        if last is not None and last.partial:
            for number, standing in enumerate(standings):
                begun = standing is not None and standing.sequence == last.standing.sequence
                self._partial[number] += begun and standing.verdict.used  # type: ignore[union-attr]
        account = self._ledger.died(seat.replica, last)
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
        holders = {pid for lock in self._locks if (pid := lock.holder()) is not None}
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
        """The module's buffers, from the living replicas; from all seats where none lives."""
        living = [seat.replica for seat in self._seats if seat.process] or list(range(len(self._seats)))
        return self._flat.mean_buffers(self._board.buffers[living])

    def _fetch(self) -> Tensor:
        """Copy the server's parameters into the controller's module; returns the buffers that belong to them."""
        for number, shard in enumerate(self._shards):
            shard.fetch(self._prepared.layout.part(self._flat.vector, number))
        return self._buffers()

    # What is seen

    @property
    def _seconds(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    @property
    def _updates(self) -> int:
        return min(shard.pushes - partial for shard, partial in zip(self._shards, self._partial, strict=True))

    @property
    def _examples(self) -> int:
        return int(self._retired.examples + sum(self._board.read(seat.replica).examples for seat in self._seats))

    def _stamp(self) -> dict[str, Any]:
        return {
            "epoch": round(self._examples / self._ledger.examples, 3),
            "examples": self._examples,
            "updates": self._updates,
            "seconds": round(self._seconds, 3),
        }

    def _tell(self, event: str, **content: Any) -> None:
        self._observer.event(event, **{"seconds": round(self._seconds, 3), **content})

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
        """Evaluate what was reached, check every account, and add it all up."""
        seconds = self._ended - self._began if self._began is not None else 0.0
        account = self._ledger.total
        used = account.used + account.partial
        stopped_by = self._stopped_by or ("examples" if self._limit_reached else "epochs")
        stamp = {**self._stamp(), "epoch": round(used / self._ledger.examples, 3), "examples": used}
        self._evaluations.finish(None if self._error else {**stamp, "seconds": round(seconds, 3)})
        self._tell("stopped", stopped_by=stopped_by, examples=used, updates=self._updates)
        self._ledger.check()
        for shard in self._shards:
            shard.check()
        if not self._ledger.finished:
            raise InvariantViolated("the run ended with leases outstanding")
        return Result(
            account,
            self._updates,
            seconds,
            sum(seat.incarnation - 1 for seat in self._seats),
            int(self._retired.rejected),
            sum((shard.staleness for shard in self._shards), torch.zeros(1, dtype=torch.int64)),
            max(shard.stalest for shard in self._shards),
            int(self._retired.fetched_bytes),
            int(self._retired.pushed_bytes),
            stopped_by,
            self._speeds.loss(),
            self._evaluations.history,
            self._error,
        )

    @property
    def _limit_reached(self) -> bool:
        limit = self._prepared.until.examples
        return limit is not None and self._ledger.total.total >= limit
