"""Whole runs in virtual time, as a user makes them."""

import asyncio
import bdb
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distbelief as db
from distbelief.engines.simulated.faults import Fault
from distbelief.engines.simulated.loop import Deadlock
from distbelief.errors import Diverged, UsageError, UserCodeError
from tests import problems

EXAMPLES = 640
THREE: dict[str, Any] = {"replicas": 3, "shards": 2, "optimizer": db.Adagrad(0.05)}


def run(
    folder: Path,
    *faults: Fault,
    seed: int = 0,
    epochs: int = 3,
    task: db.Task | None = None,
    compute: Any = None,
    network: db.Network | None = None,
    method: dict[str, Any] | None = None,
    **options: Any,
) -> db.Run:
    """Train the small problem with three replicas and two shards."""
    return db.train(
        task or problems.task(),
        db.Downpour(**THREE | (method or {})),
        engine=db.Simulated(
            compute=compute or db.Lognormal(0.1, 0.3), network=network or db.Network(), faults=list(faults)
        ),
        until=options.pop("until", db.Until(epochs=epochs)),
        directory=folder / f"run-{len(list(folder.iterdir()))}",
        seed=seed,
        progress=False,
        **options,
    )


def events(of: db.Run | Path, *kinds: str) -> list[dict[str, Any]]:
    directory = of if isinstance(of, Path) else of.directory
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] in kinds]


def total(done: db.Run) -> int:
    return sum(done.summary["account"].values())


# What it is for


def test_it_learns_what_the_local_engine_learns(tmp_path: Path) -> None:
    done = run(tmp_path, epochs=20, task=problems.task(validation=problems.points()))
    assert done.metrics["accuracy"] > 0.9
    assert total(done) == 20 * EXAMPLES
    assert done.summary["staleness"]["max"] > 0
    assert db.load(done.directory, problems.task()).predict(problems.points()[0]).shape == (EXAMPLES, 4)


def test_one_replica_computes_what_one_local_process_does(tmp_path: Path) -> None:
    method = db.Downpour(replicas=1, optimizer=db.SGD(0.1))
    until = db.Until(epochs=3)
    ours = run(tmp_path, method={"replicas": 1, "shards": 1, "optimizer": db.SGD(0.1)}, task=normed())
    alone = db.Local(threads=1)
    theirs = db.train(normed(), method, engine=alone, until=until, directory=tmp_path / "local", progress=False)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other), "bit for bit, its buffers too"


def normed() -> db.Task:
    """A model with buffers that training changes."""
    return db.Task(
        lambda: nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
        nn.CrossEntropyLoss(),
        train=problems.points(),
    )


def test_time_is_simulated(tmp_path: Path) -> None:
    """A thousand times slower machines, in no more time; the clock says so."""
    fast, slow = run(tmp_path, compute=0.01), run(tmp_path, compute=100.0)
    assert slow.summary["seconds"] > 1000 * fast.summary["seconds"]
    assert slow.summary["virtual_seconds"] >= slow.summary["seconds"] == pytest.approx(2000, rel=0.1)
    assert slow.summary["engine"]["kind"] == "Simulated"


def test_a_slow_replica_does_less_and_holds_nobody_up(tmp_path: Path) -> None:
    until = db.Until(seconds=20)
    even = run(tmp_path, compute=0.1, until=until)
    uneven = run(tmp_path, compute=db.PerReplica({0: 1.0}, 0.1), until=until)
    assert uneven.summary["examples"] > 0.65 * even.summary["examples"], "in step with the slow one, a tenth"


# Same seed, same trace

_ALONE = """
import sys
import threading
import traceback
import distbelief as db
from tests import problems
faults = [db.Death("replica 1", 0.5), db.Death("shard 0", 0.8), db.Cut(0.3, 0.2, ("replica 0",))]
engine = db.Simulated(faults=faults, network=db.Network(loss=0.1, duplication=0.1, reordering=0.1))
run = db.train(problems.task(), db.Downpour(replicas=4, shards=3), engine=engine, until=db.Until(epochs=3),
               directory=sys.argv[1], progress=False)
print(run.summary["trace_digest"], run.summary["virtual_seconds"])
"""


