"""The ear: 40 log energies of a mel filter bank for every 10 ms of sound."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

BANDS = 40
WINDOW_S = 0.025
HOPS = 100
"""Windows that begin in a second."""
_LOWEST_HZ = 60.0
_HIGHEST_HZ = 8000.0
_QUIET = np.float32(1.0)
"""Added to every energy, in units of 16-bit samples squared, so that the logarithm of digital silence is finite."""

Floats = npt.NDArray[np.float32]


def frame_centres(samples: int, rate: int) -> npt.NDArray[np.int64]:
    """The sample in the middle of each frame; whole windows only, so a sound shorter than 25 ms has no frame.

    `samples` is the length of the sound, `rate` its samples per second.
    """
    return _starts(samples, rate) + _window_length(rate) // 2


def log_energies(sound: Floats, rate: int) -> Floats:
    """The log energies of `sound`.

    `sound` is float32 of shape (samples,), in units of 16-bit samples; `rate` is its samples per second. Returns
    float32 of shape (frames, 40), natural logarithms; frame i is centred at `frame_centres(...)[i]`.
    """
    starts = _starts(len(sound), rate)
    if not len(starts):
        return np.empty((0, BANDS), np.float32)
    window, rising, falling, edges, points = _design(rate)
    frames = np.lib.stride_tricks.sliding_window_view(sound, len(window))[starts] * window
    spectrum = np.fft.rfft(frames, points)
    power = (spectrum.real**2 + spectrum.imag**2)[:, edges[0] : edges[-1]]
    # Between two centres one filter falls and the next one rises. Sums over these segments are single-threaded, which a
    # product with the matrix of filters is not: its last bits could depend on the number of threads.
    segments = edges[:-1] - edges[0]
    up = np.add.reduceat(power * rising, segments, axis=1)
    down = np.add.reduceat(power * falling, segments, axis=1)
    energies: Floats = np.log(up[:, :-1] + down[:, 1:] + _QUIET)
    return energies


def _window_length(rate: int) -> int:
    return round(WINDOW_S * rate)


def _starts(samples: int, rate: int) -> npt.NDArray[np.int64]:
    # Integer arithmetic: at 22,050 samples per second a hop is 220.5 of them, and must not drift.
    frames = (samples - _window_length(rate)) * HOPS // rate + 1 if samples >= _window_length(rate) else 0
    return np.arange(frames, dtype=np.int64) * rate // HOPS


@lru_cache(maxsize=4)
def _design(rate: int) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64], int]:
    """The window, the weights of bins in rising and falling filters, where segments begin, and the FFT's length."""
    length = _window_length(rate)
    points = -(-length // 128) * 128
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (_LOWEST_HZ, min(_HIGHEST_HZ, rate / 2)))
    mel = np.linspace(lowest, highest, BANDS + 2)
    edges_hz = 700 * (10 ** (mel / 2595) - 1)
    bins_hz = np.arange(points // 2 + 1) * rate / points
    edges = np.searchsorted(bins_hz, edges_hz)
    # In the lowest bands a segment may be narrower than a bin; each still needs one of its own.
    bands = np.arange(len(edges))
    edges = np.maximum.accumulate(edges - bands) + bands
    segment = np.repeat(np.arange(BANDS + 1), np.diff(edges))
    width = np.diff(edges)[segment]
    rising = (np.arange(edges[0], edges[-1]) - edges[segment] + 0.5) / width
    window = np.hanning(length + 2)[1:-1]
    return (window.astype(np.float32), rising.astype(np.float32), (1 - rising).astype(np.float32), edges, points)
