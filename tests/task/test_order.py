"""Which examples an epoch uses: all, in some order, or drawn by weight."""

from typing import Any

import numpy as np
import pytest
import torch

from distbelief import chance
from distbelief.errors import DataError, TaskError
from distbelief.task.order import Order, checked_weights, digest_of


def drawn(weights: Any, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    found = checked_weights(weights)
    return Order.of(seed, "weighted", len(found), len(found), found)(epoch)


def test_examples_are_drawn_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0]).repeat(5_000)
    counts = torch.bincount(drawn(weights) % 6, minlength=6)
    assert counts.sum() == len(weights) == 30_000
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    for place, share in ((1, 0.1), (2, 0.3), (4, 0.6)):
        assert abs(counts[place] / 30_000 - share) < 0.015
    # With replacement.
    assert len(drawn(torch.ones(1_000)).unique()) < 700


def test_a_draw_is_keyed_by_seed_and_epoch() -> None:
    weights = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(weights), drawn(weights))
    assert torch.equal(drawn(weights), drawn(weights.double() * 1e300)), "only proportions count"
    assert not torch.equal(drawn(weights), drawn(weights, epoch=1))
    assert not torch.equal(drawn(weights), drawn(weights, seed=1))


@pytest.mark.parametrize("weights", [[1e308] * 40, [5e-324] * 40, [0.0] * 30 + [1.0] + [0.0] * 9])
def test_weights_of_any_size_are_drawn_by(weights: list[float]) -> None:
    found = drawn(weights)
    assert len(found) == 40
    assert all(weights[i] > 0 for i in found.tolist())
    assert len(found.unique()) > 1 or max(weights) == 1.0


def test_a_draw_that_is_rounded_to_the_end_is_the_last_that_has_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.ones(count, dtype=torch.float64))
    assert set(chance.draws(0, 0, torch.tensor([1.0, 2.0, 2.0, 2.0], dtype=torch.float64)).tolist()) == {1}


def test_small_weights_count_beside_large_sums() -> None:
    """In float32 the sums of so many examples would no longer grow."""
    sums = Order.of(0, "weighted", 1000, 1000, checked_weights([2.0**26] + [1.0] * 999)).sums
    assert sums is not None
    assert (sums.diff() > 0).all()


def test_an_epoch_may_use_whole_batches_only() -> None:
    for kind in ("shuffled", "sequential"):
        order = Order.of(3, kind, 10, 8, None)
        assert len(order(0)) == 8
        assert torch.equal(Order.of(3, kind, 10, 10, None)(0)[:8], order(0))
    assert Order.of(3, "sequential", 10, 10, None)(5).tolist() == list(range(10))
    assert torch.equal(Order.of(3, "shuffled", 10, 10, None)(5), chance.order(3, 5, 10))


@pytest.mark.parametrize("weights", [[1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1, 2]), [True, False]])
def test_weights_are_numbers_of_any_kind(weights: Any) -> None:
    assert checked_weights(weights).dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ("ab", "^weights must be numbers, one a training example, not str$"),
        (["a"], "^weights must be numbers, one a training example, not list$"),
        (1.0, r"^weights must be one row of real numbers, .* not torch.float64 of shape \(\)$"),
        (torch.ones(2, 2), r"of shape \(2, 2\)$"),
        (torch.ones(2, dtype=torch.complex64), "not torch.complex64"),
        ([1.0, -2.0], "^weights must be finite and 0 or more, but that of example 1 is -2$"),
        ([float("nan"), 1.0], "example 0 is nan$"),
        ([1.0, float("inf")], "example 1 is inf$"),
        ([0, 0], "^weights are all 0: give at least one example a positive weight$"),
        ([], "^weights are all 0"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused_in_one_sentence(weights: Any, complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        checked_weights(weights)


def test_there_is_one_weight_an_example() -> None:
    with pytest.raises(DataError, match=r"^there are 3 weights for 4 training examples: give one for each, in order$"):
        Order.of(0, "weighted", 4, 4, checked_weights([1, 2, 3]))


def test_weights_have_a_short_name() -> None:
    assert digest_of(None) is None
    assert (
        digest_of(checked_weights([1, 2])) == digest_of(checked_weights([1.0, 2.0])) != digest_of(checked_weights([1]))
    )
