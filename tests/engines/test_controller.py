"""The rules of the controller, in its order, and what it does about deaths, silence and the end of a run.

Nothing runs here: events are told, and the actions that come of them are looked at.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch

from distbelief.allocation import Account
from distbelief.downpour.lease_server import LeaseReply
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.ledger_state import Portion
from distbelief.engines import actions
from distbelief.engines.controller import Controller
from distbelief.engines.due import CheckpointsDue, EvaluationsDue
from distbelief.engines.replica_slot import EXIT_GRACE_S, GRACE_S, REQUESTED_GRACE_S
from distbelief.engines.stopwatch import Stopwatch
from distbelief.engines.supervision import Ending, Failure
from distbelief.errors import Diverged, UserCodeError, WorkerDied
from distbelief.ports import Answer, Command, Fence, Lease, Outcome, PushRecord, SetLiving, Snapshot, Verdict, Work
from distbelief.run.until import Every
from tests.shards import make_push, make_shard

A = TypeVar("A", bound=actions.Action)
SHARDS = 2
NEVER = Every(seconds=1e9)
MINE = Failure("KeyError: 'a'", "  File mine.py, line 3", "user")


class Found(list[actions.Action]):
    """Actions. Tuples of different kinds may be equal; here they are not."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and [(type(a), a) for a in self] == [(type(a), a) for a in other]

    def __contains__(self, one: object) -> bool:
        return self.count(one) > 0

    def count(self, one: object) -> int:
        """How often an action is among them."""
        return sum(type(action) is type(one) and action == one for action in self)


class Cluster:
    """A controller of replicas that ask when they are told to, and of shards that know of no push unless told of one.

    `now` is the present time. Where commands are not obeyed at once, the test says when.
    """

    def __init__(
        self,
        replicas: int = 2,
        *,
        batches: int = 2000,
        epochs: int | None = 1,
        obedient: bool = True,
        counts_living: bool = False,
        warmstart: int = 0,
        quorum: int = 1,
        **options: Any,
    ) -> None:
        self.ledger = Ledger(
            examples=10 * batches,
            batch_size=10,
            replicas=replicas,
            epochs=epochs,
            warmstart=warmstart,
            quorum=quorum,
        )
        given: dict[str, Any] = {"evaluations": None, "checkpoints": CheckpointsDue(NEVER), "term": 0}
        given |= {"incarnations": [0] * replicas, "counts_living": counts_living} | options
        self.controller = Controller(self.ledger, **given)
        self.now = 100.0
        self.done = Found()
        """All that the controller has wanted."""
        self.records: dict[int, Sequence[PushRecord | None]] = {}
        """What the shards know of a replica's last push."""
        self._obedient = obedient
        self._asked = [0] * replicas
        self._told = [0] * replicas
        self.controller.begin(self.now)
        self.started = self.take()

    def take(self) -> Found:
        """What the controller wants now; its commands are obeyed at once where the shards are obedient."""
        found = Found()
        while taken := self.controller.take():
            found += taken
            for action in taken:
                if isinstance(action, actions.Execute) and self._obedient:
                    self.obey(action)
        self.done += found
        return found

    def of(self, kind: type[A]) -> list[A]:
        """The actions of a kind among what the controller wants now."""
        return [action for action in self.take() if isinstance(action, kind)]

    def obey(self, action: actions.Execute) -> None:
        """Every shard obeys a command."""
        answers: Sequence[Answer] = [None] * SHARDS
        if isinstance(action.command, Fence):
            answers = self.records.get(action.command.replica, answers)
        self.controller.executed(self.now, action.number, answers)

    def ask(self, replica: int, incarnation: int = 1) -> None:
        """A replica asks for work."""
        self._asked[replica] += 1
        self.controller.requested(self.now, replica, incarnation, self._asked[replica])

    def lease(self, replica: int, incarnation: int = 1) -> Lease:
        """A replica asks for work and is given some at once."""
        self.ask(replica, incarnation)
        (granted,) = self.of(LeaseReply)
        assert granted[:3] == (replica, incarnation, self._asked[replica])
        assert granted.lease is not None
        return granted.lease

    def account(self, replica: int, lease: Lease, incarnation: int = 1, verdict: Verdict = Verdict.APPLIED) -> None:
        """A replica has worked on all of a lease."""
        self._told[replica] += 1
        outcomes = [Outcome(lease.start, lease.stop, verdict)]
        self.controller.accounted(self.now, replica, incarnation, self._told[replica], lease.number, outcomes)

    def die(self, replica: int, incarnation: int = 1, how: str = "was ended by SIGKILL") -> None:
        """A replica's death is told of."""
        self._asked[replica] = self._told[replica] = 0
        self.controller.ended(self.now, replica, incarnation, Ending(-9, how))

    def tick(self, *, examples: int = 0, steps: Sequence[int] | None = None) -> None:
        """Time has passed."""
        self.controller.tick(self.now, examples, steps or [0] * len(self.controller.slots))

    def work_to_the_end(self, replica: int) -> None:
        """A replica does all the work that there is, and is told that there is no more."""
        while True:
            self.ask(replica)
            (granted,) = self.of(LeaseReply)
            if granted.lease is None:
                return
            self.account(replica, granted.lease)
            self.take()


def commands(found: Sequence[actions.Action]) -> list[Command]:
    return [action.command for action in found if isinstance(action, actions.Execute)]


def snapshots(*shards: Any) -> list[Snapshot]:
    return [shard.snapshot() for shard in shards]


# Rule 1: actions come up in their order, and are handed over once.


def test_rule_1_all_replicas_are_started_when_the_run_begins() -> None:
    cluster = Cluster(3)
    assert cluster.started == [actions.Start(0, 1), actions.Start(1, 1), actions.Start(2, 1)]
    assert cluster.take() == []
    assert not cluster.controller.over


def test_rule_1_incarnations_go_on_from_those_of_the_run_before() -> None:
    cluster = Cluster(2, incarnations=[4, 0])
    assert cluster.started == [actions.Start(0, 5), actions.Start(1, 1)]


def test_rule_1_who_asks_is_granted_after_the_shards_are_told() -> None:
    cluster = Cluster()
    cluster.ask(0)
    command, granted = cluster.take()
    assert isinstance(command, actions.Execute)
    assert command.command == SetLiving(1, frozenset([0]), False)
    assert isinstance(granted, LeaseReply)


