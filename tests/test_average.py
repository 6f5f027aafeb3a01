"""The moving average of the parameters: in the shards, evaluations, files, and what goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import distbelief as db
from distbelief.errors import DirectoryError, TaskError
from distbelief.run.checkpoint import newest
from tests import problems

DECAY = 0.9


def train(directory: Path, epochs: int, *, until: dict[str, Any] | None = None, **changes: Any) -> db.Run:
    resume = changes.pop("resume", False)
    # Without processes, whose start takes longer than all the rest.
    engine = changes.pop("engine", db.Simulated())
    task = changes.pop("task", None) or problems.task(test=problems.points())
    given: dict[str, Any] = {"replicas": 1, "batch_size": 32, "optimizer": db.SGD(0.5), "average": DECAY}
    return db.train(
        task,
        db.Downpour(**(given | changes)),
        engine=engine,
        until=db.Until(epochs=epochs, **(until or {})),
        directory=directory,
        resume=resume,
        progress=False,
    )


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_it_is_torchs_average_and_evaluated_beside_the_last(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 2, shards=3, engine=db.Local())
    task, (x, y) = problems.task(), problems.points()
    module = task.build(0)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(module)  # torch begins with the parameters after the first update, and we before it
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    for epoch in range(2):
        for batch in run.order(epoch).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
            average.update_parameters(module)
    torch.testing.assert_close(run.state_dict("average"), average.module.state_dict(), rtol=1e-4, atol=1e-5)
    assert not same(run.state_dict("average"), run.state_dict())
    assert run.metrics.keys() == {
        f"{prefix}{n}" for prefix in ("", "average_", "test_", "test_average_") for n in ("loss", "accuracy")
    }
    for which, name in (("last", "accuracy"), ("average", "average_accuracy")):
        assert db.accuracy(run.model(which)(x), y) == pytest.approx(run.metrics[name])  # type: ignore[arg-type]
    again = db.load(run.directory, task)
    assert same(again.state_dict("average"), run.state_dict("average"))


def test_it_goes_on_bit_for_bit_over_other_shards(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2, shards=1)
    parts = train(tmp_path / "parts", 4, shards=3, resume=True)
    assert same(parts.state_dict("average"), whole.state_dict("average"))
    assert parts.metrics == whole.metrics


def test_one_that_begins_late_begins_with_the_parameters(tmp_path: Path) -> None:
    before = train(tmp_path / "run", 2, average=None, optimizer=db.Adam(0.01))
    with pytest.raises(
        DirectoryError, match=r"no average model in .*: the run kept none; ask .* Downpour\(average=0.999\)"
    ):
        before.model("average")
    begun = before.state_dict()
    found, _ = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert not any(name.startswith("average/") for name in found.tensors)
    run = train(tmp_path / "run", 3, optimizer=db.Adam(0.01), resume=True, average=0.999999)
    torch.testing.assert_close(run.state_dict("average"), begun, rtol=0, atol=1e-4)
    events = [json.loads(line) for line in (run.directory / "events.jsonl").read_text().splitlines()]
    (resumed,) = (event for event in events if event["event"] == "resumed")
    assert resumed["fresh_state"] == ["average"]
    plain = train(tmp_path / "plain", 3, average=None, optimizer=db.Adam(0.01))
    assert same(run.state_dict(), plain.state_dict()), "the state of the rule goes on"


def test_it_can_judge_and_be_the_best(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 3, until={"monitor": "average_loss"})
    x, y = problems.points()
    loss = nn.functional.cross_entropy(run.model("best")(x), y).item()
    assert loss == pytest.approx(min(row["average_loss"] for row in run.history), rel=1e-5)


def test_a_metric_of_its_name_is_refused_only_where_it_is_one(tmp_path: Path) -> None:
    metrics = {"average_precision": lambda prediction, target: 1.0, "average_loss": lambda prediction, target: 0.0}
    task = problems.task(test=problems.points(), metrics=metrics)
    with pytest.raises(TaskError, match="a metric cannot be called average_loss"):
        train(tmp_path / "refused", 1, task=task)
    task = problems.task(test=problems.points(), metrics={"average_precision": metrics["average_precision"]})
    run = train(tmp_path / "run", 1, task=task)
    assert {"average_precision", "average_average_precision", "average_loss"} <= run.metrics.keys()


def test_it_survives_the_death_of_a_shards_machine(tmp_path: Path) -> None:
    """It comes back with the shard, as of the last checkpoint, and goes on from there."""
    engine = db.Simulated(faults=[db.Death("shard 0", at=1.5, back=0.5)])
    run = train(tmp_path / "run", 2, engine=engine, replicas=2, shards=2)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in run.state_dict("average").values())
    mine, last = run.state_dict("average")["0.weight"], run.state_dict()["0.weight"]
    assert 0 < float((mine - last).abs().max()) < 0.5
