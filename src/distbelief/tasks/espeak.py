"""The voice: espeak-ng in a process of its own, which speaks text and tells when each phoneme starts.

espeak-ng is GPL, and optional: `pip install espeakng-loader` brings its library and voices. It is loaded at run time,
and only by the child, which runs this very file as a script. The child is also what makes a corpus exact: the library
carries hidden state from one utterance to the next, so the same text sounds the same to the bit only when a fresh
process has spoken the same texts before.

1. The child says hello with a JSON line: `{"rate": samples per second}`.
2. It reads one request a line: the fields of `Utterance` as JSON.
3. It answers each with a JSON line, `{"samples": text, "phonemes": [[name, first sample], ...]}`: samples are base64 of
   16 bits each in the machine's byte order.
4. It ends when its input ends.

This file imports the standard library only, because the child runs it without the package.
"""

import base64
import ctypes
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from subprocess import PIPE, Popen
from typing import IO, Any, Self, cast

# From espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_DO_NOT_EXIT = 1 << 15
_UTF8 = 1
_PHONEME = 7
_RATE, _PITCH, _RANGE = 1, 3, 4
_STRESS = "',%="


@dataclass(frozen=True)
class Utterance:
    """What to say, and how.

    `voice` is espeak-ng's name of a voice and a variant, `rate` is in words per minute, `pitch` and `range` are
    espeak-ng's numbers from 0 to 99, and `seed` starts the library's own noise.
    """

    text: str
    voice: str
    rate: int
    pitch: int
    range: int
    seed: int


@dataclass(frozen=True)
class Speech:
    """What was said.

    `samples` are 16-bit integers in the machine's byte order; `phonemes` are espeak-ng's names without stress marks,
    each with the sample at which it starts, in order of time.
    """

    samples: bytes
    phonemes: list[tuple[str, int]]


class Fell(Exception):
    """The child ended before its work was done, or could not begin."""


class Synthesiser:
    """A child process that speaks. Use it as a context: leaving it ends the child. `rate` is in samples per second."""

    def __init__(self) -> None:
        """Starts the child. Raises `Fell` if the library does not work here."""
        import espeakng_loader

        # Isolated (-I), because the folder of this file is no place to import from.
        command = [sys.executable, "-I", __file__, espeakng_loader.get_library_path(), espeakng_loader.get_data_path()]
        self._child = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, errors="replace", bufsize=1)
        self.rate = int(self._line()["rate"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def speak(self, utterances: Iterable[Utterance]) -> Iterator[Speech]:
        """Yields what was said, in order. The child is one utterance ahead of the caller."""
        asked = 0
        for asked, utterance in enumerate(utterances, start=1):
            try:
                cast("IO[str]", self._child.stdin).write(json.dumps(asdict(utterance)) + "\n")
            except BrokenPipeError as error:
                raise Fell(self._last_words()) from error
            if asked > 1:
                yield self._answer()
        if asked:
            yield self._answer()

    def _answer(self) -> Speech:
        answer = self._line()
        return Speech(base64.b64decode(answer["samples"]), [(name, start) for name, start in answer["phonemes"]])

    def _line(self) -> dict[str, Any]:
        line = cast("IO[str]", self._child.stdout).readline()
        if not line.endswith("\n"):
            raise Fell(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._child.kill()
        _, errors = self._child.communicate()
        lines = errors.strip().splitlines()
        return lines[-1] if lines else f"exit code {self._child.returncode}"


# From here on, the child's side.


class _Event(ctypes.Structure):
    """An `espeak_EVENT`; of what its last field may hold, a phoneme's name."""

    _fields_ = (
        *((name, ctypes.c_int) for name in "type identifier text_position length audio_position sample".split()),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


class _Library:
    """espeak-ng itself, by ctypes."""

    def __init__(self, library: str, voices: str) -> None:
        self._library = ctypes.CDLL(library)
        options = _PHONEME_EVENTS | _DO_NOT_EXIT
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(voices), options)
        if self.rate <= 0:
            raise SystemExit(f"espeak-ng could not start with the voices of {voices}")
        self._samples: list[bytes] = []
        self._phonemes: list[tuple[str, int]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))
        # Kept, because the library holds a bare pointer to it.
        self._callback = kind(self._hear)
        self._library.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type:  # the list ends with an event of type 0
            if events[index].type == _PHONEME:
                name = events[index].name.decode(errors="replace").lstrip(_STRESS)
                self._phonemes.append((name, events[index].sample))
            index += 1
        return 0

    def speak(self, utterance: Utterance) -> Speech:
        self._samples.clear()
        self._phonemes.clear()
        library = self._library
        failed = library.espeak_SetVoiceByName(utterance.voice.encode())
        for parameter, value in ((_RATE, utterance.rate), (_PITCH, utterance.pitch), (_RANGE, utterance.range)):
            failed = failed or library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(utterance.seed))
        text = utterance.text.encode() + b"\0"
        failed = failed or library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, _UTF8, None, None)
        if failed:
            raise SystemExit(f"espeak-ng refused the voice {utterance.voice!r} or the text (its status is {failed})")
        return Speech(b"".join(self._samples), list(self._phonemes))


def _serve(library: str, voices: str) -> None:
    # The library may print; what it prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    voice = _Library(library, voices)
    answers.write(json.dumps({"rate": voice.rate}) + "\n")
    for line in sys.stdin:
        speech = voice.speak(Utterance(**json.loads(line)))
        answer = {"samples": base64.b64encode(speech.samples).decode(), "phonemes": speech.phonemes}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve(*sys.argv[1:])
