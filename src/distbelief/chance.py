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