def test_equal_seeds_give_equal_traces_in_every_process(tmp_path: Path) -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", _ALONE, tmp_path / hashes],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("0", "1", "random")
    }
    assert len(found) == 1


def test_another_seed_gives_another_trace(tmp_path: Path) -> None:
    digests = [run(tmp_path, seed=seed).summary["trace_digest"] for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_the_engines_seed_is_of_times_and_the_runs_of_the_model_and_the_data(tmp_path: Path) -> None:
    def train(engine_seed: int, seed: int) -> db.Run:
        return db.train(
            problems.task(),
            db.Downpour(replicas=1),
            engine=db.Simulated(seed=engine_seed),
            until=db.Until(epochs=1),
            directory=tmp_path / f"{engine_seed}-{seed}",
            seed=seed,
            progress=False,
        )

    first, other_times, other_data = train(0, 0), train(1, 0), train(0, 1)
    assert first.summary["seconds"] != other_times.summary["seconds"]
    assert first.summary["seconds"] == other_data.summary["seconds"]
    assert torch.equal(first.state_dict()["0.weight"], other_times.state_dict()["0.weight"])
    assert not torch.equal(first.state_dict()["0.weight"], other_data.state_dict()["0.weight"])


def test_the_users_own_chance_and_threads_are_left_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    run(tmp_path, epochs=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


# Faults


def test_a_dead_replica_is_replaced_and_no_example_is_lost(tmp_path: Path) -> None:
    done = run(tmp_path, db.Death("replica 1", at=0.55, back=1.0))
    assert total(done) == 3 * EXAMPLES
    assert done.summary["restarts"] == 1
    (died,) = events(done, "died")
    assert (died["replica"], died["incarnation"]) == (1, 1)
    assert [e["replica"] for e in events(done, "replica") if e["incarnation"] == 2] == [1]


def test_one_that_never_comes_back_is_done_without(tmp_path: Path) -> None:
    done = run(tmp_path, db.Death("replica 0", 0.5, None), db.Death("replica 1", 0.7, None))
    assert total(done) == 3 * EXAMPLES
    assert done.summary["restarts"] == 0


def test_one_that_joins_later_does_its_part(tmp_path: Path) -> None:
    done = run(tmp_path, db.Join("replica 2", at=1.0))
    (begun,) = [e for e in events(done, "replica") if e["replica"] == 2]
    assert begun["seconds"] == pytest.approx(1.0, abs=0.01)
    assert total(done) == 3 * EXAMPLES


def test_one_that_would_join_when_all_is_done_is_not_waited_for(tmp_path: Path) -> None:
    assert run(tmp_path, db.Join("replica 2", at=1e6)).summary["virtual_seconds"] < 100


@pytest.mark.parametrize(
    "method",
    [{}, {"n_push": 3, "n_fetch": 2}, {"overlap": 1}, {"admission": db.Buffered(3)}, {"admission": db.Paced(1)}],
    ids=str,
)
def test_who_is_told_to_leave_loses_nothing_and_is_replaced(tmp_path: Path, method: dict[str, Any]) -> None:
    """Its machine dies a second later, and is back two seconds after that."""
    done = run(tmp_path, db.Death("replica 1", 2.0, back=2.0, notice_s=1.0), method=method, epochs=8)
    assert total(done) == 8 * EXAMPLES
    assert done.summary["account"]["partial"] == 0
    assert done.summary["restarts"] == 1
    (left,) = events(done, "left")
    assert (left["replica"], left["status"], sum(left["account"].values())) == (1, 0, 0)
    assert events(done, "died") == []
    (again,) = [e for e in events(done, "replica") if e["incarnation"] == 2]
    assert again["replica"] == 1
    assert again["seconds"] == pytest.approx(4.0, abs=0.01), "nothing begins on a machine that will be taken away"


def test_who_is_killed_before_it_has_left_has_not_failed(tmp_path: Path) -> None:
    """Six times in a row, which as deaths would end the run."""
    deaths = [db.Death("replica 0", 0.05 + 2.0 * number, 0.5, 0.02) for number in range(6)]
    done = run(tmp_path, *deaths, method={"replicas": 1}, compute=5.0, epochs=1)
    assert total(done) == EXAMPLES
    assert [left["status"] for left in events(done, "left")] == [-9] * 6
    assert events(done, "died") == []


def test_more_replicas_join_as_machines_appear_and_leave_as_they_go(tmp_path: Path) -> None:
    faults: list[Fault] = [
        db.Join("replica 1", 0.4),
        db.Join("replica 2", 1.0),
        db.Join("replica 3", 1e5),
        db.Death("replica 0", 2.0, 1.0, notice_s=0.5),
        db.Death("replica 1", 3.0, None, notice_s=0.5),
    ]
    done = run(tmp_path, *faults, method={"replicas": (2, 4)}, epochs=5)
    assert total(done) == 5 * EXAMPLES == done.summary["account"]["used"]
    begun = [(e["replica"], e["seconds"]) for e in events(done, "replica")]
    # The clock of a run begins with its first lease: when two of the four have come.
    expected = [(0, 0.0), (1, 0.0), (2, 0.6), (0, 2.6)]
    assert begun == [(replica, pytest.approx(seconds, abs=0.01)) for replica, seconds in expected]
    assert [e["replica"] for e in events(done, "left")] == [0, 1]
    assert done.summary["replicas"] == 4
    assert done.summary["restarts"] == 1
    assert done.summary["virtual_seconds"] < 100


@pytest.mark.parametrize("machines", [0, 1])
def test_where_fewer_than_the_least_will_ever_come_the_run_begins_with_these(tmp_path: Path, machines: int) -> None:
    never = [db.Death(f"replica {replica}", 0.0, None) for replica in range(machines, 4)]
    if machines:
        assert total(run(tmp_path, *never, method={"replicas": (3, 4)}, epochs=1)) == EXAMPLES
    else:
        with pytest.raises(Deadlock, match="every replica is dead for good"):
            run(tmp_path, *never, method={"replicas": (3, 4)}, epochs=1)


def test_a_paused_replica_is_stale_when_it_goes_on(tmp_path: Path) -> None:
    quiet, paused = run(tmp_path), run(tmp_path, db.Pause("replica 0", 0.5, 1.5))
    assert paused.summary["staleness"]["max"] > 2 * quiet.summary["staleness"]["max"]


@pytest.mark.parametrize(
    "fault",
    [
        db.Pause("shard 0", 0.5, 3.0),
        db.Pause("controller", 0.5, 3.0),
        db.Cut(0.5, 3.0, ("shard 1",)),
        db.Cut(0.5, 3.0, ("controller",)),
        db.Slow("replica 0", 0.0, 3.0, 10.0),
        db.Slow("replica 1", 0.0, 1e5, 10.0),
    ],
    ids=str,
)
def test_what_takes_longer_takes_longer_and_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    quiet, disturbed = run(tmp_path), run(tmp_path, fault)
    assert disturbed.summary["seconds"] > quiet.summary["seconds"] + 0.3
    assert total(disturbed) == 3 * EXAMPLES


def test_a_lossy_network_loses_no_example(tmp_path: Path) -> None:
    network = db.Network(latency=db.Exponential(0.02), loss=0.3, duplication=0.3, reordering=0.3)
    assert total(run(tmp_path, network=network)) == 3 * EXAMPLES


def test_a_shard_comes_back_as_it_was_at_the_last_checkpoint(tmp_path: Path) -> None:
    kept = run(tmp_path, db.Death("shard 1", 1.5, 0.5), checkpoint_every=db.Every(seconds=0.5), epochs=6)
    assert total(kept) == 6 * EXAMPLES
    assert kept.summary["updates"] < 6 * EXAMPLES / 32, "what it had used since then is lost"


def test_a_controller_comes_back_and_resumes(tmp_path: Path) -> None:
    done = run(tmp_path, db.Death("controller", 1.5, 4.0), checkpoint_every=db.Every(seconds=0.5), epochs=6)
    assert total(done) == 6 * EXAMPLES
    (resumed,) = events(done, "resumed")
    assert 0 < resumed["examples"] < 6 * EXAMPLES
    assert done.summary["virtual_seconds"] > done.summary["seconds"] + 4.0


def test_a_controller_that_dies_before_it_wrote_anything_begins_anew(tmp_path: Path) -> None:
    done = run(tmp_path, db.Death("controller", 0.2, 1.0))
    (resumed,) = events(done, "resumed")
    assert resumed["examples"] is None
    assert total(done) == 3 * EXAMPLES


@pytest.mark.parametrize(
    "faults",
    [
        [db.Death("controller", 0.2, 0.0)],
        [db.Death("controller", 0.0, 0.0)] * 3,
        [db.Death("controller", 0.2, 5e-324)],
        [db.Death(machine, 0.0, 0.0) for machine in ("controller", "replica 0", "replica 1", "shard 0", "shard 1")],
        [db.Death("shard 0", 0.0, 0.0)] * 3,
        [db.Death("replica 0", 0.1, 0.0)] * 20,
    ],
)
def test_a_machine_that_is_back_at_once(tmp_path: Path, faults: list[Fault]) -> None:
    """Each planned death comes once, however many of them come at one instant."""
    assert total(run(tmp_path, *faults)) == 3 * EXAMPLES


def test_where_no_time_passes_it_is_no_end(tmp_path: Path) -> None:
    network = db.Network(latency=0.0)
    assert total(run(tmp_path, compute=db.Constant(0.0), network=network)) == 3 * EXAMPLES
    with pytest.raises(UsageError, match="no time ever passes"):
        run(tmp_path, compute=db.Constant(0.0), network=network, until=db.Until(seconds=5.0))


def test_who_is_dead_for_good_stays_so_when_the_controller_comes_back(tmp_path: Path) -> None:
    faults = [db.Death("replica 1", 1.0, None), db.Death("replica 2", 1.0, 8.0), db.Death("controller", 2.0, 1.0)]
    done = run(tmp_path, *faults, compute=0.1, epochs=9)
    assert total(done) == 9 * EXAMPLES
    begun = events(done, "replica")
    back = [e["replica"] for e in begun].index(0, 3)
    assert {e["replica"] for e in begun[:back]} == {0, 1, 2}
    assert [e["replica"] for e in begun[back:]] == [0, 2], "and who is away comes back when it was to"


def test_a_shard_that_is_away_when_the_controller_comes_back_is_waited_for(tmp_path: Path) -> None:
    done = run(tmp_path, db.Death("controller", 1.0, 1.0), db.Death("shard 0", 1.5, 5.0), epochs=3)
    assert total(done) == 3 * EXAMPLES
    assert done.summary["virtual_seconds"] > 6.5


def test_what_happens_to_machines_of_the_server_is_told(tmp_path: Path) -> None:
    faults = [db.Death("shard 1", 0.5, 0.5), db.Death("controller", 2.0, 1.0)]
    done = run(tmp_path, *faults, checkpoint_every=db.Every(seconds=0.5), epochs=6)
    told = [(e["machine"], e["there"]) for e in events(done, "machine")]
    assert told == [("shard 1", False), ("shard 1", True), ("controller", False), ("controller", True)]
    assert done.summary["resumed_at"] == events(done, "resumed")[0]["examples"] > 0
    seconds = [e["seconds"] for e in events(done, "checkpoint", "stopped")]
    assert max(seconds) <= done.summary["seconds"] + 0.1, "what is written at the end takes no time"


# No progress


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ([db.Death(f"replica {r}", 0.5 + r, None) for r in range(3)], "every replica is dead for good"),
        ([db.Death("shard 1", 0.5, None)], "shard 1 is dead for good"),
        ([db.Death("controller", 0.5, None)], "the controller is dead for good"),
    ],
    ids=["replicas", "shard", "controller"],
)
def test_a_plan_that_kills_what_is_needed_ends_the_run_with_a_sentence(
    tmp_path: Path, faults: list[Fault], sentence: str
) -> None:
    with pytest.raises(Deadlock, match=f"no progress is possible after .* s: {sentence}"):
        run(tmp_path, *faults, epochs=50, checkpoint_every=db.Every(seconds=0.1))
    kept = [path for path in (tmp_path / "run-0" / "checkpoints").iterdir() if path.name.isdigit()]
    assert kept, "what was reached can be resumed"


