"""The simulated driver: carries messages, virtual time and the plan's deaths to the controller, and its actions out.

What replicas and the controller ask of shards, and replicas of the controller, are messages: they take time, and are
lost, repeated and overtaken as the network and the plan say.
"""

import asyncio
import bdb
import math
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch

from distbelief.allocation import Progress
from distbelief.downpour.lease_client import LeaseClient
from distbelief.downpour.lease_server import LeaseReply
from distbelief.engines import actions
from distbelief.engines.assembly import failure_of
from distbelief.engines.carrier import Carrier
from distbelief.engines.progress_table import ProgressTable
from distbelief.engines.run_record import flat_at_start
from distbelief.engines.shard_set import shard_specs
from distbelief.engines.simulated.compute import SharedModule
from distbelief.engines.simulated.faults import Death
from distbelief.engines.simulated.link import CONTROLLER, SimulatedRequests, machine_of
from distbelief.engines.simulated.loop import Deadlock
from distbelief.engines.simulated.request_server import RequestServer
from distbelief.engines.simulated.simulated_process import SimulatedProcess
from distbelief.engines.simulated.simulated_shards import SimulatedShards
from distbelief.engines.simulated.world import World
from distbelief.engines.supervision import Ending
from distbelief.errors import DistBeliefError, InvariantViolated
from distbelief.ports import Answer, Command
from distbelief.run.prepare import Prepared
from distbelief.server.host import ShardHost
from distbelief.server.shard import Shard

_NOTICE_S = 0.1
"""How long it takes until a death is known."""
_SILENCE_LOOK_S = 5.0
"""How often the controller looks for replicas that say nothing, while the plan has machines stand still."""
_LEAST_S = 1e-6
_STUCK_S = 1000.0
"""For how long nothing may happen where calls are repeated."""
_PROGRESS_S = 1.0
_PROGRESS_PART = 0.02
"""Progress is told once a second at first, and later once in this part of the time that has gone by."""


