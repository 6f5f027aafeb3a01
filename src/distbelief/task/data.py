"""Data as batches that are named by (epoch, batch): the same batch whoever asks for it, and however often."""

import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torch.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler

from distbelief.chance import derive, order
from distbelief.errors import DataError, InvariantViolated


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
        leaves = _leaves(arrays)
        if strange := [type(leaf).__name__ for leaf in leaves if not _is_array(leaf)]:
            raise DataError(f"data must be made of tensors, arrays or SciPy CSR matrices, and holds {strange[0]}")
        if not all(leaf.shape for leaf in leaves):
            raise DataError("an array of the data is a single number; its first dimension must be the examples")
        lengths = {int(leaf.shape[0]) for leaf in leaves}
        if not lengths:
            raise DataError(f"{name} holds no arrays")
        if len(lengths) > 1:
            raise DataError(f"{name}: its arrays differ in length: {', '.join(map(str, sorted(lengths)))} rows")
        (self._length,) = lengths
        if sparse:
            for leaf in filter(_is_csr, leaves):
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
        several = getattr(self.dataset, "__getitems__", None)
        wanted = indices.tolist()
        return self.collate(several(wanted) if several else [self.dataset[i] for i in wanted])


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


def _leaves(data: Any) -> list[Any]:
    leaves: list[Any] = []
    mapped(data, leaves.append)
    return leaves


def mapped(data: Any, fn: Callable[[Any], Any]) -> Any:
    """What a function makes of each leaf of nested tuples, lists and dicts, nested as they are."""
    if isinstance(data, dict):
        return {key: mapped(value, fn) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(mapped(value, fn) for value in data))
    if isinstance(data, tuple | list):
        return type(data)(mapped(value, fn) for value in data)
    return fn(data)


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
        raise DataError(f"{name} holds a CSR matrix that is not valid: {error}") from error


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


def rows_of(
    data: Any, name: str, collate_fn: Callable[[list[Any]], Any] | None = None, *, sparse: bool = False
) -> tuple[Rows, int | None, int]:
    """The examples of anything a Task takes as data, with the batch size and worker count of its loader, if it has one.

    Raises `DataError` with one sentence for what cannot be leased in portions, and for `sparse` without any CSR.
    """
    if callable(data) and not isinstance(data, Dataset):
        data = data()
    loader = data if isinstance(data, DataLoader) else None
    data = data if loader is None else loader.dataset
    if isinstance(data, IterableDataset):
        raise DataError(f"{name} is an IterableDataset, which cannot be leased in portions; give a map-style Dataset")
    if loader is not None:
        _check_sampler(loader, name)
        collate_fn = loader.collate_fn
    # What a loader loads are samples, also where it is given a list of them.
    if loader is None and (isinstance(data, tuple | list | dict) or _is_array(data)):
        rows: Rows = ArrayRows(data, name, sparse=sparse)
    elif isinstance(data, Dataset) and isinstance(data, Rows) and collate_fn in (None, default_collate):
        rows = data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes):
        rows = SampleRows(data, collate_fn)
    else:
        raise DataError(
            f"{name} must be (input, target) of tensors or arrays, a map-style Dataset or a DataLoader, "
            f"not {type(data).__name__}"
        )
    if len(rows) == 0:
        raise DataError(f"{name} is empty")
    if sparse and not (isinstance(rows, ArrayRows) and any(map(_is_csr, _leaves(rows.arrays)))):
        raise DataError(
            f"{name} holds no SciPy CSR, which is what sparse=True is for: give (input, target) with an input such as "
            "scipy.sparse.csr_matrix(x), or leave sparse out"
        )
    return (rows, None, 0) if loader is None else (rows, loader.batch_size, loader.num_workers)


def _check_sampler(loader: DataLoader[Any], name: str) -> None:
    sampler = loader.sampler
    if (
        type(sampler) not in (RandomSampler, SequentialSampler)
        or type(loader.batch_sampler) is not BatchSampler
        or len(sampler) != len(loader.dataset)  # type: ignore[arg-type]
        or getattr(sampler, "replacement", False)
    ):
        raise DataError(
            f"{name}: the loader's own sampler cannot be used; replicas are given their examples by the run"
        )
    if loader.drop_last:
        raise DataError(f"{name}: drop_last=True cannot be kept, since an epoch uses each example once")


class Batches(Dataset[Any]):
    """The batches of an epoch, in the run's own order.

    All chance in making a batch is keyed by (seed, epoch, batch). With `workers` processes, the batches of a portion
    are made ahead; each replica has its own. `epochs`: whose orders are kept, 8 bytes an example each.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, workers: int = 0, *, epochs: int = 1) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
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
            self._orders[epoch] = order(self.seed, epoch, len(self.rows)).numpy()
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


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device: tensors in tuples, lists and dicts of any depth; whatever else is in it stays."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    return batch if device.type == "cpu" else mapped(batch, move)


def shapes(batch: Any, *, of_each: bool = False) -> str:
    """A batch's kinds and shapes, as nested as it; `of_each`: those of one example, without the first dimension."""
    if isinstance(batch, torch.Tensor):
        kind = batch.dtype if batch.layout is torch.strided else f"{batch.layout} {batch.dtype}"
        return f"{str(kind).replace('torch.', '')} {tuple(batch.shape[of_each:])}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {shapes(value, of_each=of_each)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(shapes(value, of_each=of_each) for value in batch) + ")"
    return type(batch).__name__


def fingerprint(batch: Any) -> str:
    """What is in a batch's tensors, as a short name."""
    digest = hashlib.blake2b(digest_size=8)
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        if isinstance(part, torch.Tensor):
            for stored in _stored(part.detach().cpu()):
                digest.update(stored.contiguous().view(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, tuple | list):
            waiting.extend(part)
    return digest.hexdigest()


def _stored(tensor: Tensor) -> Sequence[Tensor]:
    """What a tensor is made of. A sparse one is never made dense: its zeros may fill the memory many times over.

    Compressed indices are of the kind that SciPy chooses by their number, and compared as int64.
    """
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices().long(), tensor.col_indices().long(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices().long(), tensor.row_indices().long(), tensor.values()
    return (tensor.to_dense(),)


def seed_everything(seed: int) -> None:
    """Seed what user code draws from without being handed a generator."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


class _Ahead:
    """Batches made ahead by the worker processes of one kept DataLoader."""

    def __init__(self, batches: Batches, workers: int) -> None:
        self._wanted: list[tuple[int, int]] = []
        # The list is the sampler: it is gone through anew for each portion.
        self._loader = DataLoader(
            batches, sampler=self._wanted, batch_size=None, num_workers=workers, persistent_workers=True
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
