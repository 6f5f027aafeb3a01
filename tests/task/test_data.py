import pickle
import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from distbelief.errors import DataError, InvariantViolated
from distbelief.task.data import ArrayRows, Batches, SampleRows, rows_of
from distbelief.task.loader import Loading
from distbelief.task.nested import shapes

ROWS = 25
X = torch.arange(ROWS * 3.0).reshape(ROWS, 3)
Y = torch.arange(ROWS)
PICK = np.array([3, 24, 0], np.int64)
ONE, TWO = {"num_workers": 1}, {"num_workers": 2}


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
        (beyond(), r"^train holds a CSR matrix that is not valid \(.*indices must be < 7\): "),
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
    found, loading = rows_of(loader, "train")
    assert (len(found), loading.batch_size, loading.workers["num_workers"]) == (ROWS, 7, 2)
    assert found.batch(PICK) == 3
    assert rows_of(Squares(), "train").loading == Loading()


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
        ((X, Y[:-1]), "^train: its arrays differ in length, 24, 25 rows: give as many targets as inputs$"),
        ((X, {"a": Y, "b": Y[:3]}), "^train: its arrays differ in length, 3, 25 rows: give as many targets as inputs$"),
        ((X[:0], Y[:0]), "^train is empty: give at least one example$"),
        (TensorDataset(X[:0]), "^train is empty: give at least one example$"),
        (DataLoader(TensorDataset(X[:0])), "^train is empty: give at least one example$"),
        ((), "^train holds no arrays: give "),
        ({}, "^train holds no arrays: give "),
        ((X, torch.tensor(1.0)), "a single number; its first dimension must be the examples"),
        ((X, [1, 2, 3]), "must be made of tensors, arrays or SciPy CSR matrices, and holds int"),
        ((X, scipy.sparse.csc_matrix(np.eye(ROWS))), "and holds csc_matrix"),
        (
            7,
            "^train must be .input, target. of tensors or arrays, a map-style Dataset .* a function .* not int$",
        ),
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
    here, ahead = (Batches(SampleRows(Noisy(), None), 4, 5, workers=workers) for workers in (None, TWO))
    for epoch, start, stop in ((0, 0, 5), (1, 2, 4), (0, 5, 7)):
        ahead.expect(epoch, start, stop)
        for batch in range(start, stop):
            for made, reference in zip(ahead(epoch, batch), here(epoch, batch), strict=True):
                assert torch.equal(made, reference)


def test_sparse_batches_made_ahead_by_processes_are_the_same_batches() -> None:
    matrix, _ = csr()
    here, ahead = (Batches(rows((matrix, Y), sparse=True), 4, 5, workers=workers) for workers in (None, ONE))
    ahead.expect(0, 0, 3)
    for batch in range(3):
        (x, y), (expected, target) = ahead(0, batch), here(0, batch)
        assert x.layout is torch.sparse_csr
        assert torch.equal(x.to_dense(), expected.to_dense())
        assert torch.equal(y, target)


def test_a_portion_that_was_given_up_half_way_leaves_nothing_behind() -> None:
    here, ahead = (Batches(SampleRows(Noisy(), None), 4, 5, workers=workers) for workers in (None, ONE))
    ahead.expect(0, 0, 7)
    ahead(0, 0)
    ahead.expect(1, 3, 5)
    for made, reference in zip(ahead(1, 3), here(1, 3), strict=True):
        assert torch.equal(made, reference)
    with pytest.raises(InvariantViolated, match=r"batch \(1, 6\) was asked for out of order"):
        ahead(1, 6)


def test_a_sparse_batch_is_told_of_as_such() -> None:
    sparse = rows(csr()[0], sparse=True).batch(PICK)
    assert shapes(sparse) == "sparse_csr float32 (3, 7)"
    assert shapes(sparse, of_each=True) == "sparse_csr float32 (7,)"


# Functions


