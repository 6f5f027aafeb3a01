import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from distbelief.errors import DataError, InvariantViolated
from distbelief.task.data import ArrayRows, Batches, SampleRows, fingerprint, rows_of, shapes

ROWS = 25
X = torch.arange(ROWS * 3.0).reshape(ROWS, 3)
Y = torch.arange(ROWS)
PICK = np.array([3, 24, 0], np.int64)


def rows(data: Any, **options: Any) -> Any:
    return rows_of(data, "train", **options)[0]


class Squares(Dataset[tuple[Tensor, int]]):
    """Map-style; row i is (i², i)."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < ROWS:
            raise IndexError(index)
        return torch.tensor(float(index**2)), index


class Noisy(Squares):
    """Draws from every source that user code may draw from."""

    def __getitem__(self, index: int) -> Any:
        return torch.rand(()), random.random(), np.random.rand(), index


# Arrays


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (X, torch.float32),
        (X.double(), torch.float64),
        (X.bfloat16(), torch.bfloat16),
        (X.to(torch.uint8), torch.uint8),
        (X.numpy(), torch.float32),
        (X.numpy().astype(np.float16), torch.float16),
        (X.numpy().astype(np.int32), torch.int32),
        (X.numpy() > 5, torch.bool),
        (np.asfortranarray(X.numpy()), torch.float32),
        (X.numpy()[:, ::-1], torch.float32),
    ],
)
def test_arrays_become_tensors_of_their_own_kind(x: Any, kind: torch.dtype) -> None:
    batch, target = rows((x, Y)).batch(PICK)
    assert batch.dtype == kind
    assert torch.equal(batch, torch.from_numpy(np.ascontiguousarray(x))[PICK] if isinstance(x, np.ndarray) else x[PICK])
    assert target.tolist() == PICK.tolist()


def test_a_memory_mapped_array_is_read_row_by_row(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    (batch,) = rows((mapped,)).batch(PICK)
    assert torch.equal(batch, X[PICK])
    batch += 1  # a batch is the caller's, also where the file may not be written


def test_csr_rows_become_dense() -> None:
    dense = np.where(np.random.default_rng(0).random((ROWS, 7)) < 0.2, 2.5, 0).astype(np.float32)
    for sparse in (scipy.sparse.csr_matrix(dense), scipy.sparse.csr_array(dense)):
        x, y = rows((sparse, Y)).batch(PICK)
        assert x.dtype == torch.float32
        assert torch.equal(x, torch.from_numpy(dense[PICK]))
        assert torch.equal(y, Y[PICK])


def csr(form: Any = scipy.sparse.csr_matrix, kind: Any = np.float32) -> tuple[Any, Tensor]:
    dense = np.where(np.random.default_rng(0).random((ROWS, 7)) < 0.2, 2.5, 0).astype(kind)
    return form(dense), torch.from_numpy(dense)


@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csr_array])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_csr_rows_stay_sparse_where_that_was_asked_for(form: Any, kind: Any) -> None:
    matrix, dense = csr(form, kind)
    x, y = rows((matrix, Y), sparse=True).batch(PICK)
    assert (x.layout, x.dtype) == (torch.sparse_csr, dense.dtype)
    assert x.crow_indices().dtype == x.col_indices().dtype == torch.int32
    assert torch.equal(x.to_dense(), dense[PICK])
    assert torch.equal(y, Y[PICK])
    # Also where it is nested, and the data are the input alone.
    nested = rows({"a": (matrix, X), "b": matrix}, sparse=True).batch(PICK)
    assert [part.layout for part in (*nested["a"], nested["b"])] == [torch.sparse_csr, torch.strided, torch.sparse_csr]


def test_a_sparse_batch_is_a_copy_that_torch_finds_valid() -> None:
    """SciPy allows a row to name its columns in any order and more than once."""
    parts = np.array([1.0, 2.0, 3.0], np.float32), np.array([4, 0, 4]), np.array([0, 3, 3])
    matrix = scipy.sparse.csr_matrix(parts, shape=(2, 5))
    for indices in (np.arange(2), np.array([1, 0, 0])):
        x = rows(matrix, sparse=True).batch(indices)
        assert torch.equal(x.to_dense(), torch.tensor([[2.0, 0, 0, 0, 4], [0.0] * 5])[indices])
        with torch.sparse.check_sparse_tensor_invariants():
            torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), x.values(), x.shape)
        x.values().zero_()
    assert matrix.data.tolist() == [1.0, 2.0, 3.0]


def beyond() -> Any:
    matrix = csr()[0]
    matrix.indices[0] = 7
    return matrix


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ((X, Y), r"^train holds no SciPy CSR, which is what sparse=True is for: give .* or leave sparse out$"),
        (TensorDataset(X, Y), "^train holds no SciPy CSR"),
        (DataLoader(TensorDataset(X, Y)), "^train holds no SciPy CSR"),
        (scipy.sparse.csr_array(np.ones(5)), r"a CSR array of shape \(5,\), and with sparse=True it must have two dim"),
        (beyond(), r"^train holds a CSR matrix that is not valid: .*indices must be < 7"),
    ],
    ids=["arrays", "dataset", "loader", "one dimension", "invalid"],
)
def test_what_cannot_be_sparse_is_refused_in_one_sentence(data: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        rows(data, sparse=True)


def test_inputs_may_be_nested_in_tuples_and_dicts() -> None:
    (a, b), y = rows((([X, X.numpy() + 1]), Y)).batch(PICK)
    assert torch.equal(a, X[PICK])
    assert torch.equal(b, X[PICK] + 1)
    named, y = rows(({"x": X, "mask": X.numpy() > 3}, Y)).batch(PICK)
    assert list(named) == ["x", "mask"]
    assert torch.equal(named["mask"], X[PICK] > 3)
    assert torch.equal(y, Y[PICK])


def test_arrays_alone_and_functions_of_none_are_data_too() -> None:
    assert torch.equal(rows(X).batch(PICK), X[PICK])
    assert torch.equal(rows({"x": X}).batch(PICK)["x"], X[PICK])
    assert torch.equal(rows(lambda: (X, Y)).batch(PICK)[0], X[PICK])


def test_a_batch_of_arrays_is_a_copy() -> None:
    x = X.clone()
    for data in (x, x.numpy()):
        batch = rows(data).batch(PICK)
        batch.zero_()
        assert torch.equal(x, X)


# Datasets


def test_samples_are_collated() -> None:
    squares, indices = rows(Squares()).batch(PICK)
    assert squares.tolist() == [9, 576, 0]
    assert indices.tolist() == PICK.tolist()


def test_a_dataset_that_gives_several_samples_is_asked_once() -> None:
    class Several(Squares):
        asked: ClassVar[list[list[int]]] = []

        def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
            self.asked.append(indices)
            return [self[i] for i in indices]

    assert rows(Several()).batch(PICK)[1].tolist() == PICK.tolist()
    assert Several.asked == [PICK.tolist()]
    assert all(type(index) is int for index in Several.asked[0])


def test_a_dataset_that_makes_batches_makes_them() -> None:
    class Whole(Squares):
        def batch(self, indices: np.ndarray) -> Any:
            return torch.from_numpy(indices) ** 2, torch.from_numpy(indices)

    whole = Whole()
    assert rows(whole) is whole
    collated = rows(whole, collate_fn=lambda samples: len(samples))
    assert collated.batch(PICK) == 3, "a collate_fn of the user's own is never passed over"


def test_a_batch_method_of_another_meaning_is_not_mistaken() -> None:
    """Hugging Face's datasets have one: it takes a batch size."""

    class Table:
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, index: int) -> dict[str, int]:
            return {"x": index}

        def batch(self, batch_size: int) -> "Table":
            raise AssertionError("not for us")

    assert rows(Table()).batch(PICK)["x"].tolist() == PICK.tolist()


