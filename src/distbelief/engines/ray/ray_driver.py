"""The Ray driver: carries what replicas say and which of them end to the controller, and its actions to them.

The controller is in the user's own process. Whatever takes time is a call, made beside it (`calls.py`).
"""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, final

import torch
from ray.exceptions import RayActorError

from distbelief.engines.actions import Action, Evaluate, RestoreShard
from distbelief.engines.calls import Calls
from distbelief.engines.live_driver import TICK_S, LiveDriver
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.ray import Ray
from distbelief.engines.ray.board import Board, MachineStatus
from distbelief.engines.ray.cluster import draining
from distbelief.engines.ray.machine import Row
from distbelief.engines.ray.machines import Known, Machines
from distbelief.engines.ray.seat import Seat
from distbelief.engines.run_record import flat_at_start
from distbelief.engines.shard_set import as_written, shard_specs
from distbelief.engines.shipping import pack
from distbelief.engines.supervision import Ending
from distbelief.engines.worker.job import Job, assignment, not_received, search_path
from distbelief.errors import DistBeliefError
from distbelief.links.wire import Keys
from distbelief.observe.events import how_ended
from distbelief.ports import Command, Restore
from distbelief.run.checkpoint import newest
from distbelief.run.prepare import Prepared
from distbelief.run.state import PARAMETERS
from distbelief.server.block import AVERAGE
from distbelief.task.settings import Settings

_ROOM_S = 2.0
"""A replica for which no machine has had room for so long is awaited."""
_NOTICES_S = 2.0
"""How often Ray is asked for machines that are about to be taken away."""
_NUMBERS_S = 0.25
"""How often the integers of the shards are copied."""
Who = tuple[int, int]
"""A replica and its incarnation."""


