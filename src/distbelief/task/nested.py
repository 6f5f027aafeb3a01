"""Data of any structure: tensors in tuples, named tuples, lists, mappings and dataclasses of any depth."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ARRAYS = (Tensor, np.ndarray)


def mapped(data: Any, fn: Callable[[Any], Any], whole: Callable[[Any], bool] | None = None) -> Any:
    """What a function makes of each leaf, nested as the leaves are. A part that is `whole` is a leaf."""
    # Asked first, since it is asked of each batch: whether something is a mapping costs more than to take its rows.
    if isinstance(data, _ARRAYS) or (whole is not None and whole(data)):
        return fn(data)
    if isinstance(data, Mapping):
        return _mapping_like(data, {key: mapped(value, fn, whole) for key, value in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(mapped(value, fn, whole) for value in data))
    if isinstance(data, tuple | list):
        return type(data)(mapped(value, fn, whole) for value in data)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        made = copy.copy(data)
        for field in dataclasses.fields(data):
            # Not by `replace`: a field may be frozen, or no argument of the constructor.
            object.__setattr__(made, field.name, mapped(getattr(data, field.name), fn, whole))
        return made
    return fn(data)


def _mapping_like(data: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(data) is dict:
        return values
    if isinstance(data, MutableMapping):
        # As torch does: a copy keeps what else the object holds, such as a default.
        made: Any = copy.copy(data)
        for key, value in values.items():
            made[key] = value
        return made
    return type(data)(values)  # type: ignore[call-arg]


def leaves(data: Any) -> list[Any]:
    """The leaves, in order."""
    found: list[Any] = []
    mapped(data, found.append)
    return found


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device: its tensors, and each object that knows how to move itself; whatever else is in it stays."""
    if device.type == "cpu":
        return batch

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    return mapped(batch, move, lambda part: hasattr(part, "to"))


def detached(data: Any, device: torch.device | None = None) -> Any:
    """The same values without a graph, on a device if one is given."""
    return mapped(data, lambda leaf: leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf)


def joined(parts: Sequence[Any]) -> Any:
    """Batches of one structure as one batch: tensors joined along their first dimension, in lists of anything else.

    Raises `ValueError` or `RuntimeError` for batches that do not go together.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part if part.dim() else part[None] for part in parts])
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, Mapping):
        return _mapping_like(first, {key: joined([part[key] for part in parts]) for key in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(joined, zip(*parts, strict=True)))
    if isinstance(first, tuple):
        return tuple(map(joined, zip(*parts, strict=True)))
    if isinstance(first, list) and any(isinstance(leaf, Tensor) for leaf in first):
        return [joined(column) for column in zip(*parts, strict=True)]
    return [leaf for part in parts for leaf in (part if isinstance(part, list) else [part])]


def shapes(batch: Any, *, of_each: bool = False) -> str:
    """A batch's kinds and shapes, as nested as it; `of_each`: those of one example, without the first dimension."""
    if isinstance(batch, Tensor):
        kind = batch.dtype if batch.layout is torch.strided else f"{batch.layout} {batch.dtype}"
        return f"{str(kind).replace('torch.', '')} {tuple(batch.shape[of_each:])}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {shapes(value, of_each=of_each)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(shapes(value, of_each=of_each) for value in batch) + ")"
    return type(batch).__name__


def fingerprint(batch: Any) -> str:
    """What is in a batch's tensors, as a short name."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor):
            for stored in _stored(leaf.detach().cpu()):
                digest.update(stored.contiguous().view(-1).view(torch.uint8).numpy().data)
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
