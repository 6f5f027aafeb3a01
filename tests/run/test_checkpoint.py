"""Checkpoints on disk: whole, or not there at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distbelief.run import checkpoint
from distbelief.run.checkpoint import KEPT, Draft, Image


def made(examples: int) -> Draft:
    image = Image({"parameters/w": torch.empty(1001, device="meta")})
    image.tensors["parameters/w"].fill_(examples)
    return Draft(examples, image, {"ledger": {"next": [1, 2]}})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(128))
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None
    assert complaints == []
    assert found.examples == 128
    assert torch.equal(found.tensors["parameters/w"], torch.full((1001,), 128.0))
    assert found.state == made(128).state


@pytest.mark.parametrize("page_cache", [False, True])
def test_an_image_is_a_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_cache: bool) -> None:
    """Of any shapes and both types, some of them longer than what is written at a time; on any file system."""
    opened: list[int] = []

    def open_(path: Path, flags: int, mode: int = 0o777, open_: Callable[..., int] = os.open) -> int:
        if page_cache and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        opened.append(flags & os.O_DIRECT)
        return open_(path, flags, mode)

    monkeypatch.setattr("distbelief.run.checkpoint.os.open", open_)
    tensors = {
        "odd": torch.randn(3),
        "long": torch.randn(3, 1_000_003),
        "none": torch.zeros(0),
        "one": torch.tensor(1.5),
        "wide": torch.randn(2, 5, dtype=torch.float64),
    }
    image = Image(tensors)
    for name, tensor in tensors.items():
        image.tensors[name].copy_(tensor)
    path = checkpoint.write(tmp_path, Draft(1, image, {}))
    assert any(opened) != page_cache
    for found in (load_file(path / "tensors.safetensors"), image.tensors):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    whole, complaints = checkpoint.newest(tmp_path)
    assert whole is not None
    assert complaints == []


def test_an_image_is_used_again(tmp_path: Path) -> None:
    draft = made(1)
    checkpoint.write(tmp_path, draft)
    draft.image.tensors["parameters/w"].fill_(2)
    checkpoint.write(tmp_path, draft._replace(examples=2))
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["parameters/w"], torch.full((1001,), 2.0))


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for examples in range(0, 10_000, 999):
        checkpoint.write(tmp_path, made(examples))
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.examples == 9990
    assert len(list(tmp_path.iterdir())) == KEPT


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_one_is_passed_over_and_said(tmp_path: Path, file: str, damage: str) -> None:
    checkpoint.write(tmp_path, made(1))
    victim = checkpoint.write(tmp_path, made(2)) / file
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(data[: len(data) // 2])
    else:
        victim.unlink()
    found, (complaint,) = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.examples == 1
    assert "000000000002 is damaged" in complaint


@pytest.mark.parametrize("garbage", ["", "[]", "3", '{"checksum": 1, "content": 2}', "\x00"])
def test_garbage_is_damage(tmp_path: Path, garbage: str) -> None:
    (checkpoint.write(tmp_path, made(1)) / "state.json").write_text(garbage)
    found, (complaint,) = checkpoint.newest(tmp_path)
    assert found is None
    assert "is damaged" in complaint


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    """A writer that was killed leaves a folder that nobody reads, and that the next writer removes."""
    half = tmp_path / ".partial-000000000005"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == (None, [])
    checkpoint.write(tmp_path, made(6))
    assert not half.exists()


def test_the_same_instant_may_be_written_twice(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.write(tmp_path, made(7))
    assert checkpoint.newest(tmp_path)[0] is not None


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distbelief.run.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(tmp_path, made(7))
    assert list(tmp_path.iterdir()) == []
