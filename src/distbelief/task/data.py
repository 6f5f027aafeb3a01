"""Data as batches that are named by (epoch, batch): the same batch whoever asks for it, and however often."""

import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from distbelief.chance import derive, order
from distbelief.errors import DataError, InvariantViolated
from distbelief.task.loader import Loading, loading_of
from distbelief.task.nested import leaves, mapped
from distbelief.task.tracebacks import noted


@runtime_checkable
class Rows(Protocol):
    """Examples by index. A Dataset that is one makes whole batches itself, faster than one by one."""

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, indices: np.ndarray) -> Any:
        """The examples at these int64 indices, as one batch."""


class ArrayRows:
    """Examples that are the rows of tensors, arrays, memory-mapped arrays or SciPy CSR, however nested.

    A batch has the same nesting, of tensors. Floating-point kinds stay as they are. SciPy CSR becomes dense, or with
    `sparse` a `torch.sparse_csr` tensor.
    """

    def __init__(self, arrays: Any, name: str, *, sparse: bool = False) -> None:
        self.arrays = arrays
        self.sparse = sparse
        parts = leaves(arrays)
        if strange := [type(leaf).__name__ for leaf in parts if not _is_array(leaf)]:
            raise DataError(f"data must be made of tensors, arrays or SciPy CSR matrices, and holds {strange[0]}")
        if not all(leaf.shape for leaf in parts):
            raise DataError("an array of the data is a single number; its first dimension must be the examples")
        lengths = {int(leaf.shape[0]) for leaf in parts}
        if not lengths:
            raise DataError(f"{name} holds no arrays: give (input, target)")
        if len(lengths) > 1:
            told = ", ".join(map(str, sorted(lengths)))
            raise DataError(f"{name}: its arrays differ in length, {told} rows: give as many targets as inputs")
        (self._length,) = lengths
        if sparse:
            for leaf in filter(_is_csr, parts):
                _check_csr(leaf, name)

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: np.ndarray) -> Any:
        """The rows at these indices."""
        return mapped(self.arrays, lambda leaf: _rows(leaf, indices, self.sparse))


class SampleRows:
    """Examples of a map-style Dataset, collated one by one."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self.dataset = dataset
        self.collate = collate_fn or default_collate

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: np.ndarray) -> Any:
        """The samples at these indices, collated."""
        return self.collate(self.samples(indices.tolist()))

    def samples(self, indices: list[int]) -> Any:
        """The samples at these indices, each by itself."""
        several = getattr(self.dataset, "__getitems__", None)
        return several(indices) if several else [self.dataset[i] for i in indices]


class Head:
    """The first few of some examples."""

    def __init__(self, rows: Rows, length: int) -> None:
        self._rows = rows
        self._length = length

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: np.ndarray) -> Any:
        """The examples at these indices."""
        return self._rows.batch(indices)


def _is_array(data: object) -> bool:
    return isinstance(data, Tensor | np.ndarray) or _is_csr(data)


def _is_csr(data: object) -> bool:
    return getattr(data, "format", None) == "csr" and hasattr(data, "toarray")


def _rows(leaf: Any, indices: np.ndarray, sparse: bool) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf.index_select(0, torch.from_numpy(indices))
    if isinstance(leaf, np.ndarray):
        return torch.from_numpy(np.asarray(leaf[indices]))
    return _csr_tensor(leaf[indices]) if sparse else torch.from_numpy(leaf[indices].toarray())


def _check_csr(matrix: Any, name: str) -> None:
    """Refuse what torch cannot hold. It is not asked to check each batch, and would read past the end of the memory."""
    if len(matrix.shape) != 2:
        raise DataError(
            f"{name} holds a CSR array of shape {matrix.shape}, and with sparse=True it must have two dimensions"
        )
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise DataError(
            f"{name} holds a CSR matrix that is not valid ({error}): build it by scipy.sparse.csr_matrix"
        ) from error


def _csr_tensor(matrix: Any) -> Tensor:
    """A `torch.sparse_csr` tensor in the memory of a SciPy CSR matrix, which belongs to nobody else."""
    # SciPy lets a row name its columns in any order and more than once, torch does not.
    matrix.sum_duplicates()
    silence_csr()
    starts, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(starts, columns, values, matrix.shape, check_invariants=False)


@cache
def silence_csr() -> None:
    """Have torch say here, where it is not shown, that its CSR is in beta state: it says so once a process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        torch.sparse_csr_tensor([0], [], [], size=(0, 0), check_invariants=False)


