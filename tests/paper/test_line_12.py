"""Line 12. Adagrad lives in the shard: η_i,K = γ / sqrt(Σ_{j≤K} g_i,j²). The sum includes the present gradient and
there is no epsilon: a coordinate's first step is exactly γ·sign(g), and 0/0 needs a guard."""

import pytest
import torch

from distbelief.chance import generator
from distbelief.server.rules import Adagrad
from tests.shards import make_push, make_shard

GAMMA = 0.125


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_rate_of_a_coordinate_is_gamma_over_the_root_of_its_squares(dtype: torch.dtype) -> None:
    gradients = torch.randn(50, 33, generator=generator(0, "line 12"), dtype=torch.float64).to(dtype)
    shard = make_shard(torch.zeros(33, dtype=dtype), Adagrad(GAMMA))
    for sequence, gradient in enumerate(gradients, 1):
        shard.push(make_push(gradient, sequence, replica=sequence % 4, incarnation=1))
    exact = gradients.double()
    expected = -(GAMMA * exact / exact.square().cumsum(0).sqrt()).sum(0)
    torch.testing.assert_close(shard.parameters.double(), expected, rtol=0, atol=50 * torch.finfo(dtype).eps)


def test_the_first_step_of_a_coordinate_is_gamma_times_the_sign() -> None:
    gradient = torch.tensor([1.0, -1.0, 2.0**-40, -(2.0**40), 3.0, -1e-12])
    shard = make_shard(torch.zeros(6), Adagrad(GAMMA))
    shard.push(make_push(gradient, 1))
    assert torch.equal(shard.parameters[:4], -GAMMA * gradient[:4].sign()), "exactly, where the square is exact"
    torch.testing.assert_close(shard.parameters, -GAMMA * gradient.sign(), rtol=2**-23, atol=0)


def test_a_coordinates_first_step_may_be_late() -> None:
    """Zeros before it moved nothing and are no 0/0."""
    shard = make_shard(torch.zeros(2), Adagrad(GAMMA))
    for sequence, g in enumerate((0.0, 0.0, 5.0), 1):
        shard.push(make_push(torch.tensor([g, 0.0]), sequence))
    assert shard.parameters.tolist() == [-GAMMA, 0.0]


def test_the_sum_is_the_servers_and_outlives_every_replica() -> None:
    shard = make_shard(torch.zeros(1), Adagrad(1.0))
    shard.push(make_push(torch.tensor([3.0]), 1, replica=0))
    before = shard.parameters.item()
    shard.push(make_push(torch.tensor([4.0]), 1, replica=1, incarnation=7))
    assert before - shard.parameters.item() == pytest.approx(4 / 5)
