"""Line 14. One replica, n_fetch = n_push = 1 and a fetch that is waited for is plain SGD: bit for bit."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distbelief as db
from distbelief import chance
from distbelief.downpour.ledger import Ledger
from distbelief.downpour.method import Downpour
from distbelief.downpour.replica import DownpourReplica
from distbelief.server.layout import Layout
from distbelief.server.rules import SGD, Adagrad, AdamW, Rule
from distbelief.task.data import ArrayRows, Batches
from distbelief.task.gradients import FlatModule, ModuleGradients
from distbelief.task.task import Task, trainable
from tests import problems
from tests.replicas import LedgerWork
from tests.shards import make_client, make_shards, vector_of

SEED, BATCH, EPOCHS = 3, 24, 2
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
METHODS: dict[str, tuple[Rule, Optimizer]] = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1, fused=True)),
    "momentum": (
        SGD(0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3, fused=True),
    ),
    "adagrad": (
        Adagrad(0.02),
        lambda p: torch.optim.Adagrad(p, 0.02, eps=0, initial_accumulator_value=2**-126, fused=True),
    ),
    "adamw": (AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01, fused=True)),
}


def plain(task: Task, optimizer: Optimizer, order: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """The textbook's loop."""
    module = task.build(SEED).train()
    stepper = optimizer(list(module.parameters()))
    x, y = task.train
    for epoch in range(EPOCHS):
        for indices in order(epoch).split(BATCH):
            stepper.zero_grad()
            nn.functional.cross_entropy(module(x[indices]), y[indices]).backward()
            stepper.step()
    return module.state_dict()


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_one_replica_is_the_plain_loop_bit_for_bit(name: str, shards: int) -> None:
    """The replica, its client and the shards, without an engine."""
    rule, optimizer = METHODS[name]
    task = problems.task()
    module = task.build(SEED).train()
    layout = Layout.of([(name, p.detach()) for name, p in trainable(module)], shards)
    flat = FlatModule(module, layout)
    served = make_shards(layout, flat.vector, rule)
    ledger = Ledger(examples=640, batch_size=BATCH, epochs=EPOCHS)
    replica = DownpourReplica(
        Downpour(optimizer=rule),
        client=make_client(layout, served),
        source=ModuleGradients(task, flat, Batches(ArrayRows(task.train, "train"), BATCH, SEED), seed=SEED),
        work=LedgerWork(ledger, 0),
        parameters=flat.vector,
    )
    asyncio.run(replica.run())
    reference = plain(task, optimizer, lambda epoch: chance.order(SEED, epoch, 640))
    assert_same(layout.named(vector_of(layout, served)), reference, task.build(SEED).state_dict())


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_a_run_with_one_replica_is_the_plain_loop_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Through everything: processes, shared memory, files. The order of the examples is public."""
    rule, optimizer = METHODS[name]
    task = problems.task()
    method: Any = db.Downpour(replicas=1, batch_size=BATCH, optimizer=rule)
    run = db.train(task, method, until=db.Until(epochs=EPOCHS), seed=SEED, directory=tmp_path / "run", progress=False)
    assert run.summary["staleness"]["max"] == 0
    assert_same(run.model().state_dict(), plain(task, optimizer, run.order), task.build(SEED).state_dict())
