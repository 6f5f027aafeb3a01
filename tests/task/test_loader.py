"""Each argument of torch's DataLoader is honoured, or refused by its name with what to write instead."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from distbelief.errors import DataError
from distbelief.task.data import Batches, rows_of
from distbelief.task.loader import Loading, loading_of

DATA = TensorDataset(torch.arange(10.0), torch.arange(10))

HONOURED = {
    "dataset": DATA,
    "batch_size": 4,
    "shuffle": True,
    "num_workers": 1,
    "collate_fn": len,
    "pin_memory": True,
    "drop_last": True,
    "timeout": 60,
    "worker_init_fn": print,
    "multiprocessing_context": "fork",
    "prefetch_factor": 3,
    "sampler": SequentialSampler(DATA),
    "batch_sampler": BatchSampler(RandomSampler(DATA), 4, True),
}
"""A value that is kept, for each argument that can be."""
REFUSED = {
    "sampler": SubsetRandomSampler(range(5)),
    "batch_sampler": [[1, 2], [3]],
    "batch_size": None,
    "generator": torch.Generator(),
    "in_order": False,
}
"""A value that is refused, for each argument that may be."""
HOW_ALONE = {"persistent_workers", "pin_memory_device"}
"""No batch depends on them: our worker processes persist in any case, and torch has given up the second."""


def test_every_argument_of_torch_is_known() -> None:
    """What a later torch adds is to be honoured or refused too: see `loading_of`."""
    known = HONOURED.keys() | REFUSED.keys() | HOW_ALONE
    assert set(inspect.signature(DataLoader.__init__).parameters) - {"self"} - known == set()


def loading(**arguments: Any) -> Loading:
    return loading_of(DataLoader(**({"dataset": DATA} | arguments)), "train")


def test_what_a_loader_asks_for_is_kept() -> None:
    plain = loading()
    assert plain == Loading(batch_size=1, shuffle=False)
    assert loading(batch_size=4, shuffle=True, drop_last=True) == Loading(4, shuffle=True, drop_last=True)
    assert loading(batch_sampler=HONOURED["batch_sampler"]) == Loading(4, shuffle=True, drop_last=True)
    assert loading(sampler=SequentialSampler(DATA)) == plain
    assert loading(collate_fn=len).collate_fn is len
    ahead = {
        name: HONOURED[name] for name in ("timeout", "worker_init_fn", "prefetch_factor", "multiprocessing_context")
    }
    assert loading(num_workers=1, **ahead).workers.items() >= ({"num_workers": 1} | ahead).items()


def test_processes_that_load_ahead_are_as_the_loader_says() -> None:
    def begin(number: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.rows.collate = lambda samples: (number, len(samples))  # type: ignore[attr-defined]

    loader: DataLoader[Any] = DataLoader(DATA, batch_size=4, num_workers=1, worker_init_fn=begin, prefetch_factor=1)
    rows, found = rows_of(loader, "train")
    batches = Batches(rows, 4, 0, workers=found.workers)
    batches.expect(0, 0, 2)
    assert batches(0, 0) == (0, 4)


class Own(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([1, 2, 3])


@pytest.mark.parametrize(
    ("make", "name", "way_out"),
    [
        (lambda: DataLoader(DATA, sampler=SubsetRandomSampler(range(5))), "sampler", r"Subset\(dataset, indices\)"),
        (
            lambda: DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "sampler",
            r"db.Task\(…, weights=…\)",
        ),
        (lambda: DataLoader(DATA, sampler=RandomSampler(DATA, num_samples=3)), "sampler", "leave it out"),
        (lambda: DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)), "sampler", "leave it out"),
        (lambda: DataLoader(DATA, sampler=list(range(10))), "sampler", "leave it out"),
        (lambda: DataLoader(DATA, sampler=SequentialSampler(range(5))), "sampler", "leave it out"),
        (
            lambda: DataLoader(DATA, batch_sampler=BatchSampler(SubsetRandomSampler(range(5)), 2, False)),
            "sampler",
            r"Subset\(dataset, indices\)",
        ),
        (
            lambda: DataLoader(DATA, batch_sampler=BatchSampler(WeightedRandomSampler([1.0] * 10, 10), 2, False)),
            "sampler",
            "weights=",
        ),
        (lambda: DataLoader(DATA, batch_sampler=[[1, 2], [3]]), "batch_sampler", "Give batch_size="),
        (lambda: DataLoader(DATA, batch_size=None), "batch_size", "give batch_size="),
        (lambda: DataLoader(DATA, shuffle=True, generator=torch.Generator()), "generator", "seed="),
        (lambda: DataLoader(DATA, sampler=RandomSampler(DATA, generator=torch.Generator())), "generator", "seed="),
        (lambda: DataLoader(DATA, in_order=False), "in_order", "leave it out"),
        (lambda: Own(DATA), "a Own", "give a map-style Dataset"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name_with_the_way_out(
    make: Callable[[], DataLoader[Any]], name: str, way_out: str
) -> None:
    with pytest.raises(DataError, match=f"^train: its loader.*{name}.*{way_out}"):
        rows_of(make(), "train")


def test_two_ways_to_collate_are_one_too_many() -> None:
    """The loader's own default is none."""
    assert rows_of(DataLoader(DATA), "train", len).rows.batch(torch.arange(3).numpy()) == 3
    assert rows_of(DataLoader(DATA, collate_fn=len), "train", len).rows.batch(torch.arange(3).numpy()) == 3
    with pytest.raises(DataError, match="its loader has a collate_fn, and the task has another: leave one of them out"):
        rows_of(DataLoader(DATA, collate_fn=len), "train", list)
