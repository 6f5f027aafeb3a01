"""The controller: hands out the data, watches and replaces replicas, evaluates, and ends the run."""

import selectors
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, final

import torch

from distbelief.downpour.ledger import Reason
from distbelief.engines.board import Board
from distbelief.engines.books import Books, flat_at_start
from distbelief.engines.callbacks import Callback
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.job import Job
from distbelief.engines.local.process import WorkerProcess, Workers
from distbelief.engines.local.server import MappedShards, memory_needed
from distbelief.engines.memory import available, require
from distbelief.engines.result import Result
from distbelief.engines.server import Server, shard_specs
from distbelief.engines.shipping import pack
from distbelief.engines.supervision import Failure, Supervisor
from distbelief.errors import DistBeliefError, Diverged, UserCodeError, WorkerDied
from distbelief.links.mapped import SharedMemory
from distbelief.observe.events import Observer
from distbelief.ports import Outcome, Verdict
from distbelief.run.directory import RunDirectory
from distbelief.run.prepare import Prepared
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
        self._workers = workers
        self._devices = devices
        flat = flat_at_start(prepared, torch.device(devices[0]))
        count, buffers = prepared.replicas, len(flat.buffers())
        # First, since it may be refused: nothing has to be given back by then.
        self._job = pack(_job(prepared, shard_specs(prepared), devices, threads, overlap, buffers))
        self._mapped = MappedShards(prepared, self._waiting_for)
        self._board_memory = SharedMemory.create(Board.nbytes(count, buffers), "board")
        self._board = Board(self._board_memory.bytes, count, buffers)
        self._seats = [Seat(replica) for replica in range(count)]
        self._selector = selectors.DefaultSelector()
        self.books = Books(
            prepared,
            self._seats,
            flat=flat,
            server=Server(prepared, flat.vector, self._mapped.shards),
            board=self._board,
            observer=observer,
            files=files,
            callbacks=callbacks,
            clock=time.monotonic,
            hear=self._hear_all,
            outcomes_of=self._outcomes_of,
            beside=True,
        )
        self._ledger = self.books.ledger
        self._supervisor = Supervisor()
        self._stopped_by: str | None = None
        self._error: DistBeliefError | None = None
        self._kill_at = float("inf")
        self._received = received
        self._requests = 0
        self._stopped_since: dict[int, float] = {}
        self._heard: dict[int, list[Outcome]] = {}
        """The accounts of leases that have come in this turn."""
        self._next_look = 0.0

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
        hurried = self._requests > 0
        return self.books.result(
            self._stopped_by, self._error, hurried=hurried, impatient=lambda: len(self._received) > 0
        )

    def close(self) -> None:
        """End every process, and give all memory back."""
        for seat in self._seats:
            if seat.process:
                seat.process.kill()
                seat.process.reap()
        self.books.close()
        self._selector.close()
        self._mapped.close()
        self._board_memory.close()
        self._job.close()

    def _start(self) -> None:
        self.books.begin("local", self._devices)
        for seat in self._seats:
            self._fill(seat)

    def _turn(self, timeout: float) -> None:
        """Wait a moment for messages, answer them, and look after everything that has a time."""
        self._heard.clear()
        self._listen(timeout)
        self._answer_waiting()
        now = time.monotonic()
        for seat in self._seats:
            if seat.process and now >= min(self._kill_at, seat.kill_at):
                seat.process.kill()
        if self._ledger.finished:
            self._dismiss_latecomers()
        elif self._stopped_by is None and (why := self.books.turn()) is not None:
            self._stop(why, grace_s=_GRACE_S)
        self.books.callbacks.call()
        if self._stopped_by is None and (wish := self.books.callbacks.run.stopped_by) is not None:
            self._stop(wish, grace_s=_GRACE_S)
        if now >= self._next_look:
            self._next_look = now + _TICK_S
            self._watch_locks()
            self.books.show(_PROGRESS_S)

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
            fds=(self._job.fd, self._mapped.memory.fd, self._board_memory.fd),
        )
        self.books.tell("replica", replica=seat.replica, incarnation=seat.incarnation, pid=process.pid)

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
            self.books.done(message["lease"], outcomes)
            self._heard[message["lease"]] = outcomes
            if seat.state == "done":
                seat.leave_by(_LEAVE_S)
            self._supervisor.worked()
        else:
            seat.leave_by(_LEAVE_S)
            seat.failure = Failure(message["error"], message["frames"], message["kind_of"])

    def _answer_waiting(self) -> None:
        """Answer all requests for work that can be answered now."""
        asking = [seat for seat in self._seats if seat.waiting and seat.process]
        for seat in asking:
            self._ledger.ask(seat.replica)
        grants = [(seat, self._ledger.lease(seat.replica)) for seat in asking]
        # Before any of them can push: a round counts the holders of leases.
        self.books.count_living()
        for seat, (lease, reason) in grants:
            if lease is None and reason is not Reason.FINISHED:
                seat.state = "waiting"
                continue
            if lease is not None:
                self.books.leased()
            seat.waiting = False
            seat.state = "working" if lease else "done"
            if lease is None and seat.replica not in self._ledger.holders:
                seat.leave_by(_LEAVE_S)
            if seat.process:
                seat.process.channel.send("lease", lease=lease)

    def _ended_process(self, seat: Seat) -> None:
        process = seat.process
        assert process is not None
        self._forget(process.channel)
        self._forget(process.pidfd)
        status = process.reap()
        seat.process = None
        row = self.books.left(seat)
        if seat.state == "done" and seat.replica not in self._ledger.holders:
            seat.worked = bool(row.examples)
            return
        seat.state = "dead"
        self.books.died(seat, status=status, error=seat.failure.error if seat.failure else None)
        if self._stopped_by is None and not self._ledger.finished:
            self._supervisor.died(status, seat.failure)
            self._fill(seat)

    def _watch_locks(self) -> None:
        """Kill a process that is stopped while it holds a shard's lock, since nobody can push past it."""
        holders = self._mapped.holders
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

    def _hear_all(self) -> None:
        while self._listen(0):
            pass

    def _outcomes_of(self, lease: int) -> list[Outcome]:
        """What became of a lease whose account the replica has sent."""
        while lease not in self._heard:
            self._listen(_TICK_S)
        return self._heard[lease]