def test_a_collate_fn_makes_the_batch() -> None:
    def collate(samples: list[Any]) -> dict[str, Any]:
        return {"indices": [index for _, index in samples]}

    assert rows(Squares(), collate_fn=collate).batch(PICK) == {"indices": PICK.tolist()}


# Loaders


def test_a_loader_gives_its_data_batch_size_workers_and_collation() -> None:
    def collate(samples: list[Any]) -> int:
        return len(samples)

    loader = DataLoader(Squares(), batch_size=7, shuffle=True, num_workers=2, collate_fn=collate)
    found, batch_size, workers = rows_of(loader, "train")
    assert (len(found), batch_size, workers) == (ROWS, 7, 2)
    assert found.batch(PICK) == 3
    assert rows_of(Squares(), "train")[1:] == (None, 0)


@pytest.mark.parametrize("data", [TensorDataset(X, Y), Subset(TensorDataset(X, Y), range(ROWS))])
def test_what_a_loader_gives_is_what_torch_would_give(data: Dataset[Any]) -> None:
    x, y = rows(DataLoader(data, batch_size=7)).batch(PICK)
    assert torch.equal(x, X[PICK])
    assert torch.equal(y, Y[PICK])


def test_a_loader_of_a_list_loads_the_samples_in_it() -> None:
    """Outside a loader, a list is a row of arrays."""
    samples = [(torch.full((5,), float(i)), torch.full((5,), float(i))) for i in range(8)]
    found = rows(DataLoader(samples, batch_size=4))  # type: ignore[arg-type]
    assert len(found) == 8
    x, _ = found.batch(np.array([2, 7]))
    assert torch.equal(x, default_collate([samples[2], samples[7]])[0])


