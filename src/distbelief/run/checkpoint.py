"""Checkpoints: a run at one instant, as named tensors and JSON, whole or not there at all.

    checkpoints/000000012800/    the examples that had been accounted for
        tensors.safetensors      everything that the module and the rule hold, by the keys of `state.py`
        state.json               the state of the run (`state.py`), and the checksum of the tensors
    checkpoints/best.safetensors the model at its best evaluation, with the names of `state_dict`
    .checkpoints.json            the index of the folders that were written: no other is ever removed

Nothing in them depends on the number of shards or replicas. A folder is removed by the names of the files that were
written into it, so that whatever else is put there stays.
"""

import errno
import hashlib
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from distbelief.errors import DirectoryError
from distbelief.run.state import FORMAT, RunState, check_tensors, from_json, untrained, vectors_like
from distbelief.task.gradients import FlatModule

KEPT = 3
"""How many of the newest are kept."""
TENSORS = "tensors.safetensors"
STATE = "state.json"
_PARTIAL = ".partial"
_NAME = re.compile(r"([0-9]{12}|[1-9][0-9]{12,})|\.partial-([0-9]{12,})-before")
"""A checkpoint, or one that is being replaced by another of as many examples."""
_PAGE = mmap.PAGESIZE
_PIECE = 8 << 20
"""Bytes that are written at a time."""
_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}
"""They lie there as pairs of real numbers: not every version of the format knows complex ones."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from. Owns its tensors."""

    examples: int
    tensors: dict[str, Tensor]
    state: RunState


@final
class Image:
    """Tensors as their file holds them: a header, then one after the other, in memory that is taken once.

    What is copied into `tensors` needs no other copy before it is on disk, and no fresh pages at each checkpoint.
    """

    def __init__(self, like: Mapping[str, Tensor], *, pairs: bool = True) -> None:
        """Room for tensors of these shapes, of kinds that are `storable`; they may lie on the meta device.

        Without `pairs` complex numbers are told of as such, and all must be `savable`.
        """
        # Wider elements come first, so that all are aligned. The format allows no holes.
        ordered = dict(sorted(like.items(), key=lambda item: -item[1].itemsize))
        header, end = {}, 0
        for name, tensor in ordered.items():
            start, end = end, end + tensor.nbytes
            dtype, shape = tensor.dtype, list(tensor.shape)
            if pairs and dtype in _COMPLEX:
                dtype, shape = _COMPLEX[dtype], [*shape, 2]
            header[name] = {"dtype": _kind(dtype), "shape": shape, "data_offsets": [start, end]}
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


def image_of(flat: FlatModule, kept: Iterable[str]) -> Image:
    """Room for all tensors of a run, with those already in it that training does not change; `kept`: its vectors."""
    rest = untrained(flat.module)
    image = Image(vectors_like(flat.layout, kept) | rest)
    for name, tensor in rest.items():
        image.tensors[name].copy_(tensor)
    return image


def storable(tensor: Tensor) -> bool:
    """Whether a checkpoint can hold a tensor."""
    return tensor.layout is torch.strided and _kind(_COMPLEX.get(tensor.dtype, tensor.dtype)) is not None


def savable(tensor: Tensor) -> bool:
    """Whether an image without pairs can hold a tensor: versions of the format differ in their complex numbers."""
    return tensor.layout is torch.strided and _kind(tensor.dtype) is not None


@cache
def _kind(dtype: torch.dtype) -> str | None:
    """What the format calls elements of this kind; None where it knows none such, or packs several into one."""
    try:
        written = serialize({"": torch.empty(1, dtype=dtype)})
    except (KeyError, SafetensorError, RuntimeError):
        return None
    told = json.loads(written[8 : len(written) - dtype.itemsize])[""]
    return str(told["dtype"]) if told["shape"] == [1] else None


class Draft(NamedTuple):
    """A checkpoint that is to be written. Its image must not change until it has been."""

    examples: int
    image: Image
    state: RunState


def write(folder: Path, draft: Draft) -> Path:
    """Write a checkpoint under `folder`, and remove all but the newest few. Raises `OSError` where it cannot."""
    target = folder / f"{draft.examples:012}"
    partial, before = (folder / f"{_PARTIAL}-{target.name}{end}" for end in ("", "-before"))
    clear(folder)
    partial.mkdir(parents=True)
    try:
        written = listed(folder)
        if target.name not in written:
            if target.exists():
                raise FileExistsError(errno.EEXIST, f"{target} is in the way, which no run has written")
            _write_index(folder, written | {target.name})
        text = json.dumps({"tensors": write_image(partial / TENSORS, draft.image), "state": draft.state.to_json()})
        (partial / STATE).write_text(json.dumps({"checksum": _digest(text.encode()), "content": text}))
        sync(partial / STATE)
        sync(partial)
        if target.exists():
            # Out of the way in one step: a half removed one would pass for a damaged one. It is read where it lies
            # until the new one has its name.
            target.rename(before)
        partial.rename(target)
        sync(folder)
    except OSError:
        _remove(partial)
        raise
    clear(folder)
    _prune(folder)
    return target


