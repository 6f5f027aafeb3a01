"""The run directory and what is read from it."""

from torch import nn

from distbelief.run.run import difference, outline


def test_where_two_models_differ() -> None:
    one = outline(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    assert one["0.weight"] == "float32 (2, 3)"
    assert difference(one, outline(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)))) == (
        "0.weight was float32 (2, 3) and is float32 (2, 4)"
    )
    assert difference(one, one) == "their tensors come in another order"
    assert difference(one, {}).endswith("and is not there, and 1 more")
    assert difference({}, {"a": "float32 ()"}) == "a was not there and is float32 ()"
