"""The controller: a state machine that takes events, each with its time, and returns actions.

It grants leases, replaces dead replicas, starts evaluations and checkpoints when they are due, and ends the run. An
engine's driver reports messages, time and deaths to it and carries out its actions; the driver makes no decisions.

1.  One method handles each kind of event. `now` is the time in seconds. `take` returns the pending actions in order.
2.  An event that is repeated, late, or about a replaced incarnation has no effect.
3.  The controller fences a dead replica at every shard before it releases the replica's leases and replaces it.
4.  While snapshots are taken, events that would change the allocator are deferred: a checkpoint is of one instant.
5.  Where the admission policy counts living replicas, a lease is sent only after every shard knows its holder.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import final

from distbelief.allocation import Allocator, as_if_dead, last_push
from distbelief.downpour.lease_server import LeaseServer
from distbelief.engines import actions
from distbelief.engines.due import CheckpointsDue, Due, EvaluationsDue
from distbelief.engines.outstanding import Outstanding
from distbelief.engines.replica_slot import EXIT_GRACE_S, GRACE_S, REQUESTED_GRACE_S, ReplicaSlot
from distbelief.engines.stopwatch import Stopwatch
from distbelief.engines.supervision import Death, Ending, Failure, Supervisor
from distbelief.errors import DistBeliefError
from distbelief.ports import Answer, Fence, Outcome, PushRecord, Snapshot
from distbelief.server.block import record_of


@final
class Controller:
    """One run's controller. `incarnations`: of each replica, the newest before it. `watch`: with the limit in seconds.

    `counts_living`: whether the admission policy does. `error`, `stopped_by`: what ended the run early, or None.
    """

    def __init__(
        self,
        allocator: Allocator,
        *,
        incarnations: Sequence[int],
        term: int,
        counts_living: bool,
        evaluations: EvaluationsDue | None,
        checkpoints: CheckpointsDue,
        supervisor: Supervisor | None = None,
        watch: Stopwatch | None = None,
    ) -> None:
        self.allocator = allocator
        self.slots = [ReplicaSlot(replica, before) for replica, before in enumerate(incarnations)]
        self.term = term
        self.stopped_by: str | None = None
        self.error: DistBeliefError | None = None
        self.watch = watch or Stopwatch()
        self.due = Due(allocator, self.watch, evaluations, checkpoints)
        self._leases = LeaseServer(allocator, counts_living=counts_living)
        self._supervisor = supervisor or Supervisor()
        self._kill_at = math.inf
        self._outstanding = Outstanding()
        self._actions: list[actions.Action] = []

    def take(self) -> list[actions.Action]:
        """Remove and return the pending actions, in order."""
        taken, self._actions = self._actions, []
        return taken

    @property
    def over(self) -> bool:
        """Whether every replica has ended and has been accounted for."""
        return not any(slot.alive or slot.fencing for slot in self.slots)

    @property
    def wakes_at(self) -> float:
        """Time of the next deadline that `tick` enforces: a kill, or the end of the run. Infinite if there is none."""
        waiting = [slot.kill_at for slot in self.slots if slot.alive and not slot.killed]
        times = [self._kill_at, *waiting] if waiting else [math.inf]
        return min([*times, self.watch.ends_at] if self._running else times)

    @property
    def _running(self) -> bool:
        return self.stopped_by is None and not self.allocator.finished

    def waits(self, replica: int) -> bool:
        """Whether a replica is idle: its request is unanswered, and it holds no lease."""
        return self._leases.waits(replica) and replica not in self.allocator.holders

    def begin(self, now: float) -> None:
        """Start all replicas."""
        for slot in self.slots:
            self._start(now, slot)

    def requested(self, now: float, replica: int, incarnation: int, number: int) -> None:
        """Handle a work request of a replica. A retry carries the same `number`."""
        if (slot := self._slot(replica, incarnation)) is None:
            return
        slot.asked(now)
        if (again := self._leases.request(replica, incarnation, number)) is not None:
            self._actions.append(again)
        self._outstanding.when_still(self._grant, now)

    def accounted(
        self, now: float, replica: int, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome]
    ) -> None:
        """Handle a replica's report of an ended lease. A retry carries the same `number`."""
        if (slot := self._slot(replica, incarnation)) is not None:
            slot.heard(now)
            self._outstanding.when_still(self._account, now, slot, incarnation, number, lease, outcomes)

    def failed(self, now: float, replica: int, incarnation: int, failure: Failure) -> None:
        """Handle a replica's report that it has failed and is about to end."""
        if (slot := self._slot(replica, incarnation)) is not None:
            slot.failure = failure
            slot.leave_by(now + EXIT_GRACE_S)

    def closing(self, now: float, replica: int, incarnation: int) -> None:
        """Handle the last message of a replica: it is about to end."""
        if (slot := self._slot(replica, incarnation)) is not None:
            slot.leave_by(now + EXIT_GRACE_S)

    def leaving(self, now: float, replica: int, incarnation: int, grace_s: float = REQUESTED_GRACE_S) -> None:
        """Handle a replica that was told to leave within `grace_s`: it gets no more work, and its end is no failure."""
        if (slot := self._slot(replica, incarnation)) is not None and not slot.leaving:
            slot.leaving = True
            slot.leave_by(now + grace_s)
            self._leases.dismiss(replica)
            self._outstanding.when_still(self._grant, now)

    def ended(self, now: float, replica: int, incarnation: int, ending: Ending) -> None:
        """Handle a replica that has ended or counts as dead. Fence it at every shard, unless its work was done."""
        if (slot := self._slot(replica, incarnation)) is None:
            return
        slot.alive = False
        if slot.state == "done" and replica not in self.allocator.holders and not (slot.leaving and self._running):
            self._actions.append(actions.Left(replica))
            return
        slot.state, slot.fencing = "dead", True
        self._leases.shut(replica)
        fenced = partial(self._outstanding.when_still, self._fenced, slot, ending, now)
        self._actions.append(self._outstanding.execute(Fence(replica, incarnation), fenced))

    def placed(self, now: float, replica: int, incarnation: int, *, there: bool) -> None:
        """Handle whether there is a machine for a replica. One without is awaited: it may come later, or never."""
        if (slot := self._slot(replica, incarnation)) is not None:
            slot.placed(now, there=there)

    def gone(self, now: float, replica: int) -> None:
        """Handle a replica that will never start. The others do not wait for it any more."""
        slot = self.slots[replica]
        slot.never_came()
        self.allocator.leave(replica)
        self._outstanding.when_still(self._grant, now)

    def returned(self, shard: int) -> None:
        """Handle the return of a machine that has lost its shard: restore the shard in a new term."""
        self.term += 1
        fenced = tuple(slot.incarnation - slot.alive for slot in self.slots)
        self._actions.append(actions.RestoreShard(shard, self.term, fenced, self._leases.living))

    def executed(self, now: float, number: int, answers: Sequence[Answer]) -> None:
        """Handle the answers of all shards to the command or capture with this `number`."""
        self._outstanding.executed(now, number, answers)

    def evaluated(self, now: float, verdict: str | None) -> None:
        """Handle the end of an evaluation. `verdict`: the reason to end the run that it found, or None."""
        self.due.evaluating = False
        if verdict is not None and not self.allocator.finished:
            self.stop(now, verdict)

    def written(self) -> None:
        """Handle the end of a checkpoint's writing, whether it succeeded or not."""
        self.due.writing = False

    def stop(self, now: float, why: str, grace_s: float = GRACE_S) -> None:
        """End the run. Replicas get `grace_s` seconds to finish their current batch; then they are killed."""
        self.stopped_by = self.stopped_by or why
        self._kill_at = min(self._kill_at, now + grace_s)
        self.allocator.stop()
        self._actions.append(actions.StopWork())
        self._outstanding.when_still(self._grant, now)

    def abandon(self, now: float, why: str, fence: Callable[[int, int], Sequence[Answer]]) -> None:
        """End a run whose replicas have all died. `fence` fences one at every shard and returns its push records."""
        self.stop(now, why, 0.0)
        for slot in (slot for slot in self.slots if slot.alive or slot.fencing):
            slot.alive, slot.state, who = False, "dead", (slot.replica, slot.incarnation)
            self._fenced(slot, Ending(None, "", cause="ended with the run"), now, now, fence(*who))

    def fail(self, now: float, error: DistBeliefError) -> None:
        """End the run at once because of an error."""
        self.error = self.error or error
        self.stop(now, "failure", 0.0)

    def tick(self, now: float, examples: int, steps: Sequence[int]) -> None:
        """Kill overdue replicas, suspect silent ones, start what is due, and enforce the time limit.

        `examples`: number used over the whole life of the run. `steps`: number that each replica has done.
        """
        self._supervisor.look(examples)
        for slot, done in zip(self.slots, steps, strict=True):
            slot.look(now, done)
            if now >= min(self._kill_at, slot.kill_at):
                self._kill(slot)
            elif slot.silent(now):
                self._actions.append(actions.Suspect(slot.replica, slot.incarnation))
        if self._running:
            evaluate, capture = self.due.look(now, examples)
            if evaluate:
                self._actions.append(actions.Evaluate())
                self._outstanding.when_still(self._grant, now)
            if capture:
                self._actions.append(self._outstanding.snapshots(self._captured))
            if now >= self.watch.ends_at:
                self.stop(now, "seconds")

    def _slot(self, replica: int, incarnation: int) -> ReplicaSlot | None:
        """The slot of a replica; None if it is not alive in this incarnation."""
        slot = self.slots[replica]
        return slot if slot.alive and slot.incarnation == incarnation else None

    def _start(self, now: float, slot: ReplicaSlot) -> None:
        slot.begin(now)
        self._leases.open(slot.replica, slot.incarnation)
        self._actions.append(actions.Start(slot.replica, slot.incarnation))

    def _kill(self, slot: ReplicaSlot) -> None:
        if slot.alive and not slot.killed:
            slot.killed = True
            self._actions.append(actions.Kill(slot.replica, slot.incarnation))

    def _fenced(self, slot: ReplicaSlot, ending: Ending, died_at: float, now: float, answers: Sequence[Answer]) -> None:
        """Every shard has fenced a dead replica: account for its work, then replace it or fail the run."""
        slot.fencing = False
        records = [answer for answer in answers if answer is None or isinstance(answer, PushRecord)]
        last = last_push(records)
        death = Death(died_at, ending, slot.failure, last, killed=slot.killed, told=slot.leaving)
        account = self.allocator.died(slot.replica, last)
        if account.total:
            self.watch.work(now)
        lost = slot.replica, slot.incarnation, ending.status, death.error, account, records, death.torn, death.left
        self._actions.append(actions.Lost(*lost))
        if self._running:
            aside, pointless = self._supervisor.judge(death, self.allocator)
            self._actions += aside
            if pointless is None:
                self._start(now, slot)
            else:
                self.fail(now, pointless)
        self._grant(now)

    def _account(
        self, now: float, slot: ReplicaSlot, incarnation: int, number: int, lease: int, outcomes: Sequence[Outcome]
    ) -> None:
        heard, new = self._leases.account(slot.replica, incarnation, number, lease, outcomes)
        if new:
            self.watch.work(now)
            if slot.state == "done":
                slot.leave_by(now + EXIT_GRACE_S)
            self._grant(now)
        if heard:
            self._actions.append(actions.Acknowledge(slot.replica, incarnation, number))

    def _grant(self, now: float) -> None:
        """Answer all requests that can be answered now."""
        if (command := self._leases.settle(self.due.holds)) is not None:
            self._actions.append(self._outstanding.execute(command, partial(self._living_known, command.number)))
        self._send_granted(now)
        if self.allocator.finished:
            # All work is done: kill replicas that have not come yet, so that the user does not wait for them.
            for slot in (slot for slot in self.slots if slot.expected):
                self._kill(slot)
                slot.state = "done"

    def _living_known(self, number: int, now: float, answers: Sequence[Answer]) -> None:
        self._leases.obeyed(number)
        self._send_granted(now)

    def _send_granted(self, now: float) -> None:
        for granted in self._leases.take():
            slot = self.slots[granted.replica]
            slot.heard(now)
            if granted.lease is not None:
                self.watch.begin(now)
                slot.state = "working"
            else:
                slot.state = "done"
                if slot.replica not in self.allocator.holders:
                    slot.leave_by(now + EXIT_GRACE_S)
            self._actions.append(granted)

    def _captured(self, now: float, snapshots: Sequence[Answer]) -> None:
        """Write a checkpoint of the snapshots, and of an allocator in which every replica died when they were taken."""
        taken = [snapshot for snapshot in snapshots if isinstance(snapshot, Snapshot)]
        who = [(slot.replica, slot.incarnation) for slot in self.slots]
        allocator = as_if_dead(self.allocator, {one[0]: [record_of(s, *one) for s in taken] for one in who})
        if allocator.total.total > self.allocator.total.total:
            self.watch.work(now)
        self._actions.append(actions.WriteCheckpoint(snapshots, allocator.total, allocator.state()))