def test_rule_1_the_seconds_of_a_run_begin_with_its_first_lease() -> None:
    cluster = Cluster(watch=Stopwatch(1000.0))
    cluster.now += 7
    assert cluster.controller.watch.seconds(cluster.now) == 1000.0
    lease = cluster.lease(0)
    cluster.now += 5
    cluster.account(0, lease)
    cluster.now += 20
    assert cluster.controller.watch.seconds(cluster.now) == 1025.0
    assert cluster.controller.watch.worked == 1005.0


# Rule 2: what is told twice, late, or of an incarnation that is over has no effect.


def test_rule_2_a_request_that_comes_again_is_answered_with_the_same_lease() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    for _ in range(2):
        cluster.controller.requested(cluster.now, 0, 1, 1)
        assert cluster.take() == [LeaseReply(0, 1, 1, lease)]
    assert cluster.ledger.leases_of(0) == [lease.number]


def test_rule_2_an_account_that_comes_again_is_acknowledged_and_not_counted() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    cluster.account(0, lease)
    assert actions.Acknowledge(0, 1, 1) in cluster.take()
    cluster.controller.accounted(cluster.now, 0, 1, 1, lease.number, [Outcome(0, lease.stop, Verdict.APPLIED)])
    assert cluster.take() == [actions.Acknowledge(0, 1, 1)]
    assert cluster.ledger.total == Account(used=320)


def test_rule_2_a_request_that_was_overtaken_is_not_answered() -> None:
    cluster = Cluster()
    cluster.lease(0)
    cluster.lease(0)
    cluster.controller.requested(cluster.now, 0, 1, 1)
    assert cluster.take() == []


@pytest.mark.parametrize("incarnation", [0, 2], ids=["one that is over", "one to come"])
def test_rule_2_of_another_incarnation_nothing_is_heard(incarnation: int) -> None:
    cluster, controller = Cluster(), None
    controller = cluster.controller
    lease, now = cluster.lease(0), cluster.now
    for number in (1, 2):
        controller.requested(now, 0, incarnation, number)
        controller.accounted(now, 0, incarnation, number, lease.number, [Outcome(0, 1, Verdict.APPLIED)])
    controller.failed(now, 0, incarnation, MINE)
    controller.closing(now, 0, incarnation)
    controller.ended(now, 0, incarnation, Ending(1, "ended"))
    assert cluster.take() == []
    assert controller.wakes_at == math.inf
    assert cluster.ledger.leases_of(0) == [lease.number]
    assert cluster.ledger.total == Account()


def test_rule_2_a_death_that_is_reported_twice_is_one_death() -> None:
    cluster = Cluster(obedient=False)
    cluster.die(0)
    cluster.die(0)
    (fence,) = cluster.of(actions.Execute)
    cluster.die(0)
    assert cluster.take() == []
    cluster.obey(fence)
    cluster.die(0)
    lost, start = cluster.take()
    assert isinstance(lost, actions.Lost)
    assert start == actions.Start(0, 2)


def test_rule_2_the_answers_to_a_command_are_taken_once() -> None:
    cluster = Cluster(obedient=False)
    cluster.die(0)
    (fence,) = cluster.of(actions.Execute)
    cluster.obey(fence)
    assert actions.Start(0, 2) in cluster.take()
    cluster.obey(fence)
    cluster.controller.executed(cluster.now, 99, [None, None])
    assert cluster.take() == []


def test_rule_2_what_the_dead_had_under_way_has_no_effect() -> None:
    cluster = Cluster(obedient=False)
    lease = cluster.lease(0)
    cluster.account(0, lease)
    cluster.take()
    second = cluster.lease(0)
    cluster.die(0)
    cluster.take()
    outcomes = [Outcome(second.start, second.stop, Verdict.APPLIED)]
    cluster.controller.accounted(cluster.now, 0, 1, 2, second.number, outcomes)
    cluster.controller.requested(cluster.now, 0, 1, 3)
    cluster.controller.failed(cluster.now, 0, 1, MINE)
    assert cluster.take() == []
    assert cluster.ledger.total == Account(used=320)


# Rule 3: the dead are fenced at every shard before their leases are released, and before they are replaced.


def test_rule_3_nothing_of_the_dead_is_given_to_others_before_every_shard_is_closed_to_them() -> None:
    cluster = Cluster(obedient=False, batches=1)
    lease = cluster.lease(0)
    cluster.ask(1)
    cluster.take()
    cluster.die(0)
    (fence,) = cluster.of(actions.Execute)
    assert fence.command == Fence(0, 1)
    cluster.tick()
    assert cluster.take() == []
    assert cluster.ledger.leases_of(0) == [lease.number]
    assert not cluster.controller.over
    cluster.obey(fence)
    lost, start, command, granted = cluster.take()
    assert lost == actions.Lost(0, 1, -9, None, Account(), [None, None], partial=False, left=False)
    assert start == actions.Start(0, 2)
    assert commands([command]) == [SetLiving(2, frozenset([1]), False)]
    assert isinstance(granted, LeaseReply)
    assert granted.lease is not None
    assert (granted.replica, granted.lease[1:]) == (1, lease[1:])


def test_rule_3_what_the_shards_know_of_the_last_push_is_accounted_for() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    record = PushRecord(3, Work(lease.number, 2, 3, 10), Verdict.APPLIED, True)
    cluster.records[0] = [record, record]
    cluster.now += 4
    cluster.die(0)
    (lost,) = cluster.of(actions.Lost)
    assert (lost.account, lost.partial) == (Account(used=30), False)
    assert cluster.ledger.total == Account(used=30)
    assert cluster.controller.watch.worked == 4.0
    assert cluster.lease(1).start == 3, "the rest is leased again"


def test_rule_3_a_push_that_not_every_shard_has_is_torn() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    cluster.records[0] = [PushRecord(1, Work(lease.number, 0, 2, 20), Verdict.APPLIED, True), None]
    cluster.die(0)
    (lost,) = cluster.of(actions.Lost)
    assert (lost.account, lost.partial, lost.records) == (Account(partial=20), True, cluster.records[0])


