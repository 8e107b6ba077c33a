"""Signals from magnitudes, against librosa and by what the algorithm promises."""

import itertools

import librosa
import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.dsp.griffin_lim import griffin_lim
from jaxaudio.dsp.stft import magnitudes, stft

SIZE, HOP = 256, 64


def spectrum_of(x, **settings):
    return librosa.stft(x, n_fft=SIZE, hop_length=HOP, **settings).T


def distance(y, magnitude, **settings):
    """Spectral convergence: |, | |STFT y| - magnitude |, | over | magnitude |."""
    return np.linalg.norm(np.abs(spectrum_of(np.asarray(y), **settings)) - magnitude) / np.linalg.norm(magnitude)


@pytest.mark.parametrize("momentum", [0.0, 0.99])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_the_signal_is_librosas(mode, momentum, sound, run, close):
    magnitude = np.abs(spectrum_of(sound, pad_mode=mode))
    settings = {"hop_length": HOP, "pad_mode": mode, "momentum": momentum, "init": None, "length": len(sound)}
    theirs = librosa.griffinlim(magnitude.T, n_iter=3, **settings)
    settings = {"momentum": momentum, "padding": "torch" if mode == "reflect" else "librosa"}
    ours = run(griffin_lim, magnitude, size=SIZE, hop=HOP, length=len(sound), iterations=3, **settings)
    close(ours, theirs, 1e-4)  # rounding decides the phase of bins that are nearly 0, in both


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_after_many_iterations_it_is_as_near_as_librosas(momentum, speech, run):
    magnitude = np.abs(spectrum_of(speech))
    settings = {"momentum": momentum, "length": len(speech)}
    theirs = librosa.griffinlim(magnitude.T, n_iter=32, hop_length=HOP, init=None, **settings)
    ours = run(griffin_lim, magnitude, size=SIZE, hop=HOP, iterations=32, **settings)
    np.testing.assert_allclose(distance(ours, magnitude), distance(theirs, magnitude), rtol=1e-2)


def test_iterations_come_nearer_and_the_fast_variant_faster(speech, run):
    magnitude = np.abs(spectrum_of(speech))

    def after(iterations, momentum):
        settings = {"length": len(speech), "iterations": iterations, "momentum": momentum}
        return distance(run(griffin_lim, magnitude, size=SIZE, hop=HOP, **settings), magnitude)

    plain = [after(iterations, 0.0) for iterations in (0, 1, 4, 16, 32)]
    assert all(later < 0.98 * sooner for sooner, later in itertools.pairwise(plain))
    assert after(16, 0.99) < 0.9 * plain[3]
    assert after(32, 0.99) < 0.9 * plain[4]


def test_the_true_phase_gives_the_signal_back(speech, run):
    spectrum = spectrum_of(speech)
    settings = {"length": len(speech), "iterations": 3, "momentum": 0.0}
    start = lambda magnitude, phase: griffin_lim(magnitude, SIZE, HOP, phase=phase, **settings)
    back = run(start, np.abs(spectrum), np.angle(spectrum))
    np.testing.assert_allclose(back, speech, rtol=0, atol=1e-5 * np.abs(speech).max())


def test_specgans_frames_give_a_signal_of_their_length_that_starts_without_a_click(speech, run):
    x = np.resize(speech, 16384)
    magnitude = np.asarray(run(magnitudes, x, size=256, hop=128))
    assert magnitude.shape == (128, 129)
    bent = magnitude * np.exp(0.3 * np.random.default_rng(0).standard_normal(magnitude.shape)).astype(np.float32)
    for wanted, near in ((magnitude, 0.15), (bent, 0.4)):
        y = run(griffin_lim, wanted, size=256, hop=128, length=16384, padding="tensorflow")
        assert y.shape == (16384,)
        assert np.abs(y[:128]).max() < 2 * np.abs(x).max()
        ours = np.abs(run(stft, y, size=256, hop=128, padding="tensorflow"))
        assert np.linalg.norm(ours - magnitude) < near * np.linalg.norm(magnitude)


def test_silence_gives_silence(run):
    y = run(griffin_lim, np.zeros((2, 17, 129), np.float32), size=SIZE, hop=HOP, length=1024)
    np.testing.assert_array_equal(y, np.zeros((2, 1024)))


def test_another_number_of_frames_is_refused(run):
    with pytest.raises(InputError, match="magnitude has 16 frames: 1024 samples at size 256, hop 64 .* have 17"):
        run(griffin_lim, np.ones((16, 129), np.float32), size=SIZE, hop=HOP, length=1024)
