"""A user's DataLoader, read: each of its arguments is honoured, or refused by name with what to write instead.

dataset, batch_size, shuffle, drop_last, collate_fn, num_workers and, where there are workers, timeout, worker_init_fn,
prefetch_factor, multiprocessing_context and pin_memory are honoured. A sampler or batch_sampler is where it is one of
torch's own that leaves nothing out. persistent_workers is no matter of what comes out: ours always are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, WeightedRandomSampler, default_collate
from torch.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler

from distbelief.errors import DataError


@dataclass(frozen=True)
class Loading:
    """How a loader makes batches of its dataset."""

    batch_size: int | None = None
    """None: no loader says."""
    shuffle: bool = True
    drop_last: bool = False
    collate_fn: Callable[[list[Any]], Any] | None = None
    """None: torch's own."""
    workers: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for a DataLoader whose processes make batches ahead; none where there are no such processes."""


def loading_of(loader: DataLoader[Any], name: str) -> Loading:
    """What a loader of a map-style dataset asks for. Raises `DataError` for what cannot be kept."""
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise DataError(
            f"{name}: its loader, a {type(loader).__name__}, makes its batches in a way of its own, which cannot be "
            "leased: give a map-style Dataset, and what is done to its examples as collate_fn"
        )
    batches = loader.batch_sampler
    if batches is None:
        raise DataError(
            f"{name}: its loader has batch_size=None, and a run needs batches of one size to lease: give batch_size=…, "
            "or a Dataset whose examples are single ones"
        )
    if type(batches) is not BatchSampler:
        raise DataError(
            f"{name}: its loader's batch_sampler, a {type(batches).__name__}, cannot be kept: the run leases batches "
            "of one size in an order of its own. Give batch_size=… in its place; to leave examples out, "
            "torch.utils.data.Subset(dataset, indices); to draw some more often, db.Task(…, weights=…)"
        )
    _check_sampler(loader, batches.sampler, name)
    if loader.generator is not None or getattr(batches.sampler, "generator", None) is not None:
        raise DataError(
            f"{name}: its loader's generator cannot be used, since the order of every epoch is drawn from the run's "
            "seed: leave it out, and give db.train(…, seed=…)"
        )
    if not getattr(loader, "in_order", True):
        raise DataError(f"{name}: its loader's in_order=False cannot be kept: leave it out, batches have an order")
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    return Loading(
        batches.batch_size, type(batches.sampler) is RandomSampler, batches.drop_last, collate, _workers(loader)
    )


def _check_sampler(loader: DataLoader[Any], sampler: Any, name: str) -> None:
    """Raise `DataError` unless a sampler gives each example once."""
    kind, length = type(sampler), len(loader.dataset)  # type: ignore[arg-type]
    whole = kind in (RandomSampler, SequentialSampler) and len(sampler) == len(sampler.data_source) == length
    if whole and not getattr(sampler, "replacement", False):
        return
    if isinstance(sampler, WeightedRandomSampler):
        instead = "to draw examples by weight, give these to the task, db.Task(…, weights=…), and leave the sampler out"
    elif isinstance(sampler, SubsetRandomSampler):
        instead = "to leave examples out, give torch.utils.data.Subset(dataset, indices), and leave the sampler out"
    else:
        instead = (
            "leave it out. To leave examples out, give torch.utils.data.Subset(dataset, indices); to draw some more "
            "often, db.Task(…, weights=…)"
        )
    raise DataError(
        f"{name}: its loader's sampler, a {kind.__name__}, cannot be kept: the run gives each replica its examples; "
        f"{instead}"
    )


def _workers(loader: DataLoader[Any]) -> dict[str, Any]:
    if not loader.num_workers:
        return {}
    context = loader.multiprocessing_context
    return {
        "num_workers": loader.num_workers,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "prefetch_factor": loader.prefetch_factor,
        # By its name, since a context cannot be sent to another process.
        "multiprocessing_context": None if context is None else context.get_start_method(),
        "pin_memory": loader.pin_memory and torch.cuda.is_available(),
    }