@final
class SimulatedDriver(Carrier):
    """One life of the controller: from a checkpoint, or the beginning, to the end of the run or its own death."""

    def __init__(self, prepared: Prepared, *, world: World, **shared: Any) -> None:
        self._world = world
        self._plan, self._trace, self._clock, self._wire = world.plan, world.trace, world.clock, world.wire()
        flat = flat_at_start(prepared, torch.device("cpu"))
        count, buffers = prepared.replicas, len(flat.buffers())
        table = ProgressTable(torch.zeros(ProgressTable.nbytes(count, buffers), dtype=torch.uint8), count, buffers)
        shards = [Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8)) for spec in shard_specs(prepared)]
        super().__init__(prepared, flat, shards, table, clock=world.clock, beside=False, **shared)
        self._shards = SimulatedShards(shards, self._wire, world.trace, world.patience, mortal=world.plan.loses_shards)
        self._processes: dict[int, SimulatedProcess] = {}
        """The newest of each replica."""
        self._abandoned: list[SimulatedProcess] = []
        """Held to be dead; they go on until they can be reached."""
        self._shared = SharedModule(prepared, world, table)
        resumed = prepared.resumed
        self._trace.begin_life(self._controller.allocator.total, 0 if resumed is None else resumed.state.examples)
        self._requests = RequestServer(self._controller, world.trace, world.clock, self._carry)
        self._over: asyncio.Future[Death | None]
        self._armed = math.inf
        self._steps = 0

    # The life

    async def live(self) -> Death | None:
        """Train until the run is over, or until the controller dies: then, its death."""
        self._over = asyncio.get_running_loop().create_future()
        plan, now = self._plan, self._clock()
        self.record.begin("simulated", ["cpu"])
        for shard_host in self._shards.hosts:
            if (death := plan.away(machine_of(shard_host), now)) is not None:
                self._shard_dies(shard_host, death)
        self._controller.begin(now)
        self._carry()
        for planned in self._world.deaths:
            if planned.at >= now:
                self._at(planned.at, self._die, planned)
            if planned.notice_s and planned.told_at >= now:
                self._at(planned.told_at, self._give_notice, planned)
        if plan.silences and now < plan.quiet_from:
            self._watch_silence()
        if self._world.patience is not None:
            self._watch_progress(self._trace.notes)
        return await self._end_of_life()

    async def wind_up(self, error: Deadlock) -> None:
        """End a life in which everything waits, and for ever: account for what was reached, and say for what it waits.

        The loop of that life is over; this is another one.
        """
        self._over = asyncio.get_running_loop().create_future()
        self._stuck(error)
        await self._end_of_life()

    async def _end_of_life(self) -> Death | None:
        death = await self._over
        self._end_processes()
        for process in (*self._processes.values(), *self._abandoned):
            process.end()
        return death

    def _at(self, when: float, function: Callable[..., object], *arguments: object) -> None:
        """Have something done at a time, if this life goes on until then."""
        asyncio.get_running_loop().call_at(when, self._if_living, function, *arguments)

    def _if_living(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._over.done():
            function(*arguments)
            self._carry()

    # What has a time of its own

    def _tick(self) -> None:
        self._armed = math.inf
        self.record.tick()

    def _watch_silence(self) -> None:
        self._tick()
        if self._clock() < self._plan.quiet_from:
            self._at(self._clock() + _SILENCE_LOOK_S, self._watch_silence)

    def _watch_progress(self, notes: int) -> None:
        """See a deadlock where calls are repeated: timers go on for ever, and nothing happens."""
        if notes == self._trace.notes and not self._shared.computing and self._clock() > self._plan.quiet_from:
            longest = self._world.patience.longest_s if self._world.patience else 0.0
            why = f"do messages take longer than the {longest:g} s after which calls are made again?"
            self._stuck(Deadlock(f"nothing has happened for {_STUCK_S:g} s; {why}"))
        else:
            self._at(self._clock() + _STUCK_S, self._watch_progress, self._trace.notes)

    def _stuck(self, error: Deadlock) -> None:
        waiting = dict(self._shards.waiters())
        idle = (f"replica {slot.replica}" for slot in self._controller.slots if self._controller.waits(slot.replica))
        lines = [*waiting.values(), *(f"{name} waits for work" for name in idle if name not in waiting)]
        self._end(error.told(self._clock(), lines))

    def _end(self, error: DistBeliefError) -> None:
        """End the run at once: from now on every machine answers, and no message takes time or is lost."""
        self._wire.calm()
        self._controller.fail(self._clock(), error)
        self._tick()
        self._carry()

    # From the controller

    def _carry(self) -> None:
        """Carry out what the controller wants, and see whether the run is over."""
        super()._carry()
        controller = self._controller
        if controller.over and not self._over.done():
            if not controller.allocator.finished:
                why = f"no progress is possible after {self._clock():g} s: every replica is dead for good"
                controller.fail(self._clock(), Deadlock(why))
            self._over.set_result(None)
        elif controller.wakes_at < self._armed:
            self._armed = controller.wakes_at
            self._at(max(self._armed, self._clock() + _LEAST_S), self._tick)

    def _do(self, action: actions.Action) -> None:
        self._trace.wanted(action, self._controller.stopped_by or "")
        if isinstance(action, actions.RestoreShard):
            self._shards.restore(action, partial(self._restored, self._shards.hosts[action.shard]))
        else:
            super()._do(action)

    def _answer(self, reply: LeaseReply | actions.Acknowledge) -> None:
        self._requests.reply(reply)

    def _execute(self, number: int, commands: Sequence[Command]) -> None:
        self._shards.execute(commands, partial(self._executed, number))

    def _executed(self, number: int, answers: Sequence[Answer]) -> None:
        self._controller.executed(self._clock(), number, answers)
        self._carry()

    # Replicas

    def _start(self, replica: int, incarnation: int) -> None:
        """Have a replica work from now on, or from when its machine is there."""
        self._processes[replica] = process = SimulatedProcess(replica, incarnation)
        now = self._clock()
        if (comes := self._plan.there_from(process.machine, now)) == math.inf:
            self._controller.gone(now, replica)
        elif comes > now:
            self._controller.placed(now, *process.who, there=False)
            self._at(comes, self._come, process)
        else:
            self._come(process)

    def _come(self, process: SimulatedProcess) -> None:
        """Begin a replica, unless its end was ordered before it was there."""
        if not process.over:
            self._trace.note("begin", *process.who)
            self._controller.placed(self._clock(), *process.who, there=True)
            self.record.started(*process.who, None)
            process.begin(self._work(process))

    async def _work(self, process: SimulatedProcess) -> None:
        requests = SimulatedRequests(self._wire, self._requests, *process.who, self._world.patience)
        work, status = LeaseClient(requests, leaving=lambda: process.leaving), 0
        try:
            links, watch = self._shards.links(process.machine), partial(self._watch, process)
            await self._shared.replica(process, links, work, watch).run()
        except InvariantViolated as error:
            self._end(error)
        except bdb.BdbQuit:
            # Who leaves the debugger means the run, as with Ctrl-C.
            self.record.received.append(signal.SIGINT)
            self._controller.stop(self._clock(), "interrupted", 0.0)
        # Whatever the user's code raises is the controller's to judge.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            status = 1
            self._controller.failed(self._clock(), *process.who, failure_of(error)._replace(cause=error))
        finally:
            work.close()
        if not process.over:
            process.over = True
            self._trace.note("end", *process.who)
            batch = self._table.batch(process.replica)
            self._ended(process, Ending(status, f"ended with exit code {status}", batch=batch))
            self._carry()

    def _watch(self, process: SimulatedProcess, progress: Progress) -> None:
        """A replica has done a step."""
        if process.over:
            return
        self._table.write(process.replica, progress)
        self._steps += 1
        try:
            # Once a round of all replicas: to look at all of them costs a step as much as one replica's own.
            if self._steps % self.record.prepared.replicas == 0:
                self.record.attend()
                self.record.show(max(_PROGRESS_S, _PROGRESS_PART * self.record.seconds))
            self._carry()
        # It is no failure of the replica in whose step it comes up: it ends the life.
        except BaseException as error:  # noqa: BLE001
            if not self._over.done():
                self._over.set_exception(error)

    # Deaths

    def _give_notice(self, death: Death) -> None:
        """The controller and the replica hear that a machine will be taken away, each as soon as it hears anything."""
        process, now = self._processes[int(death.machine.partition(" ")[2])], self._clock()
        if process.at_work:
            self._trace.note("notice", *process.who)
            self._at(self._plan.awake(process.machine, now), process.leave)
            self._at(self._plan.awake(CONTROLLER, now), self._leaving, process, death.notice_s)

    def _leaving(self, process: SimulatedProcess, grace_s: float) -> None:
        self._controller.leaving(self._clock(), *process.who, grace_s)

    def _die(self, death: Death) -> None:
        self._world.deaths.remove(death)
        kind, _, number = death.machine.partition(" ")
        if kind == CONTROLLER:
            self._over.set_result(death)
        elif kind == "shard":
            self._shard_dies(self._shards.hosts[int(number)], death)
        elif (process := self._processes[int(number)]).at_work:
            self._trace.note("death", *process.who)
            self._stop(process, "as planned")

    def _kill(self, replica: int, incarnation: int) -> None:
        self._stop(self._processes[replica], "ended with the run")

    def _end_processes(self) -> None:
        # They were tasks of a loop that is over.
        self._wire.close()
        self._shards.close()

    def _stop(self, process: SimulatedProcess, cause: str) -> None:
        """End a replica; that will be known in a moment."""
        process.end()
        when = self._clock() if self._wire.is_calm else self._plan.awake(CONTROLLER, self._clock() + _NOTICE_S)
        self._at(when, self._ended, process, Ending(-signal.SIGKILL, f"died: {cause}", cause=cause))

    def _ended(self, process: SimulatedProcess, ending: Ending) -> None:
        if process.leaving:
            self._leaving(process, 0.0)
        self._controller.ended(self._clock(), *process.who, ending)

    def _suspect(self, replica: int, incarnation: int) -> None:
        """Where it is out of reach it is held to be dead, and ended once it is not."""
        process = self._processes[replica]
        if process.at_work and self._plan.out_of_reach(process.machine, CONTROLLER, self._clock()):
            process.over = True
            self._abandoned.append(process)
            self._end_when_reached(process)
            self._ended(process, Ending(None, "was out of reach", cause="out of reach"))

    def _end_when_reached(self, process: SimulatedProcess) -> None:
        if self._plan.out_of_reach(process.machine, CONTROLLER, self._clock()):
            self._at(self._clock() + 1.0, self._end_when_reached, process)
        else:
            process.end()

    def _shard_dies(self, shard_host: ShardHost, death: Death) -> None:
        name = machine_of(shard_host)
        self._trace.note("death of", name)
        self.record.tell("machine", machine=name, there=False)
        if death.back is None:
            # Its memory is sound, so that what was reached can be written.
            self._end(Deadlock(f"no progress is possible after {death.at:g} s: {name} is dead for good"))
            return
        self._wire.down.add(name)
        shard_host.lose()
        self._at(death.over, self._return, shard_host)

    def _return(self, shard_host: ShardHost) -> None:
        """A shard's machine begins again, with nothing in its memory."""
        self._wire.down.discard(machine_of(shard_host))
        self._controller.returned(shard_host.number)

    def _restored(self, shard_host: ShardHost) -> None:
        self._trace.note("return of", machine_of(shard_host))
        self.record.tell("machine", machine=machine_of(shard_host), there=True)
