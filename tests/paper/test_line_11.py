"""Line 11. Three asynchronies: replicas against each other; shards against each other (no two shards need have seen the
same pushes, or in one order); the fetch, push and compute of one replica. So staleness is per shard."""

from itertools import pairwise

import torch

from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.ports import Reply
from distbelief.server.rules import SGD
from tests.replicas import BATCH, Event, Recording, run_replicas, toward
from tests.shards import flat_layout


def record(overlap: int) -> list[Recording]:
    ledger = Ledger(examples=100 * BATCH, batch_size=BATCH, replicas=3, epochs=1)
    return run_replicas(
        Downpour(optimizer=SGD(0.01)),
        ledger,
        toward(1.0, -1.0, 2.0),
        layout=flat_layout(64, 3),
        replicas=3,
        overlap=overlap,
    )


def order_at(recordings: list[Recording], shard: int) -> list[tuple[int, int]]:
    """(replica, sequence) in the order in which a shard applied them."""
    applied = []
    for replica, recording in enumerate(recordings):
        replies = [e.detail for e in recording.of("pushed") if e.shard == shard]
        pushes = recording.pushes_to(shard)
        applied += [
            (reply.version.updates, (replica, push.sequence))
            for push, reply in zip(pushes, replies, strict=True)
            if isinstance(reply, Reply)
        ]
    assert [version for version, _ in sorted(applied)] == list(range(1, len(applied) + 1))
    return [who for _, who in sorted(applied)]


def test_replicas_push_what_others_have_overtaken() -> None:
    stale = [e.detail.staleness for r in record(0) for e in r.of("pushed") if isinstance(e.detail, Reply)]
    assert 0 < max(stale) < 12
    assert 0 in stale


def test_no_two_shards_need_see_the_pushes_in_one_order() -> None:
    recordings = record(0)
    orders = [order_at(recordings, shard) for shard in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_staleness_is_counted_by_each_shard_for_itself() -> None:
    recordings = record(0)
    by_sequence: dict[tuple[int, int], set[int]] = {}
    for replica, recording in enumerate(recordings):
        for shard in range(3):
            replies: list[Event] = [e for e in recording.of("pushed") if e.shard == shard]
            for push, event in zip(recording.pushes_to(shard), replies, strict=True):
                assert isinstance(event.detail, Reply)
                by_sequence.setdefault((replica, push.sequence), set()).add(event.detail.staleness)
    assert any(len(seen) > 1 for seen in by_sequence.values())
    histograms = [shard.staleness for shard in recordings[0].shards]
    assert any(not torch.equal(a, b) for a, b in pairwise(histograms))
    assert all(int(histogram.sum()) == 100 for histogram in histograms)


def test_a_replica_that_runs_ahead_of_its_own_fetch_is_staler_still() -> None:
    def mean(recordings: list[Recording]) -> float:
        histogram = recordings[0].shards[0].staleness
        return float((histogram * torch.arange(len(histogram))).sum() / histogram.sum())

    assert mean(record(1)) > mean(record(0)) + 1
