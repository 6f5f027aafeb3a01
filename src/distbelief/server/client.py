"""The client of all shards: hands over gradients, pushes them, fetches parameters, and keeps account of versions."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from distbelief.ports import ORIGIN, Gradient, Push, Reply, ShardLink, Slice, Verdict, Version, Work
from distbelief.server.layout import Layout
from distbelief.server.patience import Patience, insist


class FrozenGradient(NamedTuple):
    """A gradient that has been handed over: nobody changes it any more."""

    tensors: list[Tensor | None]
    versions: tuple[Version, ...]
    """Of each shard, at the fetch that the oldest gradient in it was computed from."""
    finite: bool
    weight: float = 0.0
    """Of the sum that it is; 0: of means."""
    norm: float | None = None
    """2-norm of its mean before it was clipped, where that was read."""


@dataclass
class HandOver:
    """Accrue, clip, check, freeze: how gradients leave a replica.

    The paper's listing clears the accrued gradient inside the asynchronous push, where the next batch may already be
    adding to it; here the tensors change hands, and the next batch begins with none. The first gradient accrued is kept
    as the tensors autograd made, so that a push of one batch copies nothing.

    A gradient is refused if and only if an element of it is NaN or infinite, whatever its sum or norm comes to. With
    `clip_norm`, one is refused too whose 2-norm float64 cannot hold: there is nothing to divide by.
    """

    clip_norm: float | None = None
    tensors: list[Tensor | None] = field(default_factory=list)
    versions: tuple[Version, ...] = ()
    batches: int = 0
    _weight: Tensor | None = None
    _weight_read: float = 0.0
    _size: float | None = None
    """2-norm of what is accrued or, where nothing is clipped, the sum of its elements; None until it is read."""
    _norm: float | None = None
    """2-norm of what is accrued, where it was read."""

    def accrue(self, gradient: Gradient, versions: tuple[Version, ...]) -> None:
        """Add a batch's gradient. Owns its tensors from here on."""
        self._size = self._norm = None
        self.batches += 1
        if not self.tensors:
            self.tensors, self.versions, self._weight = gradient.tensors, versions, gradient.weight
            return
        if self._weight is not None and gradient.weight is not None:
            self._weight = self._weight + gradient.weight
        both = list(zip(self.tensors, gradient.tensors, strict=True))
        sums = [(mine, new) for mine, new in both if mine is not None and new is not None]
        if sums:
            torch._foreach_add_([mine for mine, _ in sums], [new for _, new in sums])
        self.tensors = [new if mine is None else mine for mine, new in both]

    def read(self, *scalars: Tensor, norm: bool = False) -> list[float]:
        """The values of scalars; the size of what is accrued is read with them, once for each gradient accrued.

        On a GPU this is the one time that a step waits for it. `norm`: read the 2-norm too, where nothing is clipped.
        """
        if self._size is not None:
            return values(scalars)
        present, clipped, wanted = _present(self.tensors), self.clip_norm is not None, [*scalars]
        if self._weight is not None:
            wanted.append(self._weight)
        if norm := bool(present) and (clipped or norm):
            wanted.append(torch.stack(torch._foreach_norm(present)).norm())
        if not clipped:
            # Not always the norm: the squares of a vanishing gradient are subnormal numbers, which a core is slow at.
            wanted += [tensor.sum() for tensor in present]
        read = values(wanted)
        found, rest = read[: len(scalars)], iter(read[len(scalars) :])
        self._weight_read = 0.0 if self._weight is None else next(rest)
        self._norm = next(rest) if norm else None
        self._size = (self._norm or 0.0) if clipped else sum(rest)
        return found

    @property
    def finite(self) -> bool:
        """Whether what is accrued may be pushed."""
        if self._size is None:
            self.read()
        if self._size is not None and not math.isfinite(self._size):
            # The sum or the squares of finite numbers may be too large: seldom, so that it may take a second look.
            self._size = self._look_closer(_present(self.tensors))
        return self._size is not None and math.isfinite(self._size) and 0 <= self._weight_read < math.inf

    def _look_closer(self, present: list[Tensor]) -> float:
        if self.clip_norm is None:
            return 0.0 if all_finite(present) else math.nan
        return float(torch.stack(torch._foreach_norm(present, dtype=torch.float64)).norm())

    def take(self) -> FrozenGradient:
        """The accrued gradient, clipped to `clip_norm` and checked; the next batch begins anew.

        It is checked before the first shard sees anything, so that it is pushed whole or refused whole.
        """
        finite, size, weight = self.finite, self._size, self._weight_read
        # Of the mean: what will be left of a sum once it has been divided.
        divisor = weight / self.batches if weight else 1.0
        norm = self._norm if self.clip_norm is None else size
        norm = norm / divisor if norm is not None and math.isfinite(norm) else None
        tensors, self.tensors, self._size, self._weight_read, self.batches = self.tensors, [], None, 0.0, 0
        if finite and self.clip_norm is not None and size is not None:
            most = self.clip_norm * divisor
            if size > most:
                torch._foreach_mul_(_present(tensors), most / size)
        return FrozenGradient(tensors, self.versions, finite, weight, norm)


