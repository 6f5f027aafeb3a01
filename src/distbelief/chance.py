"""Chance, derived from (seed, names): the same names give the same numbers on every machine and in every replica."""

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose.

    Keyed by what it is for and never by who asks, so that a repeated lease, a resumed run and a simulated one agree.
    """
    key = "/".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator of its own for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *names))


def order(seed: int, epoch: int, examples: int) -> torch.Tensor:
    """The order of an epoch: a permutation of `examples` indices, int64, the same for every replica."""
    return torch.randperm(examples, generator=generator(seed, "order", epoch))


def draws(seed: int, epoch: int, sums: torch.Tensor) -> torch.Tensor:
    """The examples of an epoch that are drawn with replacement, as many as there are: indices, int64.

    `sums`: of the examples' weights, up to and with each example, float64. One without weight is never drawn.
    """
    chance = generator(seed, "draws", epoch)
    points = torch.rand(len(sums), generator=chance, dtype=torch.float64) * sums[-1]
    # A point may be rounded to the very end, behind which no example lies.
    last = int(torch.searchsorted(sums, sums[-1]))
    # In order, and shuffled afterwards: each search by itself would wait for the memory. NumPy sorts faster.
    points.numpy().sort()
    found = torch.searchsorted(sums, points, right=True).clamp_(max=last)
    return found[torch.randperm(len(found), generator=chance)]
