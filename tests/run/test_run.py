"""The run directory and what is read from it."""

import torch
from torch import nn

from distbelief.run.run import difference, outline, quantile


def test_quantiles_of_a_histogram() -> None:
    histogram = torch.tensor([50, 0, 49, 0, 1])
    assert [quantile(histogram, q) for q in (0.1, 0.5, 0.51, 0.99, 1.0)] == [0, 0, 2, 2, 4]
    assert quantile(torch.zeros(5, dtype=torch.int64), 0.5) == 0


def test_where_two_models_differ() -> None:
    one = outline(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    assert one["0.weight"] == "float32 (2, 3)"
    assert difference(one, outline(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))) == (
        "0.weight was float32 (2, 3) and is float32 (2, 4)"
    )
    assert difference(one, one) == "their tensors come in another order"
    assert difference(one, {}).endswith("and is not there, and 1 more")
    assert difference({}, {"a": "float32 ()"}) == "a was not there and is float32 ()"