class Source(NamedTuple):
    """Examples, and how the loader that they came in makes batches of them."""

    rows: Rows
    loading: Loading

    def check_whole(self, name: str) -> None:
        """Raise `DataError` where not all examples would be evaluated."""
        if self.loading.drop_last:
            raise DataError(
                f"{name}: its loader's drop_last=True cannot be kept, since an evaluation is of every example: leave "
                "it out"
            )


def rows_of(
    data: Any, name: str, collate_fn: Callable[[list[Any]], Any] | None = None, *, sparse: bool = False
) -> Source:
    """The examples of anything a Task takes as data.

    A function is called here; what it opens, other than arrays, is opened again in each process that uses it.
    Raises `DataError` with one sentence for what cannot be leased in portions, and for `sparse` without any CSR.
    """
    if callable(data) and not isinstance(data, Dataset) and not hasattr(type(data), "__getitem__"):
        opened = OpenedRows(data, name, collate_fn, sparse=sparse)
        # Arrays are sent, and exist once on a machine.
        return opened.source._replace(rows=opened) if opened.first is not None else opened.source
    loader = data if isinstance(data, DataLoader) else None
    data = data if loader is None else loader.dataset
    if isinstance(data, IterableDataset):
        raise DataError(f"{name} is an IterableDataset, which cannot be leased in portions; give a map-style Dataset")
    loading = Loading() if loader is None else loading_of(loader, name)
    if loading.collate_fn is not None and collate_fn not in (None, loading.collate_fn):
        raise DataError(f"{name}: its loader has a collate_fn, and the task has another: leave one of them out")
    collate = loading.collate_fn or collate_fn
    # What a loader loads are samples, also where it is given a list of them.
    if loader is None and (isinstance(data, tuple | list | Mapping) or _is_array(data)):
        rows: Rows = ArrayRows(data, name, sparse=sparse)
    elif isinstance(data, Dataset) and isinstance(data, Rows) and collate in (None, default_collate):
        rows = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes):
        rows = SampleRows(data, collate)
    else:
        raise DataError(
            f"{name} must be (input, target) of tensors or arrays, a map-style Dataset or a DataLoader, or a function "
            f"that returns one of these, not {type(data).__name__}"
        )
    if len(rows) == 0:
        raise DataError(f"{name} is empty: give at least one example")
    if sparse and not (isinstance(rows, ArrayRows) and any(map(_is_csr, leaves(rows.arrays)))):
        raise DataError(
            f"{name} holds no SciPy CSR, which is what sparse=True is for: give (input, target) with an input such as "
            "scipy.sparse.csr_matrix(x), or leave sparse out"
        )
    return Source(rows, loading)


class OpenedRows:
    """Examples of a Dataset that a function opens: in each process that uses them, and never sent once it is open.

    One thread of its own opens and reads it, since evaluations have another thread than training, and a connection may
    be of use in one alone. The function is called under one seed, so that what it draws is the same everywhere.
    """

    def __init__(
        self, function: Callable[[], Any], name: str, collate_fn: Callable[[list[Any]], Any] | None, *, sparse: bool
    ) -> None:
        self._how = function, name, collate_fn, sparse
        self._length = 0
        self.first: list[Tensor] | None = None
        """What the first example holds; nothing where that is another each time, and None of arrays."""
        self._process: int | None = None
        self._thread: ThreadPoolExecutor
        self._source: Source
        _ = self.source

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_thread", "_source")} | {
            "_process": None
        }

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: np.ndarray) -> Any:
        """The examples at these indices."""
        return self._in_thread(self.source.rows.batch, indices)

    @property
    def source(self) -> Source:
        """What the function opened in this process. Raises `DataError` where that is other data than elsewhere."""
        if self._process != os.getpid():
            self._thread = ThreadPoolExecutor(1, "data", torch.set_num_threads, (torch.get_num_threads(),))
            self._source = self._in_thread(self._open)
            self._process = os.getpid()
        return self._source

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._thread.submit(function, *arguments).result()

    def _open(self) -> Source:
        function, name, collate_fn, sparse = self._how
        with noted(f"in the function that gives {name}"), seeded(0):
            data = function()
        if callable(data) and not isinstance(data, Dataset) and not hasattr(type(data), "__getitem__"):
            raise DataError(f"the function that gives {name} returned a function: give that one")
        source = rows_of(data, name, collate_fn, sparse=sparse)
        length, first = len(source.rows), _first_example(source.rows)
        if not self._length:
            self._length, self.first = length, first
        elif length != self._length or (self.first and not _alike(self.first, first or ())):
            raise DataError(
                f"the function that gives {name} gives other data in each process: have it open the same data each "
                "time, and seed the generators that it makes itself"
            )
        return source