def test_rounds_that_nobody_can_fill_are_told_with_who_waits_for_what(tmp_path: Path) -> None:
    """A policy of the user's own that holds for ever."""
    with pytest.raises(Deadlock, match=r"replica \d waits for shard \d to come to 1, which is at 0; ") as caught:
        run(tmp_path, method={"admission": Hoarding()})
    assert "link.py" in "".join(caught.value.__notes__)


def test_the_same_is_seen_where_calls_are_repeated(tmp_path: Path) -> None:
    with pytest.raises(Deadlock, match=r"replica \d waits for shard \d to come to 1, which is at 0; "):
        run(tmp_path, method={"admission": Hoarding()}, network=db.Network(loss=0.1))


class Hoarding:
    """Holds whatever comes."""

    round = 10**9
    lead = None

    def admit(self, staleness: int, held: int, living: int) -> Any:
        from distbelief.ports import Verdict
        from distbelief.server.admission import Decision

        return Decision(Verdict.HELD, "for ever")


def test_paced_replicas_go_on_after_a_shard_has_gone_back(tmp_path: Path) -> None:
    """Two shards that had not seen the same pushes would each have another replica wait."""
    for seed in range(20, 40):
        method = {"replicas": 2, "n_fetch": 2, "admission": db.Paced(0)}
        done = run(tmp_path, db.Death("shard 1", 3.7, 0.3), method=method, seed=seed, epochs=4)
        assert total(done) == 4 * EXAMPLES


