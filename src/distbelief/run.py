"""A run and its directory: what is written while it trains, and what can be done with it afterwards."""

import dataclasses
import fcntl
import hashlib
import itertools
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distbelief import chance
from distbelief.data import ArrayRows, rows_of
from distbelief.errors import DataError, DirectoryError, UsageError
from distbelief.evaluation import evaluate
from distbelief.task import Task, predict

FORMAT = 1


@final
class RunDirectory:
    """The files of a run, for one process at a time. Every file but the event log appears whole or not at all.

    Raises `DirectoryError` where a run is at work or, unless it is to be resumed, has been, or nothing can be written.
    """

    def __init__(self, path: Path | None, *, resume: bool = False) -> None:
        path = _fresh() if path is None else path
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
            self._take_lock()
            if (path / "method.json").exists() and not resume:
                self._lock.close()
                raise DirectoryError(f"{path} holds a run already: choose another directory, or resume it")
            self._events = (path / "events.jsonl").open("a", buffering=1)
        except OSError as error:
            raise DirectoryError(f"cannot write to the run directory {path}: {error.strerror}") from error

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise DirectoryError(f"{self.path} is in use by a run that is at work") from error

    def check_digest(self, digest: str) -> None:
        """Raise `DirectoryError` if the directory holds a run of another model."""
        file = self.path / "task.json"
        if file.exists() and json.loads(file.read_text())["digest"] != digest:
            raise DirectoryError(f"{self.path} holds a run of another model: choose another directory")

    def event(self, event: str, content: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        self._events.write(json.dumps(_plain({"event": event, **content})) + "\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(_plain(content), indent=2) + "\n")
        partial.replace(self.path / name)

    def write_model(self, module: nn.Module, path: Path | None = None) -> None:
        """Write `model.safetensors`, with the names of `state_dict`; a tensor of several names is there under each."""
        path = path or self.path / "model.safetensors"
        partial = path.with_name(f".{path.name}.partial")
        # Tensors that share memory are refused by the format: each name gets a copy.
        save_file(
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in module.state_dict().items()},
            partial,
        )
        partial.chmod(0o644)
        partial.replace(path)

    def close(self) -> None:
        """Close the log, and let others in."""
        self._events.close()
        self._lock.close()


def _plain(value: Any) -> Any:
    """As JSON knows it: what is not finite is null, and what is no number, text or collection is told as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)


def _fresh() -> Path:
    stem = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(path for name in names if not (path := Path("runs") / name).exists())


@final
class Run:
    """A run that has ended.

    `summary`, `history` (one dict an evaluation) and `directory` are as written; `metrics` are those of the last
    evaluation: bare names for the set that chooses (validation; the test set where there is no other), "test_…".
    """

    def __init__(self, directory: Path, task: Task, summary: dict[str, Any]) -> None:
        self.directory = directory
        self.summary = summary
        self._task = task

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict an evaluation."""
        history: list[dict[str, Any]] = self.summary["history"]
        return history

    @property
    def metrics(self) -> dict[str, float]:
        """The last evaluation's metrics."""
        metrics: dict[str, float] = self.summary["metrics"]
        return metrics

    def model(self, which: Literal["last", "best"] = "last") -> nn.Module:
        """A fresh module, on the CPU, in eval mode, holding the server's parameters; the caller owns it.

        "last": as the run ended. "best": as at its best evaluation.
        """
        module = self._task.build(self.summary["seed"])
        module.load_state_dict(self.state_dict(which))
        return module.eval()

    def state_dict(self, which: Literal["last", "best"] = "last") -> dict[str, Tensor]:
        """The tensors of that model by name."""
        if which not in ("last", "best"):
            raise UsageError(f'which must be "last" or "best", not {which!r}')
        files = {
            "last": self.directory / "model.safetensors",
            "best": self.directory / "checkpoints" / "best.safetensors",
        }
        if not files[which].exists():
            raise DirectoryError(f"there is no {which} model in {self.directory}: the run was never evaluated")
        return load_file(files[which])

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """The loss and metrics of the last model on data of any kind that a task takes; None: the task's test set."""
        data = self._task.test if data is None else data
        if data is None:
            raise DataError("the task has no test data: give some")
        rows = rows_of(data, "data", self._task.collate_fn)[0]
        return evaluate(self._task, self.model(), rows)

    def predict(self, x: Any) -> Any:
        """What the last model says of inputs: a tensor or array, a tuple or dict of them; by parts, joined."""
        rows = ArrayRows(x, "x")
        model = self.model()
        with torch.inference_mode():
            parts = [
                predict(model, rows.batch(indices))
                for indices in np.array_split(np.arange(len(rows)), -(-len(rows) // 512))
            ]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else parts

    def order(self, epoch: int) -> Tensor:
        """The order in which an epoch used its examples: batch b is `order[b * batch_size : (b + 1) * batch_size]`."""
        return chance.order(self.summary["seed"], epoch, self.summary["examples_per_epoch"])

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"Run({str(self.directory)!r}: {self.summary['examples']:,} examples{', ' if metrics else ''}{metrics})"


def describe(value: Any) -> Any:
    """A value of the method as JSON: dataclasses become {"kind": name, fields…}."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **own}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    return value if isinstance(value, int | float | str | None) else repr(value)


def digest(module: nn.Module) -> str:
    """What a model is, as a short name: its parameters' and buffers' names, shapes and kinds."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()]
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest()


def quantile(histogram: Tensor, q: float) -> int:
    """The smallest bin at or below which a fraction `q` of a histogram lies; 0 if it is empty."""
    below = histogram.cumsum(0)
    return int(torch.searchsorted(below, torch.tensor(q * float(below[-1])))) if below[-1] else 0
