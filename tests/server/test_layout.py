from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distbelief.errors import UsageError
from distbelief.server.layout import ALIGNMENT, Layout

SHAPES = st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=8)


def layout_of(shapes: list[tuple[int, ...]], shards: int) -> Layout:
    """A layout over at most as many shards as fit."""
    tensors = [(f"p{i}", torch.empty(shape)) for i, shape in enumerate(shapes)]
    return Layout.of(tensors, min(shards, Layout.of(tensors).length // ALIGNMENT))


@given(SHAPES, st.integers(1, 12))
def test_every_element_of_every_parameter_lies_in_exactly_one_shard(shapes: list[tuple[int, ...]], shards: int) -> None:
    layout = layout_of(shapes, shards)
    seen = torch.zeros(layout.length, dtype=torch.int64)
    values = torch.arange(layout.length)
    for low, pieces in zip(layout.borders, layout.pieces, strict=False):
        for piece in pieces:
            start, stop = piece.slice
            assert stop - start == piece.stop - piece.start > 0
            flat = layout.views(values)[piece.entry].reshape(-1)
            assert torch.equal(flat[piece.start : piece.stop], values[low + start : low + stop])
            seen[low + start : low + stop] += 1
    assert [int(view.sum()) for view in layout.views(seen)] == [entry.size for entry in layout.entries]
    assert int(seen.sum()) == layout.parameters
    assert int(seen.max()) == 1


@given(SHAPES, st.integers(1, 12))
def test_shards_are_cut_at_multiples_of_16_and_nearly_equal(shapes: list[tuple[int, ...]], shards: int) -> None:
    layout = layout_of(shapes, shards)
    assert layout.borders[0] == 0
    assert all(border % 16 == 0 for border in layout.borders)
    assert all(entry.offset % 16 == 0 for entry in layout.entries)
    lengths = [high - low for low, high in pairwise(layout.borders)]
    assert min(lengths) >= ALIGNMENT
    assert max(lengths) - min(lengths) <= ALIGNMENT


def test_a_large_vector_is_cut_without_rounding_errors() -> None:
    layout = Layout.of([("w", torch.empty(1_700_000_017, device="meta"))], 144)
    lengths = [high - low for low, high in pairwise(layout.borders)]
    assert max(lengths) - min(lengths) <= ALIGNMENT
    assert layout.parameters == 1_700_000_017


def test_the_shards_of_a_vector_are_views_of_it() -> None:
    layout = Layout.of([("a", torch.empty(5, 3)), ("b", torch.empty(40))], 3)
    vector = torch.zeros(layout.length)
    layout.gather_(vector, [torch.ones(5, 3), torch.full((40,), 2.0)])
    assert torch.equal(torch.cat([layout.part(vector, i) for i in range(3)]), vector)
    layout.part(vector, 0).fill_(7)
    assert layout.named(vector)["a"][0, 0] == 7
    assert list(layout.named(vector)) == ["a", "b"]


@pytest.mark.parametrize("shards", [0, 4, 1000])
def test_a_number_of_shards_that_does_not_fit_is_one_sentence(shards: int) -> None:
    tensors = [("a", torch.empty(30)), ("b", torch.empty(1))]
    with pytest.raises(UsageError, match=f"^{shards} shards do not fit .* parameters: use between 1 and 3$"):
        Layout.of(tensors, shards)
    assert Layout.of(tensors, 3).shards == 3


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        ([torch.float32], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float32, torch.bfloat16], torch.float32),
        ([torch.float64, torch.float32, torch.bfloat16], torch.float64),
    ],
)
def test_the_vector_is_float32_unless_a_parameter_is_float64(kinds: list[torch.dtype], dtype: torch.dtype) -> None:
    assert Layout.of([(str(i), torch.empty(3, dtype=kind)) for i, kind in enumerate(kinds)]).dtype == dtype


def test_gathering_casts_to_the_vectors_kind() -> None:
    layout = Layout.of([("a", torch.empty(3, dtype=torch.bfloat16)), ("b", torch.empty(2))])
    vector = torch.zeros(layout.length)
    layout.gather_(vector, [torch.tensor([1, 2, 3], dtype=torch.bfloat16), torch.tensor([4.0, 5.0])])
    assert layout.named(vector)["a"].tolist() == [1, 2, 3]