def test_who_made_a_paced_warm_start_is_not_held_up_for_it(tmp_path: Path) -> None:
    plain = run(tmp_path, method={"admission": db.Paced(1)}, compute=0.1, epochs=6)
    warm = run(tmp_path, method={"admission": db.Paced(1), "warmstart": 640}, compute=0.1, epochs=6)
    alone = 640 / 32 * 0.1
    assert warm.summary["seconds"] == pytest.approx(alone + 5 / 6 * plain.summary["seconds"], rel=0.1)


def test_a_controller_that_comes_back_to_nobody_says_so(tmp_path: Path) -> None:
    faults: list[Fault] = [
        db.Join("replica 0", 100.0),
        db.Death("controller", 4.0, 3.0),
        db.Death("shard 0", 5.0, None),
    ]
    with pytest.raises(Deadlock, match="shard 0 is dead for good"):
        run(tmp_path, *faults, epochs=50)
    assert [(e["machine"], e["there"]) for e in events(tmp_path / "run-0", "machine")][-1] == ("shard 0", False)


def test_messages_that_take_longer_than_anybody_waits_are_asked_about(tmp_path: Path) -> None:
    with pytest.raises(Deadlock, match="do messages take longer than the 30 s after which calls are made again"):
        run(tmp_path, network=db.Network(latency=40.0, loss=0.1))