def test_rule_3_who_has_ended_when_there_was_no_more_work_is_not_fenced() -> None:
    cluster = Cluster(1, batches=3)
    cluster.work_to_the_end(0)
    cluster.die(0)
    assert cluster.take() == [actions.Left(0)]
    assert cluster.controller.over


def test_rule_3_who_dies_with_its_last_lease_is_fenced_although_it_was_told_of_the_end() -> None:
    cluster = Cluster(1)
    cluster.lease(0)
    cluster.ask(0)
    cluster.take()
    cluster.controller.stop(cluster.now, "target")
    cluster.ask(0)
    assert [granted.lease for granted in cluster.of(LeaseReply)] == [None]
    cluster.die(0)
    assert Fence(0, 1) in commands(cluster.take())
    assert cluster.controller.over


def test_rule_3_the_run_is_not_over_while_a_fence_is_under_way() -> None:
    cluster = Cluster(1, obedient=False)
    cluster.lease(0)
    cluster.controller.stop(cluster.now, "target")
    cluster.die(0)
    assert not cluster.controller.over
    (fence,) = [action for action in cluster.of(actions.Execute) if isinstance(action.command, Fence)]
    cluster.obey(fence)
    assert [type(action) for action in cluster.take()] == [actions.Lost]
    assert cluster.controller.over


# Rule 4: while snapshots are taken the allocator stands still.


class Capturing(Cluster):
    """Snapshots of both shards are being taken."""

    def __init__(self, **options: Any) -> None:
        super().__init__(checkpoints=CheckpointsDue(Every(examples=160)), **options)
        self.shards = [make_shard(torch.zeros(4)) for _ in range(SHARDS)]
        self.leases = [self.lease(0), self.lease(1)]
        self.tick()
        assert self.take() == []
        self.tick(examples=10)
        (self.number,) = [action.number for action in self.of(actions.TakeSnapshots)]

    def push(self, batch: int, *, examples: int = 10) -> None:
        """Replica 0 has pushed one batch of its lease to every shard."""
        work = Work(self.leases[0].number, batch, batch + 1, examples)
        for shard in self.shards:
            shard.push(make_push(torch.ones(4), batch + 1, work=work))

    def captured(self) -> Found:
        """The snapshots are there."""
        self.controller.executed(self.now, self.number, snapshots(*self.shards))
        return self.take()


def test_rule_4_accounts_wait_and_are_acknowledged_when_the_snapshots_are_there() -> None:
    cluster = Capturing()
    cluster.account(0, cluster.leases[0])
    assert cluster.take() == []
    assert cluster.ledger.total == Account()
    write, *later = cluster.captured()
    assert isinstance(write, actions.WriteCheckpoint)
    assert write.total == Account()
    assert actions.Acknowledge(0, 1, 1) in later
    assert cluster.ledger.total == Account(used=320)


def test_rule_4_requests_wait() -> None:
    cluster = Capturing()
    cluster.ask(0)
    assert cluster.take() == []
    write, granted = cluster.captured()
    assert isinstance(write, actions.WriteCheckpoint)
    assert isinstance(granted, LeaseReply)


def test_rule_4_the_dead_are_fenced_at_once_and_accounted_for_afterwards() -> None:
    cluster = Capturing()
    cluster.push(0)
    cluster.records[0] = [PushRecord(1, Work(cluster.leases[0].number, 0, 1, 10), Verdict.APPLIED, True)] * SHARDS
    cluster.die(0)
    assert commands(cluster.take()) == [Fence(0, 1)]
    assert cluster.ledger.total == Account()
    write, lost, start, *_ = cluster.captured()
    assert isinstance(write, actions.WriteCheckpoint)
    assert write.total == Account(used=10), "the push is in the snapshots"
    assert isinstance(lost, actions.Lost)
    assert lost.account == Account(used=10), "and is counted once by the run that goes on"
    assert start == actions.Start(0, 2)


def test_rule_4_what_waits_comes_in_its_order() -> None:
    cluster = Capturing()
    cluster.ask(1)
    cluster.account(0, cluster.leases[0])
    cluster.controller.stop(cluster.now, "target")
    assert [type(action) for action in cluster.take()] == [actions.StopWork]
    assert [type(action) for action in cluster.captured()] == [
        actions.WriteCheckpoint,
        actions.Execute,
        LeaseReply,
        actions.Acknowledge,
    ]


def test_rule_4_a_checkpoint_accounts_as_if_every_replica_died_with_what_the_shards_have() -> None:
    cluster = Capturing()
    for batch in range(5):
        cluster.push(batch)
    (write,) = cluster.captured()
    assert isinstance(write, actions.WriteCheckpoint)
    assert write.total == Account(used=50)
    assert write.state.released == (Portion(0, 5, 32), Portion(0, *cluster.leases[1][2:]))
    assert len(write.snapshots) == SHARDS
    assert cluster.ledger.total == Account(), "the run itself goes on"
    assert cluster.ledger.holders == {0, 1}
    again = Ledger(examples=20_000, batch_size=10, replicas=2, epochs=1)
    again.restore_(write.state)
    again.check()


def test_rule_4_snapshots_that_come_again_write_nothing() -> None:
    cluster = Capturing()
    cluster.captured()
    assert cluster.captured() == []


def test_rule_4_one_checkpoint_is_written_at_a_time() -> None:
    cluster = Capturing()
    cluster.tick(examples=10_000)
    assert cluster.take() == [], "snapshots are being taken"
    cluster.captured()
    cluster.tick(examples=10_000)
    assert cluster.take() == [], "a checkpoint is being written"
    cluster.controller.written()
    cluster.tick(examples=10_000)
    assert [type(action) for action in cluster.take()] == [actions.TakeSnapshots]


# Rule 5: where the policy counts the living, a lease is granted when every shard knows its holder.


def test_rule_5_a_grant_waits_until_the_shards_know_its_holder() -> None:
    cluster = Cluster(obedient=False, counts_living=True)
    cluster.ask(0)
    (command,) = cluster.take()
    assert commands([command]) == [SetLiving(1, frozenset([0]), False)]
    assert isinstance(command, actions.Execute)
    cluster.controller.requested(cluster.now, 0, 1, 1)
    cluster.tick()
    assert cluster.take() == []
    cluster.obey(command)
    assert [type(action) for action in cluster.take()] == [LeaseReply]


