"""The examples of a corpus: windows of eleven frames, cut where they lie and never stored."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distbelief.tasks import corpus
from distbelief.tasks.corpus import CONTEXT, Recipe
from distbelief.tasks.filterbank import BANDS

INPUTS = (2 * CONTEXT + 1) * BANDS
"""Numbers in a window: 440."""


class Frames(Dataset[tuple[Tensor, Tensor]]):
    """One split of a corpus.

    An example is a window, float32 of shape (440,): eleven frames of 40 log energies, the oldest first, of which the
    sixth is the one that the target tells of; and its target, int64: the state ("states", 0 to 200) or the context
    ("contexts", 0 to 8191). Windows reach past the ends of an utterance into copies of its first and last frame.

    The files are memory-mapped, so all processes of a machine share one copy. Pickled, it is a path and a recipe; where
    the path does not exist, as on another machine, the corpus is made from the recipe, quietly.
    """

    def __init__(self, recipe: Recipe, folder: Path, split: str, targets: Literal["states", "contexts"]) -> None:
        self._source = (recipe, folder, split, targets)
        frames = _mapped(folder / f"{split}.frames.npy")
        # Windows overlap in memory: one begins with every frame.
        self._windows = np.lib.stride_tricks.sliding_window_view(frames.reshape(-1), INPUTS)[::BANDS]
        self._rows = _mapped(folder / f"{split}.rows.npy")
        self._targets = _mapped(folder / f"{split}.{targets}.npy")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch(np.array([range(len(self))[index]]))
        return inputs[0], targets[0]

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The examples at these indices: float32 of shape (batch, 440) and int64 of shape (batch,).

        The caller owns both.
        """
        windows = self._windows[self._rows[indices] - CONTEXT]
        return torch.from_numpy(windows).float(), torch.from_numpy(self._targets[indices].astype(np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, self._source


def _opened(recipe: Recipe, folder: Path, *which: Any) -> Frames:
    return Frames(recipe, folder if folder.exists() else corpus.provide(recipe, progress=False), *which)


def _mapped(path: Path) -> npt.NDArray[Any]:
    # As a plain array: indexing numpy's own memmap class costs more than the batch.
    return np.asarray(np.load(path, mmap_mode="r"))
