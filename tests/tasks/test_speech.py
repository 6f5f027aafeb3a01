"""The speech tasks: the one for a laptop, and the paper's own net."""

from pathlib import Path

import pytest
import torch
from torch import nn

import distbelief as db
from distbelief.errors import TaskError
from distbelief.tasks.speech import paper_net, rectified


def small(**options: int) -> db.Task:
    return db.tasks.speech(hours=0.001, progress=False, **options)


def widths(net: nn.Module) -> list[int]:
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


@pytest.fixture(scope="module")
def paper() -> nn.Sequential:
    torch.manual_seed(0)
    return paper_net()


def test_the_papers_net_has_the_papers_number_of_parameters(paper: nn.Sequential) -> None:
    assert sum(p.numel() for p in paper.parameters()) == 41_777_152
    assert widths(paper) == [440, 2560, 2560, 2560, 2560, 8192]
    assert sum(isinstance(module, nn.Sigmoid) for module in paper.modules()) == 4


def test_sigmoids_begin_as_the_tanh_that_they_are(paper: nn.Sequential) -> None:
    """Four layers pass the signal: what comes out depends on what goes in."""
    with torch.no_grad():
        out = paper(torch.randn(64, 440))
    assert 0.1 < float(out.std(0).mean()) < 3
    assert abs(float(out.mean())) < 0.1


def test_the_small_net_is_what_its_name_says(home: Path) -> None:
    task = small()
    assert widths(task.build(0)) == [440, 512, 512, 512, 512, 201]
    assert widths(small(width=32, layers=2).build(0)) == [440, 32, 32, 201]
    assert home.is_dir()


def test_it_knows_its_own_method_and_end(home: Path) -> None:
    task = small()
    assert isinstance(task.suggested_method, db.Downpour)
    assert isinstance(task.suggested_until, db.Until)
    assert set(task.metrics) == {"accuracy"}


def test_the_papers_task_shares_the_corpus(home: Path) -> None:
    small()
    task = db.tasks.speech_paper(hours=0.001, progress=False)
    assert len([path for path in home.iterdir() if path.is_dir()]) == 1
    assert max(int(task.train[index][1]) for index in range(len(task.train))) > 201


def test_a_small_net_learns(home: Path) -> None:
    torch.manual_seed(0)
    net = rectified((440, 64, 201))
    task = small()
    inputs, targets = (torch.stack(column) for column in zip(*map(task.train.__getitem__, range(200)), strict=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("options", [{"width": 0}, {"layers": -1}, {"width": 1.5}, {"layers": True}])
def test_a_net_has_whole_layers(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(TaskError, match=f"{name} must be a whole number of 1 or more"):
        small(**options)