def test_rule_5_a_later_grant_waits_for_its_own_command() -> None:
    cluster = Cluster(3, obedient=False, counts_living=True)
    cluster.ask(0)
    (first,) = cluster.of(actions.Execute)
    cluster.ask(1)
    (second,) = cluster.of(actions.Execute)
    cluster.obey(first)
    assert [granted.replica for granted in cluster.of(LeaseReply)] == [0]
    cluster.obey(second)
    assert [granted.replica for granted in cluster.of(LeaseReply)] == [1]


def test_rule_5_who_knows_the_newest_command_knows_the_older_ones() -> None:
    cluster = Cluster(obedient=False, counts_living=True)
    for replica in (0, 1):
        cluster.ask(replica)
    first, second = cluster.of(actions.Execute)
    cluster.obey(second)
    assert [granted.replica for granted in cluster.of(LeaseReply)] == [0, 1]
    cluster.obey(first)
    assert cluster.take() == []


def test_rule_5_who_dies_before_the_shards_know_it_is_granted_nothing() -> None:
    cluster = Cluster(obedient=False, counts_living=True)
    cluster.ask(0)
    (command,) = cluster.of(actions.Execute)
    cluster.die(0)
    (fence,) = cluster.of(actions.Execute)
    cluster.obey(command)
    assert cluster.take() == []
    cluster.obey(fence)
    assert [type(action) for action in cluster.take()] == [actions.Lost, actions.Start, actions.Execute]
    assert cluster.ledger.holders == set()


def test_rule_5_elsewhere_a_grant_waits_for_nothing() -> None:
    cluster = Cluster(obedient=False)
    cluster.ask(0)
    assert [type(action) for action in cluster.take()] == [actions.Execute, LeaseReply]


def test_rule_5_a_warm_start_is_told_and_so_is_its_end() -> None:
    cluster = Cluster(warmstart=320)
    cluster.ask(0)
    assert commands(cluster.take())[-1] == SetLiving(1, frozenset([0]), True)
    cluster.ask(1)
    assert cluster.of(LeaseReply) == []
    cluster.account(0, Lease(1, 0, 0, 32))
    found = cluster.take()
    assert [granted.replica for granted in found if isinstance(granted, LeaseReply)] == [1]
    assert commands(found) == [SetLiving(2, frozenset([1]), False)]


def test_a_quorum_that_can_be_had_no_more_is_waited_for_no_longer() -> None:
    cluster = Cluster(3, quorum=3, counts_living=True)
    for replica in (0, 1):
        cluster.ask(replica)
    cluster.die(2)
    assert actions.Start(2, 2) in cluster.take()
    cluster.controller.gone(cluster.now, 2)
    cluster.tick()
    assert [granted.replica for granted in cluster.of(LeaseReply)] == [0, 1]


# Deaths


def test_deaths_are_replaced_as_long_as_work_is_done() -> None:
    cluster = Cluster(1)
    for incarnation in range(1, 51):
        cluster.now += 10
        cluster.tick(examples=10 * incarnation)
        cluster.die(0, incarnation)
        assert cluster.take()[-1] == actions.Start(0, incarnation + 1)
    assert cluster.controller.error is None


def test_six_deaths_at_one_instant_count_once() -> None:
    """A machine that is taken away takes all its replicas with it."""
    cluster = Cluster(6)
    for replica in range(6):
        cluster.die(replica)
    assert cluster.of(actions.Start) == [actions.Start(replica, 2) for replica in range(6)]
    for incarnation in range(2, 5):
        cluster.now += 10
        for replica in range(6):
            cluster.die(replica, incarnation)
        assert len(cluster.of(actions.Start)) == 6, "nor is the run ended"
    cluster.now += 10
    cluster.die(0, 5, how="was ended by signal 9")
    assert cluster.of(actions.Start) == []
    assert isinstance(cluster.controller.error, WorkerDied)
    assert "the last one was ended by signal 9" in str(cluster.controller.error)


def test_a_failure_of_the_users_code_is_replaced_once_and_then_ends_the_run() -> None:
    cluster = Cluster()
    cluster.lease(0)
    cluster.controller.failed(cluster.now, 0, 1, MINE)
    cluster.die(0)
    found = cluster.take()
    assert [action.error for action in found if isinstance(action, actions.Lost)] == [MINE.error]
    assert actions.Start(0, 2) in found
    cluster.controller.failed(cluster.now, 0, 2, Failure("KeyError: 'b'", MINE.frames, "user"))
    cluster.die(0, 2)
    assert actions.Start(0, 3) in cluster.take(), "another one is another one"
    cluster.controller.failed(cluster.now, 1, 1, MINE)
    cluster.die(1)
    found = cluster.take()
    assert [action for action in found if isinstance(action, actions.Start)] == []
    assert actions.StopWork() in found
    assert isinstance(cluster.controller.error, UserCodeError)
    assert str(cluster.controller.error) == "replicas failed twice with KeyError: 'a'\n\n  File mine.py, line 3"
    assert cluster.controller.stopped_by == "failure"


def test_divergence_ends_the_run_at_once() -> None:
    cluster = Cluster()
    cluster.controller.failed(cluster.now, 0, 1, Failure("lower lr", "", "diverged"))
    cluster.die(0)
    assert cluster.of(actions.Start) == []
    assert isinstance(cluster.controller.error, Diverged)


def test_the_first_error_is_the_one_that_is_told() -> None:
    cluster = Cluster()
    first = UserCodeError("the first")
    cluster.controller.fail(cluster.now, first)
    cluster.controller.fail(cluster.now, UserCodeError("the second"))
    assert cluster.controller.error is first


def test_a_failure_is_of_the_incarnation_that_told_it() -> None:
    cluster = Cluster()
    cluster.controller.failed(cluster.now, 0, 1, MINE)
    cluster.die(0)
    cluster.take()
    cluster.now += 10
    cluster.die(0, 2)
    (lost,) = cluster.of(actions.Lost)
    assert lost.error is None


def test_who_said_that_it_ends_is_ended_if_it_does_not() -> None:
    for replica, tell in enumerate(("failed", "closing")):
        cluster = Cluster()
        if tell == "failed":
            cluster.controller.failed(cluster.now, replica, 1, MINE)
        else:
            cluster.controller.closing(cluster.now, replica, 1)
        assert cluster.controller.wakes_at == cluster.now + EXIT_GRACE_S
        cluster.now += EXIT_GRACE_S - 0.1
        cluster.tick()
        assert cluster.take() == []
        cluster.now += 0.1
        cluster.tick()
        cluster.tick()
        assert cluster.take() == [actions.Kill(replica, 1)]


