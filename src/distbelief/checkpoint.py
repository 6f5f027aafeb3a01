"""Checkpoints: a run at one instant, as named tensors and JSON, whole or not there at all.

    checkpoints/00000012800/     the examples that had been used
        tensors.safetensors      "parameters/NAME", "STATE/NAME" for each vector of the rule, "buffers"
        state.json               the ledger, totals, history, and the checksum of the tensors
    checkpoints/best.safetensors the model at its best evaluation, with the names of `state_dict`

Nothing in them depends on the number of shards or replicas.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = 3
"""How many of the newest are kept."""
_FORMAT = 1
_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from. Owns its tensors."""

    examples: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under `folder`, and remove all but the newest few. Raises `OSError` where it cannot."""
    target = folder / f"{checkpoint.examples:012}"
    partial = folder / f"{_PARTIAL}-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(checkpoint.tensors, partial / _TENSORS)
        content = {"format": _FORMAT, "tensors": _checksum(partial / _TENSORS), "state": checkpoint.state}
        text = json.dumps(content)
        (partial / _STATE).write_text(json.dumps({"checksum": _digest(text.encode()), "content": text}))
        for file in partial.iterdir():
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(folder)
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
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            complaints.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    return None, complaints


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


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have what was written reach the disk before anything refers to it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
