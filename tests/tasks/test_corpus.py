"""A corpus is its recipe: the same one to the bit, and no speaker in two splits."""

import hashlib
import importlib.metadata
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from distbelief.errors import DataError, TaskError
from distbelief.tasks import cache, corpus
from distbelief.tasks.corpus import CONTEXT, SPLITS, Recipe
from distbelief.tasks.phonemes import CONTEXTS, STATES
from tests.lives import complete
from tests.tasks.conftest import SMALL


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.npy"))}


def test_two_builds_are_equal_to_the_bit(made: Path, tmp_path: Path) -> None:
    """Also where sets and dicts of strings are in another order."""
    code = (
        "from distbelief.tasks.corpus import Recipe, provide\n"
        f"print(provide(Recipe({SMALL.hours}, {SMALL.seed}), progress=False))"
    )
    done = complete(["-c", code], env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": "1"})
    folder = Path(done.stdout.strip())
    assert folder.name == made.name
    assert sums(folder) == sums(made)
    assert len(sums(folder)) == 12


def test_another_seed_is_another_corpus(made: Path, home: Path) -> None:
    other = corpus.provide(Recipe(SMALL.hours, seed=1), progress=False)
    assert other.parent == home
    assert sums(other).keys() == sums(made).keys()
    assert not set(sums(other).values()) & set(sums(made).values())


def test_the_manifest_counts_what_is_there(made: Path) -> None:
    content = json.loads((made / "manifest.json").read_text())["content"]
    assert content["seconds"] >= 36
    examples = {split: len(np.load(made / f"{split}.states.npy")) for split in SPLITS}
    assert content["examples"] == examples
    assert examples["train"] > examples["validation"] > 100
    # A window of 25 ms begins every 10 ms.
    assert sum(examples.values()) == pytest.approx(content["seconds"] * 100, rel=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_frames_are_normal_and_targets_in_range(made: Path, split: str) -> None:
    frames, rows = np.load(made / f"{split}.frames.npy"), np.load(made / f"{split}.rows.npy")
    states, contexts = np.load(made / f"{split}.states.npy"), np.load(made / f"{split}.contexts.npy")
    assert frames.dtype == np.float16
    assert np.isfinite(frames).all()
    heard = frames[rows].astype(np.float64)
    np.testing.assert_allclose(heard.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(heard.std(0), 1, atol=1e-3)
    assert len(rows) == len(states) == len(contexts)
    assert len(frames) == len(rows) + 2 * CONTEXT * (1 + (np.diff(rows) > 1).sum())
    assert states.max() < STATES
    assert contexts.max() < CONTEXTS
    assert len(np.unique(states)) > 30
    own = contexts >= STATES
    assert np.array_equal(contexts[~own], states[~own])


def test_no_speaker_and_no_words_are_in_two_splits() -> None:
    words = corpus._words()
    utterances = list(islice(corpus._utterances(0, words), 240))
    speakers = {split: {u.voice for i, u in enumerate(utterances) if corpus._split(i) == split} for split in SPLITS}
    assert len(speakers["train"]) > 40
    assert not speakers["train"] & (speakers["test"] | speakers["validation"])
    assert not speakers["test"] & speakers["validation"]
    assert len({u.seed for u in utterances}) == len({u.text for u in utterances}) == len(utterances)


def test_an_hour_is_an_hour_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(cache, "provide", lambda folder, *_: asked.append(folder))
    for hours in (1, 1.0):
        corpus.provide(Recipe(hours, seed=0), progress=False)
    assert asked[0] == asked[1]


def test_words_are_all_used_before_any_is_used_again() -> None:
    words = [f"word{n}" for n in range(45)]
    texts = [u.text for u in islice(corpus._utterances(3, words), 8)]
    assert len(set(texts[:4])) == len(set(texts[4:])) == 4


def test_progress_goes_from_nothing_to_all(home: Path) -> None:
    told: list[tuple[str, float]] = []
    corpus.provide(Recipe(0.001, seed=0), progress=lambda message, fraction: told.append((message, fraction)))
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert {message for message, _ in told} == {f"making 0.001 hours of synthetic speech, once, in {home}"}


def test_a_damaged_corpus_is_made_again(home: Path) -> None:
    recipe = Recipe(0.001, seed=0)
    folder = corpus.provide(recipe, progress=False)
    whole = sums(folder)
    with (folder / "train.frames.npy").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xff\xff\xff")
    told: list[str] = []
    corpus.provide(recipe, progress=lambda message, fraction: told.append(message))
    assert sums(folder) == whole
    assert "train.frames.npy has changed" in told[0]


def test_without_the_library_one_sentence_tells_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(TaskError, match="pip install espeakng-loader"):
        corpus.provide(SMALL, progress=False)


def test_a_synthesiser_that_falls_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_VOICE", "nobody")
    with pytest.raises(DataError, match=r"could not speak \(.*'nobody\+Alex'.*espeakng-loader"):
        corpus.provide(SMALL, progress=False)


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), "2", None, True])
def test_hours_must_be_positive(hours: float) -> None:
    with pytest.raises(TaskError, match="hours must be a positive number"):
        Recipe(hours, 0)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True])
def test_a_seed_is_a_whole_number(seed: int) -> None:
    with pytest.raises(TaskError, match="seed must be a whole number"):
        Recipe(1, seed)
