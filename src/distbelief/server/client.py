"""A replica's client of the parameter server: it prepares gradients, pushes them and fetches parameters."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from distbelief.ports import ORIGIN, Gradient, Push, Reply, ShardLink, Slice, Verdict, Version, Work
from distbelief.server.layout import Layout, Piece
from distbelief.server.patience import Patience, retry


class FrozenGradient(NamedTuple):
    """A gradient that is ready to push. Its tensors do not change any more."""

    tensors: list[Tensor | None]
    """Flat, one per parameter; None where it took no part."""
    versions: tuple[Version, ...]
    """The version of each shard at the fetch that the oldest accrued gradient was computed from."""
    finite: bool
    weight: float = 0.0
    """Total weight, if the tensors are gradients of weighted sums; 0 if they are sums of gradients of batch means."""
    norm: float | None = None
    """2-norm before clipping, divided by the mean weight of a batch; None if it was not read or is not finite."""


@dataclass
class HandOver:
    """Turns the gradients of batches into one `FrozenGradient`: accrue, check, clip, freeze.

    In the paper's listing the asynchronous push clears the accrued gradient while the next batch may already be adding
    to it. Here `take` transfers the tensors to the push, and the next batch starts with none. The first gradient is
    accrued in the tensors that autograd made, as vectors, so a push of one batch copies nothing.

    `finite` is False if an element is NaN or infinite, or if the weight is negative or not finite. A sum or norm that
    overflows is no reason by itself. With `clip_norm`, `finite` is also False if the 2-norm overflows float64: clipping
    would have to divide by it.
    """

    clip_norm: float | None = None
    tensors: list[Tensor | None] = field(default_factory=list)
    versions: tuple[Version, ...] = ()
    batches: int = 0
    _weight: Tensor | None = None
    _weight_read: float = 0.0
    _probe: float | None = None
    """The number that `finite` checks: with `clip_norm` the 2-norm, else the sum of all elements; None until read."""
    _norm: float | None = None
    """2-norm of the accrued gradient; None until it is read."""

    def accrue(self, gradient: Gradient, versions: tuple[Version, ...]) -> None:
        """Add a batch's gradient, and take ownership of its tensors."""
        self._probe = self._norm = None
        self.batches += 1
        # Flat before anything else: torch takes half as long again to sum a small matrix.
        tensors = [None if tensor is None else tensor.flatten() for tensor in gradient.tensors]
        if not self.tensors:
            self.tensors, self.versions, self._weight = tensors, versions, gradient.weight
            return
        if self._weight is not None and gradient.weight is not None:
            self._weight = self._weight + gradient.weight
        both = list(zip(self.tensors, tensors, strict=True))
        sums = [(mine, new) for mine, new in both if mine is not None and new is not None]
        if sums:
            torch._foreach_add_([mine for mine, _ in sums], [new for _, new in sums])
        self.tensors = [new if mine is None else mine for mine, new in both]

    def read(self, *scalars: Tensor, norm: bool = False) -> list[float]:
        """Read scalars and, in the same transfer, `_probe` of the accrued gradient unless it is known already.

        On a GPU this is the one point at which a step waits for the device. `norm`: also read the 2-norm where no
        `clip_norm` requires it anyway.
        """
        if self._probe is not None:
            return read_scalars(scalars)
        present, clipped, wanted = _present(self.tensors), self.clip_norm is not None, [*scalars]
        if self._weight is not None:
            wanted.append(self._weight)
        if norm := bool(present) and (clipped or norm):
            wanted.append(torch.stack(torch._foreach_norm(present)).norm() if clipped else _norm(present))
        if not clipped:
            # A sum, not a norm: the squares of a vanishing gradient are subnormal numbers, which slow a core down.
            wanted += [tensor.sum() for tensor in present]
        read = read_scalars(wanted)
        found, rest = read[: len(scalars)], iter(read[len(scalars) :])
        self._weight_read = 0.0 if self._weight is None else next(rest)
        self._norm = next(rest) if norm else None
        self._probe = (self._norm or 0.0) if clipped else sum(rest)
        return found

    @property
    def finite(self) -> bool:
        """Whether the accrued gradient is finite, and so may be pushed."""
        if self._probe is None:
            self.read()
        if self._probe is not None and not math.isfinite(self._probe):
            # The sum or norm of finite elements can overflow. This is rare, so a second, slower check is affordable.
            self._probe = self._look_closer(_present(self.tensors))
        return self._probe is not None and math.isfinite(self._probe) and 0 <= self._weight_read < math.inf

    def _look_closer(self, present: list[Tensor]) -> float:
        if self.clip_norm is None:
            return 0.0 if all_finite(present) else math.nan
        return float(torch.stack(torch._foreach_norm(present, dtype=torch.float64)).norm())

    def take(self) -> FrozenGradient:
        """Return the accrued gradient, checked and clipped to `clip_norm`, and start an empty one.

        The check comes before any shard receives a part, so that either all shards get the gradient or none does.
        """
        finite, size, weight = self.finite, self._probe, self._weight_read
        # A shard divides a weighted sum by the mean weight of a batch. `clip_norm` and `norm` refer to that quotient.
        divisor = weight / self.batches if weight else 1.0
        norm = self._norm if self.clip_norm is None else size
        norm = norm / divisor if norm is not None and math.isfinite(norm) else None
        tensors, self.tensors, self._probe, self._weight_read, self.batches = self.tensors, [], None, 0.0, 0
        if finite and self.clip_norm is not None and size is not None:
            most = self.clip_norm * divisor
            if size > most:
                torch._foreach_mul_(_present(tensors), most / size)
        return FrozenGradient(tensors, self.versions, finite, weight, norm)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of flat tensors, to be shown. A dot product is not slowed down by squares that are subnormal."""
    return torch.stack([torch.dot(vector, vector) for vector in tensors]).sum().sqrt()


def _present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def read_scalars(scalars: Sequence[Tensor]) -> list[float]:
    """Read one-element tensors. On a GPU, stack them and read once, since each read waits for the device."""
    if len(scalars) > 1 and scalars[0].device.type != "cpu":
        return torch.stack(list(scalars)).tolist()
    return [scalar.item() for scalar in scalars]


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no element is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@final
class Client:
    """Pushes and fetches for one replica, or for one partition of its model.

    A push gets one reply per shard. The next fetch from a shard waits for the `at_least` of the shard's reply. If any
    shard refused the push, the next fetch waits at no shard. `patience` is for links that lose messages: the client
    retries each call until it is answered.
    """

    def __init__(
        self,
        layout: Layout,
        links: Sequence[ShardLink],
        *,
        replica: int,
        incarnation: int,
        patience: Patience | None = None,
    ) -> None:
        self.layout = layout
        self.links = links
        self.replica = replica
        self.incarnation = incarnation
        self._patience = patience
        self.sequence = 0
        self.fetched_bytes = 0
        self.pushed_bytes = 0
        self._at_least = [ORIGIN] * len(links)
        self._whole = tuple(tuple(piece.slice for piece in pieces) for pieces in layout.pieces)
        sizes = [entry.size for entry in layout.entries]

        def cut_of(piece: Piece) -> tuple[int, slice | None, Slice, int]:
            size = piece.stop - piece.start
            part = None if size == sizes[piece.entry] else slice(piece.start, piece.stop)
            return piece.entry, part, piece.slice, size * layout.dtype.itemsize

        # For each shard and piece: the parameter's index, its elements in the shard (None: all), their place there, and
        # their bytes.
        self._cuts = [list(map(cut_of, pieces)) for pieces in layout.pieces]
        self._cached_parts: tuple[Tensor, list[tuple[Tensor, int]]] | None = None
        # Replica r starts at shard r mod the number of shards, so that the replicas do not all queue at the same shard.
        self._shard_order = [(replica + i) % len(links) for i in range(len(links))]
        self._sequential = all(link.answers_at_once for link in links)

    async def fetch(self, into: Tensor) -> tuple[Version, ...]:
        """Copy all parameters into a flat vector; returns each shard's version."""
        parts, versions = self._parts(into), [ORIGIN] * len(self.links)

        async def one(shard: int) -> None:
            (part, nbytes), link, at_least = parts[shard], self.links[shard], self._at_least[shard]
            versions[shard] = await retry(self._patience, lambda: link.fetch(part, at_least), link.transferring)
            self.fetched_bytes += nbytes

        # Build both lists before the first await, since a push that ends meanwhile changes `_at_least`. Fetch first
        # from shards that may make the fetch wait: the parameters of the others would be stale after the wait.
        awaited = [shard for shard in self._shard_order if self._at_least[shard] > ORIGIN]
        rest = [shard for shard in self._shard_order if shard not in awaited]
        for shards in (awaited, rest):
            if shards:
                await self._at_each(shards, one)
        return tuple(versions)

    def _parts(self, vector: Tensor) -> list[tuple[Tensor, int]]:
        """Views of a vector, one per shard, and the bytes of each.

        They are cached, since a replica fetches into the same vector each time.
        """
        if self._cached_parts is None or self._cached_parts[0] is not vector:
            parts = [self.layout.part(vector, shard) for shard in range(len(self.links))]
            self._cached_parts = vector, [(part, part.nbytes) for part in parts]
        return self._cached_parts[1]

    async def push(self, frozen: FrozenGradient, work: Work) -> list[Reply]:
        """Push a gradient to every shard, and return one reply per shard. Only one push may be under way."""
        self.sequence += 1
        sequence = self.sequence
        replies: dict[int, Reply] = {}

        async def one(shard: int) -> None:
            link, version = self.links[shard], frozen.versions[shard]
            slices, gradients, nbytes = self._cut(frozen.tensors, shard)
            push = Push(self.replica, self.incarnation, sequence, version, work, slices, gradients, frozen.weight)
            replies[shard] = await retry(self._patience, lambda: link.push(push), link.transferring)
            self.pushed_bytes += nbytes

        await self._at_each(self._shard_order, one)
        told = [replies[shard] for shard in range(len(self.links))]
        # If shard A refused this push, A's open round still lacks this replica. If the replica now waited for shard B's
        # round, it could deadlock with replicas that wait at A for A's round and are missing in B's.
        turned_away = [reply for reply in told if not reply.verdict.used]
        self._at_least = [ORIGIN if turned_away else reply.at_least for reply in told]
        return told

    async def _at_each(self, shards: Sequence[int], one: Callable[[int], Coroutine[None, None, None]]) -> None:
        """Await `one` for each shard: in sequence if all links answer at once, else concurrently."""
        if self._sequential:
            for shard in shards:
                await one(shard)
        else:
            async with asyncio.TaskGroup() as group:
                for shard in shards:
                    group.create_task(one(shard))

    def _cut(self, flat: list[Tensor | None], shard: int) -> tuple[tuple[Slice, ...], list[Tensor], int]:
        """Return the slices of a shard that a gradient covers, the gradient's view for each, and their bytes."""
        slices, gradients, total = [], [], 0
        for entry, part, place, nbytes in self._cuts[shard]:
            if (tensor := flat[entry]) is not None:
                slices.append(place)
                gradients.append(tensor if part is None else tensor[part])
                total += nbytes
        whole = self._whole[shard]
        # If no parameter is missing, reuse the cached tuple: it is the key of the shard's cache of views.
        return (whole if len(slices) == len(whole) else tuple(slices)), gradients, total


def verdict_of(replies: Sequence[Reply]) -> Verdict:
    """Combine the verdicts of all shards: the first one that means "used", else the first shard's refusal."""
    for reply in replies:
        if reply.verdict.used:
            return reply.verdict
    return replies[0].verdict
