"""The local driver: carries messages, time and deaths of processes to the controller, and its actions to them."""

import select
import selectors
import sys
import time
from collections.abc import Sequence
from typing import Any, final

import torch

from distbelief.downpour.lease_server import LeaseReply
from distbelief.engines.actions import Acknowledge
from distbelief.engines.carrier import Carrier
from distbelief.engines.local.channel import Channel
from distbelief.engines.local.job import Job
from distbelief.engines.local.mapped_shards import MappedShards
from distbelief.engines.local.worker_process import WorkerProcess, Workers
from distbelief.engines.memory import available, require
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.run_record import flat_at_start
from distbelief.engines.shard_set import memory_needed, shard_specs
from distbelief.engines.shipping import pack
from distbelief.engines.signals import Requests
from distbelief.engines.supervision import Ending, Failure
from distbelief.errors import DistBeliefError, TaskError, WorkerDied
from distbelief.links.mapped import SharedMemory
from distbelief.observe.events import how_ended
from distbelief.ports import Command, Outcome, Verdict
from distbelief.run.prepare import Prepared
from distbelief.run.result import Result
from distbelief.task.settings import Settings

_TICK_S = 0.1
_PROGRESS_S = 1.0
_STOPPED_S = 2.0
"""How long a stopped process may hold a shard's lock."""


