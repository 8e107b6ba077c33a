"""The filter bank: it rebuilds, it separates, and it does so in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.dsp import pqmf


def decibels(original, rebuilt, edge):
    inside = slice(edge, -edge)
    error = np.sum((original[:, inside] - rebuilt[:, inside]) ** 2)
    return 10 * np.log10(np.sum(original[:, inside] ** 2) / error)


def noise(samples, rows=2):
    return np.random.default_rng(0).standard_normal((rows, samples)).astype(np.float32)


@pytest.mark.parametrize("bands", [4, 16])
def test_a_signal_comes_back_120_db_above_its_error(bands):
    x = noise(bands * 200)
    rebuilt = np.asarray(pqmf.synthesise(pqmf.analyse(jnp.asarray(x), bands)))
    assert decibels(x, rebuilt, pqmf.SPAN * bands) > 120


def test_without_looking_ahead_it_comes_back_as_late_as_stated():
    x, edges = noise(16 * 200), (pqmf.PAST, 0)
    rebuilt = np.asarray(pqmf.synthesise(pqmf.analyse(jnp.asarray(x), 16, edges), edges))
    late = np.pad(x, ((0, 0), (pqmf.PAST * 16, 0)))[:, : x.shape[1]]
    assert decibels(late, rebuilt, pqmf.SPAN * 16) > 120
    ahead = np.array(x)
    ahead[:, 1600:] = 0
    same = np.asarray(pqmf.analyse(jnp.asarray(ahead), 16, edges))[:, :100]
    np.testing.assert_array_equal(same, np.asarray(pqmf.analyse(jnp.asarray(x), 16, edges))[:, :100])


def test_the_filters_are_those_of_cosine_modulation():
    """Against the definition, sample by sample: band k of a signal is its convolution with filter k, every 16th."""
    bands, x = 16, noise(16 * 60, 1)[0]
    taps, time = pqmf.prototype(bands), np.arange(256) - 127.5
    found = np.asarray(pqmf.analyse(jnp.asarray(x[None]), bands, (pqmf.PAST, 0)))[0]
    for band in (0, 1, 7, 15):
        angle = (2 * band + 1) * np.pi / 32 * time + (-1) ** band * np.pi / 4
        filtered = np.convolve(x, np.sqrt(2) * taps * np.cos(angle))[15 : len(x) : 16]
        turned = filtered * (-1.0) ** (np.arange(60) * (band % 2))
        np.testing.assert_allclose(found[:, band], turned, atol=2e-6)


@pytest.mark.parametrize("bands", [4, 16, 32])
def test_the_prototype_rebuilds_exactly_and_stops_60_db_down(bands):
    taps = pqmf.prototype(bands)
    np.testing.assert_allclose(taps, taps[::-1])
    for k in range(bands):
        pair = [taps[k :: 2 * bands], taps[k + bands :: 2 * bands]]
        power = sum(np.correlate(part, part, "full") for part in pair)
        np.testing.assert_allclose(power, np.eye(1, 15, 7)[0] / bands, atol=1e-6)
    response = np.abs(np.fft.rfft(taps, 1 << 14))
    beyond = response[int(1.0 * (1 << 13) / bands) :].max() / response[0]
    assert 20 * np.log10(beyond) < -58


def test_a_tone_rises_in_frequency_within_every_band():
    time = np.arange(16 * 256)
    for band in (2, 3):
        peaks = []
        for place in (0.25, 0.75):
            tone = np.sin(np.pi * (band + place) / 16 * time)[None].astype(np.float32)
            spectrum = np.abs(np.fft.rfft(np.asarray(pqmf.analyse(jnp.asarray(tone), 16))[0, 32:-32, band]))
            peaks.append(spectrum.argmax() / (len(spectrum) - 1))
        np.testing.assert_allclose(peaks, (0.25, 0.75), atol=0.02)


def test_the_gradient_is_the_transposed_map():
    x, u = jnp.asarray(noise(320, 1)), jax.random.normal(jax.random.key(1), (1, 20, 16))
    y, back = jax.vjp(lambda x: pqmf.analyse(x, 16), x)
    assert float(jnp.vdot(y, u)) == pytest.approx(float(jnp.vdot(x, back(u)[0])), rel=1e-4)


def test_what_is_no_whole_number_of_frames_or_of_band_pairs_is_refused():
    with pytest.raises(InputError, match="330 samples"):
        pqmf.analyse(jnp.zeros((1, 330)), 16)
    with pytest.raises(InputError, match="bands is 5"):
        pqmf.prototype(5)
