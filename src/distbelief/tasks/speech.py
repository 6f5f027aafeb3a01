"""Speech: telling phonemes from eleven frames of sound, small enough for a laptop, and the paper's own size."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from distbelief.checks import check_whole
from distbelief.downpour.method import Downpour
from distbelief.errors import TaskError
from distbelief.run.until import Until
from distbelief.server.rules import Adagrad
from distbelief.task.task import Task, accuracy
from distbelief.tasks import corpus
from distbelief.tasks.cache import Tell
from distbelief.tasks.corpus import Recipe
from distbelief.tasks.frames import INPUTS, Frames
from distbelief.tasks.phonemes import CONTEXTS, STATES


def speech(hours: float = 2, *, seed: int = 0, width: int = 512, layers: int = 4, progress: bool | Tell = True) -> Task:
    """Frames of synthetic speech, to be told which of 201 phoneme states they hold: 440-512×4-201, rectified.

    `hours`: of speech, of which 10/12 are for training, and 1/12 each for validation and test, by speakers of their
    own; an hour is 360,000 frames. `seed` makes another corpus. `width`, `layers`: the hidden layers. `progress`:
    True, False, or a function of (what is done, fraction of it). For inputs and targets see `Frames`, for how they are
    made `corpus`.

    The corpus is kept in the user's cache (`XDG_CACHE_HOME`). It is made with espeak-ng, which is GPL, runs in a
    process of its own, and comes with `pip install espeakng-loader`. Raises `TaskError` without it, and
    `DataError` where the cache cannot be written.
    """
    for name, value in (("width", width), ("layers", layers)):
        check_whole(name, value, error=TaskError)
    model = partial(rectified, (INPUTS, *[width] * layers, STATES))
    return _task(model, Recipe(hours, seed), "states", 0.01, progress)


def speech_paper(hours: float = 2, *, seed: int = 0, progress: bool | Tell = True) -> Task:
    """The paper's speech net, 440-2560×4-8192 with sigmoids: 41,777,152 parameters (section 5).

    The 8192 classes are states of phonemes in their context (see `phonemes`). Arguments, data and errors are those of
    `speech`.
    """
    return _task(paper_net, Recipe(hours, seed), "contexts", 0.001, progress)


def rectified(widths: tuple[int, ...]) -> nn.Sequential:
    """A net of linear layers with rectifiers between them, begun as He et al. (2015) propose."""
    net = _layered(widths, nn.ReLU)
    for layer in _linear(net):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return net


def paper_net() -> nn.Sequential:
    """The net of the paper's speech experiments.

    A sigmoid is a tanh in disguise: σ(x) = (1 + tanh(x/2)) / 2. The weights begin so that the net computes what a net
    of tanh does that begins as Glorot & Bengio (2010) propose; with weights of the usual size, four layers of sigmoids
    pass hardly any signal.
    """
    net = _layered((INPUTS, 2560, 2560, 2560, 2560, CONTEXTS), nn.Sigmoid)
    layers = _linear(net)
    with torch.no_grad():
        for depth, layer in enumerate(layers):
            after_sigmoid, before_sigmoid = depth > 0, depth < len(layers) - 1
            nn.init.xavier_uniform_(layer.weight, gain=2.0**after_sigmoid * 2.0**before_sigmoid)
            nn.init.zeros_(layer.bias)
            if after_sigmoid:
                # A sigmoid's mean is 1/2, not 0.
                layer.bias.sub_(layer.weight.sum(1) / 2)
    return net


def _task(
    model: Callable[[], nn.Module],
    recipe: Recipe,
    targets: Literal["states", "contexts"],
    lr: float,
    progress: bool | Tell,
) -> Task:
    folder = corpus.provide(recipe, progress)
    data: dict[str, Any] = {split: Frames(recipe, folder, split, targets) for split in corpus.SPLITS}
    task = Task(model, nn.CrossEntropyLoss(), metrics={"accuracy": accuracy}, **data)
    return task.suggest(method=Downpour(optimizer=Adagrad(lr), batch_size=128), until=Until(epochs=10))


def _layered(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    pairs = [(nn.Linear(inputs, outputs), activation()) for inputs, outputs in pairwise(widths)]
    # The last layer's outputs go to the loss as they are.
    return nn.Sequential(*[module for pair in pairs for module in pair][:-1])


def _linear(net: nn.Sequential) -> list[nn.Linear]:
    return [module for module in net if isinstance(module, nn.Linear)]
