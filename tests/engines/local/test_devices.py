"""Where replicas compute. What needs a GPU is not run where there is none, and says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import distbelief as db
from distbelief.engines.local import cores
from distbelief.errors import UsageError
from tests import problems

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.mark.parametrize("nonsense", ["gpu", "cuda:", "cuda:x", "", 0, None])
def test_what_is_no_device_is_refused(nonsense: Any) -> None:
    with pytest.raises(UsageError, match="device must be"):
        db.Local(device=nonsense)


def test_the_cpu_is_one_place_for_as_many_replicas_as_cores() -> None:
    engine = db.Local(device="cpu")
    assert engine.devices == ("cpu",)
    assert engine.replicas == min(4, cores())


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("auto", 0, ("cpu",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:1", 2, ("cuda:1",)),
        ("cpu", 2, ("cpu",)),
    ],
)
def test_devices_where_torch_sees_so_many_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert db.Local(device=device).devices == expected


@pytest.mark.parametrize(
    ("device", "gpus", "sentence"), [("cuda", 0, "torch sees no GPU"), ("cuda:2", 2, "torch sees cuda:0, cuda:1")]
)
def test_a_gpu_that_is_not_there_is_said_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, gpus: int, sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UsageError, match=sentence):
        db.train(problems.task(), engine=db.Local(device=device), directory=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def train(directory: Path, device: str, *, epochs: int = 3, resume: bool = False, **changes: Any) -> db.Run:
    given: dict[str, Any] = {"replicas": 1, "batch_size": 16, "optimizer": db.Adagrad(0.05)}
    return db.train(
        problems.task(test=problems.points(), metrics={"accuracy": db.accuracy}),
        db.Downpour(**(given | changes)),
        engine=db.Local(device=device),
        until=db.Until(epochs=epochs),
        directory=directory,
        resume=resume,
        progress=False,
    )


@needs_gpu
@pytest.mark.parametrize(
    "changes", [{}, {"overlap": 1}, {"n_fetch": 3, "n_push": 2}, {"shards": 3, "clip_norm": 1.0}], ids=str
)
def test_one_replica_on_a_gpu_is_one_on_the_cpu_but_for_rounding(tmp_path: Path, changes: dict[str, Any]) -> None:
    on_cpu = train(tmp_path / "cpu", "cpu", **changes)
    on_gpu = train(tmp_path / "gpu", "cuda", **changes)
    assert on_gpu.summary["account"] == on_cpu.summary["account"]
    for name, tensor in on_gpu.state_dict().items():
        assert torch.allclose(tensor, on_cpu.state_dict()[name], atol=1e-2), name
    assert on_gpu.metrics["accuracy"] == pytest.approx(on_cpu.metrics["accuracy"], abs=0.05)


@needs_gpu
def test_several_replicas_share_a_gpu_and_a_run_goes_on_on_the_cpu(tmp_path: Path) -> None:
    train(tmp_path / "run", "cuda", replicas=3)
    run = train(tmp_path / "run", "cpu", epochs=5, resume=True)
    assert run.summary["account"]["used"] == 5 * run.summary["examples_per_epoch"]


def test_bf16_computes_in_less_and_keeps_the_parameters_in_float32(tmp_path: Path) -> None:
    runs = {}
    for precision in (None, "bf16"):
        runs[precision] = db.train(
            problems.task(test=problems.points(), metrics={"accuracy": db.accuracy}),
            db.Downpour(replicas=1, batch_size=16, optimizer=db.Adagrad(0.05)),
            until=db.Until(epochs=5),
            directory=tmp_path / str(precision),
            precision=precision,
            progress=False,
        )
    exact, coarse = runs[None].state_dict(), runs["bf16"].state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in coarse.values())
    assert not any(torch.equal(exact[name], coarse[name]) for name in exact)
    assert runs["bf16"].metrics["accuracy"] == pytest.approx(runs[None].metrics["accuracy"], abs=0.05)
    assert json.loads((tmp_path / "bf16" / "summary.json").read_text())["precision"] == "bf16"


def test_a_precision_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='precision must be None or "bf16"'):
        db.train(problems.task(), precision="fp8", directory=tmp_path / "run", progress=False)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="this one has parameters of float64"):
        db.train(
            problems.task(model=lambda: problems.network().double()),
            precision="bf16",
            directory=tmp_path / "run",
            progress=False,
        )
