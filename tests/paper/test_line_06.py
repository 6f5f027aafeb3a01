"""Line 6. One sharded parameter server; many replicas of a model. The method tolerates replicas of different speed, and
replicas that die, are taken away or restarted at random."""

import json
import random
import signal
from pathlib import Path

import torch

import distbelief as db
from distbelief.allocation import Account, last_push
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.ports import Lease, Outcome, Verdict, Work
from distbelief.server.rules import SGD
from tests import problems
from tests.engines.local.faults import DyingLoss, Once
from tests.replicas import BATCH, run_replicas, toward
from tests.shards import fence, flat_layout, make_push, make_shards


def test_a_fast_replica_does_more_and_a_slow_one_holds_nobody_up() -> None:
    ledger = Ledger(examples=200 * BATCH, batch_size=BATCH, replicas=3, epochs=1)
    recordings = run_replicas(
        Downpour(optimizer=SGD(0.1)), ledger, toward(1.0), layout=flat_layout(64, 2), replicas=3, slower=3.0
    )
    steps = [recording.progress.steps for recording in recordings]
    assert sum(steps) == 200
    assert steps[0] > 1.5 * steps[1] > 1.5 * steps[2] > 0
    assert ledger.total == Account(used=200 * BATCH)


def test_every_example_is_accounted_for_however_replicas_die_and_come_back() -> None:
    """Shards and ledger, with replicas that die at random between and inside the pushes to two shards."""
    chance = random.Random(0)
    layout = flat_layout(32, 2)
    shards = make_shards(layout, torch.zeros(32), SGD(1.0))
    ledger = Ledger(examples=300 * BATCH, batch_size=BATCH, replicas=4, epochs=1)
    incarnations, sequences, deaths = [1] * 4, [0] * 4, 0
    leases: list[Lease | None] = [None] * 4
    reached = [0] * 4
    while not ledger.finished:
        r = chance.randrange(4)
        lease = leases[r]
        if lease is None:
            leases[r] = lease = ledger.lease(r).lease
            reached[r] = lease.start if lease else 0
        elif reached[r] == lease.stop:
            ledger.done(lease.number, [Outcome(lease.start, lease.stop, Verdict.APPLIED)])
            leases[r] = None
        else:
            sequences[r] += 1
            work = Work(lease.number, reached[r], reached[r] + 1, BATCH)
            reached[r] += 1
            dies_after = chance.randrange(3) if chance.random() < 0.05 else 2
            for shard in shards[:dies_after]:
                push = make_push(torch.ones(16), sequences[r], replica=r, incarnation=incarnations[r], work=work)
                assert shard.push(push).verdict is Verdict.APPLIED
            if dies_after < 2:
                deaths += 1
                ledger.died(r, last_push([fence(shard, r, incarnations[r]) for shard in shards]))
                incarnations[r], sequences[r], leases[r] = incarnations[r] + 1, 0, None
        ledger.check()
    account = ledger.total
    assert deaths > 5
    assert account.total == account.used + account.partial == 300 * BATCH
    assert account.partial <= deaths * BATCH
    assert shards[0].pushes == 300
    assert shards[1].pushes == 300 - account.partial // BATCH


def test_a_run_survives_a_replica_that_is_killed(tmp_path: Path) -> None:
    """Real processes: one is killed in its ninth batch, and another takes its place."""
    task = problems.task(loss=DyingLoss(Once(tmp_path / "marker", after=9)))
    method = db.Downpour(replicas=2, shards=2, batch_size=16, optimizer=db.SGD(0.1))
    run = db.train(task, method, until=db.Until(epochs=3), directory=tmp_path / "run", progress=False)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["status"] for event in events if event["event"] == "died"] == [-signal.SIGKILL]
    assert run.summary["restarts"] == 1
    assert sum(run.summary["account"].values()) == 3 * 640
    assert run.summary["account"]["used"] >= 3 * 640 - 16