def test_a_law_for_a_replica_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="compute has a law for replica 7, but the run has 3 replicas"):
        run(tmp_path, compute=db.PerReplica({7: 1.0}, 0.1))


def test_a_fault_for_what_is_not_there_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="meant for replica 3, but the run has replicas 0 to 2 only"):
        run(tmp_path, db.Death("replica 3", 1.0))
    assert not (tmp_path / "run-0" / "events.jsonl").exists()


# Ends, errors and who is told


def test_limits_of_simulated_time_and_targets_hold(tmp_path: Path) -> None:
    seconds = run(tmp_path, until=db.Until(seconds=2.0))
    assert seconds.summary["stopped_by"] == "seconds"
    assert 2.0 <= seconds.summary["seconds"] < 2.5
    task = problems.task(validation=problems.points())
    target = run(tmp_path, task=task, until=db.Until(target={"accuracy": 0.8}), evaluate_every=db.Every(seconds=0.5))
    assert target.summary["stopped_by"] == "target"
    assert target.metrics["accuracy"] >= 0.75


def test_rounds_begin_when_all_have_work_and_nobody_leaves_them_before_the_data_end(tmp_path: Path) -> None:
    lines: list[str] = []
    logger = logging.getLogger("distbelief.trace")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        method = {"replicas": 8, "batch_size": 4, "admission": db.Buffered(8)}
        one_is_slow = db.PerReplica({0: 1.0}, db.Lognormal(0.1, 0.3))
        run(tmp_path, method=method, compute=one_is_slow, epochs=6)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.WARNING)
    kinds = [line.split()[0] for line in lines]
    before = [line.split() for line in lines[: kinds.index("push")]]
    assert len({words[1] for words in before if words[0] == "lease"}) == 8
    verdicts = [line.split()[5] for line in lines if line.startswith("push")]
    assert "late" not in verdicts[: -2 * 8 * 8], "nobody is between two leases"