def test_a_loaders_collation_counts_also_for_arrays() -> None:
    loader: Any = DataLoader(X, batch_size=4, collate_fn=lambda samples: torch.stack(samples) * 2)  # type: ignore[arg-type]
    assert torch.equal(rows(loader).batch(PICK), X[PICK] * 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Squares(), sampler=SubsetRandomSampler([1, 2, 3])),
        lambda: DataLoader(Squares(), sampler=RandomSampler(Squares(), num_samples=3)),
        lambda: DataLoader(Squares(), sampler=list(range(ROWS))),
        lambda: DataLoader(Squares(), batch_sampler=[[1, 2], [3]]),
        lambda: DataLoader(Squares(), batch_size=None),
    ],
    ids=["subset", "fewer", "listed", "batches", "no batches"],
)
def test_a_sampler_of_the_users_own_is_refused(make: Callable[[], DataLoader[Any]]) -> None:
    with pytest.raises(DataError, match=r"^train: the loader's own sampler cannot be used; replicas are given"):
        rows(make())


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream())], ids=["alone", "in a loader"])
def test_a_stream_is_refused_with_its_reason(data: Any) -> None:
    with pytest.raises(DataError, match=r"^train is an IterableDataset, which cannot be leased in portions"):
        rows(data)


# What cannot be


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ((X, Y[:-1]), "^train: its arrays differ in length: 24, 25 rows$"),
        ((X, {"a": Y, "b": Y[:3]}), "^train: its arrays differ in length: 3, 25 rows$"),
        ((X[:0], Y[:0]), "^train is empty$"),
        (TensorDataset(X[:0]), "^train is empty$"),
        (DataLoader(TensorDataset(X[:0])), "^train is empty$"),
        ((), "^train holds no arrays$"),
        ({}, "^train holds no arrays$"),
        ((X, torch.tensor(1.0)), "a single number; its first dimension must be the examples"),
        ((X, [1, 2, 3]), "must be made of tensors, arrays or SciPy CSR matrices, and holds int"),
        ((X, scipy.sparse.csc_matrix(np.eye(ROWS))), "and holds csc_matrix"),
        (7, "^train must be .input, target. of tensors or arrays, a map-style Dataset or a DataLoader, not int$"),
        ("data.npz", "^train must be .* not str$"),
        (iter(range(3)), "^train must be .* not range_iterator$"),
    ],
)
def test_data_that_cannot_be_used_is_refused_in_one_sentence(data: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        rows(data)


# Batches


def test_an_epochs_batches_are_a_permutation_of_the_examples() -> None:
    batches = Batches(ArrayRows(Y, "train"), 4, seed=0)
    for epoch in range(3):
        made = [batches(epoch, batch) for batch in range(7)]
        assert [len(batch) for batch in made] == [4, 4, 4, 4, 4, 4, 1] == [batches.size(b) for b in range(7)]
        assert sorted(torch.cat(made).tolist()) == list(range(ROWS))


def test_the_order_is_keyed_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for batch in range(7) for i in Batches(ArrayRows(Y, "train"), 4, seed)(epoch, batch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_batch_is_the_same_whoever_asks_and_in_whatever_order() -> None:
    straight = Batches(SampleRows(Noisy(), None), 4, seed=3)
    expected = {(epoch, batch): straight(epoch, batch) for epoch in range(2) for batch in range(7)}
    jumping = Batches(SampleRows(Noisy(), None), 4, seed=3)
    for key in random.Random(0).sample(sorted(expected), len(expected)):
        random.seed()
        np.random.seed()
        for made, reference in zip(jumping(*key), expected[key], strict=True):
            assert torch.equal(made, reference)


def test_augmentation_is_keyed_by_seed_epoch_and_batch() -> None:
    def drawn(seed: int, epoch: int, batch: int) -> list[float]:
        torch_draw, random_draw, numpy_draw, _ = Batches(SampleRows(Noisy(), None), 4, seed)(epoch, batch)
        return [float(t[0]) for t in (torch_draw, random_draw, numpy_draw)]

    draws = [drawn(0, 0, 0), drawn(0, 0, 1), drawn(0, 1, 0), drawn(1, 0, 0)]
    for kind in range(3):
        assert len({draw[kind] for draw in draws}) == 4
    assert drawn(0, 0, 0) == draws[0]


def test_batches_made_ahead_by_processes_are_the_same_batches() -> None:
    here, ahead = (Batches(SampleRows(Noisy(), None), 4, 5, workers) for workers in (0, 2))
    for epoch, start, stop in ((0, 0, 5), (1, 2, 4), (0, 5, 7)):
        ahead.expect(epoch, start, stop)
        for batch in range(start, stop):
            for made, reference in zip(ahead(epoch, batch), here(epoch, batch), strict=True):
                assert torch.equal(made, reference)


def test_sparse_batches_made_ahead_by_processes_are_the_same_batches() -> None:
    matrix, _ = csr()
    here, ahead = (Batches(rows((matrix, Y), sparse=True), 4, 5, workers) for workers in (0, 1))
    ahead.expect(0, 0, 3)
    for batch in range(3):
        (x, y), (expected, target) = ahead(0, batch), here(0, batch)
        assert x.layout is torch.sparse_csr
        assert torch.equal(x.to_dense(), expected.to_dense())
        assert torch.equal(y, target)


def test_a_portion_that_was_given_up_half_way_leaves_nothing_behind() -> None:
    here, ahead = (Batches(SampleRows(Noisy(), None), 4, 5, workers) for workers in (0, 1))
    ahead.expect(0, 0, 7)
    ahead(0, 0)
    ahead.expect(1, 3, 5)
    for made, reference in zip(ahead(1, 3), here(1, 3), strict=True):
        assert torch.equal(made, reference)
    with pytest.raises(InvariantViolated, match=r"batch \(1, 6\) was asked for out of order"):
        ahead(1, 6)


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
    sparse = rows(csr()[0], sparse=True).batch(PICK)
    assert shapes(sparse) == "sparse_csr float32 (3, 7)"
    assert shapes(sparse, of_each=True) == "sparse_csr float32 (7,)"
