"""Line 9. Both tests hold at step 0: the first push carries one gradient, later ones n_push, summed, not averaged. The
paper's experiments all use n_fetch = n_push = 1."""

import torch

from distbelief.downpour.method import Downpour
from distbelief.server.rules import SGD
from tests.replicas import BATCH, Portions, run_replica
from tests.shards import flat_layout


def test_the_first_push_carries_one_gradient_and_later_ones_the_sum_of_n_push() -> None:
    method = Downpour(n_fetch=4, n_push=4, optimizer=SGD(0.1))
    powers = [torch.full((16,), 2.0**batch) for batch in range(9)]
    recording = run_replica(
        method, Portions((0, 9)), lambda vector, epoch, batch: [powers[batch].clone()], layout=flat_layout(16)
    )
    assert recording.of("fetch")[0].step == 0
    assert [push.gradients[0][0].item() for push in recording.pushes] == [1.0, 2.0 + 4 + 8 + 16, 32.0 + 64 + 128 + 256]
    assert [push.work.examples for push in recording.pushes] == [BATCH, 4 * BATCH, 4 * BATCH]


def test_the_papers_choice_is_the_default() -> None:
    assert (Downpour().n_fetch, Downpour().n_push) == (1, 1)
