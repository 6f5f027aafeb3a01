"""The networks that are trained: as tasks, so that we and the rivals get the same model, loss and data."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

import distbelief as db

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


NETWORKS = {
    network.name: network
    for network in (
        # The speech network of section 5: 42 million parameters.
        Network("speech-paper", lambda: _random([440, *[2560] * 4, 8192], nn.Sigmoid, 16384), 128, 3),
        Network("1024-wide", lambda: _random([440, *[1024] * 4, 2048], nn.ReLU, 32768), 32, 20),
        Network("digits", _digits, 32, 1000),
    )
}