def clear(folder: Path) -> None:
    """Remove what a process that was killed has left half written, and what has been replaced."""
    for half in folder.glob(f"{_PARTIAL}-*"):
        replaced = half.name.removeprefix(f"{_PARTIAL}-").removesuffix("-before")
        if not half.name.endswith("-before") or (folder / replaced).exists():
            _remove(half)


def _prune(folder: Path) -> None:
    """Remove all but the newest few of those that were written here."""
    written = listed(folder)
    for old in [path for path in _all(folder) if path.name in written][KEPT:]:
        _remove(old)
    there = {name for name in written if (folder / name).exists()}
    if there != written:
        with suppress(OSError):
            _write_index(folder, there)


def listed(folder: Path) -> set[str]:
    """The names of the checkpoints that were written here, by the index."""
    try:
        names = json.loads(_index(folder).read_text())["checkpoints"]
        return set(filter(_NAME.fullmatch, names))
    # Where it is damaged, or there is none, nothing is removed.
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _index(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.json")


def index_of(names: Iterable[str]) -> bytes:
    """The index of these checkpoints."""
    return json.dumps({"checkpoints": sorted(names)}).encode()


def whole(folder: Path) -> list[Path]:
    """The folders of the checkpoints that are there under their own names, the newest first."""
    return [path for path in _all(folder) if not path.name.startswith(_PARTIAL)]


def _write_index(folder: Path, names: set[str]) -> None:
    partial = folder.with_name(f"{_index(folder).name}{_PARTIAL}")
    try:
        with create(partial) as file:
            file.write(index_of(names))
        sync(partial)
        partial.replace(_index(folder))
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    """Remove a checkpoint, by the names of its files: what else is in its folder stays there, and so does that."""
    with suppress(OSError):
        if not path.is_symlink():
            for name in (TENSORS, STATE):
                (path / name).unlink(missing_ok=True)
            path.rmdir()


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a sentence on each newer one that is damaged.

    Raises `DirectoryError` where one is of another format: it is whole, and nothing is to be begun in its place.
    """
    complaints: list[str] = []
    for path in _all(folder):
        try:
            return _read(path), complaints
        except DirectoryError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            complaints.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    return None, complaints


def rename(folder: Path, examples: int, prefix: str) -> None:
    """Have a checkpoint be one no more: it keeps its name, behind a prefix, and replaces an older one of that name."""
    for path in [path for path in _all(folder) if _examples(path) == examples]:
        target = folder / f"{prefix}{examples:012}"
        _remove(target)
        path.rename(target)


def latest(folder: Path) -> int | None:
    """The examples of the newest checkpoint, damaged or not; None if there is none."""
    return next((_examples(path) for path in _all(folder)), None)


def _all(folder: Path) -> list[Path]:
    """Newest first, and one that is being replaced after what replaces it."""
    named = [path for path in folder.glob("*") if _NAME.fullmatch(path.name)]
    found = [path for path in named if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: (_examples(path), path.name[0] != "."), reverse=True)


def _examples(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1] or match[2])


def has_state(path: Path) -> bool:
    """Whether a checkpoint has its state, which is written last."""
    try:
        return bool(_content(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _content(path: Path) -> dict[str, Any]:
    outer = json.loads((path / STATE).read_text())
    if outer["checksum"] != _digest(outer["content"].encode()):
        raise ValueError("the checksum of its state is wrong")
    content: dict[str, Any] = json.loads(outer["content"])
    return content


def _read(path: Path) -> Checkpoint:
    content = _content(path)
    # Formats before this one had their number beside the state.
    if (found := content.get("format", content["state"].get("format"))) != FORMAT:
        raise _other_format(path, found)
    state = from_json(content["state"])
    if content["tensors"] != _checksum(path / TENSORS):
        raise ValueError("the checksum of its tensors is wrong")
    tensors = load_file(path / TENSORS)
    check_tensors(state, tensors)
    return Checkpoint(_examples(path), tensors, state)


def _other_format(path: Path, found: object) -> Exception:
    if type(found) is not int:
        return ValueError("it has no format")
    directory = path.parent.parent
    return DirectoryError(
        f"checkpoint {path} is of format {found}, and this version of distbelief goes on from format {FORMAT}: go on "
        "with the version that wrote it, or begin another run with its model "
        f"(start={str(directory)!r}, or --from {directory})"
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_image(path: Path, image: Image) -> int:
    """Write an image past the page cache, where the file system can; returns its checksum."""
    try:
        return _write_pages(path, image, os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _write_pages(path, image, 0)


def _write_pages(path: Path, image: Image, flag: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | flag, 0o666)
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


def create(path: Path) -> BinaryIO:
    """Open a new file for writing, in the place of one that a killed process has left half written."""
    path.unlink(missing_ok=True)
    # A link is not followed, and the user's umask decides who may read it.
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")


def sync(path: Path) -> None:
    """Have what was written reach the disk before anything refers to it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
