"""Checkpoints on disk: whole, or not there at all."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import distbelief as db
from distbelief.errors import DirectoryError
from distbelief.run import checkpoint
from distbelief.run.checkpoint import KEPT, Draft, Image, image_of, savable, storable
from distbelief.server.layout import Layout
from distbelief.task.gradients import FlatModule
from distbelief.task.task import trainable
from tests.states import state

PLAIN = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
]


def made(examples: int) -> Draft:
    image = Image({"parameters/w": torch.empty(1001, device="meta")})
    image.tensors["parameters/w"].fill_(examples)
    return Draft(examples, image, state())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(128))
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None
    assert complaints == []
    assert found.examples == 128
    assert torch.equal(found.tensors["parameters/w"], torch.full((1001,), 128.0))
    assert found.state == state()


@pytest.mark.parametrize("page_cache", [False, True])
def test_an_image_is_a_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_cache: bool) -> None:
    """Of any shapes and types, some of them longer than what is written at a time; on any file system."""
    opened: list[int] = []

    def open_(path: Path, flags: int, mode: int = 0o777, open_: Callable[..., int] = os.open) -> int:
        if page_cache and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        opened.append(flags & os.O_DIRECT)
        return open_(path, flags, mode)

    monkeypatch.setattr("distbelief.run.checkpoint.os.open", open_)
    tensors = {
        "parameters/odd": torch.randn(3),
        "sum/odd": torch.randn(3, 1_000_003),
        "buffers/none": torch.zeros(0),
        "buffers/one": torch.tensor(1.5),
        "buffers/wide": torch.randn(2, 5, dtype=torch.float64),
        **{f"buffers/{dtype}": torch.tensor([[0, 1, 7]]).to(dtype) for dtype in PLAIN},
        **{f"frozen/{dtype}": torch.tensor(1).to(dtype) for dtype in PLAIN},
        "buffers/half none": torch.zeros(3, 0, dtype=torch.float16),
    }
    image = Image(tensors)
    for name, tensor in tensors.items():
        image.tensors[name].copy_(tensor)
    path = checkpoint.write(tmp_path, Draft(1, image, state(trained=("odd",))))
    assert any(opened) != page_cache
    for found in (load_file(path / "tensors.safetensors"), image.tensors):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name].double(), tensor.double()) for name, tensor in tensors.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    whole, complaints = checkpoint.newest(tmp_path)
    assert whole is not None
    assert complaints == []


def test_complex_numbers_are_pairs(tmp_path: Path) -> None:
    """Whatever else is beside them."""
    tensors = {
        "buffers/byte": torch.ones(3, dtype=torch.uint8),
        "buffers/narrow": torch.randn(3, dtype=torch.complex64),
        "buffers/wide": torch.randn(2, 2, dtype=torch.complex128),
        "buffers/none": torch.zeros(0, dtype=torch.complex64),
        "buffers/one": torch.tensor(1 + 2j),
        "parameters/w": torch.randn(5),
    }
    image = Image(tensors)
    for name, tensor in tensors.items():
        image.tensors[name].copy_(tensor)
    checkpoint.write(tmp_path, Draft(1, image, state()))
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    for name, tensor in tensors.items():
        expected = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert found.tensors[name].dtype == expected.dtype
        assert torch.equal(found.tensors[name], expected)


def test_what_can_be_held(tmp_path: Path) -> None:
    """What is said to be savable is saved."""
    narrow, wide = (torch.empty(0, dtype=kind) for kind in (torch.complex64, torch.complex128))
    assert all(map(storable, [narrow, wide, *(torch.empty(0, dtype=kind) for kind in PLAIN)]))
    assert not storable(torch.eye(3).to_sparse())
    assert not savable(torch.eye(3).to_sparse())
    assert not savable(wide)
    kinds = [kind for kind in (*PLAIN, torch.complex64) if savable(torch.empty(0, dtype=kind))]
    assert kinds[: len(PLAIN)] == list(PLAIN)
    for kind in kinds:
        image = Image({"x": torch.zeros(3, dtype=kind)}, pairs=False)
        checkpoint.write_image(tmp_path / "x.safetensors", image)
        assert load_file(tmp_path / "x.safetensors")["x"].dtype == kind


def test_an_image_of_a_run_holds_what_training_leaves_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).requires_grad_(False))
    module.register_buffer("scale", torch.tensor(2.0, dtype=torch.float16), persistent=False)
    flat = FlatModule(module, Layout.of([(name, p.detach()) for name, p in trainable(module)]))
    image, rule = image_of(flat, db.Adagrad(0.1).state), db.Adagrad(0.1)
    assert torch.equal(image.tensors["frozen/2.weight"], module.get_parameter("2.weight"))
    assert torch.equal(image.tensors["buffers/scale"], torch.tensor(2.0, dtype=torch.float16))
    assert image.tensors["buffers/1.num_batches_tracked"].dtype == torch.int64
    assert {key.partition("/")[0] for key in image.tensors} == {"parameters", "frozen", "buffers", *rule.state}


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state in a checkpoint as one who writes it would, checksum and all."""
    content = json.loads(json.loads((path / "state.json").read_text())["content"])
    change(content)
    text = json.dumps(content)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({"checksum": checksum, "content": text}))


