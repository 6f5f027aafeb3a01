"""The targets: which phoneme sounds in a frame, and in which of its three states.

1. A **state** is a phoneme and the third of it (begin, middle, end) that a frame's centre falls in: 67 phonemes,
   silence among them, make 201 states. State = 3 · phoneme + third.
2. A **triphone state** is a state together with the phonemes before and after it.
3. A **context** is one of 8192 classes that triphone states are tied to. Classes 0 to 200 are the states themselves.
   The 7991 triphone states that the training frames hold most often have classes of their own, 201 and up, the most
   frequent first; all other triphone states share the class of their state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

SILENCE = "_"
PHONEMES = (
    SILENCE,
    *"0 3 3: ; ? @ @- @2 @L A: A@ D E I I# I2 N O2 O: O@ OI S T U U@ V Z a a# aI aI3 aI@ aU aa b d".split(),
    *"dZ e@ eI f g h i i: i@ i@3 j k l m n n- o@ oU p r r- s t t# t2 tS u: v w z".split(),
)
"""espeak-ng's names for the sounds of American English, without stress marks."""
STATES = 3 * len(PHONEMES)
CONTEXTS = 8192

TRIPHONE_STATES = 3 * len(PHONEMES) ** 3


def number(name: str) -> int:
    """The phoneme's place in `PHONEMES`.

    Pauses of every length are silence. A name that is not listed, which another release of espeak-ng may bring, is the
    listed sound with which it shares the longest beginning, and a schwa if there is none.
    """
    if name.startswith(SILENCE):
        return 0
    alike = (known for length in range(len(name), 0, -1) for known in PHONEMES if known.startswith(name[:length]))
    return PHONEMES.index(next(alike, "@"))


def triphone_states(phonemes: Sequence[tuple[str, int]], samples: int, centres: Integers) -> Integers:
    """The triphone state of each frame.

    `phonemes` are names with the samples at which they start, in order of time; `samples` is the length of the sound,
    and `centres` are the samples in the middle of the frames. Returns codes, one a frame.
    """
    # Silence on both sides: what is before the first phoneme or after the last one.
    numbers = np.array([0, *(number(name) for name, _ in phonemes), 0])
    starts = np.array([0, *(start for _, start in phonemes), samples])
    at = np.clip(np.searchsorted(starts, centres, side="right") - 1, 0, len(numbers) - 2)
    length = np.maximum(starts[at + 1] - starts[at], 1)
    third = np.clip(3 * (centres - starts[at]) // length, 0, 2)
    left, right = numbers[np.maximum(at - 1, 0)], numbers[at + 1]
    count = len(PHONEMES)
    codes: Integers = ((left * count + right) * count + numbers[at]) * 3 + third
    return codes


def states(codes: Integers) -> Integers:
    """The states of triphone states, 0 to 200."""
    return codes % STATES


@dataclass(frozen=True)
class Tying:
    """Which triphone states have classes of their own: `own[i]` is the code that class 201 + i belongs to."""

    own: Integers

    @classmethod
    def of_counts(cls, counts: Integers) -> Self:
        """The tying for frames that hold triphone state `code` `counts[code]` times. Equal counts go by code."""
        by_count = np.argsort(-counts, kind="stable")[: CONTEXTS - STATES]
        return cls(by_count[counts[by_count] > 0])

    def contexts(self, codes: Integers) -> Integers:
        """The contexts of triphone states, 0 to 8191."""
        table = np.arange(TRIPHONE_STATES) % STATES
        table[self.own] = STATES + np.arange(len(self.own))
        found: Integers = table[codes]
        return found
