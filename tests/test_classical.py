"""Baselines of restoration: closed forms, sounds whose repair is known, and what must stay as it was."""

import numpy as np
import pytest
import scipy.signal

from benchmarks import classical as C

RATE = 16000


def snr(real, made):
    return 10 * np.log10(np.sum(real**2) / np.sum((real - made) ** 2))


def bursts(seconds=3.0):
    """Tones that come and go, as syllables do: [1, time]."""
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hz * time) / hz for hz in (230, 460, 920, 1840))
    return 60 * (tones * (scipy.signal.square(2 * np.pi * 2 * time, 0.4) > 0))[None]


def noisy(clean, snr_db, seed=0):
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    return clean + noise * np.sqrt(np.mean(clean**2) / np.mean(noise**2) * 10 ** (-snr_db / 10))


@pytest.mark.parametrize("length", [300, 16000, 16123])
def test_spectra_are_joined_to_the_sound_they_are_of(length):
    x = np.random.default_rng(0).standard_normal((2, length)) * 0.1
    frames, joined = C.spectra(x, RATE)
    assert frames.shape[2] == C._sizes(RATE)[0] // 2 + 1
    np.testing.assert_allclose(joined(frames), x, atol=1e-6)


def test_stationary_noise_is_taken_off_tones_that_come_and_go():
    clean = bursts()
    for level, least in ((0, 10), (10, 5)):
        x = noisy(clean, level)
        better, simpler = (snr(clean, f(x, RATE)) - level for f in (C.wiener, C.spectral_subtraction))
        assert better > least
        assert simpler > 0.7 * least
    pause = slice(round(0.3 * RATE), round(0.45 * RATE))
    assert np.std(C.wiener(x, RATE)[0, pause]) < 0.3 * np.std(x[0, pause])


@pytest.mark.parametrize("denoise", [C.wiener, C.spectral_subtraction])
def test_every_row_is_denoised_by_itself_and_at_any_level(denoise):
    x = np.concatenate([noisy(bursts(1.0), 5), noisy(bursts(1.0), 0, 1)])
    both = denoise(x, RATE)
    np.testing.assert_allclose(denoise(x[1:], RATE), both[1:], atol=1e-6)
    np.testing.assert_allclose(denoise(0.01 * x, RATE), 0.01 * both, rtol=1e-3, atol=1e-7)
    assert (denoise(np.zeros((1, 4000)), RATE) == 0).all()


def test_the_noise_is_the_minimum_times_the_bias_and_a_burst_does_not_raise_it():
    frames = round(4.0 * RATE / C._sizes(RATE)[1])
    power = np.full((1, frames, 3), 2.0, np.float32) * np.array([1, 10, 0], np.float32)
    np.testing.assert_allclose(C.noise_powers(power, RATE), C.BIAS * power, rtol=1e-5)
    short = round(0.4 * C.MEMORY_S * RATE / C._sizes(RATE)[1])
    loud = power.copy()
    loud[:, 100 : 100 + short] *= 1000
    np.testing.assert_allclose(C.noise_powers(loud, RATE), C.BIAS * power, rtol=1e-5)
    lasting = power.copy()
    lasting[:, frames // 2 :] *= 1000
    assert (C.noise_powers(lasting, RATE)[:, -1, :2] > 900 * C.BIAS * power[:, 0, :2]).all(), "it follows what lasts"


def test_the_decision_directed_gain_is_the_recursion_of_its_paper():
    rng = np.random.default_rng(0)
    power, noise = rng.exponential(3.0, (1, 20, 1)), rng.uniform(0.5, 1.5, (1, 20, 1))
    gains, before, least = [], max(power[0, 0, 0] - noise[0, 0, 0], 0), 10 ** (C.LEAST_SNR_DB / 10)
    for y, n in zip(power.ravel(), noise.ravel(), strict=True):
        ratio = max(C.ALPHA * before / n + (1 - C.ALPHA) * max(y / n - 1, 0), least)
        gains.append(ratio / (1 + ratio))
        before = gains[-1] ** 2 * y
    np.testing.assert_allclose(C.decision_directed(power, noise).ravel(), gains, rtol=1e-12)
    np.testing.assert_allclose(C.decision_directed(noise, noise), least / (1 + least), rtol=1e-9)
    np.testing.assert_allclose(C.decision_directed(power, 0 * noise), 1)


def test_the_gain_of_subtraction_is_beroutis():
    noise = np.ones((1, 1, 4))
    for over, level_db in ((100, 20), (4, 10 * np.log10(4)), (1e6, 20)):
        left = 1 - (C.SUBTRACTED - C.SLOPE * level_db) / over
        assert C.subtraction_gain(over * noise, noise)[0, 0, 0] == pytest.approx(np.sqrt(left))
    assert C.subtraction_gain(noise, noise)[0, 0, 0] == pytest.approx(np.sqrt(C.REST))


def tone(hz, seconds=0.5, seed=0):
    phase = np.random.default_rng(seed).uniform(0, 6)
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE + phase)


