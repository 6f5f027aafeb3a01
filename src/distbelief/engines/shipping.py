"""How a task reaches a worker: by cloudpickle, with its arrays beside it in shared memory instead of in the pickle.

The pickle never touches a file: it lies in anonymous memory that only the worker is handed.
"""

import functools
import io
import mmap
import os
import pickle
import struct
import sys
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from distbelief.engines.memory import available, require
from distbelief.errors import DataError, DistBeliefError, TaskError
from distbelief.links.mapped import SharedMemory
from distbelief.task.task import FILE_MODULE

_LEAST_BYTES = 4096
"""Arrays below this travel inside the pickle."""
_ALIGNMENT = 64
_HEAD = struct.Struct("<Q")


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class _Packer(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Has large arrays leave the pickle as buffers, and files that are mapped be mapped again."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and obj.layout is torch.strided and obj.device.type == "cpu" and not obj.requires_grad:
            # bfloat16 and its like have no numpy dtype, so tensors travel as bytes.
            if obj.nbytes >= _LEAST_BYTES and not obj.is_complex():
                # A part of a larger tensor would take all of that tensor along.
                raw = obj.detach().contiguous().view(-1).view(torch.uint8).numpy()
                return _tensor, (raw, obj.dtype, obj.shape)
        elif type(obj) in (np.ndarray, np.memmap) and not obj.dtype.hasobject and obj.nbytes >= _LEAST_BYTES:
            if (mapped := _mapped(obj)) is not None:
                return mapped
            if type(obj) is np.memmap or not (obj.flags.c_contiguous or obj.flags.f_contiguous):
                # numpy would leave it in the pickle.
                return np.asarray, (np.ascontiguousarray(obj),)
        elif type(obj) is _Cached and _is_the_scripts(obj):
            # It would go by its name, which another process does not have.
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        return super().reducer_override(obj)


_Cached = type(functools.cache(len))


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _is_the_scripts(function: Any) -> bool:
    """Whether a function was defined where no other process can import it from."""
    module = function.__module__
    return module == "__main__" or module.startswith(FILE_MODULE) or "<locals>" in function.__qualname__


def _tensor(raw: np.ndarray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.from_numpy(raw).view(dtype).view(shape)


def _mapped(array: np.ndarray) -> tuple[Any, ...] | None:
    """How to map a memory-mapped array, or a contiguous part of one, anew; None for others."""
    root: Any = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or not array.flags.c_contiguous:
        return None
    if root.mode == "c":
        # Written to in memory alone: the file holds something else.
        return None
    path, offset = str(root.filename), root.offset + array.ctypes.data - root.ctypes.data
    if not _still_there(path, root.ctypes.data):
        raise DataError(f"{path} was replaced or removed after it was opened: open it again, before the run begins")
    return _map_again, (path, _identity(Path(path).stat()), array.dtype, offset, array.shape)


def _still_there(path: str, address: int) -> bool:
    """Whether the file that is mapped at an address is the one that has the path now."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *name = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            (known,) = name or [""]
            # Of the two, some file systems tell another number than that of `stat`, and some containers another path.
            with suppress(FileNotFoundError):
                same = int(inode) == Path(path).stat().st_ino or known == os.path.realpath(path)
                return same and not known.endswith(" (deleted)")
    return False


def _identity(file: os.stat_result) -> tuple[int, int, int]:
    return file.st_dev, file.st_ino, file.st_size


def _map_again(path: str, identity: tuple[int, int, int], dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> Any:
    """Map a part of a file. Raises `DataError` where it is another file by now, which others do not see."""
    with Path(path).open("rb") as file:
        if _identity(os.fstat(file.fileno())) != identity:
            raise DataError(
                f"{path} was replaced while the run was at work, which began with another file: put it back"
            )
        return np.memmap(file, dtype, "r", offset, shape)


def pack(thing: object) -> SharedMemory:
    """Pickle into new shared memory; the caller owns it. Whoever maps it sees the arrays without a copy.

    Raises `TaskError` for what cannot be pickled, `UsageError` where there is too little memory.
    """
    for name, module in list(sys.modules.items()):
        # Another process cannot import what was made from a task file, or would execute it again.
        if name.startswith(FILE_MODULE):
            cloudpickle.register_pickle_by_value(module)
    file = io.BytesIO()
    buffers: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        """Whether a buffer stays in the pickle, as the pickler asks."""
        if large := buffer.raw().nbytes >= _LEAST_BYTES:
            buffers.append(buffer.raw())
        return not large

    try:
        _Packer(file, protocol=5, buffer_callback=stays).dump(thing)
    except DistBeliefError:
        raise
    # Whatever the user's objects raise.
    except Exception as error:
        raise TaskError(
            f"the task cannot be sent to other processes: {error}. What is open, such as a file, a connection or a "
            "lock, must be opened where it is used: give a function that opens it, such as train=lambda: "
            "MyDataset(path) or model=lambda: MyModel()"
        ) from error
    sizes = [raw.nbytes for raw in buffers]
    body = pickle.dumps((sizes, file.getvalue()))
    *starts, end = accumulate(map(_aligned, sizes), initial=_aligned(_HEAD.size + len(body)))
    require({"the task's arrays": end}, available())
    memory = SharedMemory.create(end, "task")
    room = memory.bytes.numpy()
    room[: _HEAD.size + len(body)] = np.frombuffer(_HEAD.pack(len(body)) + body, np.uint8)
    for start, raw in zip(starts, buffers, strict=True):
        room[start : start + raw.nbytes] = raw
    return memory


def unpack(fd: int) -> Any:
    """What `pack` put into a memory. Its arrays are mapped privately: writing to one changes nobody else's."""
    room = SharedMemory(fd, private=True).bytes.numpy().data
    (length,) = _HEAD.unpack(room[: _HEAD.size])
    sizes, body = pickle.loads(room[_HEAD.size : _HEAD.size + length])
    starts = accumulate(map(_aligned, sizes), initial=_aligned(_HEAD.size + length))
    return pickle.loads(body, buffers=[room[start : start + size] for start, size in zip(starts, sizes, strict=False)])
