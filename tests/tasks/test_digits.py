"""Digits come with the package, and are learnt in seconds."""

from importlib.resources import files

import torch
from torch import nn

import distbelief as db


def test_the_splits_hold_all_images() -> None:
    task = db.tasks.digits()
    sizes = []
    for inputs, targets in (task.train, task.validation, task.test):
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert inputs.shape == (len(targets), 64)
        assert (float(inputs.min()), float(inputs.max())) == (0, 1)
        assert set(targets.tolist()) == set(range(10))
        sizes.append(len(targets))
    assert sizes == [1200, 297, 300]


def test_its_licence_is_shipped() -> None:
    text = (files("distbelief.tasks") / "digits.LICENSE.txt").read_text()
    assert "CC BY 4.0" in text
    assert "UCI Machine Learning Repository" in text


def test_its_own_method_reaches_95_percent_in_a_few_epochs() -> None:
    task = db.tasks.digits()
    method = task.suggested_method
    assert method is not None
    assert isinstance(method.optimizer, db.Adagrad)
    assert isinstance(method.optimizer.lr, float)
    assert method.batch_size is not None
    net = task.build(0)
    parameters = list(net.parameters())
    sums = [torch.full_like(p, method.optimizer.state["sum"]) for p in parameters]
    inputs, targets = task.train
    for epoch in range(10):
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(method.batch_size):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(net(inputs[batch]), targets[batch]), parameters)
            with torch.no_grad():
                method.optimizer.update_(parameters, gradients, [sums], torch.ones(()), method.optimizer.lr)
    inputs, targets = task.test
    assert float(db.accuracy(net(inputs), targets)) >= 0.95