def _present(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def values(scalars: Sequence[Tensor]) -> list[float]:
    """Read tensors of one element: all at once where they are on a GPU, which every read waits for."""
    if len(scalars) > 1 and scalars[0].device.type != "cpu":
        return torch.stack(list(scalars)).tolist()
    return [scalar.item() for scalar in scalars]


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no element is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@final
class Client:
    """One replica's (or one of its partitions') dealings with the parameter server.

    Replies of a push are one a shard; a shard's `at_least` binds the next fetch from it, unless some shard turned the
    push away: then nothing is waited for. With `patience`, calls are made again until they are answered, over links
    that lose messages.
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
        # None stands for the whole of a tensor.
        self._cuts = [
            [(p.entry, None if p.stop - p.start == sizes[p.entry] else slice(p.start, p.stop), p.slice) for p in pieces]
            for pieces in layout.pieces
        ]
        self._into: tuple[Tensor, list[Tensor]] | None = None
        # Each replica begins at another shard, so that they do not queue at one after the other.
        self._turn = [(replica + i) % len(links) for i in range(len(links))]
        self._in_turn = all(link.answers_at_once for link in links)

    async def fetch(self, into: Tensor) -> tuple[Version, ...]:
        """Copy all parameters into a flat vector; returns each shard's version."""
        versions = [ORIGIN] * len(self.links)
        parts = self._parts(into)

        async def one(shard: int) -> None:
            part, link, at_least = parts[shard], self.links[shard], self._at_least[shard]
            versions[shard] = await insist(self._patience, lambda: link.fetch(part, at_least), link.transferring)
            self.fetched_bytes += part.nbytes

        awaited = [shard for shard in self._turn if self._at_least[shard] > ORIGIN]
        if awaited:
            # Both lists before the first wait, in which a push may end; and where it may have to wait first, so that
            # what others hold is not old by then.
            rest = [shard for shard in self._turn if self._at_least[shard] == ORIGIN]
            await self._at_each(awaited, one)
            await self._at_each(rest, one)
        else:
            await self._at_each(self._turn, one)
        return tuple(versions)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """A vector's part of each shard. Kept, since a replica fetches into the same one each time."""
        if self._into is None or self._into[0] is not vector:
            self._into = vector, [self.layout.part(vector, shard) for shard in range(len(self.links))]
        return self._into[1]

    async def push(self, frozen: FrozenGradient, work: Work) -> list[Reply]:
        """Offer a gradient to every shard; one push is under way at a time."""
        self.sequence += 1
        sequence = self.sequence
        replies: dict[int, Reply] = {}
        flat = [None if tensor is None else tensor.flatten() for tensor in frozen.tensors]

        async def one(shard: int) -> None:
            slices, gradients = self._cut(flat, shard)
            link = self.links[shard]
            version = frozen.versions[shard]
            push = Push(self.replica, self.incarnation, sequence, version, work, slices, gradients, frozen.weight)
            replies[shard] = await insist(self._patience, lambda: link.push(push), link.transferring)
            self.pushed_bytes += sum(gradient.nbytes for gradient in gradients)

        await self._at_each(self._turn, one)
        told = [replies[shard] for shard in range(len(self.links))]
        # Who was turned away at a shard is missing in its round, and must not wait for another shard's: those who wait
        # there for that round may be whom the other one waits for.
        turned_away = not all(reply.verdict.used for reply in told)
        self._at_least = [ORIGIN if turned_away else reply.at_least for reply in told]
        return told

    async def _at_each(self, shards: Sequence[int], one: Callable[[int], Coroutine[None, None, None]]) -> None:
        """At one after the other where they answer at once, else at all together."""
        if self._in_turn:
            for shard in shards:
                await one(shard)
        elif shards:
            async with asyncio.TaskGroup() as group:
                for shard in shards:
                    group.create_task(one(shard))

    def _cut(self, flat: list[Tensor | None], shard: int) -> tuple[tuple[Slice, ...], list[Tensor]]:
        """The views of a gradient that belong to a shard, and where they belong."""
        slices, gradients = [], []
        for entry, part, place in self._cuts[shard]:
            if (tensor := flat[entry]) is not None:
                slices.append(place)
                gradients.append(tensor if part is None else tensor[part])
        whole = self._whole[shard]
        # The kept tuple, where nothing is left out: the shard finds its views by it.
        return (whole if len(slices) == len(whole) else tuple(slices)), gradients


def verdict_of(replies: Sequence[Reply]) -> Verdict:
    """What became of a gradient at all shards: used if any used it, else the first shard's refusal."""
    return next((reply.verdict for reply in replies if reply.verdict.used), replies[0].verdict)