def test_a_synchronous_run_is_not_spoilt_by_being_stopped(tmp_path: Path) -> None:
    """The last pushes are few, and the rate is meant for the mean of many."""
    done = run(
        tmp_path,
        method={"replicas": 20, "batch_size": 8, "optimizer": db.SGD(1.0), "admission": db.Buffered(20)},
        task=problems.task(validation=problems.points()),
        until=db.Until(target={"accuracy": 0.9}, epochs=100),
        evaluate_every=db.Every(examples=160),
    )
    assert done.summary["stopped_by"] == "target"
    assert done.metrics["accuracy"] >= 0.89, "0.82 where each of them is a whole step"


def test_an_error_in_the_users_model_shows_its_own_frames(tmp_path: Path) -> None:
    calls = 0

    def broken_loss(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise ZeroDivisionError("of the user's own")
        return nn.functional.cross_entropy(prediction, target)

    with pytest.raises(
        UserCodeError, match="replicas failed twice with ZeroDivisionError: of the user's own"
    ) as caught:
        run(tmp_path, task=problems.task(loss=broken_loss))
    assert "in broken_loss" in str(caught.value)
    assert (tmp_path / "run-0" / "model.safetensors").exists()
    told = [died["error"] for died in events(tmp_path / "run-0", "died")]
    assert told.count("ZeroDivisionError: of the user's own") >= 2


def test_an_error_that_comes_once_costs_a_replica_and_no_example(tmp_path: Path) -> None:
    """As on the local engine: the replica is replaced."""
    calls = 0

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise ZeroDivisionError("of the user's own")
        return nn.functional.cross_entropy(prediction, target)

    done = run(tmp_path, task=problems.task(loss=loss))
    (died,) = events(done, "died")
    assert (died["status"], died["error"]) == (1, "ZeroDivisionError: of the user's own")
    assert done.summary["restarts"] == 1
    assert total(done) == 3 * EXAMPLES


def test_a_replica_that_is_cut_off_for_long_is_replaced_and_no_example_is_lost(tmp_path: Path) -> None:
    """Nobody tells of its end: it is held to be dead when it has said nothing for half a minute."""
    done = run(tmp_path, db.Cut(0.5, 100.0, ("replica 1",)), epochs=30)
    died = events(done, "died")
    assert [(d["replica"], d["incarnation"]) for d in died] == [(1, 1)]
    assert 30 < died[0]["seconds"] < 60
    assert total(done) == 30 * EXAMPLES


def test_messages_that_come_twice_or_late_keep_nobody_waiting(tmp_path: Path) -> None:
    """Where none are lost, no call is made again: each must be answered the first time."""
    for seed in range(4):
        network = db.Network(latency=db.Exponential(0.1), duplication=0.5, reordering=0.5)
        assert total(run(tmp_path, network=network, seed=seed)) == 3 * EXAMPLES


def test_rounds_are_not_waited_for_with_who_died_before_they_began(tmp_path: Path) -> None:
    for seed in range(4):
        done = run(
            tmp_path,
            db.Death("replica 2", 0.01, None),
            method={"admission": db.Buffered(3)},
            network=db.Network(latency=db.Exponential(1.0)),
            compute=0.1,
            seed=seed,
            epochs=1,
        )
        assert total(done) == EXAMPLES


def test_gradients_that_stay_without_a_number_end_the_run(tmp_path: Path) -> None:
    task = problems.task(loss=lambda prediction, target: prediction.sum() * float("nan"))
    with pytest.raises(Diverged):
        run(tmp_path, task=task)


def test_a_breakpoint_in_the_users_model_has_their_frame_and_the_callers_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def hook() -> None:
        names = [frame.name for frame in traceback.extract_stack()]
        seen.append(
            (names[-2], threading.current_thread() is threading.main_thread(), asyncio.get_running_loop().time())
        )

    def watched_loss(prediction: Tensor, target: Tensor) -> Tensor:
        if len(seen) < 3:
            breakpoint()
        return nn.functional.cross_entropy(prediction, target)

    monkeypatch.setattr(sys, "breakpointhook", hook)

    async def outside() -> None:
        run(tmp_path, task=problems.task(loss=watched_loss), epochs=1)

    asyncio.run(outside())
    assert {name for name, _, _ in seen} == {"watched_loss"}
    assert all(main for _, main, _ in seen)
    assert seen[-1][-1] > 0, "in virtual time"


def test_who_leaves_the_debugger_ends_the_run_as_with_ctrl_c(tmp_path: Path) -> None:
    calls = 0

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise bdb.BdbQuit
        return nn.functional.cross_entropy(prediction, target)

    with pytest.raises(KeyboardInterrupt, match="what was reached is in"):
        run(tmp_path, task=problems.task(loss=loss))
    assert json.loads((tmp_path / "run-0" / "summary.json").read_text())["stopped_by"] == "interrupted"


def test_a_callback_may_end_the_run_and_look_at_the_model(tmp_path: Path) -> None:
    seen: list[str] = []

    def callback(event: dict[str, Any], live: Any) -> None:
        seen.append(event["event"])
        if event["event"] == "progress" and event["examples"] > EXAMPLES:
            assert isinstance(live.model(), nn.Module)
            live.stop("enough")

    done = run(tmp_path, callbacks=[callback], epochs=50)
    assert done.summary["stopped_by"] == "enough"
    assert done.summary["examples"] < 10 * EXAMPLES
    assert {"started", "replica", "progress", "stopped"} <= set(seen)


def test_a_simulated_run_goes_on_where_it_was_killed_or_ended(tmp_path: Path) -> None:
    first = run(tmp_path, epochs=2)
    again = db.train(
        problems.task(),
        engine=db.Simulated(),
        until=db.Until(epochs=4),
        directory=first.directory,
        resume=True,
        progress=False,
    )
    assert again.summary["resumed_at"] == 2 * EXAMPLES
    assert total(again) == 4 * EXAMPLES


def test_two_hundred_replicas_fit_beside_each_other(tmp_path: Path) -> None:
    done = run(tmp_path, method={"replicas": 200, "shards": 2, "batch_size": 4}, epochs=4)
    assert total(done) == 4 * EXAMPLES
    assert done.summary["staleness"]["median"] > 100
    assert len(done.summary["staleness_histogram"]) == 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seed": 1.5}, "seed must be a whole number or None"),
        ({"compute": -1.0}, "compute must be a number of 0 or more"),
        ({"compute": "fast"}, "compute must be seconds or a law"),
        ({"network": 3}, "network must be a Network"),
        ({"faults": "death"}, "faults must be a list"),
        ({"faults": [3]}, "a fault is a value such as"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_in_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        db.Simulated(**fields)
