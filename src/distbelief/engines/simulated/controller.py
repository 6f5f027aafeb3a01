"""The simulated controller: hands out the data, notices deaths, evaluates, and ends the run, all in virtual time.

What the controller asks of shards (to count the living, to fence the dead, to copy out) happens at once and is never
lost; what replicas ask of shards and of the controller are messages.
"""

import asyncio
import bdb
import copy
import math
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from distbelief.downpour.replica import DownpourReplica
from distbelief.engines.board import Board, Row
from distbelief.engines.books import Books, flat_at_start
from distbelief.engines.callbacks import Callback, Event, LiveRun
from distbelief.engines.result import Result
from distbelief.engines.server import Server, shard_specs
from distbelief.engines.simulated.compute import LEAST_S, SharedModule, TimedGradients
from distbelief.engines.simulated.faults import Death
from distbelief.engines.simulated.hosts import ShardHost
from distbelief.engines.simulated.laws import Draw
from distbelief.engines.simulated.ledger import CONTROLLER, LedgerHost, SimulatedWork
from distbelief.engines.simulated.link import SimulatedLink
from distbelief.engines.simulated.loop import Deadlock
from distbelief.engines.simulated.world import World
from distbelief.errors import DistBeliefError, InvariantViolated, UserCodeError
from distbelief.observe.events import Observer
from distbelief.ports import Outcome
from distbelief.run.directory import RunDirectory
from distbelief.run.prepare import Prepared
from distbelief.server.client import Client
from distbelief.server.shard import Shard
from distbelief.task.tracebacks import user_frames

_NOTICE_S = 0.1
"""How long it takes until a death is known."""
_GRACE_S = 30.0
"""How long replicas may take for the batch they are in, at the end of a run."""
_TOLD = 8
"""Of how many who wait is told."""
_STUCK_S = 1000.0
"""For how long nothing may happen where calls are repeated."""
_PROGRESS_S = 1.0
_PROGRESS_PART = 0.02
"""Progress is told once a second at first, and later once in this part of the time that has gone by."""


class Seat:
    """The place of one replica, whichever of its incarnations sits on it."""

    def __init__(self, replica: int, parameters: Tensor, draw: Draw) -> None:
        self.replica = replica
        self.machine = f"replica {replica}"
        self.parameters = parameters
        self.draw = draw
        self.incarnation = 0
        self.task: asyncio.Task[None] | None = None
        self.state = "starting"
        self.worked = False
        """Whether it came to its natural end and had worked until then."""