@final
class LocalDriver(Carrier):
    """One run on this machine. It owns the processes that it takes from `workers`."""

    def __init__(
        self, prepared: Prepared, *, devices: tuple[str, ...], threads: int, workers: Workers, **shared: Any
    ) -> None:
        require(memory_needed(prepared, models_here=devices == ("cpu",)), available())
        self._workers = workers
        self._devices = devices
        flat = flat_at_start(prepared, torch.device(devices[0]))
        count, buffers = prepared.replicas, len(flat.buffers())
        # First, since it may be refused: nothing has to be given back by then.
        self._job = pack(Job.of(prepared, shard_specs(prepared), devices, threads, buffers))
        # By itself, since it is to be in force when the task is unpacked.
        self._settings = pack(Settings.of_this_process())
        try:
            self._try_job(shared["received"])
        except BaseException:
            self._job.close()
            self._settings.close()
            raise
        self._mapped = MappedShards(prepared, self._watch_holder)
        self._table_memory = SharedMemory.create(ProgressTable.nbytes(count, buffers), "progress")
        table = ProgressTable(self._table_memory.bytes, count, buffers)
        super().__init__(prepared, flat, self._mapped.shards, table, clock=time.monotonic, beside=True, **shared)
        self._processes: dict[int, WorkerProcess] = {}
        """The process of each replica that has one."""
        self._selector = selectors.DefaultSelector()
        self._stopped_since: dict[int, float] = {}
        self._next_look = 0.0

    def _try_job(self, received: Requests) -> None:
        """Have a process receive the task before anything is begun. Raises `TaskError` where it cannot."""
        process, message = self._workers.take(), None
        process.channel.send("try", path=list(map(str, sys.path)), fds=(self._settings.fd, self._job.fd))
        try:
            # If it dies of it, the others will, and that is told.
            while message is None and not process.ended:
                if received:
                    raise KeyboardInterrupt
                select.select([process.channel.fileno(), process.pidfd], [], [], _TICK_S)
                message = next(process.channel.pending(), None)
        finally:
            if process.ended:
                process.reap()
            else:
                self._workers.give_back(process)
        if message is not None and message["error"] is not None:
            told = f"{message['error']}\n\n{message['frames']}".strip()
            raise TaskError(
                "the task cannot be received by other processes, which have nothing that is only in this one: define "
                f"what is named here in a file that can be imported, or inside the function that uses it: {told}"
            )

    def run(self) -> Result:
        """Train to the end. A request that is received ends the run early with what there is, a second one at once."""
        try:
            with self.record.received.interruptible():
                self._train()
        # Whatever it is: what was reached is written first, and then it goes on.
        except BaseException as error:  # noqa: BLE001
            self.abandon(error)
        return self.record.result()

    def _train(self) -> None:
        self.record.begin("local", self._devices)
        self._controller.begin(time.monotonic())
        self._carry()
        while not self._controller.over:
            self._listen()
            self._attend()
            self._carry()

    def close(self) -> None:
        """End every process, and give all memory back."""
        self._end_processes()
        self.record.close()
        self._selector.close()
        self._mapped.close()
        self._table_memory.close()
        self._job.close()
        self._settings.close()

    # To the controller

    def _listen(self) -> None:
        """Hear what replicas have to say, and which of them have ended."""
        ready = self._selector.select(_TICK_S)
        for process in {key.data.pid: key.data for key, _ in ready}.values():
            # The end is seen by the process, not by its socket, which children that it has forked hold open too.
            ended = process.ended
            for message in process.channel.pending():
                self._hear(process, message)
                # At once: the replica that has sent it waits.
                self._carry()
            if ended:
                self._reap(process)
            elif process.channel.over:
                self._forget(process.channel)
                self._controller.closing(time.monotonic(), *process.who)

    def _hear(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        controller, now = self._controller, time.monotonic()
        match message["kind"]:
            case "lease":
                controller.requested(now, *process.who, message["number"])
            case "done":
                outcomes = [Outcome(a, b, Verdict(v)) for a, b, v in message["outcomes"]]
                controller.accounted(now, *process.who, message["number"], message["lease"], outcomes)
            case "leaving":
                controller.leaving(now, *process.who)
            case _:
                failure = Failure(message["error"], message["frames"], message["kind_of"])
                controller.failed(now, *process.who, failure)

    def _reap(self, process: WorkerProcess) -> None:
        self._forget(process.channel)
        self._forget(process.pidfd)
        status, batch = process.reap(), self._table.batch(process.who[0])
        del self._processes[process.who[0]]
        how = f"{'ended with' if status >= 0 else 'was ended by'} {how_ended(status)}"
        self._controller.ended(time.monotonic(), *process.who, Ending(status, how, batch=batch))

    def _forget(self, end: Channel | int) -> None:
        if end in self._selector.get_map():
            self._selector.unregister(end)

    def _attend(self) -> None:
        self.record.attend()
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + _TICK_S
            self._watch_locks()
            self.record.show(_PROGRESS_S)

    # From the controller

    def _answer(self, reply: LeaseReply | Acknowledge) -> None:
        if (process := self._process(reply.replica, reply.incarnation)) is not None:
            if isinstance(reply, LeaseReply):
                process.channel.send("lease", number=reply.number, lease=reply.lease)
            else:
                process.channel.send("done", number=reply.number)

    def _execute(self, number: int, commands: Sequence[Command]) -> None:
        # This process maps the shards, so that it is done at once.
        answers = self.record.shards.execute_each(commands)
        self._controller.executed(time.monotonic(), number, answers)

    def _start(self, replica: int, incarnation: int) -> None:
        try:
            process = self._workers.take()
        except OSError as error:
            self._controller.gone(time.monotonic(), replica)
            failure: DistBeliefError = WorkerDied(f"no process could be started for replica #{replica}: {error}")
            failure.__cause__ = error
            self._controller.fail(time.monotonic(), failure)
            return
        process.who = replica, incarnation
        self._processes[replica] = process
        self._selector.register(process.channel, selectors.EVENT_READ, process)
        self._selector.register(process.pidfd, selectors.EVENT_READ, process)
        fds = self._settings.fd, self._job.fd, self._mapped.memory.fd, self._table_memory.fd
        process.channel.send("job", replica=replica, incarnation=incarnation, path=list(map(str, sys.path)), fds=fds)
        self.record.started(replica, incarnation, process.pid)

    def _process(self, replica: int, incarnation: int) -> WorkerProcess | None:
        process = self._processes.get(replica)
        return process if process is not None and process.who == (replica, incarnation) else None

    def _kill(self, replica: int, incarnation: int) -> None:
        if (process := self._process(replica, incarnation)) is not None:
            process.kill()

    def _end_processes(self) -> None:
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.reap()

    def _suspect(self, replica: int, incarnation: int) -> None:
        if (process := self._process(replica, incarnation)) is not None and process.stopped:
            process.kill()

    # Locks

    def _watch_locks(self) -> None:
        """Kill a process that is stopped while it holds a shard's lock, since no other can push past it."""
        holders = self._mapped.holders
        for pid in set(self._stopped_since) - holders:
            del self._stopped_since[pid]
        for pid in holders:
            self._watch_holder(pid)

    def _watch_holder(self, pid: int) -> None:
        process = next((process for process in self._processes.values() if process.pid == pid), None)
        if process is None or not process.stopped:
            self._stopped_since.pop(pid, None)
        elif time.monotonic() - self._stopped_since.setdefault(pid, time.monotonic()) > _STOPPED_S:
            process.kill()
