"""PESQ, STOI and ViSQOL: their packages' own numbers, the pairs they cannot rate, and several processes."""

import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from jaxaudio.core import InputError
from jaxaudio.metrics import listeners, pairs
from tests.metrics.test_pairs import RATE, noisy, sounds


def burst(seconds, start=0.3, rate=RATE):
    """One second with noise of this length in it: [1, time]."""
    time = np.arange(rate) / rate
    noise = 0.1 * np.random.default_rng(0).standard_normal(rate)
    return jnp.asarray(noise * ((time >= start) & (time < start + seconds)), jnp.float32)[None]


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_pesq_is_the_wide_band_one_of_its_package_at_16_khz(rate):
    pesq = pytest.importorskip("pesq")
    a = sounds(0, 2, 1.0, rate)
    b = noisy(a, 1)
    expected = []
    for x, y in zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True):
        x, y = (s if rate == 16000 else soxr.resample(s, rate, 16000, quality="HQ") for s in (x, y))
        expected.append(pesq.pesq(16000, x, y, "wb"))
    np.testing.assert_allclose(pairs.pesq_wide(a, b, rate), expected, rtol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_stoi_is_the_plain_one_of_its_package(rate):
    pystoi = pytest.importorskip("pystoi")
    a = sounds(0, 2, 1.0, rate)
    b = noisy(a, 1)
    expected = [
        pystoi.stoi(np.asarray(x, np.float64), np.asarray(y, np.float64), rate) for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(pairs.stoi(a, b, rate), expected, rtol=1e-6)


@pytest.mark.parametrize(("mode", "rate"), [("audio", 48000), ("speech", 16000)])
def test_visqol_is_the_one_of_its_package_at_the_rate_of_its_mode(mode, rate):
    visqol = pytest.importorskip("visqol")
    a = sounds(0, 1, 1.0, 24000)
    b = noisy(a, 1)
    api = visqol.VisqolApi()
    api.create(mode=mode, use_lattice_model=False)
    x, y = (soxr.resample(np.asarray(s[0], np.float64), 24000, rate, quality="HQ") for s in (a, b))
    found = getattr(pairs, f"visqol_{mode}")(a, b, 24000)
    np.testing.assert_allclose(found, api.measure_from_arrays(x, y, rate).moslqo, rtol=1e-6)
    assert 1 < found[0] < 5


def test_a_word_too_short_to_rate_is_refused_and_left_out_instead_of_counting_as_unintelligible():
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    clips = jnp.concatenate([burst(0.6), burst(0.1)])
    with pytest.raises(pairs.UndefinedRows, match="row 1: .* less than 0.4 s of sound"):
        pairs.stoi(clips, noisy(clips, 0), RATE)
    values, rows = pairs.measure("stoi", clips, noisy(clips, 0), RATE)
    assert values[0] > 0.9
    np.testing.assert_array_equal(rows, [0])
    with pytest.raises(pairs.UndefinedRows, match="row 1: .* has no utterance"):
        pairs.pesq_wide(clips, noisy(clips, 0, 0.01), RATE)


def test_visqol_rates_a_word_that_begins_late():
    pytest.importorskip("visqol")
    clip = burst(0.1, start=0.9)
    assert 1 <= pairs.visqol_speech(clip, noisy(clip, 0), RATE)[0] <= 5


def test_pesq_refuses_what_makes_its_implementation_write_past_its_tables():
    pytest.importorskip("pesq")
    long = jnp.ones((1, 20 * RATE + 1))
    with pytest.raises(InputError, match=r"got 20.0 s: it rates at most 20 s"):
        pairs.pesq_wide(long, long, RATE)


def test_several_processes_give_what_one_does_row_by_row(monkeypatch):
    pytest.importorskip("pesq")
    a = np.asarray(jnp.concatenate([sounds(0, 2), burst(0.05), sounds(1, 2)]), np.float64)
    b = a + 0.003 * np.random.default_rng(0).standard_normal(a.shape) * (1 + np.arange(5)[:, None])
    alone = listeners.rate("pesq", a, b, RATE)
    assert np.isnan(alone[2])
    assert np.isfinite(alone[[0, 1, 3, 4]]).all()
    monkeypatch.setattr(listeners, "ALONE", 1.0)
    np.testing.assert_array_equal(listeners.rate("pesq", a, b, RATE), alone)


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(listeners, "ALONE", 1.0)
    x = np.zeros((2, RATE))
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        listeners.rate("nobody", x, x, RATE)
