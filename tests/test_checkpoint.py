"""Checkpoints on disk: whole, or not there at all."""

from pathlib import Path

import pytest
import torch

from distbelief import checkpoint
from distbelief.checkpoint import KEPT, Checkpoint


def made(examples: int) -> Checkpoint:
    return Checkpoint(examples, {"parameters/w": torch.full((1000,), float(examples))}, {"ledger": {"next": [1, 2]}})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(128))
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None
    assert complaints == []
    assert found.examples == 128
    assert torch.equal(found.tensors["parameters/w"], made(128).tensors["parameters/w"])
    assert found.state == made(128).state


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


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    """A writer that was killed leaves a folder that nobody reads, and that the next writer removes."""
    half = tmp_path / ".partial-000000000005"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == (None, [])
    checkpoint.write(tmp_path, made(5))
    assert not half.exists()


def test_the_same_instant_may_be_written_twice(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.write(tmp_path, made(7))
    assert checkpoint.newest(tmp_path)[0] is not None


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distbelief.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(tmp_path, made(7))
    assert list(tmp_path.iterdir()) == []
