"""Line 25. Staleness versioned, bounded and shown: a step scaled by 1/τ at each shard (Zhang 2015), dropped beyond a
bound."""

import pytest
import torch

from distbelief.allocation import Account
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.ports import Reply, Verdict
from distbelief.server.admission import Admission, Bounded, StalenessScaled
from distbelief.server.rules import SGD, Adagrad, Adam, Rule
from tests.replicas import BATCH, Recording, run_replicas, toward
from tests.shards import at, flat_layout, make_push, make_shard


def replies(recordings: list[Recording], shard: int) -> list[Reply]:
    return [e.detail for r in recordings for e in r.of("pushed") if e.shard == shard and isinstance(e.detail, Reply)]


def record(admission: Admission) -> tuple[list[Recording], Account]:
    ledger = Ledger(examples=100 * BATCH, batch_size=BATCH, replicas=4, epochs=1)
    method = Downpour(optimizer=SGD(0.05), admission=admission)
    return run_replicas(method, ledger, toward(1.0, -2.0), layout=flat_layout(32, 2), replicas=4), ledger.total


@pytest.mark.parametrize("rule", [SGD(0.5), Adagrad(0.5), Adam(0.5)], ids=["SGD", "Adagrad", "Adam"])
@pytest.mark.parametrize("staleness", [0, 1, 2, 7])
def test_a_stale_push_moves_the_parameters_by_so_much_less_whatever_the_rule(rule: Rule, staleness: int) -> None:
    scaled, plain = make_shard(torch.zeros(16), rule, StalenessScaled()), make_shard(torch.zeros(16), rule)
    for shard in (scaled, plain):
        for sequence in range(1, staleness + 1):
            # Fresh ones, which both treat alike.
            shard.push(make_push(torch.ones(16), sequence, version=at(sequence - 1)))
    before = plain.parameters.clone()
    assert torch.equal(scaled.parameters, before)
    for shard in (scaled, plain):
        reply = shard.push(make_push(torch.full((16,), 0.5), staleness + 1))
        assert reply.staleness == staleness
    moved, would = scaled.parameters - before, plain.parameters - before
    torch.testing.assert_close(moved, would / max(1, staleness), rtol=1e-5, atol=1e-7)


def test_each_shard_scales_by_its_own_staleness() -> None:
    recordings, account = record(StalenessScaled())
    assert account == Account(used=100 * BATCH)
    by_shard = [[reply.staleness for reply in replies(recordings, shard)] for shard in range(2)]
    assert sorted(by_shard[0]) != sorted(by_shard[1])
    for shard in range(2):
        stale = [reply for reply in replies(recordings, shard) if reply.staleness > 1]
        assert stale
        assert all(f"1/{reply.staleness} of the learning rate" in reply.reason for reply in stale)


def test_what_is_older_than_the_bound_is_dropped_counted_and_not_leased_again() -> None:
    recordings, account = record(Bounded(2))
    for shard in range(2):
        told = replies(recordings, shard)
        assert {reply.verdict for reply in told} == {Verdict.APPLIED, Verdict.TOO_OLD}
        assert all((reply.staleness > 2) == (reply.verdict is Verdict.TOO_OLD) for reply in told)
        assert recordings[0].shards[shard].stalest <= 2
    assert account.dropped > 0
    assert account.used + account.dropped == 100 * BATCH
