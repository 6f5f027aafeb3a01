"""Windows of eleven frames, cut where they lie."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from distbelief.tasks.frames import INPUTS, Frames
from tests.tasks.conftest import SMALL


@pytest.fixture
def train(made: Path) -> Frames:
    return Frames(SMALL, made, "train", "states")


def test_a_batch_has_windows_and_targets(train: Frames) -> None:
    inputs, targets = train.batch(np.array([3, 0, len(train) - 1]))
    assert INPUTS == 440
    assert (inputs.shape, inputs.dtype) == ((3, 440), torch.float32)
    assert (targets.shape, targets.dtype) == ((3,), torch.int64)
    for row, index in enumerate((3, 0, -1)):
        one, target = train[index]
        assert torch.equal(inputs[row], one)
        assert int(targets[row]) == int(target)


def test_windows_stop_at_the_edges_of_their_utterance(made: Path, train: Frames) -> None:
    """Every window equals one made by clamping to the utterance."""
    rows, frames = np.load(made / "train.rows.npy"), np.load(made / "train.frames.npy").astype(np.float32)
    utterance = np.cumsum(np.diff(rows, prepend=rows[0]) > 1)
    assert utterance[-1] > 5
    inputs, _ = train.batch(np.arange(len(train)))
    for number in range(utterance[-1] + 1):
        (own,) = np.nonzero(utterance == number)
        sound = frames[rows[own]]
        around = np.clip(np.arange(len(own))[:, None] + np.arange(-5, 6), 0, len(own) - 1)
        np.testing.assert_array_equal(inputs[own].numpy(), sound[around].reshape(len(own), 440))


def test_the_caller_owns_a_batch(train: Frames) -> None:
    first, _ = train.batch(np.array([0]))
    first.zero_()
    assert train[0][0].abs().sum() > 0


def test_an_index_beyond_the_end_is_refused(train: Frames) -> None:
    with pytest.raises(IndexError):
        train[len(train)]


def test_contexts_are_other_targets_of_the_same_windows(made: Path, train: Frames) -> None:
    contexts = Frames(SMALL, made, "train", "contexts")
    assert torch.equal(contexts[7][0], train[7][0])
    assert contexts.batch(np.arange(len(contexts)))[1].max() > 201


def test_pickled_it_is_small_and_opens_again(train: Frames) -> None:
    travelled = pickle.dumps(train)
    assert len(travelled) < 1000
    opened = pickle.loads(travelled)
    assert len(opened) == len(train)
    assert torch.equal(opened[5][0], train[5][0])


def test_where_the_files_are_not_there_they_are_made(made: Path, tmp_path: Path, home: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(made, copy)
    travelled = pickle.dumps(Frames(SMALL, copy, "test", "states"))
    shutil.rmtree(copy)
    opened = pickle.loads(travelled)
    assert (home / made.name).is_dir()
    assert torch.equal(opened[5][0], Frames(SMALL, made, "test", "states")[5][0])
