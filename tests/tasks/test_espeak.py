"""A child process speaks, and tells when each phoneme starts."""

from dataclasses import replace

import pytest

from distbelief.tasks.espeak import Fell, Synthesiser, Utterance

HELLO = Utterance("hello there, hello world.", "en-us+f2", rate=170, pitch=50, range=50, seed=1)


def test_the_phonemes_lie_inside_the_sound_and_in_order() -> None:
    with Synthesiser() as voice:
        (speech,) = voice.speak([HELLO])
    starts = [start for _, start in speech.phonemes]
    samples = len(speech.samples) // 2
    assert voice.rate < samples < 3 * voice.rate
    assert starts == sorted(starts)
    assert 0 <= starts[0] <= starts[-1] <= samples
    names = [name for name, _ in speech.phonemes]
    assert names[:4] == ["h", "@", "l", "oU"]


def test_answers_come_in_the_order_of_the_requests() -> None:
    longer = replace(HELLO, text="hello there, hello world, and hello again.")
    with Synthesiser() as voice:
        lengths = [len(speech.phonemes) for speech in voice.speak([HELLO, longer, HELLO])]
    assert lengths[0] == lengths[2] < lengths[1]


def test_a_fresh_process_says_the_same_to_the_bit() -> None:
    texts = [replace(HELLO, voice=f"en-us+{v}", seed=i) for i, v in enumerate(("f3", "klatt", "m1", "f3"))]
    said = []
    for _ in range(2):
        with Synthesiser() as voice:
            said.append([speech.samples for speech in voice.speak(texts)])
    assert said[0] == said[1]


def test_a_voice_that_is_not_there_is_named() -> None:
    with Synthesiser() as voice, pytest.raises(Fell, match="refused the voice 'nobody'"):
        list(voice.speak([replace(HELLO, voice="nobody")]))


def test_a_child_that_dies_is_noticed() -> None:
    with Synthesiser() as voice:
        voice._child.kill()
        with pytest.raises(Fell, match="exit code -9"):
            list(voice.speak([HELLO, HELLO]))
