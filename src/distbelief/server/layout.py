"""The parameter vector: which elements belong to which parameter, and which to which shard.

All parameters form one flat vector. Each parameter begins at a multiple of `ALIGNMENT` elements. Shard borders lie at
such multiples too, and may lie inside a parameter. The aligned parts of a divided tensor go through the same vector
instructions as the whole tensor, so the result of a fused kernel does not depend on the number of shards, to the last
bit.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from distbelief.errors import UsageError
from distbelief.ports import Slice

ALIGNMENT = 16


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


class Entry(NamedTuple):
    """One parameter: its name, its shape, and its first element in the vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Piece(NamedTuple):
    """The part of a parameter that lies in a shard.

    It is the elements [start, stop) of the parameter with index `entry`, and the elements `slice` of the shard.
    """

    entry: int
    start: int
    stop: int
    slice: Slice


@dataclass(frozen=True)
class Layout:
    """Where every parameter lies in the vector, and where the vector is cut into shards.

    `borders` has one more number than there are shards; shard i holds the elements [borders[i], borders[i + 1]).
    """

    entries: tuple[Entry, ...]
    borders: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, Tensor]], shards: int = 1) -> Self:
        """Lay out named parameters in the given order over `shards` nearly equal ranges.

        Raises `UsageError` where a shard would hold fewer than 16 elements.
        """
        named = list(parameters)
        entries = []
        end = 0
        for name, tensor in named:
            entries.append(Entry(name, tuple(tensor.shape), end))
            end += _aligned(tensor.numel())
        most = max(end // ALIGNMENT, 1)
        if not 1 <= shards <= most:
            count = sum(tensor.numel() for _, tensor in named)
            raise UsageError(f"{shards} shards do not fit {count} parameters: use between 1 and {most}")
        borders = tuple(round(i * end / ALIGNMENT / shards) * ALIGNMENT for i in range(shards + 1))
        double = any(tensor.dtype == torch.float64 for _, tensor in named)
        return cls(tuple(entries), borders, torch.float64 if double else torch.float32)

    @property
    def length(self) -> int:
        """Elements of the vector, the padding between parameters included."""
        return self.borders[-1]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.borders) - 1

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters, without padding."""
        return sum(entry.size for entry in self.entries)

    def part(self, vector: Tensor, shard: int) -> Tensor:
        """The view of a flat vector that belongs to a shard."""
        return vector[self.borders[shard] : self.borders[shard + 1]]

    def views(self, vector: Tensor) -> list[Tensor]:
        """Views of a flat vector, one per parameter, in the parameters' shapes."""
        return [vector[e.offset : e.offset + e.size].view(e.shape) for e in self.entries]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The views of a flat vector by the parameters' names."""
        return {entry.name: view for entry, view in zip(self.entries, self.views(vector), strict=True)}

    def gather_(self, vector: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copy tensors, one per parameter, into a flat vector."""
        torch._foreach_copy_(self.views(vector), list(tensors))

    @cached_property
    def pieces(self) -> tuple[tuple[Piece, ...], ...]:
        """For each shard, the parts of parameters that lie in it."""
        found: list[list[Piece]] = [[] for _ in range(self.shards)]
        for number, entry in enumerate(self.entries):
            for shard, (low, high) in enumerate(zip(self.borders, self.borders[1:], strict=False)):
                start, stop = max(entry.offset, low), min(entry.offset + entry.size, high)
                if start < stop:
                    place = Slice(start - low, stop - low)
                    found[shard].append(Piece(number, start - entry.offset, stop - entry.offset, place))
        return tuple(map(tuple, found))