# Leaving


def test_who_is_told_to_leave_is_given_nothing_more_and_replaced_when_it_has_ended() -> None:
    cluster = Cluster()
    lease, ahead = cluster.lease(0), cluster.lease(0)
    cluster.controller.leaving(cluster.now, 0, 1)
    assert cluster.take() == []
    for one, outcomes in ((lease, [Outcome(lease.start, lease.start + 2, Verdict.APPLIED)]), (ahead, [])):
        cluster._told[0] += 1
        cluster.controller.accounted(cluster.now, 0, 1, cluster._told[0], one.number, outcomes)
    found = cluster.take()
    assert [action for action in found if isinstance(action, LeaseReply)] == []
    assert cluster.ledger.holders == frozenset(), "no round waits for it from here on"
    cluster.controller.ended(cluster.now, 0, 1, Ending(0, "ended with exit code 0"))
    fence, lost, start = (a for a in cluster.take() if isinstance(a, actions.Execute | actions.Lost | actions.Start))
    assert isinstance(fence, actions.Execute) and fence.command == Fence(0, 1)
    assert lost == actions.Lost(0, 1, 0, None, Account(), [None, None], partial=False, left=True)
    assert start == actions.Start(0, 2)
    cluster._asked[0] = 0
    assert cluster.lease(0, 2)[1:] == (0, lease.start + 2, lease.stop), "what it gave back is granted"
    assert cluster.ledger.total == Account(used=20)


def test_who_waits_for_work_when_it_is_told_to_leave_is_told_that_there_is_none() -> None:
    cluster = Cluster(2, batches=1)
    cluster.lease(0)
    cluster.ask(1)
    assert cluster.take() == []
    cluster.controller.leaving(cluster.now, 1, 1)
    cluster.controller.leaving(cluster.now, 1, 1)
    assert cluster.take() == [LeaseReply(1, 1, 1, None)]
    cluster.controller.ended(cluster.now, 1, 1, Ending(0, "ended"))
    assert actions.Start(1, 2) in cluster.take()


def test_who_leaves_alone_in_a_warm_start_makes_room_for_another() -> None:
    cluster = Cluster(2, warmstart=1000)
    lease = cluster.lease(0)
    cluster.ask(1)
    cluster.controller.leaving(cluster.now, 0, 1)
    cluster._told[0] = 1
    cluster.controller.accounted(cluster.now, 0, 1, 1, lease.number, [])
    assert cluster.of(LeaseReply) == []
    cluster.controller.ended(cluster.now, 0, 1, Ending(0, "ended"))
    assert [granted.replica for granted in cluster.of(LeaseReply)] == [1]


def test_leaving_is_no_failure_however_often_and_however_it_ends() -> None:
    cluster = Cluster()
    for incarnation in range(1, 300):
        cluster.now += 10
        if incarnation % 2:
            cluster._asked[0] = 0
            cluster.lease(0, incarnation)
        cluster.controller.leaving(cluster.now, 0, incarnation)
        ending = Ending(-9, "was ended by SIGKILL", batch=(0, 0)) if incarnation % 2 else Ending(0, "ended")
        cluster.controller.ended(cluster.now, 0, incarnation, ending)
        assert actions.Start(0, incarnation + 1) in cluster.take()
    assert cluster.controller.error is None
    assert cluster.controller.slots[0].starts == 300


def test_who_dies_while_it_leaves_is_accounted_for_as_any_dead() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    work = Work(lease.number, lease.start, lease.start + 1, 10)
    cluster.records[0] = [PushRecord(1, work, Verdict.APPLIED, True), None]
    cluster.controller.leaving(cluster.now, 0, 1)
    cluster.die(0)
    (lost,) = cluster.of(actions.Lost)
    assert (lost.left, lost.partial, lost.account) == (True, True, Account(partial=10))


def test_who_fails_while_it_leaves_has_failed() -> None:
    cluster = Cluster()
    for incarnation in (1, 2):
        cluster.controller.leaving(cluster.now, 0, incarnation)
        cluster.controller.failed(cluster.now, 0, incarnation, MINE)
        cluster.die(0, incarnation)
        (lost,) = cluster.of(actions.Lost)
        assert not lost.left
    assert isinstance(cluster.controller.error, UserCodeError)


@pytest.mark.parametrize("grace_s", [None, 60.0])
def test_who_does_not_leave_in_time_is_killed(grace_s: float | None) -> None:
    cluster = Cluster()
    cluster.lease(0)
    cluster.controller.leaving(cluster.now, 0, 1, *([] if grace_s is None else [grace_s]))
    cluster.now += (REQUESTED_GRACE_S if grace_s is None else grace_s) - 0.1
    cluster.tick(steps=[1, 1])
    assert cluster.take() == []
    cluster.now += 0.1
    cluster.tick(steps=[2, 2])
    assert cluster.take() == [actions.Kill(0, 1)]


def test_a_notice_for_another_incarnation_is_not_heard() -> None:
    cluster = Cluster()
    cluster.die(0)
    cluster.take()
    cluster.controller.leaving(cluster.now, 0, 1)
    cluster.lease(0, 2)
    assert not cluster.controller.slots[0].leaving


def test_who_leaves_when_all_work_is_done_is_not_replaced() -> None:
    cluster = Cluster(2, batches=3)
    cluster.work_to_the_end(0)
    cluster.controller.leaving(cluster.now, 0, 1)
    cluster.controller.ended(cluster.now, 0, 1, Ending(0, "ended"))
    assert cluster.take() == [actions.Left(0)]


# Machines that come later


def test_a_replica_without_a_machine_is_awaited_by_nobody() -> None:
    cluster = Cluster(2, quorum=1)
    cluster.controller.placed(cluster.now, 1, 1, there=False)
    cluster.lease(0)
    cluster.now += 1000
    cluster.tick(steps=[1, 0])
    assert cluster.take() == [], "its silence says nothing"
    cluster.controller.placed(cluster.now, 1, 1, there=True)
    cluster.lease(1)
    assert [slot.starts for slot in cluster.controller.slots] == [1, 1]


