"""Levels, against librosa, scipy and pyloudnorm."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
from jax.test_util import check_grads

from jaxaudio.core import InputError
from jaxaudio.dsp.loudness import SILENCE, a_weighting, integrated_loudness, k_weighted, rms


def steps(rate, *levels, seed=0):
    """Noise of 0.6 s at every one of these amplitudes: [time, 1]."""
    noise = np.random.default_rng(seed).standard_normal((len(levels), rate * 6 // 10)).astype(np.float32)
    return (noise * np.array(levels, np.float32)[:, None]).reshape(-1, 1)


def test_a_weighting_is_librosas(run):
    frequencies = np.array([0.5, 10, 20, 100, 440, 1000, 2500, 8000, 20000, 22050], np.float32)
    np.testing.assert_allclose(
        run(a_weighting, frequencies), librosa.A_weighting(frequencies.astype(np.float64)), rtol=1e-5, atol=1e-4
    )
    assert run(a_weighting, np.zeros(1, np.float32)) == -80


@pytest.mark.parametrize(("padding", "settings"), [("librosa", {}), ("torch", {"pad_mode": "reflect"}), ("valid", {})])
def test_rms_is_librosas(padding, settings, sound, run, close):
    settings = {"frame_length": 512, "hop_length": 200, "center": padding != "valid", **settings}
    close(run(rms, sound, size=512, hop=200, padding=padding), librosa.feature.rms(y=sound, **settings)[0])


def test_the_gradient_of_rms_is_that_of_finite_differences_and_0_at_silence(run):
    f = jax.jit(lambda x: rms(jnp.asarray(x), 16, 5))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(50), jnp.float32)
    check_grads(f, (x,), order=1, modes=["fwd", "rev"], eps=1e-2)
    np.testing.assert_array_equal(run(jax.grad(lambda x: jnp.sum(rms(x, 16, 5))), np.zeros(50, np.float32)), 0)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_the_weighting_by_fft_is_the_recursion(rate, run, close):
    iirfilter = pytest.importorskip("pyloudnorm.iirfilter")
    stages = [(4.0, 0.5**0.5, 1500.0, rate, "high_shelf"), (0.0, 0.5, 38.0, rate, "high_pass")]
    x = np.random.default_rng(0).standard_normal((2, 5000)) + 1
    x[:, -1] = 100  # a wrapped tail would show at the start
    theirs = x
    for stage in stages:
        biquad = iirfilter.IIRfilter(*stage)
        theirs = scipy.signal.lfilter(biquad.b, biquad.a, theirs)
    close(run(k_weighted, x.astype(np.float32), sample_rate=rate), theirs, 1e-6)


@pytest.mark.parametrize(
    ("rate", "levels", "cut"),
    [
        (16000, (0.1,), 3000),  # two blocks and three quarters
        (8000, (0.1, 0.012, 0.3, 0.0, 0.0), 200),  # quiet and silent parts: both gates decide
        (8000, (0.3, 0.06, 0.06, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5), 0),  # the absolute gate moves the other
        (48000, (0.001, 0.01), 700),
        (44100, (0.2, 0.1), 10),
    ],
)
def test_the_loudness_is_pyloudnorms(rate, levels, cut, run):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    x = steps(rate, *levels)[cut:]
    theirs = pyloudnorm.Meter(rate).integrated_loudness(x.astype(np.float64))
    np.testing.assert_allclose(run(integrated_loudness, x, sample_rate=rate), theirs, rtol=1e-5)


def test_the_loudness_of_speech_and_of_five_channels_is_pyloudnorms(speech, run):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    five = np.stack([np.roll(speech, 1000 * n) * 0.7**n for n in range(5)], -1)
    batch = np.stack([five, five[::-1]])
    meter = pyloudnorm.Meter(16000)
    theirs = [meter.integrated_loudness(x.astype(np.float64)) for x in batch]
    np.testing.assert_allclose(run(integrated_loudness, batch, sample_rate=16000), theirs, rtol=1e-5)
    only = run(integrated_loudness, speech[:, None], sample_rate=16000)
    np.testing.assert_allclose(only, meter.integrated_loudness(speech.astype(np.float64)), rtol=1e-5)


def test_a_sine_of_full_scale_at_997_hz_is_3_01_below_full_scale(run):
    sine = np.sin(2 * np.pi * 997 * np.arange(48000) / 48000)[:, None].astype(np.float32)
    np.testing.assert_allclose(run(integrated_loudness, sine, sample_rate=48000), -3.01, atol=0.05)


def test_silence_has_the_loudness_of_the_absolute_gate_and_no_gradient(run):
    loudness = lambda x: integrated_loudness(x, 8000)
    for x in (np.zeros((4000, 2), np.float32), steps(8000, 1e-5)):
        value, gradient = run(jax.value_and_grad(loudness), x)
        np.testing.assert_allclose(value, SILENCE, rtol=1e-6)
        np.testing.assert_array_equal(gradient, 0)


def test_the_gradient_of_loudness_is_that_of_finite_differences(run):
    x = steps(8000, 0.1, 0.03, 0.0)
    way = steps(8000, 0.01, 0.001, 1e-6, seed=1) + 0.05 * x
    loudness = jax.jit(lambda x: integrated_loudness(x, 8000))
    slope = np.vdot(jax.jit(jax.grad(loudness))(jnp.asarray(x)), way)
    difference = (loudness(jnp.asarray(x + 0.1 * way)) - loudness(jnp.asarray(x - 0.1 * way))) / 0.2
    np.testing.assert_allclose(slope, difference, rtol=1e-3)
    # Twice the amplitude is 6.02 dB whatever the signal, so the slope along it is 20 / ln 10.
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loudness))(jnp.asarray(x)), x), 20 / np.log(10), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "rate", "message"),
    [
        ((3199, 1), 8000, "a signal of 3199 samples: loudness needs a block of 3200 .400 ms.; pass a longer one"),
        ((8000, 6), 8000, "6 channels: BS.1770 weighs at most 5; mix down first"),
        ((8000, 1), 11025, "sample_rate is 11025 Hz: loudness needs a multiple of 10, resample first"),
    ],
)
def test_what_has_no_loudness_is_told(shape, rate, message):
    with pytest.raises(InputError, match=message):
        integrated_loudness(jnp.zeros(shape), rate)