@final
class RayDriver(LiveDriver):
    """One run on a cluster, which this process has joined."""

    name = "ray"

    def __init__(self, prepared: Prepared, *, engine: Ray, **shared: Any) -> None:
        self._engine = engine
        self.devices = [engine.replica_device]
        with ExitStack() as undo:
            self._board = Board(shared.pop("observer"), str(shared["files"].path))
            undo.callback(self._board.close)
            self._calls = Calls()
            undo.callback(self._calls.close)
            flat = flat_at_start(prepared, torch.device("cpu"))
            self._first = flat.vector.clone()
            """The parameters as the run begins: a shard that is lost before the first checkpoint begins so again."""
            count, buffers = prepared.replicas, len(flat.buffers())
            table = ProgressTable(torch.zeros(ProgressTable.nbytes(count, buffers), dtype=torch.uint8), count, buffers)
            self._machines = self._send_out(prepared, table)
            undo.callback(lambda: self._calls.wait(self._machines.close()))
            self._shards = self._calls.wait(self._machines.hold(shard_specs(prepared), prepared.term))
            options = {"clock": time.monotonic, "beside": True, "observer": self._board}
            super().__init__(prepared, flat, self._shards, table, **options, **shared)
            undo.pop_all()
        self._lives: dict[Who, Future[Any]] = {}
        self._seats: dict[Who, Seat] = {}
        self._causes: dict[Who, str] = {}
        """Why replicas are killed, where it is not the run's end."""
        self._restoring: dict[int, Future[Any]] = {}
        self._at: dict[int, Known] = {}
        """The machine of each replica that is at work."""
        self._spares: deque[asyncio.Task[Seat]] = deque()
        """Of the loop of the calls."""
        self._tried: dict[str, asyncio.Task[None]] = {}
        self._board.follow(self._whereabouts)
        self._calls.start(self._copy_numbers())
        self._calls.start(self._pass_on_notices())

    def _send_out(self, prepared: Prepared, table: ProgressTable) -> Machines:
        specs = shard_specs(prepared)
        keys = Keys.generate() if self._engine.encrypted else None
        job = pack(Job.of(prepared, specs, tuple(self.devices), self._engine.cpus, table.buffers.shape[1]))
        try:
            settings = pack(Settings.of_this_process())
            try:
                return Machines(
                    self._calls, settings, job, table, keys=keys, lost=self._machine_lost, rows=self._keep_rows
                )
            finally:
                settings.close()
        finally:
            job.close()

    def close(self) -> None:
        """End every actor, and give all resources back."""
        self._end_processes()
        self.record.close()
        self._board.close()
        self._calls.close(self._close())

    async def _close(self) -> None:
        for spare in self._spares:
            if not spare.cancelled() and spare.exception() is None:
                spare.result().release()
        await self._machines.close()

    # To the controller

    def _listen(self) -> None:
        self._calls.turn(TICK_S)

    def _look(self) -> None:
        pass

    async def _live(self, who: Who) -> None:
        """A replica's life, from the wait for a machine to its end."""
        seat = None
        ending = Ending(-signal.SIGKILL, "was ended", cause="ended with the run")
        try:
            self._seats[who] = seat = await self._seat(who)
            machine = await self._machines.at(seat.place.node)
            await self._try(machine, seat)
            await self._begin(who, seat, machine)
            ending = await self._hear_out(who, seat, machine)
        except (RayActorError, TimeoutError) as error:
            how = "was out of reach" if isinstance(error, TimeoutError) else "died with its actor or its machine"
            ending = Ending(None, how, cause=how)
        except DistBeliefError as error:
            self._calls.post(partial(self._refuse, error))
        finally:
            if seat is not None:
                seat.release()
            self._calls.post(lambda: self._ended(who, ending))

    async def _begin(self, who: Who, seat: Seat, machine: Known) -> None:
        replica, machines = who[0], self._machines
        await machine.actor.retire.remote(replica, self._table.buffers[replica].numpy().copy())
        here = machines.shards_at(machine)
        elsewhere = [(shard, address) for shard, address in machines.servers.items() if shard not in here]
        await seat.begin(machine.socket, assignment(*who, here, elsewhere, machines.keys, self._engine.codec))
        self._calls.post(lambda: self._begun(who, seat, machine))

    async def _hear_out(self, who: Who, seat: Seat, machine: Known) -> Ending:
        """Pass on what a replica says until its process has ended; returns how that was."""
        while True:
            report = await seat.report()
            for message in report.messages:
                self._calls.post(partial(self._hear, who, message))
            if report.closing:
                self._calls.post(lambda: self._controller.closing(time.monotonic(), *who))
            if (status := report.status) is not None:
                # What it has done last is in the table of its machine.
                await self._machines.look(machine)
                how = f"{'ended with' if status >= 0 else 'was ended by'} {how_ended(status)} on {machine.name}"
                return Ending(status, how)

    async def _try(self, machine: Known, seat: Seat) -> None:
        """Have the first replica on a machine see whether the task can be received there."""

        async def attempt() -> None:
            try:
                answered = await seat.attempt(machine.socket, search_path())
            except RayActorError:
                # That says nothing of the task. This replica's life ends of it; the next on the machine tries again.
                self._tried.pop(machine.node, None)
                return
            if answered is not None and answered["error"] is not None:
                raise not_received(f"{machine.name}, another machine than this", answered)

        if machine.node not in self._tried:
            self._tried[machine.node] = asyncio.create_task(attempt())
        await asyncio.shield(self._tried[machine.node])

    def _refuse(self, error: DistBeliefError) -> None:
        self._controller.fail(time.monotonic(), error)
        self._carry()

    def _begun(self, who: Who, seat: Seat, machine: Known) -> None:
        self._at[who[0]] = machine
        self.record.started(*who, seat.place.pid)

    def _ended(self, who: Who, ending: Ending) -> None:
        self._lives.pop(who, None)
        self._seats.pop(who, None)
        self._at.pop(who[0], None)
        batch = self._table.batch(who[0]) if ending.status is not None else None
        cause = self._causes.pop(who, ending.cause)
        self._controller.ended(time.monotonic(), *who, ending._replace(batch=batch, cause=cause))
        self._carry()

    def _keep_rows(self, machine: Known, rows: dict[int, Row]) -> None:
        for replica, row in rows.items():
            if self._at.get(replica) is machine:
                self._table.write(replica, row.progress)
                if row.batch is not None:
                    self._table.begin(replica, *row.batch)
                if row.buffers is not None:
                    self._table.copy_buffers(replica, torch.from_numpy(row.buffers.copy()), row.answered)

    def _machine_lost(self, machine: Known, shards: list[int]) -> None:
        # All, where shards have gone: those who are left do not know where these will be.
        for who in [who for who in self._lives if shards or self._at.get(who[0]) is machine]:
            self._causes[who] = f"{machine.name} has died"
            self._kill(*who)
        if shards:
            self.record.tell("machine", machine=machine.name, there=False, shards=shards)
            self._calls.start(self._bring_back(shards, self._controller.term + 1))

    async def _bring_back(self, shards: list[int], term: int) -> None:
        machine = await self._machines.bring_back(shards, term)
        self._calls.post(lambda: self._returned(machine))

    def _returned(self, machine: Known) -> None:
        # None, if it has died meanwhile: they come back once more.
        if shards := self._machines.shards_at(machine):
            self.record.tell("machine", machine=machine.name, there=True, shards=shards)
            for shard in shards:
                self._controller.returned(shard)
            self._carry()

    def _restore(self, action: RestoreShard) -> None:
        """Give a shard that is back what was written of it last; what it had done since is lost."""
        written, _ = newest(self.record.files.checkpoints)
        shard, spec = action.shard, self._shards[action.shard].spec
        snapshot = as_written(self.record.prepared, spec, shard, written, self._first.clone())
        command = Restore(action.term, snapshot, action.fenced, action.living)
        if (earlier := self._restoring.get(shard)) is not None:
            # Nobody hears it any more: the machine that it was for has died.
            earlier.cancel()
        self._restoring[shard] = self._calls.start(self._shards[shard].ask(command))

    async def _pass_on_notices(self) -> None:
        """Have replicas leave machines that Ray is about to take away."""
        told = set[Who]()
        while True:
            leaving = await asyncio.to_thread(draining)
            for who, seat in list(self._seats.items()):
                if seat.place.node in leaving and who not in told:
                    told.add(who)
                    seat.leave()
            await asyncio.sleep(_NOTICES_S)

    async def _copy_numbers(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(_NUMBERS_S)

    async def _refresh(self) -> None:
        for shard in self._shards:
            # That a machine is gone is seen by its actor.
            with suppress(ConnectionError):
                await shard.refresh()

    # From the controller

    def _do(self, action: Action) -> None:
        if isinstance(action, RestoreShard):
            self._restore(action)
        elif isinstance(action, Evaluate):
            self._calls.start(self._up_to_date(action))
        else:
            super()._do(action)

    async def _up_to_date(self, action: Evaluate) -> None:
        """Fetch what is evaluated here, where it may take long, and the progress that belongs to it."""
        prepared = self.record.prepared
        names = [PARAMETERS, *([AVERAGE] if prepared.method.average is not None else [])]
        await asyncio.gather(*(shard.hold(names) for shard in self._shards))
        # What is lost of a machine that dies just now is seen by its watch.
        looks = (self._machines.look(machine) for machine in self._machines.ready)
        await asyncio.gather(self._refresh(), *looks, return_exceptions=True)
        self._calls.post(lambda: self._evaluate(action))

    def _evaluate(self, action: Evaluate) -> None:
        self.record.keep(action)
        for shard in self._shards:
            shard.release()

    def _whereabouts(self) -> tuple[MachineStatus, ...]:
        at = sorted(self._at.items())
        return tuple(
            MachineStatus(
                machine.name,
                tuple(self._machines.shards_at(machine)),
                tuple(replica for replica, home in at if home is machine),
            )
            for machine in self._machines.all
        )

    def _send(self, replica: int, incarnation: int, kind: str, **content: Any) -> None:
        if (seat := self._seats.get((replica, incarnation))) is not None:
            seat.send(kind, content)

    def _execute(self, number: int, commands: Sequence[Command]) -> None:
        async def execute() -> None:
            asked = (shard.ask(command) for shard, command in zip(self._shards, commands, strict=True))
            answers = await asyncio.gather(*asked)
            self._calls.post(lambda: self._executed(number, answers))

        self._calls.start(execute())

    def _executed(self, number: int, answers: Sequence[Any]) -> None:
        self._controller.executed(time.monotonic(), number, answers)
        self._carry()

    def _start(self, replica: int, incarnation: int) -> None:
        who = replica, incarnation
        self._lives[who] = self._calls.start(self._live(who))

    async def _seat(self, who: Who) -> Seat:
        """A spare that is ready, or else a new seat, which is awaited as long as no machine has room for it."""
        seat = None
        while seat is None and self._spares and self._spares[0].done():
            spare = self._spares.popleft()
            # One that could not be started is none.
            if spare.exception() is None and await spare.result().lives():
                seat = spare.result()
        seat = seat or await self._new_seat(partial(self._placed, who))
        while len(self._spares) < self._engine.spares:
            self._spares.append(asyncio.create_task(self._new_seat()))
        return seat

    async def _new_seat(self, placed: Callable[[bool], object] = lambda there: None) -> Seat:
        """A new seat. `placed` is told if it has to wait for a machine, and when it has one."""
        seat = Seat(self._engine.resources, self.record.files.path.name)
        try:
            if not await seat.reserve(_ROOM_S):
                placed(False)
                await seat.reserve()
                placed(True)
            await seat.occupy()
        except BaseException:
            seat.release()
            raise
        return seat

    def _placed(self, who: Who, there: bool) -> None:
        self._calls.post(lambda: self._controller.placed(time.monotonic(), *who, there=there))

    def _kill(self, replica: int, incarnation: int) -> None:
        if (life := self._lives.get((replica, incarnation))) is not None:
            life.cancel()

    def _end_processes(self) -> None:
        for life in list(self._lives.values()):
            life.cancel()

    def _suspect(self, replica: int, incarnation: int) -> None:
        if (seat := self._seats.get((replica, incarnation))) is not None:
            seat.end_if_stopped()