def _first_example(rows: Rows) -> list[Tensor] | None:
    """The numbers in the first example; none where they are others each time, and None of arrays."""
    if isinstance(rows, ArrayRows):
        return None
    drawn = []
    for _ in range(2):
        with seeded(0):
            example = rows.samples([0]) if isinstance(rows, SampleRows) else rows.batch(np.arange(1))
        # Copies, since a part of a larger tensor would take all of that tensor along.
        drawn.append([torch.as_tensor(leaf).detach().clone() for leaf in leaves(example) if _is_numbers(leaf)])
    return drawn[0] if _alike(*drawn) else []


def _is_numbers(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.layout is torch.strided
    found = np.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic | float | int) else None
    return found is not None and found.dtype.kind in "biuf" and found.itemsize <= torch.float64.itemsize


def _alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors are the same but for rounding."""
    return [(a.shape, a.dtype) for a in one] == [(b.shape, b.dtype) for b in other] and all(
        torch.allclose(a, b, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


class Batches(Dataset[Any]):
    """The batches of an epoch, in the run's own order.

    All chance in making a batch is keyed by (seed, epoch, batch). `ordered` gives the examples of an epoch; None: all,
    shuffled. `workers`: arguments of a DataLoader whose processes make the batches of a portion ahead; each replica has
    its own. `epochs`: whose orders are kept, 8 bytes an example each.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        ordered: Callable[[int], Tensor] | None = None,
        *,
        workers: Mapping[str, Any] | None = None,
        epochs: int = 1,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self._ordered = ordered or partial(order, seed, examples=len(rows))
        self._epochs = epochs
        self._orders: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._seeded = not isinstance(rows, ArrayRows)
        if isinstance(rows, ArrayRows) and rows.sparse:
            # What worker processes made is put together here.
            silence_csr()
        self._ahead = _Ahead(self, workers) if workers else None

    def expect(self, epoch: int, start: int, stop: int) -> None:
        """Tell that these batches will be asked for, in order."""
        if self._ahead is not None:
            self._ahead.begin([(epoch, batch) for batch in range(start, stop)])

    def size(self, batch: int) -> int:
        """Examples in a batch; the last of an epoch may be smaller."""
        return min(self.batch_size, len(self.rows) - batch * self.batch_size)

    def __call__(self, epoch: int, batch: int) -> Any:
        """One batch. The caller owns its tensors."""
        if self._ahead is not None:
            return self._ahead.next((epoch, batch))
        return self[epoch, batch]

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """One batch, made here and now."""
        epoch, batch = key
        if epoch not in self._orders:
            if len(self._orders) == self._epochs:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = self._ordered(epoch).numpy()
        if self._seeded:
            seed_everything(derive(self.seed, "batch", epoch, batch))
        start = batch * self.batch_size
        return self.rows.batch(self._orders[epoch][start : start + self.batch_size])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed everything for a block, and leave the caller's own chance as it was."""
    kept = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    seed_everything(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


def seed_everything(seed: int) -> None:
    """Seed what user code draws from without being handed a generator."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Ahead:
    """Batches made ahead by the worker processes of one kept DataLoader."""

    def __init__(self, batches: Batches, workers: Mapping[str, Any]) -> None:
        self._wanted: list[tuple[int, int]] = []
        # The list is the sampler: it is gone through anew for each portion.
        self._loader = DataLoader(
            batches,
            sampler=self._wanted,
            batch_size=None,
            # Torch's own would make lists of tuples and tensors of arrays.
            collate_fn=_as_it_is,
            persistent_workers=True,
            # Another way to start them would import what a user's script defines, and cannot.
            **{**workers, "multiprocessing_context": workers.get("multiprocessing_context") or "fork"},
        )
        self._iterator: Iterator[Any] = iter(())

    def begin(self, keys: Sequence[tuple[int, int]]) -> None:
        self._wanted[:] = keys
        self._iterator = zip(keys, self._loader, strict=True)

    def next(self, key: tuple[int, int]) -> Any:
        # Torch warns where it is left open whether sparse tensors are checked. Where they were made, they are valid.
        with torch.sparse.check_sparse_tensor_invariants(False):
            made, batch = next(self._iterator)
        if made != key:
            raise InvariantViolated(f"batch {key} was asked for out of order")
        return batch