@pytest.mark.parametrize("found", [2, 4])
@pytest.mark.parametrize("place", ["content", "state"])
def test_another_format_is_refused_with_a_way_out(tmp_path: Path, found: int, place: str) -> None:
    """It is whole: the one before would not be what the run has reached."""
    folder = tmp_path / "run" / "checkpoints"
    checkpoint.write(folder, made(1))
    path = checkpoint.write(folder, made(2))
    if place == "content":
        rewritten(path, lambda content: content.update(format=found))
    else:
        rewritten(path, lambda content: content["state"].update(format=found))
    sentence = f"000000000002 is of format {found}, .* from format 3: .*--from {tmp_path}/run"
    with pytest.raises(DirectoryError, match=sentence):
        checkpoint.newest(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content["state"].update(format=None), "no format"),
        (lambda content: content["state"].update(term=0), "too small"),
        (lambda content: content["state"].update(trained=["v"]), "were trained"),
        (lambda content: content.update(state=[]), "list"),
    ],
)
def test_a_malformed_state_is_damage(tmp_path: Path, change: Callable[[dict[str, Any]], object], why: str) -> None:
    checkpoint.write(tmp_path, made(1))
    rewritten(checkpoint.write(tmp_path, made(2)), change)
    found, (complaint,) = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.examples == 1
    assert re.search(f"000000000002 is damaged .*{why}", complaint)


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


def test_only_what_was_written_here_is_ever_removed(tmp_path: Path) -> None:
    """Whatever it is called, and also where it is put into the folder of a checkpoint."""
    mine = [tmp_path / name / "mine" for name in ("5", "1000", "000000000002", "²", "٣", ".partial-x", "diverged")]
    link = tmp_path / "000000000003"
    for file in mine:
        file.parent.mkdir()
        file.write_text("months of work")
    link.symlink_to(mine[0].parent)
    for examples in range(10, 20):
        checkpoint.write(tmp_path, made(examples))
        mine.append(tmp_path / f"{examples:012}" / "mine")
        mine[-1].touch()
    assert all(file.exists() for file in mine)
    assert link.is_symlink()
    assert len(list(tmp_path.glob("0*/state.json"))) == KEPT
    with pytest.raises(OSError, match="000000000002 is in the way"):
        checkpoint.write(tmp_path, made(2))
    tmp_path.with_name(f".{tmp_path.name}.json").write_text("[")
    checkpoint.write(tmp_path, made(20))
    assert len(list(tmp_path.glob("0*/state.json"))) == KEPT + 1


def test_one_that_is_being_replaced_is_read_where_it_lies(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(6))
    checkpoint.write(tmp_path, made(7)).rename(tmp_path / ".partial-000000000007-before")
    found, complaints = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.examples, complaints) == (7, [])
    checkpoint.write(tmp_path, made(7))
    assert {path.name for path in tmp_path.iterdir()} == {"000000000006", "000000000007"}


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