def test_linear_prediction_goes_on_with_tones_and_a_copy_with_what_repeats():
    x = np.stack([tone(313) + 0.3 * tone(1271), tone(200), tone(100)])
    for length in (320, 800):
        real = x[:, 3000 : 3000 + length]
        assert snr(real, C.linear_predicted(x, 3000, length, RATE)) > 30
        assert snr(real[1:], C.copied(x[1:], 3000, length, RATE)) > 60
        assert snr(real, C.copied(x, 3000, length, RATE)) > 3
        assert (C.zeros(x, 3000, length, RATE) == 0).all()


def test_noise_that_fills_a_gap_has_the_level_and_the_colour_around_it():
    rng = np.random.default_rng(0)
    dull = scipy.signal.lfilter([1], [1, -0.95], 0.01 * rng.standard_normal((20, 8000)))
    filled = C.noise_excited(dull, 3000, 800, RATE)
    assert 20 * np.log10(np.std(filled) / np.std(dull)) == pytest.approx(0, abs=0.5)
    lag = lambda x: np.mean(x[:, 1:] * x[:, :-1]) / np.mean(x**2)
    assert lag(filled) == pytest.approx(lag(dull), abs=0.03)
    assert np.abs(np.corrcoef(filled.ravel(), dull[:, 3000:3800].ravel())[0, 1]) < 0.1
    risen = dull * np.where(np.arange(8000) < 3400, 1, 10)
    parts = C.noise_excited(risen, 3000, 800, RATE)
    assert 5 < np.std(parts[:, -80:]) / np.std(parts[:, :80]) < 20, "it passes from the one level into the other"


@pytest.mark.parametrize("name", C.FILLINGS)
def test_what_a_gap_holds_is_never_used(name):
    x = np.random.default_rng(0).standard_normal((2, 8000)) * 0.1
    other = x.copy()
    other[:, 3000:3320] = 9.0
    fill = C.FILLINGS[name]
    np.testing.assert_array_equal(fill(x, 3000, 320, RATE), fill(other, 3000, 320, RATE))


def test_cubic_splines_mend_a_clipped_tone_and_leave_the_rest_as_it_was():
    x = np.stack([tone(440), tone(700, seed=1)])
    for share, least in ((0.3, 5), (0.5, 14), (0.8, 20)):
        level = share * np.abs(x).max(1, keepdims=True)
        clipped = np.clip(x, -level, level)
        made = C.declipped(clipped)
        lost = np.abs(clipped) >= level
        assert snr(x, made) > snr(x, clipped) + least
        np.testing.assert_array_equal(made[~lost], clipped[~lost])
        assert (np.abs(made) >= np.abs(clipped)).all()
        assert (np.abs(made) <= np.maximum(np.abs(clipped), C.HIGHEST * level)).all()
        assert (made * clipped >= 0).all()
    assert (C.declipped(np.zeros((1, 100))) == 0).all()
    edge = np.clip(np.linspace(-2, 2, 50), -1, 1)[None]
    np.testing.assert_array_equal(C.declipped(edge), edge)
