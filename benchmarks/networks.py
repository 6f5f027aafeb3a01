"""The networks that are trained: as tasks, so that we and the rivals get the same model, loss and data."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import distbelief as db
from distbelief.task.data import Rows

RATE = 0.01


@dataclass(frozen=True)
class Network:
    """A task whose training set is two tensors, each replica's batch size, and the steps of a warm-up."""

    name: str
    task: Callable[[], db.Task]
    batch_size: int
    warm_up: int


def perceptron(widths: list[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def _random(widths: list[int], activation: Callable[[], nn.Module], examples: int) -> db.Task:
    """A network on random inputs and random labels: speed does not depend on what they say."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, widths[0], generator=generator)
    labels = torch.randint(widths[-1], (examples,), generator=generator)
    return db.Task(lambda: perceptron(widths, activation), nn.CrossEntropyLoss(), train=(inputs, labels))


def _digits() -> db.Task:
    """The ready-made task, without what it evaluates on."""
    task = db.tasks.digits()
    return db.Task(task.model, task.loss, train=task.train)


def _speech(*, judged: bool) -> db.Task:
    """The ready-made task. Judged, it is evaluated on each eighth example of its validation set, at the end on all."""
    task = db.tasks.speech(progress=False)
    if not judged:
        return db.Task(task.model, task.loss, train=task.train)
    every = Thinned(task.validation, 8)
    return db.Task(
        task.model, task.loss, train=task.train, validation=every, test=task.validation, metrics=dict(task.metrics)
    )


@final
class Thinned(Dataset[Any]):
    """Each so-manieth example of another dataset."""

    def __init__(self, rows: Rows, every: int) -> None:
        self._rows = rows
        self._indices = np.arange(0, len(rows), every)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return [part[0] for part in self.batch(np.array([index]))]

    def batch(self, indices: np.ndarray) -> Any:
        """The examples at these indices."""
        return self._rows.batch(self._indices[indices])


NETWORKS = {
    network.name: network
    for network in (
        # The speech network of section 5: 42 million parameters.
        Network("speech-paper", lambda: _random([440, *[2560] * 4, 8192], nn.Sigmoid, 16384), 128, 3),
        Network("speech-paper-1024", lambda: _random([440, *[2560] * 4, 8192], nn.Sigmoid, 65536), 1024, 20),
        Network("1024-wide", lambda: _random([440, *[1024] * 4, 2048], nn.ReLU, 32768), 32, 20),
        Network("digits", _digits, 32, 1000),
        # 440-512×4-201 on synthesised speech, 1.1 million parameters.
        Network("speech", lambda: _speech(judged=False), 128, 5),
        Network("speech, judged", lambda: _speech(judged=True), 128, 5),
    )
}
