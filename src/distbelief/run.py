"""A run and its directory: what is written while it trains, and what can be done with it afterwards."""

import dataclasses
import hashlib
import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distbelief import chance
from distbelief.errors import DirectoryError
from distbelief.task import Task

FORMAT = 1


@final
class RunDirectory:
    """The files of a run. Every file but the event log appears whole or not at all.

    Raises `DirectoryError` where there is a run already, or nothing can be written.
    """

    def __init__(self, path: Path | None) -> None:
        path = _fresh() if path is None else path
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "method.json").exists():
                raise DirectoryError(f"{path} holds a run already: choose another directory")
            self._events = (path / "events.jsonl").open("a", buffering=1)
        except OSError as error:
            raise DirectoryError(f"cannot write to the run directory {path}: {error.strerror}") from error

    def event(self, event: str, content: dict[str, Any]) -> None:
        """Append a line to the log of events."""
        self._events.write(json.dumps({"event": event, **content}, default=str) + "\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n")
        partial.replace(self.path / name)

    def write_model(self, module: nn.Module) -> None:
        """Write `model.safetensors`, with the names of `state_dict`; a tensor of several names is there under each."""
        partial = self.path / ".model.safetensors.partial"
        # Tensors that share memory are refused by the format: each name gets a copy.
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}, partial)
        partial.replace(self.path / "model.safetensors")

    def close(self) -> None:
        """Close the log."""
        self._events.close()


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

    def model(self) -> nn.Module:
        """A fresh module, on the CPU, in eval mode, holding the server's parameters; the caller owns it."""
        module = self._task.build(self.summary["seed"])
        module.load_state_dict(load_file(self.directory / "model.safetensors"))
        return module.eval()

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
    return value if isinstance(value, int | float | str | None) else repr(value)


def digest(module: nn.Module) -> str:
    """What a model is, as a short name: its parameters' and buffers' names, shapes and kinds."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()]
    return hashlib.blake2b(repr(shapes).encode(), digest_size=8).hexdigest()


def quantile(histogram: Tensor, q: float) -> int:
    """The smallest bin at or below which a fraction `q` of a histogram lies; 0 if it is empty."""
    below = histogram.cumsum(0)
    return int(torch.searchsorted(below, torch.tensor(q * float(below[-1])))) if below[-1] else 0
