"""What is in force in the process that calls `train` is in force in its replicas."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import distbelief as db
from distbelief.errors import UsageError
from distbelief.task.settings import Settings
from tests import problems

_VARIABLE = "DISTBELIEF_TESTS_SETTING"


def _in_force() -> dict[str, Any]:
    found = vars(Settings.of_this_process())
    return {**found, "environment": os.environ.get(_VARIABLE)}


def _change(folder: Path) -> None:
    """What a task file may do, after workers have been started."""
    os.environ[_VARIABLE] = "changed"
    os.chdir(folder)
    sys.setrecursionlimit(3000)
    np.seterr(divide="raise")
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    torch.backends.cudnn.benchmark = True


@pytest.fixture
def _restored() -> Any:
    kept = Settings.of_this_process()
    yield
    kept.apply()


@pytest.mark.usefixtures("_restored")
def test_the_first_worker_has_the_settings_that_the_task_leaves_behind(tmp_path: Path) -> None:
    x, y = problems.points(64)

    def data() -> tuple[Tensor, Tensor]:
        _change(tmp_path)
        return x.double(), y

    here: dict[str, Any] = {}

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        here.update(here or _in_force())
        assert _in_force() == here, f"a replica has {_in_force()}"
        assert prediction.dtype == torch.float64
        return nn.functional.cross_entropy(prediction, target)

    task = problems.task(train=data, loss=loss)
    # Adam has a state of its own in the shards, whose type does not follow the default.
    method = db.Downpour(replicas=1, optimizer=db.Adam(0.01), n_fetch=2)
    run = db.train(task, method, until=db.Until(epochs=1), directory=tmp_path / "run", progress=False)
    assert here["folder"] == str(tmp_path)
    assert here["environment"] == "changed"
    assert {tensor.dtype for tensor in run.state_dict().values()} == {torch.float64}


def test_settings_go_back_and_forth() -> None:
    kept = Settings.of_this_process()
    os.environ[_VARIABLE] = "changed"
    torch.set_default_dtype(torch.float64)
    kept.apply(own=[_VARIABLE])
    assert os.environ.pop(_VARIABLE) == "changed"
    assert torch.get_default_dtype() == torch.float32
    os.environ[_VARIABLE] = "changed"
    kept.apply()
    assert _VARIABLE not in os.environ


def test_what_nothing_can_be_trained_under_is_refused(tmp_path: Path) -> None:
    def train() -> None:
        db.train(problems.task(), db.Downpour(replicas=1), engine=db.Simulated(), directory=tmp_path / "run")

    with torch.no_grad(), pytest.raises(UsageError, match=r"outside of torch\.no_grad"):
        train()
    with torch.inference_mode(), pytest.raises(UsageError, match=r"outside of torch\.no_grad"):
        train()
    with torch.device("meta"), pytest.raises(UsageError, match=r'set_default_device\("cpu"\)'):
        train()
    assert not (tmp_path / "run").exists()


def test_settings_that_are_as_they_were_import_nothing() -> None:
    """Setting deterministic algorithms imports torch's compiler, which takes longer than torch itself."""
    script = (
        "import sys; from distbelief.task.settings import Settings; Settings.of_this_process().apply(); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
