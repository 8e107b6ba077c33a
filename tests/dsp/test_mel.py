"""Mel filters, logarithms, cepstra and their inverse, against librosa."""

from functools import partial

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from jaxaudio.core import InputError
from jaxaudio.dsp.mel import log_mel, mel_filters, mel_inverse, mfcc

SIZE, HOP = 512, 128


def log_mels(filters, **settings):
    return partial(log_mel, filters=filters, size=SIZE, hop=HOP, **settings)


def inverse(filters):
    return partial(mel_inverse, filters=filters)


@pytest.fixture(scope="module")
def filters():
    return mel_filters(16000, SIZE, 40)


@pytest.fixture(scope="module")
def magnitude(speech):
    """Of speech: [frames, bins]."""
    return np.abs(librosa.stft(speech, n_fft=SIZE, hop_length=HOP)).T


@pytest.mark.parametrize(
    ("rate", "size", "n_mels", "low", "high"),
    [(16000, 512, 40, 0.0, None), (22050, 1024, 80, 0.0, 8000.0), (44100, 2047, 60, 55.0, 14000.0)],
)
@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", ["slaney", None])
def test_filters_are_librosas(rate, size, n_mels, low, high, scale, norm, close):
    settings = {"sr": rate, "n_fft": size, "n_mels": n_mels, "fmin": low, "fmax": high, "norm": norm}
    theirs = librosa.filters.mel(**settings, htk=scale == "htk")
    close(mel_filters(rate, size, n_mels, low, high, scale, norm), theirs.T, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16000, 512, 40, 0.0, 8001.0), "from 0.0 to 8001.0 Hz: .* at most 8000.0 Hz"),
        ((16000, 512, 40, 500.0, 500.0), "from 500.0 to 500.0 Hz"),
        ((16000, 512, 40, -1.0), "from -1.0 to 8000.0 Hz"),
        ((16000, 512, 0), "n_mels is 0"),
    ],
)
def test_filters_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        mel_filters(*arguments)


@pytest.mark.filterwarnings("ignore:Empty filters:UserWarning")
@pytest.mark.parametrize("size", [63, 100])
def test_bands_without_a_bin_are_counted_and_refused(size):
    empty = np.sum(librosa.filters.mel(sr=16000, n_fft=size, n_mels=40).max(1) == 0)
    assert empty > 0
    with pytest.raises(InputError, match=f"^{empty} of 40 mel bands hold no bin of .* longer window or fewer mels"):
        mel_filters(16000, size, 40)


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
def test_log_mels_are_librosas(power, sound, filters, run, close):
    settings = {"sr": 16000, "n_fft": SIZE, "hop_length": HOP, "n_mels": 40}
    theirs = librosa.feature.melspectrogram(y=sound, power=power, **settings)
    ours = run(log_mels(filters, power=power), sound)
    close(ours, np.log(np.maximum(theirs, 1e-5)).T)


def test_log_mels_take_the_padding_the_window_and_the_floor(noise, filters, run, close):
    settings = {"n_fft": SIZE, "hop_length": HOP, "n_mels": 40, "power": 1, "center": False, "window": "hamming"}
    theirs = librosa.feature.melspectrogram(y=noise, sr=16000, **settings)
    floor = float(np.median(theirs))
    ours = run(log_mels(filters, floor=floor, padding="valid", window="hamming"), noise)
    close(ours, np.log(np.maximum(theirs, floor)).T)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_silence_is_the_floor_and_its_gradient_zero(power, filters, run):
    levels = log_mels(filters, power=power)
    silence = np.zeros(1000, np.float32)
    np.testing.assert_allclose(run(levels, silence), np.log(1e-5), rtol=1e-6)
    np.testing.assert_array_equal(run(jax.grad(lambda x: jnp.sum(levels(x))), silence), 0)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_gradient_of_log_mels_is_that_of_finite_differences(power):
    bands = mel_filters(16000, 64, 5)
    f = jax.jit(lambda x: log_mel(jnp.asarray(x), bands, 64, 24, power))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(150), jnp.float32)
    check_grads(f, (x,), order=1, modes=["fwd", "rev"], eps=1e-2, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("n", [1, 13, 40])
def test_cepstra_are_librosas(n, magnitude, filters, run, close):
    levels = np.log(np.maximum(magnitude @ filters, 1e-5))
    theirs = librosa.feature.mfcc(S=levels.T, n_mfcc=n)
    close(run(mfcc, levels, n=n), theirs.T)


def test_as_many_cepstra_as_mels_keep_distances(run):
    levels = np.random.default_rng(0).standard_normal((2, 7, 40)).astype(np.float32)
    lengths = np.linalg.norm(run(mfcc, levels, n=40), axis=-1)
    np.testing.assert_allclose(lengths, np.linalg.norm(levels, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("n", [0, 41])
def test_more_cepstra_than_mels_are_refused(n):
    with pytest.raises(InputError, match=f"n is {n} coefficients: 40 mels give 1 to 40"):
        mfcc(jnp.zeros((3, 40)), n)


def residual(magnitude, filters, mels):
    return np.linalg.norm(np.asarray(magnitude, np.float64) @ filters - mels) / np.linalg.norm(mels)


@pytest.mark.parametrize("distortion", [0.0, 0.2, 1.0])
def test_the_inverse_of_mels_is_no_farther_than_librosas(distortion, magnitude, filters, run):
    bend = np.exp(distortion * np.random.default_rng(0).standard_normal((len(magnitude), 40)))
    mels = (magnitude @ filters * bend).astype(np.float32)
    theirs = librosa.feature.inverse.mel_to_stft(mels.T, sr=16000, n_fft=SIZE, power=1.0).T
    ours = run(inverse(filters), mels)
    assert np.min(ours) >= 0
    assert residual(ours, filters, mels) <= 1.1 * residual(theirs, filters, mels)


@pytest.mark.parametrize("norm", ["slaney", None])
def test_the_inverse_of_a_lone_band_is_nearly_the_closest(norm, run):
    filters = mel_filters(16000, SIZE, 40, norm=norm)
    mels = np.eye(40, dtype=np.float32)  # the bands overlap: no spectrum fills one alone
    best = np.array([scipy.optimize.nnls(filters.T.astype(np.float64), band)[0] for band in mels])
    assert residual(best, filters, mels) > 0.05
    assert residual(run(inverse(filters), mels), filters, mels) < 1.03 * residual(best, filters, mels)


def test_the_inverse_of_mels_of_magnitudes_has_these_mels(magnitude, filters, run):
    mels = magnitude @ filters
    assert residual(run(inverse(filters), mels), filters, mels) < 1e-4
    assert residual(run(partial(mel_inverse, filters=filters, iterations=300), mels), filters, mels) < 1e-6


def test_the_inverse_is_exact_where_every_bin_is_a_band(run):
    magnitude = np.abs(np.random.default_rng(0).standard_normal((2, 3, 9))).astype(np.float32)
    filters = np.diag(np.linspace(0.01, 1, 9)).astype(np.float32)
    np.testing.assert_allclose(run(inverse(filters), magnitude @ filters), magnitude, rtol=1e-4, atol=1e-5)


def test_the_inverse_of_silence_is_silence(filters, run):
    np.testing.assert_array_equal(run(inverse(filters), np.zeros((3, 40), np.float32)), 0)
