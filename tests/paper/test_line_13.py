"""Line 13. Warm start: one replica trains alone before the others are let loose. Whether accumulators survive it the
paper does not say: ours survive."""

import torch

from distbelief.allocation import Account
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.server.rules import Adagrad
from tests.replicas import BATCH, run_replicas, toward
from tests.shards import flat_layout


def test_one_replica_trains_alone_and_what_it_accumulated_stays() -> None:
    ledger = Ledger(examples=400 * BATCH, batch_size=BATCH, replicas=3, epochs=1, warmstart=100 * BATCH)
    recordings = run_replicas(
        Downpour(optimizer=Adagrad(0.1)), ledger, toward(1.0, -3.0), layout=flat_layout(16), replicas=3
    )
    begins = [recording.of("compute")[0].time for recording in recordings]
    alone = begins.index(min(begins))
    others = min(begin for replica, begin in enumerate(begins) if replica != alone)
    before = [push for event, push in zip(recordings[alone].of("push"), recordings[alone].pushes, strict=True)
              if event.time < others]  # fmt: skip
    assert len(before) >= 100, "examples, not seconds: nobody else begins before they are done"
    assert ledger.total == Account(used=400 * BATCH)
    pushes = [push for recording in recordings for push in recording.pushes]
    assert all(recording.pushes for recording in recordings)
    squares = torch.stack([push.gradients[0].double().square() for push in pushes]).sum(0)
    torch.testing.assert_close(recordings[0].shards[0].vectors["sum"].double(), squares, rtol=1e-5, atol=0)
