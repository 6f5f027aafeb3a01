"""Line 26. m-of-N buffered apply: one knob from fully asynchronous (m = 1) over backup-worker synchronous (m < N, Chen
2016) to fully synchronous (m = N). It gives the honest baseline in the same code."""

import torch
from torch import Tensor

from distbelief.allocation import Account
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.ports import Reply
from distbelief.server.admission import Admission, Asynchronous, Buffered
from distbelief.server.rules import SGD
from tests.replicas import BATCH, Recording, run_replicas, toward
from tests.shards import flat_layout, vector_of

TARGETS = (1.0, -3.0, 2.0, 0.5)
LAYOUT = flat_layout(32, 2)


def record(admission: Admission, replicas: int) -> tuple[list[Recording], Account]:
    ledger = Ledger(
        examples=96 * BATCH,
        batch_size=BATCH,
        replicas=replicas,
        epochs=1,
        quorum=replicas if admission.round > 1 else 1,
    )
    method = Downpour(optimizer=SGD(0.1), admission=admission)
    return run_replicas(method, ledger, toward(*TARGETS), layout=LAYOUT, replicas=replicas), ledger.total


def result(recordings: list[Recording]) -> Tensor:
    return vector_of(LAYOUT, recordings[0].shards)


def test_a_round_of_one_is_fully_asynchronous() -> None:
    ours, theirs = record(Buffered(1), 3), record(Asynchronous(), 3)
    assert torch.equal(result(ours[0]), result(theirs[0]))
    assert ours[1] == theirs[1] == Account(used=96 * BATCH)


def test_with_fewer_than_all_the_last_of_a_round_are_dropped() -> None:
    recordings, account = record(Buffered(2), 3)
    assert account.used + account.dropped == 96 * BATCH
    assert account.dropped > 0
    # But for the closing ones at the end, an update takes two pushes.
    assert 2 * recordings[0].shards[0].version.updates <= recordings[0].shards[0].pushes + 4


def test_with_all_each_update_is_the_large_batch_step() -> None:
    """An update is the mean over one push of each, taken at one version: a batch N times as large."""
    recordings, account = record(Buffered(3), 3)
    # Nobody is late but at the end, where a round is closed without who has no lease any more.
    assert account.used + account.dropped == 96 * BATCH
    assert account.dropped <= 2 * BATCH
    for number, shard in enumerate(recordings[0].shards):
        rounds: dict[int, list[int]] = {}
        for recording in recordings:
            replies = [e.detail for e in recording.of("pushed") if e.shard == number]
            for push, reply in zip(recording.pushes_to(number), replies, strict=True):
                if isinstance(reply, Reply) and reply.verdict.used:
                    rounds.setdefault(push.version.updates, []).append(push.work.start)
        assert sorted(rounds) == list(range(shard.version.updates))
        assert all(len(rounds[version]) == 3 for version in range(shard.version.updates - 4))
        w = torch.zeros(16)
        for version in range(shard.version.updates):
            targets = [TARGETS[batch % len(TARGETS)] for batch in rounds[version]]
            w = w - 0.1 * (len(targets) * w - sum(targets)) / 3
        torch.testing.assert_close(shard.parameters, w, rtol=1e-5, atol=1e-6)
