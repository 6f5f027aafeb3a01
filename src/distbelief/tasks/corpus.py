"""A corpus of synthetic speech: which words who speaks and how, and the frames and targets that come of it.

1. An utterance is ten consecutive words of Python's own documentation (`pydoc_data.topics`), so a corpus depends on the
   version of Python. Words are used once before any is used twice.
2. A speaker is a variant of espeak-ng's American English. Each utterance has a rate, a pitch, a range of pitch and a
   level of white noise, 15 to 35 dB below the voice, of its own.
3. Of twelve utterances one is for the test and one for validation. **No speaker of one split speaks in another**, and,
   up to the six hours or so that the words last, no sentence is heard in two.
4. A frame is 40 log energies, shifted and scaled to mean 0 and variance 1 over its utterance.
5. The same recipe gives the same bytes on one machine, run after run.
"""

import hashlib
import importlib.metadata
import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

from distbelief.checks import check_whole
from distbelief.errors import DataError, TaskError
from distbelief.tasks import cache
from distbelief.tasks.display import display
from distbelief.tasks.espeak import Fell, Speech, Synthesiser, Utterance
from distbelief.tasks.filterbank import BANDS, frame_centres, log_energies
from distbelief.tasks.phonemes import Integers, Tying, states, triphone_states

SPLITS: Final = ("train", "validation", "test")
CONTEXT: Final = 5
"""Frames that a window holds on either side of its own.

So many copies of an utterance's first and last frame are stored around it: no window reaches into another one.
"""

_FORMAT = 1
"""To be raised with every change of what a recipe makes."""
_WORDS = 10
_VOICE = "en-us"
_SPLITS_OF_TWELVE = ("train", "validation", "test") + ("train",) * 9
_LINES = Path(__file__).with_name("speakers.txt").read_text().splitlines()
_SPEAKERS = {split: speakers for split, *speakers in map(str.split, _LINES)}
"""espeak-ng's names of the variants that speak in each split."""


@dataclass(frozen=True)
class Recipe:
    """What a corpus is made from: hours of speech in all, and a seed. Raises `TaskError` for what cannot be."""

    hours: float
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.hours, bool) or not isinstance(self.hours, int | float) or not 0 < self.hours < math.inf:
            raise TaskError(f"hours must be a positive number of hours of speech, not {self.hours!r}")
        check_whole("seed", self.seed, least=0, error=TaskError)


def provide(recipe: Recipe, progress: bool | cache.Tell = True) -> Path:
    """The folder of the corpus in the user's cache: checked if it is there, made if not.

    Two hours take about 20 seconds to make and 65 MB of disk. Raises `TaskError` if espeak-ng is not installed, and
    `DataError` if it does not work or the cache cannot be written.
    """
    words = _words()
    made_from: dict[str, Any] = {"format": _FORMAT, "hours": float(recipe.hours), "seed": recipe.seed}
    made_from |= {"words": _digest(*words), "voices": _release_of_voices()}
    folder = user_cache_path("distbelief") / f"speech-{recipe.hours:g}h-{_digest(*map(str, made_from.values()))[:12]}"
    with display(progress) as tell:
        hours = f"{recipe.hours:g} hour{'s' * (recipe.hours != 1)}"
        done = partial(tell, f"making {hours} of synthetic speech, once, in {folder.parent}")
        try:
            return cache.provide(folder, made_from, partial(_make, recipe, words, done), tell)
        except Fell as error:
            raise DataError(f"espeak-ng could not speak ({error}): reinstall the wheel espeakng-loader") from error


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _words() -> list[str]:
    from pydoc_data.topics import topics

    return re.findall(r"[a-z]{2,}", " ".join(topics[name] for name in sorted(topics)).lower())


def _release_of_voices() -> str:
    try:
        return importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError as error:
        raise TaskError("synthetic speech needs the espeak-ng library: pip install espeakng-loader") from error


