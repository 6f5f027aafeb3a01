"""How a task reaches a worker: by cloudpickle, with its arrays beside it in shared memory instead of in the pickle.

The pickle never touches a file: it lies in anonymous memory that only the worker is handed.
"""

import io
import mmap
import pickle
import struct
import sys
from itertools import accumulate
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from distbelief.engines.memory import available, require
from distbelief.errors import TaskError
from distbelief.links.mapped import SharedMemory
from distbelief.task.task import FILE_MODULE

_LEAST_BYTES = 4096
"""Arrays below this travel inside the pickle."""
_ALIGNMENT = 64
_HEAD = struct.Struct("<Q")


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class _Packer(cloudpickle.CloudPickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.arrays: list[np.ndarray] = []
        self._places: dict[int, int] = {}
        # An object must live as long as its id stands for it.
        self._kept: list[object] = []

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if type(obj) is Tensor and obj.layout is torch.strided and obj.device.type == "cpu" and not obj.requires_grad:
            # bfloat16 and its like have no numpy dtype, so tensors travel as bytes.
            if obj.nbytes >= _LEAST_BYTES and not obj.is_complex():
                # A part of a larger tensor would take all of that tensor along.
                raw = obj.detach().contiguous().view(-1).view(torch.uint8).numpy()
                return "tensor", self._place(obj, raw), obj.dtype, tuple(obj.shape)
        elif isinstance(obj, np.ndarray) and not obj.dtype.hasobject and obj.nbytes >= _LEAST_BYTES:
            if (mapped := _mapped(obj)) is not None:
                return mapped
            return "array", self._place(obj, obj), obj.dtype, obj.shape
        return None

    def _place(self, obj: object, array: np.ndarray) -> int:
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.arrays)
            self.arrays.append(array)
            self._kept.append(obj)
        return self._places[id(obj)]


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
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return "file", str(root.filename), array.dtype, array.shape, offset


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, memory: SharedMemory, offsets: list[int]) -> None:
        super().__init__(file)
        self._memory = memory
        self._offsets = offsets
        self._made: dict[tuple[Any, ...], Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if pid not in self._made:
            self._made[pid] = self._make(*pid)
        return self._made[pid]

    def _make(self, kind: str, place: Any, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> Any:
        if kind == "file":
            return np.memmap(place, dtype, mode="r", offset=offset, shape=shape)
        count = int(np.prod(shape))
        nbytes = count * dtype.itemsize
        raw = self._memory.bytes[self._offsets[place] : self._offsets[place] + nbytes]
        return raw.view(dtype).view(shape) if kind == "tensor" else raw.numpy().view(dtype).reshape(shape)


def pack(thing: object) -> SharedMemory:
    """Pickle into new shared memory; the caller owns it. Whoever maps it sees the arrays without a copy.

    Raises `TaskError` for what cannot be pickled, `UsageError` where there is too little memory.
    """
    for name, module in list(sys.modules.items()):
        # Another process cannot import what was made from a task file, or would execute it again.
        if name.startswith(FILE_MODULE):
            cloudpickle.register_pickle_by_value(module)
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(thing)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise TaskError(f"the task cannot be sent to other processes: {error}") from error
    ends = list(accumulate((_aligned(array.nbytes) for array in packer.arrays), initial=0))
    body = pickle.dumps((ends, file.getvalue()))
    base = _aligned(_HEAD.size + len(body))
    require({"the task's arrays": base + ends[-1]}, available())
    memory = SharedMemory.create(base + ends[-1], "task")
    room = memory.bytes.numpy()
    room[: _HEAD.size + len(body)] = np.frombuffer(_HEAD.pack(len(body)) + body, np.uint8)
    for end, array in zip(ends, packer.arrays, strict=False):
        np.frombuffer(room.data, array.dtype, array.size, base + end).reshape(array.shape)[...] = array
    return memory


def unpack(fd: int) -> Any:
    """What `pack` put into a memory. Its arrays are mapped privately: writing to one changes nobody else's."""
    memory = SharedMemory(fd, private=True)
    room = memory.bytes.numpy()
    (length,) = _HEAD.unpack(room[: _HEAD.size].tobytes())
    ends, body = pickle.loads(room[_HEAD.size : _HEAD.size + length].tobytes())
    base = _aligned(_HEAD.size + length)
    return _Unpacker(io.BytesIO(body), memory, [base + end for end in ends]).load()