def test_who_is_still_awaited_when_all_work_is_done_is_not_started() -> None:
    cluster = Cluster(2, batches=3)
    cluster.controller.placed(cluster.now, 1, 1, there=False)
    cluster.work_to_the_end(0)
    assert actions.Kill(1, 1) in cluster.done
    cluster.controller.ended(cluster.now, 1, 1, Ending(-9, "ended"))
    cluster.die(0)
    cluster.take()
    assert cluster.controller.over


# Silence


def test_a_silent_replica_is_suspected_after_half_a_minute() -> None:
    cluster = Cluster()
    cluster.lease(0)
    cluster.lease(1)
    cluster.now += 30
    cluster.tick()
    assert cluster.take() == []
    cluster.now += 0.1
    cluster.tick(steps=[0, 1])
    assert cluster.take() == [actions.Suspect(0, 1)], "the other one has made a step"


def test_a_slow_replica_is_not_suspected() -> None:
    """One whose batches take 20 s is when it has said nothing for ten of them."""
    cluster = Cluster(1)
    cluster.lease(0)
    for step in range(1, 4):
        cluster.now += 20
        cluster.tick(steps=[step])
    cluster.now += 200
    cluster.tick(steps=[3])
    assert cluster.take() == []
    cluster.now += 0.1
    cluster.tick(steps=[3])
    assert cluster.take() == [actions.Suspect(0, 1)]


def test_who_asks_or_accounts_is_not_silent() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    cluster.lease(1)
    cluster.now += 20
    cluster.account(0, lease)
    cluster.controller.requested(cluster.now, 1, 1, 1)
    cluster.take()
    cluster.now += 20
    cluster.tick()
    assert cluster.of(actions.Suspect) == []


def test_a_suspect_that_is_held_to_be_dead_is_replaced() -> None:
    cluster = Cluster()
    cluster.lease(0)
    cluster.now += 31
    cluster.tick()
    assert actions.Suspect(0, 1) in cluster.take()
    cluster.controller.ended(cluster.now, 0, 1, Ending(None, "was out of reach"))
    assert actions.Start(0, 2) in cluster.take()
    cluster.tick()
    assert actions.Suspect(0, 2) not in cluster.take(), "its successor has only begun"


# The end


def test_the_run_is_over_when_all_work_is_done_and_every_replica_has_ended() -> None:
    cluster = Cluster(2, batches=3)
    cluster.ask(1)
    cluster.take()
    cluster.account(1, Lease(1, 0, 0, 1))
    cluster.work_to_the_end(0)
    cluster.ask(1)
    cluster.take()
    for replica in (0, 1):
        assert not cluster.controller.over
        cluster.die(replica)
    assert cluster.take() == [actions.Left(0), actions.Left(1)]
    assert cluster.controller.over
    assert (cluster.controller.stopped_by, cluster.controller.error) == (None, None)


def test_who_has_nothing_more_to_do_is_given_five_seconds_to_end() -> None:
    """Threads of the user's may never end."""
    cluster = Cluster(1, batches=3)
    cluster.work_to_the_end(0)
    assert cluster.controller.wakes_at == cluster.now + EXIT_GRACE_S
    cluster.now += EXIT_GRACE_S
    cluster.tick()
    assert cluster.take() == [actions.Kill(0, 1)]
    cluster.die(0)
    assert cluster.take() == [actions.Left(0)], "that is no death"


def test_latecomers_are_dismissed_when_there_is_no_more_work() -> None:
    """No person is to wait until they have imported what they need for nothing."""
    cluster = Cluster(2, batches=3)
    lease = cluster.lease(0)
    cluster.tick()
    assert actions.Kill(1, 1) not in cluster.take()
    cluster.account(0, lease)
    cluster.work_to_the_end(0)
    cluster.tick()
    cluster.tick()
    cluster.take()
    assert cluster.done.count(actions.Kill(1, 1)) == 1
    cluster.die(1)
    assert cluster.take() == [actions.Left(1)]
    cluster.die(0)
    assert cluster.controller.over


def test_who_dies_when_all_work_is_done_is_not_replaced() -> None:
    cluster = Cluster(2, batches=3)
    cluster.work_to_the_end(0)
    cluster.die(1)
    assert cluster.of(actions.Start) == []


def at_the_end_of_an_epoch() -> Cluster:
    """A cluster that waits for each evaluation, with a replica that asks for work of the second epoch."""
    cluster = Cluster(batches=2, epochs=3, evaluations=EvaluationsDue(None, each=True))
    cluster.tick()
    for _ in range(2):
        cluster.account(0, cluster.lease(0))
    cluster.ask(0)
    return cluster


def test_work_waits_for_each_evaluation_where_that_is_asked_for() -> None:
    cluster = at_the_end_of_an_epoch()
    assert cluster.of(LeaseReply) == [], "the first epoch is to be evaluated before the second begins"
    cluster.tick()
    evaluate, granted = (action for action in cluster.take() if isinstance(action, actions.Evaluate | LeaseReply))
    assert isinstance(evaluate, actions.Evaluate), "the evaluation begins before the work"
    assert isinstance(granted, LeaseReply) and granted.lease is not None
    cluster.account(0, granted.lease)
    cluster.account(0, cluster.lease(0))
    cluster.ask(0)
    cluster.tick()
    assert not [action for action in cluster.take() if isinstance(action, actions.Evaluate | LeaseReply)]
    cluster.controller.evaluated(cluster.now, None)
    cluster.tick()
    assert len([action for action in cluster.take() if isinstance(action, actions.Evaluate | LeaseReply)]) == 2
    assert cluster.controller.due.left_out(cluster.now) == 0


def test_a_run_that_ends_holds_nothing_back() -> None:
    cluster = at_the_end_of_an_epoch()
    cluster.controller.stop(cluster.now, "a callback")
    assert [granted.lease for granted in cluster.of(LeaseReply)] == [None]


def test_a_limit_in_seconds_ends_the_run() -> None:
    cluster = Cluster(watch=Stopwatch(limit=60.0))
    cluster.now += 1000
    cluster.tick()
    assert cluster.of(actions.StopWork) == [], "what comes before the first lease does not count"
    cluster.lease(0)
    cluster.now += 59.9
    cluster.tick()
    assert cluster.of(actions.StopWork) == []
    cluster.now += 0.1
    cluster.tick()
    cluster.tick()
    assert cluster.of(actions.StopWork) == [actions.StopWork()]
    assert cluster.controller.stopped_by == "seconds"