def _make(recipe: Recipe, words: list[str], done: Callable[[float], None], folder: Path) -> dict[str, Any]:
    """Fill the folder. Returns its content for the manifest."""
    wanted, seconds = recipe.hours * 3600, 0.0
    codes: dict[str, list[Integers]] = {split: [] for split in SPLITS}
    done(0.0)
    with ExitStack() as stack:
        voice = stack.enter_context(Synthesiser())
        # What grows has no header that tells its length: it becomes a .npy file when it is whole.
        raw = {split: stack.enter_context((folder / f"{split}.raw").open("wb")) for split in SPLITS}
        for index, speech in enumerate(voice.speak(_utterances(recipe.seed, words))):
            sound = np.frombuffer(speech.samples, np.int16)
            frames, own = _frames(sound, speech, voice.rate, np.random.default_rng([recipe.seed, index, 1]))
            raw[_split(index)].write(np.pad(frames, ((CONTEXT, CONTEXT), (0, 0)), mode="edge").tobytes())
            codes[_split(index)].append(own)
            seconds += len(sound) / voice.rate
            # The first three utterances are one for each split.
            if seconds >= wanted and index >= 2:
                break
            done(min(1.0, seconds / wanted))
    tying = Tying.of_counts(np.bincount(np.concatenate(codes["train"])))
    for split, utterances in codes.items():
        path, whole = folder / f"{split}.raw", np.concatenate(utterances)
        edges = CONTEXT * (1 + 2 * np.repeat(np.arange(len(utterances)), list(map(len, utterances))))
        np.save(folder / f"{split}.frames.npy", np.memmap(path, np.float16, "r").reshape(-1, BANDS))
        np.save(folder / f"{split}.rows.npy", (edges + np.arange(len(whole))).astype(np.int32))
        np.save(folder / f"{split}.states.npy", states(whole).astype(np.uint8))
        np.save(folder / f"{split}.contexts.npy", tying.contexts(whole).astype(np.uint16))
        path.unlink()
    done(1.0)
    return {"seconds": seconds, "examples": {split: sum(map(len, utterances)) for split, utterances in codes.items()}}


def _split(index: int) -> str:
    return _SPLITS_OF_TWELVE[index % len(_SPLITS_OF_TWELVE)]


def _utterances(seed: int, words: list[str]) -> Iterator[Utterance]:
    """Without end: what is said, and how."""
    pieces = [" ".join(words[start : start + _WORDS]) for start in range(0, len(words) - _WORDS + 1, _WORDS)]
    turns = {split: count() for split in SPLITS}
    for index in count():
        rng = np.random.default_rng([seed, index, 0])
        lap, place = divmod(index, len(pieces))
        if place == 0:
            order = np.random.default_rng([seed, lap, 2]).permutation(len(pieces))
        speakers = _SPEAKERS[_split(index)]
        speaker = speakers[next(turns[_split(index)]) % len(speakers)]
        rate, pitch, span = (int(rng.integers(low, high)) for low, high in ((130, 201), (30, 71), (30, 71)))
        yield Utterance(pieces[order[place]] + ".", f"{_VOICE}+{speaker}", rate, pitch, span, seed=index + 1)


def _frames(
    sound: npt.NDArray[np.int16], speech: Speech, rate: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
    """The normalised frames of an utterance, (frames, 40), and their triphone states, (frames,)."""
    voice = sound.astype(np.float32)
    level = np.sqrt(np.mean(voice**2)) * 10 ** (-rng.uniform(15, 35) / 20)
    noisy = voice + rng.standard_normal(len(voice), dtype=np.float32) * np.float32(max(1.0, level))
    energies = log_energies(noisy, rate)
    # White noise leaves no band without variance.
    normal = (energies - energies.mean(0)) / energies.std(0)
    return normal.astype(np.float16), triphone_states(speech.phonemes, len(sound), frame_centres(len(sound), rate))
