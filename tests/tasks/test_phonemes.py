"""Targets: states, triphone states, and the 8192 contexts these are tied to."""

import numpy as np

from distbelief.tasks.phonemes import (
    CONTEXTS,
    PHONEMES,
    STATES,
    TRIPHONE_STATES,
    Tying,
    number,
    states,
    triphone_states,
)


def test_there_are_201_states_and_no_phoneme_twice() -> None:
    assert STATES == 201
    assert len(set(PHONEMES)) == 67


def test_an_unlisted_name_becomes_the_most_alike() -> None:
    assert PHONEMES[number("i:")] == "i:"
    assert PHONEMES[number("u")] == "u:"
    assert PHONEMES[number("aIx")] == "aI"
    assert PHONEMES[number("%")] == "@"
    assert {number(pause) for pause in ("_", "_:", "_!", "_|")} == {0}


def test_a_frame_is_told_by_its_centre() -> None:
    centres = np.array([0, 5, 10, 20, 39, 40, 99])
    found = states(triphone_states([("t", 10), ("a", 40)], 100, centres))
    t, a = 3 * number("t"), 3 * number("a")
    # Before the first phoneme there is silence.
    assert found.tolist() == [0, 1, t, t + 1, t + 2, a, a + 2]


def test_a_phoneme_without_length_holds_no_frame() -> None:
    found = states(triphone_states([("l", 0), ("j", 10), ("u:", 10)], 20, np.arange(20)))
    assert set(found // 3) == {number("l"), number("u:")}


def test_neighbours_make_a_triphone() -> None:
    codes = [
        triphone_states([(left, 0), ("a", 10), (right, 20)], 30, np.array([10]))[0]
        for left, right in (("t", "n"), ("n", "t"), ("t", "t"))
    ]
    assert len(set(codes)) == 3
    assert set(states(np.array(codes))) == {3 * number("a")}


def test_frequent_triphones_have_classes_of_their_own_and_others_their_state() -> None:
    counts = np.zeros(TRIPHONE_STATES, np.int64)
    rng = np.random.default_rng(0)
    seen = rng.permutation(len(counts))[:10_000]
    counts[seen] = rng.integers(1, 50, len(seen))
    tying = Tying.of_counts(counts)
    contexts = tying.contexts(np.arange(len(counts)))
    own = contexts >= STATES
    assert own.sum() == CONTEXTS - STATES
    assert counts[own].min() >= counts[~own].max()
    assert np.array_equal(np.sort(contexts[own]), np.arange(STATES, CONTEXTS))
    assert np.array_equal(contexts[~own], states(np.flatnonzero(~own)))


def test_a_small_corpus_uses_few_classes() -> None:
    counts = np.zeros(TRIPHONE_STATES, np.int64)
    counts[[7, 900]] = 1, 2
    assert Tying.of_counts(counts).contexts(np.array([900, 7, 8])).tolist() == [201, 202, 8]
