"""After a divergence: a run goes on from before it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.errors import Diverged

X = torch.randn(2000, 10, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)
TASK = db.Task(lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)), nn.MSELoss(), train=(X, Y))


def train(directory: Path, lr: float, epochs: int, **options: Any) -> db.Run:
    method = db.Downpour(replicas=1, batch_size=20, optimizer=db.SGD(lr))
    until, often = db.Until(epochs=epochs), db.Every(examples=1000)
    return db.train(
        TASK, method, engine=db.Simulated(), until=until, directory=directory, checkpoint_every=often, progress=False,
        **options,
    )  # fmt: skip


def test_resume_goes_on_from_before_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, 0.01, 2)
    for _ in range(4):
        # As often as it happens, it does not push out what was there before.
        with pytest.raises(Diverged) as diverged:
            train(run, 5.0, 4, resume=True)
        assert diverged.value.__notes__[0].startswith("resume goes on after 4,000 examples, from before the divergence")
    assert list((run / "checkpoints").glob("diverged-0*"))
    done = train(run, 0.01, 4, resume=True)
    assert done.summary["resumed_at"] == 4000
    assert done.summary["train_loss"] < 1.0


def test_where_nothing_is_from_before_it_the_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as diverged:
        train(tmp_path / "run", 5.0, 4)
    assert diverged.value.__notes__[0].startswith("resume begins anew, from before the divergence, and needs a smaller")
    done = train(tmp_path / "run", 0.01, 2, resume=True)
    assert done.summary["resumed_at"] is None
    assert done.summary["examples"] == 4000
