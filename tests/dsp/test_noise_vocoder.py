"""The noise vocoder by what it promises: powers, envelopes, noise, and how near it comes to speech."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import soundfile

from jaxaudio.core import InputError
from jaxaudio.dsp import noise_vocoder as module
from jaxaudio.dsp.noise_vocoder import noise_vocoder
from jaxaudio.metrics.pairs import multi_resolution_stft

RATE = 16000
vocode = jax.jit(noise_vocoder, static_argnums=(2, 3, 4))


def through(x, bands=16, seed=0, envelope_ms=12.0):
    """Of one sound [time]."""
    return np.asarray(
        vocode(jnp.asarray(x, jnp.float32)[None, :, None], jax.random.key(seed), RATE, bands, envelope_ms)
    )[0, :, 0]


def mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)


@pytest.mark.parametrize("bands", [1, 2, 16, 64])
def test_the_powers_of_the_bands_add_up_to_1_and_each_is_as_wide_in_mels(bands):
    place = module._places(2048, RATE, bands)
    responses = np.stack([module._response(jnp.asarray(place), band, bands) for band in range(bands)])
    np.testing.assert_allclose(np.sum(responses**2, 0), 1, atol=1e-6)
    at = mel(np.arange(1025) * RATE / 2048) / mel(RATE / 2) * bands
    for band, response in enumerate(responses):
        np.testing.assert_allclose(response[(at > band + 0.13) & (at < band + 0.87)], 1, atol=1e-6)
        np.testing.assert_allclose(response[(at < band - 0.13) | (at > band + 1.13)], 0, atol=1e-6)


@pytest.mark.parametrize("band", [1, 5, 14])
def test_a_tone_becomes_noise_of_its_power_in_its_band_alone(band):
    edges = 700 * (10 ** (np.linspace(0, mel(RATE / 2), 17) / 2595) - 1)
    low, high = edges[band : band + 2]
    tone = 0.5 * np.sin(np.pi * (low + high) * np.arange(4 * RATE) / RATE)
    made = through(tone)
    hertz, power = scipy.signal.periodogram(made, RATE, window="hann")
    beyond = (high - low) * module.CROSSFADE / 2 + 10
    assert power[(hertz < low - beyond) | (hertz > high + beyond)].sum() < 1e-3 * power.sum()
    assert np.sqrt(np.mean(made**2)) == pytest.approx(np.sqrt(np.mean(tone**2)), rel=0.12)
    inside = power[(hertz > low + beyond) & (hertz < high - beyond)]
    assert np.std(inside) == pytest.approx(np.mean(inside), rel=0.25), "its spectrum is that of noise"


def test_the_envelope_is_that_of_the_sound_smoothed_by_the_window_and_comes_without_delay():
    time = np.arange(2 * RATE) / RATE
    click = np.zeros(2 * RATE)
    click[RATE] = 1.0
    draws = np.mean([through(click, 4, seed) ** 2 for seed in range(12)], 0)
    centre = np.sum(time * draws) / draws.sum()
    assert centre == pytest.approx(1.0, abs=1e-3)
    assert draws[np.abs(time - 1) > 0.008].sum() < 0.02 * draws.sum()

    swelling = (1 + np.cos(2 * np.pi * 5 * time)) * np.sin(2 * np.pi * 3000 * time) / 2
    draws = np.mean([through(swelling, 4, seed) ** 2 for seed in range(12)], 0)
    expected = (1 + np.cos(2 * np.pi * 5 * time)) ** 2 / 8
    smooth = lambda x: np.convolve(x, np.ones(320) / 320, "same")[320:-320]
    np.testing.assert_allclose(smooth(draws), smooth(expected), atol=0.08)


@pytest.mark.parametrize("width", [192.0, 265.0, 3.0])
def test_envelopes_are_averaged_under_a_hann_window_of_that_length(width):
    size = 1024
    taps = np.fft.fftshift(np.fft.irfft(module._smoothing(size, width), size))
    offset = np.arange(-size // 2, size // 2)
    expected = np.where(np.abs(offset) < width / 2, 0.5 + 0.5 * np.cos(2 * np.pi * offset / width), 0)
    np.testing.assert_allclose(taps, expected / expected.sum(), atol=1e-7)
    assert taps.sum() == pytest.approx(1, abs=1e-6)


def test_rows_and_channels_have_noise_of_their_own_that_the_key_tells():
    x = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((1, 4000, 1)), jnp.float32)
    both = jnp.tile(x, (2, 1, 2))
    made = vocode(both, jax.random.key(0), RATE, 16)
    assert made.shape == both.shape
    np.testing.assert_allclose(vocode(both[:1], jax.random.key(0), RATE, 16), made[:1], atol=1e-6)
    sounds = np.concatenate([np.moveaxis(made, 2, 1).reshape(4, -1), vocode(x, jax.random.key(1), RATE, 16)[..., 0]])
    assert np.abs(np.corrcoef(sounds) - np.eye(5)).max() < 0.1
    np.testing.assert_allclose(vocode(3 * both, jax.random.key(0), RATE, 16), 3 * made, rtol=1e-4, atol=1e-6)


def test_silence_stays_silent_and_a_loud_end_does_not_wrap_to_the_beginning():
    np.testing.assert_array_equal(through(np.zeros(4000)), 0)
    x = np.zeros(2**13)
    x[-3000:] = 0.5 * np.sin(2 * np.pi * 500 * np.arange(3000) / RATE)
    made = through(x, 64)
    assert np.abs(made[:1000]).max() < 1e-3
    assert np.abs(made[-2000:]).max() > 0.3


def test_speech_is_as_near_as_a_trial_with_as_many_bands_was_and_nearer_with_more(recordings):
    files = sorted((recordings / "speech22k" / "valid").rglob("*.flac"))[:4]
    speech = np.stack([soundfile.read(path, frames=40000, dtype="float32")[0] for path in files])
    distance = {}
    for bands in (4, 16, 64):
        made = vocode(jnp.asarray(speech)[..., None], jax.random.key(0), 22050, bands)[..., 0]
        distance[bands] = multi_resolution_stft(jnp.asarray(speech), made, 22050).mean()
    assert distance[16] < 1.64
    assert distance[64] < 1.40
    assert distance[64] < 0.9 * distance[16] < 0.8 * distance[4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((RATE, 0, 12.0), "bands is 0"),
        ((RATE, 16, 0.0), "envelope_ms 0.0"),
        ((RATE, 300, 12.0), "300 bands at 16000 Hz: the lowest is narrower than 10 Hz"),
    ],
)
def test_bands_that_there_can_not_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            partial(noise_vocoder, sample_rate=settings[0], bands=settings[1], envelope_ms=settings[2]),
            jnp.zeros((1, 100, 1)),
            jax.random.key(0),
        )