def test_a_limit_in_seconds_counts_those_of_the_run_before() -> None:
    cluster = Cluster(watch=Stopwatch(50.0, 60.0))
    cluster.lease(0)
    cluster.now += 10
    cluster.tick()
    assert cluster.controller.stopped_by == "seconds"


def test_after_a_stop_everybody_is_told_of_the_end_and_gives_back_what_is_left() -> None:
    cluster = Cluster()
    lease = cluster.lease(0)
    cluster.ask(0)
    cluster.take()
    cluster.controller.stop(cluster.now, "target")
    assert actions.StopWork() in cluster.take()
    cluster.ask(1)
    assert [granted.lease for granted in cluster.of(LeaseReply)] == [None]
    cluster.controller.accounted(cluster.now, 0, 1, 1, lease.number, [Outcome(0, 2, Verdict.APPLIED)])
    assert cluster.ledger.total == Account(used=20)
    assert cluster.controller.stopped_by == "target"


@pytest.mark.parametrize("grace_s", [GRACE_S, REQUESTED_GRACE_S])
def test_replicas_that_do_not_end_within_the_grace_are_ended_once(grace_s: float) -> None:
    cluster = Cluster()
    for replica in (0, 1):
        cluster.lease(replica)
    cluster.controller.stop(cluster.now, "interrupted", grace_s)
    cluster.take()
    assert cluster.controller.wakes_at == cluster.now + grace_s
    cluster.now += grace_s - 0.1
    cluster.tick()
    assert cluster.of(actions.Kill) == []
    cluster.now += 0.1
    cluster.tick()
    cluster.tick()
    assert cluster.of(actions.Kill) == [actions.Kill(0, 1), actions.Kill(1, 1)]
    assert cluster.controller.wakes_at == math.inf
    for replica in (0, 1):
        cluster.die(replica)
        assert [type(action) for action in cluster.of(actions.Lost)] == [actions.Lost]
    assert cluster.controller.over
    assert cluster.ledger.finished


def test_the_first_reason_is_kept_and_the_shortest_grace_counts() -> None:
    cluster = Cluster()
    cluster.lease(0)
    cluster.controller.stop(cluster.now, "target")
    cluster.controller.stop(cluster.now, "interrupted", 0.0)
    cluster.controller.stop(cluster.now, "terminated")
    assert cluster.controller.stopped_by == "target"
    assert cluster.controller.wakes_at == cluster.now


def test_an_error_ends_every_replica_at_once() -> None:
    cluster = Cluster()
    cluster.controller.fail(cluster.now, UserCodeError("an evaluation failed"))
    cluster.tick()
    assert cluster.take() == [actions.StopWork(), actions.Kill(0, 1), actions.Kill(1, 1)]


def test_a_replica_that_will_never_be_there_is_waited_for_no_longer() -> None:
    cluster = Cluster(2, batches=3)
    cluster.controller.gone(cluster.now, 1)
    cluster.work_to_the_end(0)
    cluster.die(0)
    cluster.take()
    assert cluster.controller.over


def test_it_says_when_it_is_to_be_told_the_time_at_the_latest() -> None:
    cluster = Cluster(watch=Stopwatch(10.0, 60.0))
    assert cluster.controller.wakes_at == math.inf
    cluster.lease(0)
    assert cluster.controller.wakes_at == cluster.now + 50.0
    cluster.controller.closing(cluster.now, 1, 1)
    assert cluster.controller.wakes_at == cluster.now + EXIT_GRACE_S
    cluster.now += 50.0
    cluster.tick()
    assert cluster.controller.wakes_at == cluster.now + GRACE_S


# Shards that come back


def test_a_shard_that_comes_back_is_told_who_is_dead_and_who_lives() -> None:
    cluster = Cluster(3, term=4)
    for replica in (0, 1):
        cluster.lease(replica)
    cluster.now += 10
    cluster.die(1)
    cluster.take()
    cluster.controller.gone(cluster.now, 2)
    cluster.controller.returned(1)
    (restore,) = cluster.of(actions.RestoreShard)
    # Replica 0 lives in its first incarnation, 1 in its second, and 2 will never be there again.
    assert restore == actions.RestoreShard(1, 5, (0, 1, 1), SetLiving(3, frozenset([0]), False))
    assert cluster.controller.term == 5
    cluster.controller.returned(0)
    (restore,) = cluster.of(actions.RestoreShard)
    assert (restore.shard, restore.term) == (0, 6)


def test_a_shard_that_comes_back_is_closed_to_who_is_just_being_fenced() -> None:
    cluster = Cluster(obedient=False)
    cluster.lease(0)
    cluster.die(0)
    cluster.take()
    cluster.controller.returned(0)
    (restore,) = cluster.of(actions.RestoreShard)
    assert restore.fenced == (1, 0)


# What is due


def test_an_evaluation_is_due_at_the_end_of_each_epoch_and_one_runs_at_a_time() -> None:
    cluster = Cluster(1, batches=32, epochs=20, evaluations=EvaluationsDue(None))
    cluster.tick()
    assert cluster.of(actions.Evaluate) == []
    for epoch in range(3):
        lease = cluster.lease(0)
        assert lease[1:] == (epoch, 0, 32)
        cluster.account(0, lease)
        cluster.take()
        cluster.tick()
        assert len(cluster.of(actions.Evaluate)) == (epoch == 0), "the first has not ended"
    cluster.controller.evaluated(cluster.now, None)
    cluster.tick()
    cluster.tick()
    assert len(cluster.of(actions.Evaluate)) == 1, "what was missed is made up for once"
    cluster.controller.evaluated(cluster.now, None)
    cluster.tick()
    assert cluster.of(actions.Evaluate) == []


def test_what_an_evaluation_finds_may_end_the_run() -> None:
    cluster = Cluster()
    cluster.controller.evaluated(cluster.now, None)
    assert cluster.take() == []
    cluster.controller.evaluated(cluster.now, "target")
    assert actions.StopWork() in cluster.take()
    assert cluster.controller.stopped_by == "target"


