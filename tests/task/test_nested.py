"""Batches of any structure are moved, joined and named as torch's users nest them."""

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from distbelief.task.nested import detached, fingerprint, joined, leaves, mapped, moved, shapes

META = torch.device("meta")
X = torch.arange(6.0).view(2, 3)


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Graph:
    nodes: Tensor
    parts: list[Tensor]
    name: str = "g"
    size: int = field(init=False, default=7)


class Encoding(UserDict[str, Any]):
    """As of a tokenizer: no dict, and it knows how to move itself."""

    moves = 0

    def to(self, device: torch.device) -> "Encoding":
        made = Encoding({key: value.to(device) for key, value in self.items()})
        made.moves = self.moves + 1
        return made


def structures() -> list[Any]:
    """Of the same tensor, each another way."""
    default: Any = defaultdict(list, x=X)
    return [
        (X, [X, X]),
        [X, {"a": X}],
        Pair(X, (X, 3)),
        OrderedDict(b=X, a=X),
        default,
        UserDict(x=X),
        MappingProxyType({"x": X}),
        Graph(X, [X]),
    ]


@pytest.mark.parametrize("batch", structures(), ids=lambda batch: type(batch).__name__)
def test_every_tensor_moves_and_the_structure_stays(batch: Any) -> None:
    there = moved(batch, META)
    assert type(there) is type(batch)
    found = [leaf for leaf in leaves(there) if isinstance(leaf, Tensor)]
    assert len(found) == len([leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]) > 0
    assert {leaf.device for leaf in found} == {META}
    assert all(leaf is X for leaf in leaves(batch) if isinstance(leaf, Tensor)), "the batch itself is left as it was"


def test_what_else_an_object_holds_stays() -> None:
    there = moved(Graph(X, [X], "name"), META)
    assert (there.name, there.size) == ("name", 7)
    assert moved(defaultdict(list, x=X), META)["else"] == []
    assert list(moved(OrderedDict(b=X, a=X), META)) == ["b", "a"]


def test_an_object_that_moves_itself_does_so() -> None:
    there = moved((Encoding(x=X), "text", 3, None), META)
    assert there[0].moves == 1
    assert there[0]["x"].device == META
    assert there[1:] == ("text", 3, None)
    packed = torch.nn.utils.rnn.pack_sequence([X[0], X[1]])
    assert moved([packed], META)[0].data.device == META


def test_on_the_cpu_a_batch_is_what_it_was() -> None:
    batch = object()
    assert moved(batch, torch.device("cpu")) is batch


def test_a_part_that_is_whole_is_a_leaf() -> None:
    assert mapped([(1, 2), 3], lambda leaf: str(leaf), lambda part: isinstance(part, tuple)) == ["(1, 2)", "3"]


def test_batches_are_joined_as_they_are_nested() -> None:
    parts = [
        {"a": Pair(X, [X, X]), "b": (np.ones(2), ["x", "y"])},
        {"a": Pair(X + 1, [X, X]), "b": (np.ones(1), ["z"])},
    ]
    whole = joined(parts)
    assert isinstance(whole["a"], Pair)
    assert torch.equal(whole["a"].x, torch.cat([X, X + 1]))
    assert [part.shape for part in whole["a"].y] == [(4, 3), (4, 3)]
    assert whole["b"][0].shape == (3,)
    assert whole["b"][1] == ["x", "y", "z"]
    assert joined([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        joined([X, X[:, :2]])


def test_what_is_detached_has_no_graph() -> None:
    batch = Pair(X.clone().requires_grad_() * 2, "text")
    there = detached(batch)
    assert not there.x.requires_grad
    assert (there.x.device, detached(batch, META).x.device) == (X.device, META)


def test_a_fingerprint_is_of_what_the_tensors_hold() -> None:
    x = torch.arange(6.0).view(2, 3)
    same = [{"x": x.clone()}, [torch.tensor([1, 2]), "text"]], [{"x": x}, [torch.tensor([1, 2]), None]]
    assert fingerprint(same[0]) == fingerprint(same[1])
    assert len({fingerprint(batch) for batch in (x, x + 1, x.double(), (x, x), x.bool(), torch.tensor(1.0))}) == 6


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_a_fingerprint_of_sparse_tensors_is_of_indices_and_values(layout: torch.layout) -> None:
    x = torch.eye(4)
    moved = x[[1, 0, 2, 3]]
    made = [tensor.to_sparse(layout=layout) for tensor in (x, x.clone(), moved, x * 2)]
    first, same, *others = map(fingerprint, made)
    assert first == same
    assert len({first, *others}) == 3
    # What would never fit the memory if it were dense.
    one = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1)
    assert fingerprint(torch.sparse_csr_tensor(*one, size=(1, 1 << 60), check_invariants=False))


def test_a_fingerprint_of_csr_does_not_depend_on_the_kind_of_its_indices() -> None:
    start, column = torch.tensor([0, 1]), torch.tensor([0])
    long = torch.sparse_csr_tensor(start, column, torch.ones(1), (1, 3), check_invariants=False)
    short = torch.sparse_csr_tensor(start.int(), column.int(), torch.ones(1), (1, 3), check_invariants=False)
    assert fingerprint(short) == fingerprint(long)


def test_a_batch_is_told_of_as_nested_as_it_is() -> None:
    batch = {"a": torch.zeros(5, 3), "b": (torch.zeros(5).long(), "text")}
    assert shapes(batch) == "{a: float32 (5, 3), b: (int64 (5,), str)}"
    assert shapes(batch, of_each=True) == "{a: float32 (3,), b: (int64 (), str)}"
    assert shapes(UserDict(x=torch.zeros(2))) == "{x: float32 (2,)}"
