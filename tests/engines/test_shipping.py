"""A task's way to a worker: arrays are shared, not copied, and files are mapped again."""

import functools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distbelief.engines.shipping import pack, unpack
from distbelief.errors import DataError, TaskError, UsageError
from distbelief.task.data import ArrayRows
from tests import problems


def there_and_back(thing: Any) -> Any:
    memory = pack(thing)
    return unpack(os.dup(memory.fd))


def test_what_is_cached_goes_with_what_it_calls() -> None:
    """By its name, as it would go by itself, no other process finds it."""

    @functools.lru_cache(maxsize=7)
    def power(n: int) -> int:
        return 2 * power(n - 1) if n else 1

    received = there_and_back(power)
    assert received(10) == 1024
    assert received.cache_parameters()["maxsize"] == 7


def test_any_kind_of_array_arrives_as_it_was() -> None:
    big = torch.randn(100, 33)
    things = {
        "tensor": big,
        "half": torch.randn(5000).bfloat16(),
        "strided": torch.randn(64, 64).t(),
        "array": np.random.default_rng(0).normal(size=(50, 60)),
        "fortran": np.asfortranarray(np.arange(10_000.0).reshape(100, 100)),
        "texts": np.array(["a", "bc"] * 3000),
        "small": torch.arange(3),
        "scalar": 7,
        "function": lambda x: x + 1,
    }
    back = there_and_back(things)
    for name in ("tensor", "half", "strided", "small"):
        assert torch.equal(back[name], things[name]), name  # type: ignore[arg-type]
    for name in ("array", "fortran", "texts"):
        assert np.array_equal(back[name], things[name]), name  # type: ignore[arg-type]
    assert back["function"](1) == 2


def test_a_masked_array_keeps_its_mask() -> None:
    masked = np.ma.masked_less(np.arange(5000.0), 100)
    assert there_and_back(masked).count() == 4900


def test_what_is_one_object_stays_one() -> None:
    tensor = torch.randn(5000)
    first, second = there_and_back([tensor, tensor])
    assert first is second


def test_arrays_are_not_in_the_pickle_and_are_mapped_privately() -> None:
    tensor = torch.zeros(1 << 20)
    memory = pack({"x": tensor})
    assert memory.nbytes < tensor.nbytes + 4096
    one, other = unpack(os.dup(memory.fd)), unpack(os.dup(memory.fd))
    one["x"].fill_(1)
    assert float(other["x"].sum()) == 0


def test_csr_lies_in_the_memory_once_whatever_its_dense_size() -> None:
    matrix, _ = problems.sparse_points()
    rows = ArrayRows(((matrix, matrix), np.arange(2000)), "train", sparse=True)
    parts = matrix.data, matrix.indices, matrix.indptr
    memory = pack(rows)
    assert sum(part.nbytes for part in parts) < memory.nbytes < sum(part.nbytes for part in parts) + 32_000
    (one, other), _ = unpack(os.dup(memory.fd)).arrays
    assert one is other
    assert (one != matrix).nnz == 0
    # A view of the memory, and no copy of it.
    assert not any(part.flags.owndata for part in (one.data, one.indices, one.indptr))


def test_a_part_of_a_tensor_does_not_take_the_whole_along() -> None:
    whole = torch.zeros(64, 1 << 16)
    memory = pack([whole[:, :100], whole[:2]])
    assert memory.nbytes < 4 * (64 * 100 + 2 * (1 << 16)) + 4096


def test_a_file_that_was_changed_in_memory_alone_is_not_mapped_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(5000, np.float32))
    copied = np.load(tmp_path / "x.npy", mmap_mode="c")
    copied += 1
    assert there_and_back(copied).sum() == 5000


def test_what_cannot_be_sent_is_said_in_a_sentence() -> None:
    with pytest.raises(TaskError, match="the task cannot be sent to other processes: cannot pickle"):
        pack(threading.Lock())


def test_memory_mapped_files_are_mapped_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100_000, dtype=np.float32).reshape(1000, 100))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    memory = pack([mapped, mapped[10:20]])
    assert memory.nbytes < 8192
    whole, part = unpack(os.dup(memory.fd))
    assert isinstance(whole, np.memmap)
    assert np.array_equal(whole, mapped)
    assert np.array_equal(part, mapped[10:20])


def test_a_mapped_file_that_was_replaced_is_noticed_where_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for replace in (lambda: (tmp_path / "y.npy").replace(path), path.unlink, lambda: path.rename(tmp_path / "z.npy")):
        np.save(path, np.zeros(5000))
        np.save(tmp_path / "y.npy", np.ones(5000))
        mapped = np.load(path, mmap_mode="r")
        replace()
        with pytest.raises(DataError, match=r"x.npy was replaced or removed after it was opened: open it again"):
            pack([mapped])


def test_a_mapped_file_that_was_replaced_is_noticed_where_it_is_received(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(5000))
    memory = pack(np.load(path, mmap_mode="r"))
    assert np.array_equal(unpack(os.dup(memory.fd)), np.zeros(5000))
    np.save(tmp_path / "y.npy", np.zeros(5000))
    (tmp_path / "y.npy").replace(path)
    with pytest.raises(DataError, match=r"x.npy was replaced while the run was at work"):
        unpack(os.dup(memory.fd))


def test_whatever_an_object_raises_there_is_a_way_out() -> None:
    class Handle:
        def __reduce__(self) -> Any:
            raise ValueError("handles cannot be copied")

    with pytest.raises(TaskError, match=r"handles cannot be copied. What is open, .*: give a function that opens it"):
        pack(Handle())


def test_arrays_that_do_not_fit_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distbelief.engines.shipping.available", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"the task's arrays .* are free"):
        pack(np.zeros(1 << 21, np.uint8))
