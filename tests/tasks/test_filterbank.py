"""40 log energies for every 10 ms."""

import numpy as np
import pytest

from distbelief.tasks.filterbank import BANDS, frame_centres, log_energies

RATE = 22050


def tone(hz: float, seconds: float = 0.5) -> np.ndarray:
    return (1000 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def test_frames_are_ten_milliseconds_apart_and_do_not_drift() -> None:
    centres = frame_centres(RATE * 60, RATE)
    assert len(centres) == 5998
    hops = centres / RATE - np.arange(len(centres)) * 0.01
    assert np.ptp(hops) <= 1 / RATE
    assert centres[-1] + 551 // 2 < RATE * 60


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (550, 0), (551, 1), (771, 1), (772, 2)])
def test_only_whole_windows_count(samples: int, frames: int) -> None:
    assert len(frame_centres(samples, RATE)) == frames
    assert log_energies(np.ones(samples, np.float32), RATE).shape == (frames, BANDS)


def test_a_higher_tone_is_heard_in_a_higher_band() -> None:
    loudest = [int(log_energies(tone(hz), RATE).mean(0).argmax()) for hz in (100, 300, 800, 2000, 4000, 7000)]
    assert loudest == sorted(set(loudest))


def test_energies_are_finite_float32_even_in_silence() -> None:
    energies = log_energies(np.zeros(RATE, np.float32), RATE)
    assert energies.dtype == np.float32
    assert np.all(energies == 0)


def test_ten_times_the_amplitude_is_a_hundred_times_the_energy() -> None:
    louder = log_energies(10 * tone(1000), RATE) - log_energies(tone(1000), RATE)
    band = log_energies(tone(1000), RATE).mean(0).argmax()
    np.testing.assert_allclose(louder[:, band], np.log(100), atol=1e-3)