def test_an_evaluation_that_comes_after_all_work_is_no_reason_for_the_end() -> None:
    cluster = Cluster(1, batches=3)
    cluster.work_to_the_end(0)
    cluster.controller.evaluated(cluster.now, "target")
    assert cluster.controller.stopped_by is None


def test_nothing_is_due_when_the_run_is_ending() -> None:
    checkpoints, evaluations = CheckpointsDue(Every(examples=16)), EvaluationsDue(Every(examples=10))
    cluster = Cluster(checkpoints=checkpoints, evaluations=evaluations)
    cluster.tick()
    cluster.lease(0)
    cluster.controller.stop(cluster.now, "target")
    cluster.take()
    cluster.tick(examples=10_000)
    assert cluster.take() == []


# Everything at once


class Anarchy:
    """Replicas ask, account, die and come back in any order, and whatever is told may be told again, and late."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster(
            3,
            batches=400,
            obedient=False,
            counts_living=seed % 2 == 0,
            quorum=3 if seed % 4 == 0 else 1,
            checkpoints=CheckpointsDue(Every(examples=320)),
        )
        self.shards = [make_shard(torch.zeros(4)) for _ in range(SHARDS)]
        self.lives: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.granted: dict[int, int] = {}
        self.told: dict[int, int] = {}
        self.held: dict[int, list[Lease]] = {}
        self.leaving: set[tuple[int, int]] = set()
        self.sent: list[actions.Execute | actions.TakeSnapshots] = []
        self.fenced: set[tuple[int, int]] = set()
        self.past: list[Callable[[], None]] = []
        """What was told, to be told again."""
        self.captured = 0
        self.carry(self.cluster.started)

    def tell(self, event: Callable[[], None]) -> None:
        """Tell of something, and perhaps of something that was told before."""
        self.past.append(event)
        event()
        if self.chance.random() < 0.3:
            self.chance.choice(self.past)()
        self.carry(self.cluster.take())

    def carry(self, found: Sequence[actions.Action]) -> None:
        """Do what the controller wants, and see that it may want that."""
        for action in found:
            match action:
                case actions.Start(replica, incarnation):
                    assert incarnation == 1 or (replica, incarnation - 1) in self.fenced
                    self.lives[replica] = incarnation
                    self.asked[replica] = self.granted[replica] = self.told[replica] = 0
                    self.held[replica] = []
                case LeaseReply(replica, incarnation, number, lease):
                    assert incarnation == self.lives[replica]
                    if number > self.granted[replica]:
                        told = (replica, incarnation) in self.leaving
                        assert lease is not None or told or self.cluster.ledger.finished
                        self.granted[replica] = number
                        if lease is not None:
                            assert all(lease.number != other.number for held in self.held.values() for other in held)
                            self.held[replica].append(lease)
                case actions.Execute() | actions.TakeSnapshots():
                    self.sent.append(action)
                case actions.WriteCheckpoint():
                    self.captured += 1
                    self.cluster.controller.written()
                case actions.Lost(replica, incarnation):
                    assert (replica, incarnation) in self.fenced
                    assert action.left == ((replica, incarnation) in self.leaving)

    def answer(self) -> None:
        """Some command is obeyed by every shard."""
        action = self.sent.pop(self.chance.randrange(len(self.sent)))
        answers: Sequence[Answer] = [None] * SHARDS
        if isinstance(action, actions.TakeSnapshots):
            answers = snapshots(*self.shards)
        elif isinstance(action.command, Fence):
            self.fenced.add((action.command.replica, action.command.incarnation))
        self.tell(lambda: self.cluster.controller.executed(self.cluster.now, action.number, answers))

    def step(self) -> None:
        """Something happens."""
        cluster, controller = self.cluster, self.cluster.controller
        cluster.now += self.chance.random()
        replica = self.chance.randrange(3)
        incarnation = self.lives[replica]
        draw = self.chance.random()
        if self.sent and draw < 0.3:
            self.answer()
        elif draw < 0.5:
            if self.asked[replica] == self.granted[replica]:
                self.asked[replica] += 1
            number = self.asked[replica]
            self.tell(lambda: controller.requested(cluster.now, replica, incarnation, number))
        elif draw < 0.9 and self.held[replica]:
            lease = self.held[replica].pop(0)
            self.told[replica] += 1
            told, stop = self.told[replica], self.chance.randrange(lease.start, lease.stop) + 1
            outcomes = [Outcome(lease.start, stop, Verdict.APPLIED)]
            self.tell(lambda: controller.accounted(cluster.now, replica, incarnation, told, lease.number, outcomes))
        elif 0.92 <= draw < 0.93:
            if controller.slots[replica].alive:
                self.leaving.add((replica, incarnation))
            self.tell(lambda: controller.leaving(cluster.now, replica, incarnation, math.inf))
        elif 0.9 <= draw < 0.92:
            self.held[replica] = []
            self.tell(lambda: controller.ended(cluster.now, replica, incarnation, Ending(-9, "was killed")))
        else:
            # Anything counts as progress here: it is not the number of deaths that is looked at.
            cluster.tick(examples=self.cluster.controller._supervisor._used + 1)
            self.carry(cluster.take())
        cluster.ledger.check()


@pytest.mark.parametrize("seed", range(24))
def test_whatever_comes_in_whatever_order_every_example_is_accounted_for_once(seed: int) -> None:
    anarchy = Anarchy(seed)
    controller, ledger = anarchy.cluster.controller, anarchy.cluster.ledger
    for _ in range(20_000):
        if ledger.finished:
            break
        anarchy.step()
    assert ledger.finished, "nobody is left waiting"
    assert ledger.total == Account(used=4000)
    assert controller.error is None
    assert anarchy.captured > 2
    for replica, incarnation in anarchy.lives.items():
        controller.ended(anarchy.cluster.now, replica, incarnation, Ending(0, "ended"))
    anarchy.carry(anarchy.cluster.take())
    while anarchy.sent:
        anarchy.answer()
    assert controller.over


def test_a_checkpoint_counts_the_time_of_the_work_that_it_counts() -> None:
    cluster = Capturing()
    cluster.now += 300
    for batch in range(5):
        cluster.push(batch)
    cluster.captured()
    assert cluster.controller.watch.worked == 300.0