@final
class Controller:
    """One life of the controller: from a checkpoint, or the beginning, to the end of the run or its own death."""

    def __init__(
        self,
        prepared: Prepared,
        world: World,
        *,
        overlap: int,
        observer: Observer,
        files: RunDirectory,
        received: list[signal.Signals],
        callbacks: Sequence[Callback],
    ) -> None:
        self._prepared = prepared
        self._world = world
        self._trace = world.trace
        self._wire = world.wire()
        self._overlap = overlap
        self._received = received
        flat = flat_at_start(prepared, torch.device("cpu"))
        count, buffers = prepared.replicas, len(flat.buffers())
        self._board = Board(torch.zeros(Board.nbytes(count, buffers), dtype=torch.uint8), count, buffers)
        specs = shard_specs(prepared)
        self._shards = [Shard(spec, torch.zeros(spec.nbytes, dtype=torch.uint8)) for spec in specs]
        self._hosts = [ShardHost(shard, number, self._trace) for number, shard in enumerate(self._shards)]
        self._seats = [Seat(r, torch.empty_like(flat.vector), draw) for r, draw in enumerate(world.draws)]
        self.books = Books(
            prepared,
            self._seats,
            flat=flat,
            server=Server(prepared, flat.vector, self._shards),
            board=self._board,
            observer=observer,
            files=files,
            callbacks=(self._keep, *callbacks),
            clock=world.clock,
            hear=lambda: None,
            outcomes_of=_never_missing,
            beside=False,
        )
        self._ledger = LedgerHost(self.books, self._trace, self._count_living)
        self._shared = SharedModule(prepared, self._board)
        self._snapshots = [shard.snapshot() for shard in self._shards] if world.plan.loses_shards else []
        self._generation = 0
        self._before = copy.copy(self.books.ledger.total)
        self._coming = 0
        """Replicas that will begin later."""
        self._dying: set[int] = set()
        """Replicas that have died, and of which it is not known yet."""
        self._over: asyncio.Future[Death | None]
        self._stopped_by: str | None = None
        self._error: DistBeliefError | None = None
        self._steps = 0
        self._requests = 0

    # The life

    async def live(self) -> Death | None:
        """Train until the run is over, or until the controller dies: then, its death."""
        self._over = asyncio.get_running_loop().create_future()
        plan, now = self._world.plan, self._world.clock()
        self.books.begin("simulated", ["cpu"])
        for host in self._hosts:
            if (death := plan.away(host.machine, now)) is not None:
                self._shard_dies(host, death)
        for seat in self._seats:
            self._begin(seat, now)
        self._look_whether_over()
        for planned in plan.deaths:
            if planned.at >= now:
                self._at(planned.at, self._die, planned)
        if (limit := self._prepared.until.seconds) is not None:
            self._watch_limit(limit)
        if self._world.patience is not None:
            self._watch_progress(self._trace.notes)
        death = await self._over
        self._wire.close()
        for seat in self._seats:
            if seat.task is not None:
                seat.task.cancel()
        return death

    def result(self) -> Result:
        """What was reached."""
        ledger = self.books.ledger
        self._trace.check(ledger.total.used - self._before.used, ledger.total.partial - self._before.partial)
        return self.books.result(
            self._stopped_by,
            self._error,
            hurried=bool(self._received),
            impatient=lambda: len(self._received) > self._requests,
        )

    def fail(self, error: DistBeliefError) -> None:
        """End the run at once because of an error."""
        self._error = self._error or error
        self._halt("failure")
        self._end_all()

    def stuck(self, error: Deadlock) -> None:
        """Everybody waits, and for ever: end the run, and say for what."""
        self._wire.close()
        lines = [
            f"{who} waits for {host.machine} to come to {at_least}, which is at {host.shard.reached}"
            for host in self._hosts
            for who, (at_least, _) in host.waiting.items()
        ]
        idle = (s.machine for s in self._seats if self._ledger.waits(s.replica))
        lines += [f"{machine} waits for work" for machine in idle if not any(machine in h.waiting for h in self._hosts)]
        who = "; ".join(lines[:_TOLD]) or error
        told = Deadlock(f"no progress is possible after {round(self._world.clock(), 3):g} s: {who}")
        if lines:
            told.add_note(str(error))
        self.fail(told)

    def close(self) -> None:
        """End the threads."""
        self.books.close()

    def _at(self, when: float, function: Callable[..., object], *arguments: object) -> None:
        """Have something done at a time, if this life goes on until then."""
        asyncio.get_running_loop().call_at(when, self._if_living, function, *arguments)

    def _if_living(self, function: Callable[..., object], *arguments: object) -> None:
        if not self._over.done():
            function(*arguments)

    def _watch_limit(self, limit: float) -> None:
        if (left := limit - self.books.seconds) <= 0:
            self._turn()
        else:
            self._at(self._world.clock() + max(left, LEAST_S), self._watch_limit, limit)

    def _watch_progress(self, notes: int) -> None:
        """See a deadlock where calls are repeated: timers go on for ever, and nothing happens."""
        now = self._world.clock()
        if notes == self._trace.notes and not self._shared.computing and now > self._world.plan.quiet_from:
            longest = self._world.patience.longest_s if self._world.patience else 0.0
            why = f"do messages take longer than the {longest:g} s after which calls are made again?"
            self.stuck(Deadlock(f"nothing has happened for {_STUCK_S:g} s; {why}"))
        else:
            self._at(now + _STUCK_S, self._watch_progress, self._trace.notes)

    def _turn(self) -> None:
        """Look after what is due: evaluations, checkpoints, callbacks, what a person sees."""
        books = self.books
        why = None
        try:
            if self._stopped_by is None and not books.ledger.finished and not self._wire.down:
                why = books.turn()
            books.callbacks.call()
        except UserCodeError as error:
            self.fail(error)
        why = why or books.callbacks.run.stopped_by
        if self._stopped_by is None and why is not None:
            self._stop(why)
        books.show(max(_PROGRESS_S, _PROGRESS_PART * books.seconds))

    def _stop(self, why: str) -> None:
        """Have replicas finish their batch."""
        self._halt(why)
        self._ledger.answer_waiting()
        self._at(self._world.clock() + _GRACE_S, self._end_all)

    def _halt(self, why: str) -> None:
        self._stopped_by = self._stopped_by or why
        self._trace.note("stop", why)
        self.books.ledger.stop()
        self._board.stop()

    def _look_whether_over(self) -> None:
        if self._over.done() or self._dying or any(seat.task for seat in self._seats):
            return
        if self.books.ledger.finished:
            self._over.set_result(None)
        elif not self._coming:
            now = self._world.clock()
            self.fail(Deadlock(f"no progress is possible after {now:g} s: every replica is dead for good"))

    # Replicas

    def _begin(self, seat: Seat, now: float) -> None:
        """Have a replica work from now on, or from when it is there."""
        death = self._world.plan.away(seat.machine, now)
        comes = self._world.plan.joins.get(seat.machine, 0.0) if death is None else death.over
        if comes == math.inf:
            seat.state = "dead"
            self.books.ledger.leave(seat.replica)
        elif comes > now:
            self._expect(seat, comes)
        else:
            self._fill(seat)

    def _expect(self, seat: Seat, when: float) -> None:
        self._coming += 1
        self._at(when, self._come, seat)

    def _come(self, seat: Seat) -> None:
        self._coming -= 1
        if not self.books.ledger.finished and self._stopped_by is None:
            self._fill(seat)
        self._look_whether_over()

    def _fill(self, seat: Seat) -> None:
        """Begin a replica on a seat."""
        prepared, world = self._prepared, self._world
        seat.incarnation += 1
        seat.state = "working"
        self._ledger.open(seat.replica, seat.incarnation)
        links = [SimulatedLink(self._wire, seat.machine, host) for host in self._hosts]
        client = Client(
            prepared.layout, links, replica=seat.replica, incarnation=seat.incarnation, patience=world.patience
        )
        work = SimulatedWork(self._wire, self._ledger, seat.replica, seat.incarnation, world.patience)
        replica = DownpourReplica(
            prepared.method,
            client=client,
            source=TimedGradients(self._shared, seat.replica, seat.parameters, draw=seat.draw, plan=world.plan),
            work=work,
            parameters=seat.parameters,
            overlap=self._overlap,
            stopping=lambda: self._board.stopping,
            watch=lambda progress: self._watch(seat, Row.of(progress, client)),
        )
        self._trace.note("begin", seat.replica, seat.incarnation)
        self.books.tell("replica", replica=seat.replica, incarnation=seat.incarnation, pid=None)
        seat.task = asyncio.create_task(self._work(seat, replica, work), name=f"{seat.machine}.{seat.incarnation}")

    async def _work(self, seat: Seat, replica: DownpourReplica, work: SimulatedWork) -> None:
        try:
            await replica.run()
        except DistBeliefError as error:
            self.fail(error)
        except bdb.BdbQuit:
            # Who leaves the debugger means the run, as with Ctrl-C.
            self._received.append(signal.SIGINT)
            self._halt("interrupted")
            self._end_all()
        # Whatever the user's code raises.
        except Exception as error:  # noqa: BLE001
            what = "".join(traceback.format_exception_only(error)).strip()
            failure = UserCodeError(f"{seat.machine} failed with {what}\n\n{user_frames(error)}".rstrip())
            failure.__cause__ = error
            self.fail(failure)
        else:
            self._trace.note("end", seat.replica, seat.incarnation)
            seat.task, seat.state = None, "done"
            seat.worked = bool(self.books.left(seat).examples)
            self._look_whether_over()
        finally:
            work.close()

    def _watch(self, seat: Seat, row: Row) -> None:
        """A replica has done a step."""
        self._board.write(seat.replica, row)
        if len(self._received) > self._requests:
            self._requests = len(self._received)
            self._stop("interrupted" if self._received[0] == signal.SIGINT else "terminated")
            if self._requests > 1:
                self._end_all()
        self._steps += 1
        # Once a round of all replicas: to look at all of them costs a step as much as one replica's own.
        if self._steps % len(self._seats) == 0:
            self._turn()

    def _count_living(self) -> None:
        self.books.count_living()
        for host in self._hosts:
            host.look()

    # Deaths

    def _die(self, death: Death) -> None:
        kind, _, number = death.machine.partition(" ")
        if kind == CONTROLLER:
            self._over.set_result(death)
        elif kind == "shard":
            self._shard_dies(self._hosts[int(number)], death)
        elif (seat := self._seats[int(number)]).task is not None:
            self._trace.note("death", seat.replica, seat.incarnation)
            seat.task.cancel()
            seat.task, seat.state = None, "dead"
            self._dying.add(seat.replica)
            self._at(death.at + _NOTICE_S, self._notice, seat, death)

    def _notice(self, seat: Seat, death: Death) -> None:
        """A death is known now; while a shard is away, nobody can say what it came to."""
        now = self._world.clock()
        if self._wire.down:
            self._at(now + _NOTICE_S, self._notice, seat, death)
            return
        if death.back is not None:
            self._expect(seat, max(now, death.over))
        else:
            self.books.ledger.leave(seat.replica)
        self._bury(seat, "as planned")
        self._look_whether_over()

    def _bury(self, seat: Seat, error: str) -> None:
        """Account for what a dead replica held."""
        self._dying.discard(seat.replica)
        self._ledger.shut(seat.replica)
        self.books.left(seat)
        self.books.died(seat, status=-signal.SIGKILL, error=error)
        self._trace.fenced(seat.replica, seat.incarnation)
        self._ledger.answer_waiting()

    def _end_all(self) -> None:
        """End every replica that is still at work."""
        for seat in self._seats:
            if seat.task is not None:
                seat.task.cancel()
                seat.task, seat.state = None, "dead"
                self._dying.add(seat.replica)
            if seat.replica in self._dying:
                self._bury(seat, "ended with the run")
        if not self._over.done():
            self._over.set_result(None)

    def _shard_dies(self, host: ShardHost, death: Death) -> None:
        self._trace.note("death of", host.machine)
        self.books.tell("machine", machine=host.machine, there=False)
        self._wire.down.add(host.machine)
        host.forget()
        if death.back is None:
            # Its memory is sound, so that what was reached can be written.
            self._restore(host)
            self.fail(Deadlock(f"no progress is possible after {death.at:g} s: {host.machine} is dead for good"))
        else:
            self._at(death.over, self._return, host)

    def _return(self, host: ShardHost) -> None:
        """A shard's host begins again."""
        self._restore(host)
        self.books.tell("machine", machine=host.machine, there=True)

    def _restore(self, host: ShardHost) -> None:
        """Give a shard what was written down last."""
        shard = host.shard
        self._generation += 1
        shard.restore_(self._snapshots[host.number], self._generation)
        for seat in self._seats:
            shard.fence(seat.replica, seat.incarnation - (seat.task is not None))
        shard.set_living(self.books.ledger.holders, alone=self.books.ledger.warming_up)
        self._trace.note("return of", host.machine)
        self._trace.restored()
        self._wire.down.discard(host.machine)

    def _keep(self, event: Event, run: LiveRun) -> None:
        """What a shard's host finds when it begins again."""
        if self._snapshots and event["event"] == "checkpoint":
            self._snapshots = [shard.snapshot() for shard in self._shards]


def _never_missing(lease: int) -> list[Outcome]:
    raise InvariantViolated(f"lease {lease} has been worked past, and was not accounted for")