class Table(Dataset[tuple[Tensor, int]]):
    """Rows of a database, which no other process can be given."""

    def __init__(self, path: Path, scale: float = 1.0) -> None:
        self.connection = sqlite3.connect(path)
        self.scale = scale

    def __len__(self) -> int:
        return int(self.connection.execute("select count(*) from rows").fetchone()[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        (value,) = self.connection.execute("select x from rows where rowid = ?", (index + 1,)).fetchone()
        return torch.tensor(value * self.scale), index


@pytest.fixture
def table(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "rows") as connection:
        connection.execute("create table rows (x real)")
        connection.executemany("insert into rows values (?)", [(float(i),) for i in range(ROWS)])
    return tmp_path / "rows"


def sent(thing: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(thing))


def test_what_a_function_opens_is_opened_where_it_is_used_and_never_sent(table: Path) -> None:
    calls = []

    def opened() -> Table:
        calls.append(1)
        return Table(table)

    found = rows(opened)
    found.batch(PICK)
    assert len(calls) == 1
    there = sent(found)
    assert len(there) == ROWS
    assert there.batch(PICK)[0].tolist() == there.batch(PICK)[1].tolist() == PICK.tolist()
    assert there.source.rows is not found.source.rows


def test_processes_that_load_ahead_open_it_too(table: Path) -> None:
    """A connection that another process has opened must not be used."""
    found = rows(lambda: DataLoader(Table(table), batch_size=4, shuffle=True))
    here, ahead = (Batches(found, 4, 5, workers=workers) for workers in (None, ONE))
    ahead.expect(0, 0, 3)
    for batch in range(3):
        assert torch.equal(ahead(0, batch)[0], here(0, batch)[0])


def test_one_thread_opens_and_reads_it_whatever_thread_asks(table: Path) -> None:
    """A connection of SQLite can be used by the thread alone that made it; evaluations have a thread of their own."""
    found = rows(lambda: Table(table))
    with ThreadPoolExecutor(1) as other:
        assert other.submit(found.batch, PICK).result()[1].tolist() == found.batch(PICK)[1].tolist() == PICK.tolist()


def test_arrays_from_a_function_are_arrays() -> None:
    assert isinstance(rows(lambda: (X, Y)), ArrayRows)


def test_a_function_may_draw_but_not_give_other_data_each_time(table: Path) -> None:
    drawn = rows(lambda: TensorDataset(torch.rand(ROWS), torch.from_numpy(np.random.rand(ROWS))))
    for part, same in zip(drawn.batch(PICK), sent(drawn).batch(PICK), strict=True):
        assert torch.equal(part, same)
    lengths = iter([ROWS, ROWS - 1])
    # cloudpickle sends a copy of the iterator.
    shorter = rows(lambda: Subset(Squares(), range(next(lengths))))
    scales = iter([1.0, 2.0])
    other = rows(lambda: TensorDataset(X * next(scales), Y))
    for changed in (shorter, other):
        changed._process = None
        with pytest.raises(
            DataError, match=r"^the function that gives train gives other data in each process: .* seed"
        ):
            changed.batch(PICK)


def test_samples_may_hold_anything() -> None:
    class Mixed(Squares):
        def __getitem__(self, index: int) -> Any:
            number = torch.eye(2).to_sparse(), np.float16(index), np.longdouble(1), 1 << 70, np.str_("a"), object
            return {"x": torch.tensor(index), "more": (*number, np.array(["a", None]), torch.tensor(True))}

    assert sent(rows(Mixed, collate_fn=len)).batch(PICK) == 3


def test_samples_that_differ_each_time_are_no_other_data() -> None:
    chance = np.random.default_rng()

    class Augmented(Squares):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.tensor(chance.random()), index

    assert len(sent(rows(Augmented)).batch(PICK)[0]) == 3


def test_a_function_that_fails_says_of_what_it_is() -> None:
    def broken() -> Any:
        raise KeyError("x")

    with pytest.raises(KeyError) as error:
        rows(broken)
    assert error.value.__notes__ == ["in the function that gives train"]
    with pytest.raises(DataError, match=r"^the function that gives train returned a function: give that one$"):
        rows(lambda: broken)
