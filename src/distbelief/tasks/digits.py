"""Digits: the smallest task that still learns something, in the package itself."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from distbelief.downpour.method import Downpour
from distbelief.run.until import Until
from distbelief.server.rules import Adagrad
from distbelief.task.task import Task, accuracy


def digits() -> Task:
    """Handwritten digits: 1797 images of 8×8 pixels, ten classes, and a net of 64-64-10.

    Inputs are float32 of shape (64,), from 0 to 1; targets are int64. 1200 examples are for training, 297 for
    validation, 300 for the test. The images are the test set of "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, CC BY 4.0: see `digits.LICENSE.txt`.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        inputs = torch.from_numpy(arrays["pixels"].astype(np.float32) / 16)
        targets = torch.from_numpy(arrays["digits"].astype(np.int64))
    train, validation, test = zip(inputs.split((1200, 297, 300)), targets.split((1200, 297, 300)), strict=True)
    loss, metrics = nn.CrossEntropyLoss(), {"accuracy": accuracy}
    task = Task(net, loss, train=train, validation=validation, test=test, metrics=metrics)
    return task.suggest(method=Downpour(optimizer=Adagrad(0.05), batch_size=16), until=Until(epochs=20))


def net() -> nn.Sequential:
    """64-64-10, rectified."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
