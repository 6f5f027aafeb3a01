"""Checkpoints: a run at one instant, as named tensors and JSON, whole or not there at all.

    checkpoints/00000012800/     the examples that had been used
        tensors.safetensors      "parameters/NAME", "STATE/NAME" for each vector of the rule, "buffers"
        state.json               the ledger, totals, history, and the checksum of the tensors
    checkpoints/best.safetensors the model at its best evaluation, with the names of `state_dict`

Nothing in them depends on the number of shards or replicas.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = 3
"""How many of the newest are kept."""
_FORMAT = 2
_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_PARTIAL = ".partial"
_PAGE = mmap.PAGESIZE
_PIECE = 8 << 20
"""Bytes that are written at a time."""
_DTYPES = {torch.float32: "F32", torch.float64: "F64"}


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from. Owns its tensors."""

    examples: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


@final
class Image:
    """Tensors as their file holds them: a header, then one after the other, in memory that is taken once.

    What is copied into `tensors` needs no other copy before it is on disk, and no fresh pages at each checkpoint.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        """Room for tensors of these shapes, float32 or float64; they may lie on the meta device."""
        # Wider elements come first, so that all are aligned. The format allows no holes.
        ordered = dict(sorted(like.items(), key=lambda item: -item[1].itemsize))
        header, end = {}, 0
        for name, tensor in ordered.items():
            start, end = end, end + tensor.nbytes
            shape = list(tensor.shape)
            header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text = text.ljust(_paged(8 + len(text)) - 8)
        self.nbytes = 8 + len(text) + end
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        memory = mmap.mmap(-1, _paged(self.nbytes), flags=flags)
        memory.write(len(text).to_bytes(8, "little") + text)
        self.pages = memoryview(memory)
        """The file's bytes, and zeros to the end of the last page."""
        data = torch.frombuffer(memory, dtype=torch.uint8)[8 + len(text) : self.nbytes]
        parts = data.split([tensor.nbytes for tensor in ordered.values()])
        self.tensors = {
            name: part.view(like[name].dtype).view(like[name].shape) for name, part in zip(ordered, parts, strict=True)
        }


class Draft(NamedTuple):
    """A checkpoint that is to be written. Its image must not change until it has been."""

    examples: int
    image: Image
    state: dict[str, Any]


def write(folder: Path, draft: Draft) -> Path:
    """Write a checkpoint under `folder`, and remove all but the newest few. Raises `OSError` where it cannot."""
    target = folder / f"{draft.examples:012}"
    partial = folder / f"{_PARTIAL}-{target.name}"
    # One process at a time writes here: what is half there is of one that was killed.
    for half in folder.glob(f"{_PARTIAL}-*"):
        shutil.rmtree(half, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        content = {"format": _FORMAT, "tensors": _write(partial / _TENSORS, draft.image), "state": draft.state}
        text = json.dumps(content)
        (partial / _STATE).write_text(json.dumps({"checksum": _digest(text.encode()), "content": text}))
        sync(partial / _STATE)
        sync(partial)
        if target.exists():
            # Out of the way in one step: a half removed one would pass for a damaged one.
            target.rename(partial.with_name(f"{partial.name}-before"))
        partial.rename(target)
        shutil.rmtree(partial.with_name(f"{partial.name}-before"), ignore_errors=True)
        sync(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in _all(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a sentence on each newer one that is damaged."""
    complaints: list[str] = []
    for path in _all(folder):
        try:
            return _read(path), complaints
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            complaints.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    return None, complaints


def latest(folder: Path) -> int | None:
    """The examples of the newest checkpoint, damaged or not; None if there is none."""
    return next((int(path.name) for path in _all(folder)), None)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file of tensors that anyone may read. Raises `OSError` where it cannot."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # What the system said comes as text.
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = errno.EIO if found is None else int(found[1])
        raise OSError(number, os.strerror(number)) from error
    path.chmod(0o644)


def _all(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _read(path: Path) -> Checkpoint:
    outer = json.loads((path / _STATE).read_text())
    if outer["checksum"] != _digest(outer["content"].encode()):
        raise ValueError("the checksum of its state is wrong")
    content = json.loads(outer["content"])
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']}")
    if content["tensors"] != _checksum(path / _TENSORS):
        raise ValueError("the checksum of its tensors is wrong")
    return Checkpoint(int(path.name), load_file(path / _TENSORS), content["state"])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, image: Image) -> int:
    """Write an image past the page cache, where the file system can; returns its checksum."""
    try:
        return _write_pages(path, image, os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _write_pages(path, image, 0)


def _write_pages(path: Path, image: Image, flag: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag, 0o666)
    try:
        checksum = done = 0
        while done < image.nbytes:
            written = os.write(fd, image.pages[done : done + _PIECE])
            checksum = zlib.crc32(image.pages[done : min(done + written, image.nbytes)], checksum)
            done += written
        os.ftruncate(fd, image.nbytes)
        os.fsync(fd)
        return checksum
    finally:
        os.close(fd)


def _checksum(path: Path) -> int:
    # It finds damage, which is all it is for, and costs half of what SHA-256 does even with instructions for that.
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _paged(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE


def sync(path: Path) -> None:
    """Have what was written reach the disk before anything refers to it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
