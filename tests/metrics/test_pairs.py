"""Scores of pairs against closed forms and independent implementations, and what silence does to them."""

import importlib.util
import warnings

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from jaxaudio.core import InputError
from jaxaudio.metrics import pairs

RATE = 16000
PACKAGES = {"pesq_wide": "pesq", "stoi": "pystoi", "visqol_audio": "visqol", "visqol_speech": "visqol"}
FAST = [name for name in pairs.METRICS if "visqol" not in name]
OWN = [name for name in pairs.METRICS if name not in PACKAGES]


def sounds(seed, rows=2, seconds=1.0, rate=RATE):
    """Noise bursts of changing colour and level, all of it audible: [rows, time]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    noise = rng.standard_normal((rows, len(time)))
    dull = scipy.signal.lfilter([1], [1, -0.9], noise)
    swell = np.sin(2 * np.pi * (3 + np.arange(rows))[:, None] * time) ** 2
    return jnp.asarray(0.05 * (swell * dull + 0.3 * (1 - swell) * noise), jnp.float32)


def noisy(x, seed, level=0.1):
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return x + jnp.asarray(level * np.std(np.asarray(x), axis=1, keepdims=True) * noise, jnp.float32)


def needs(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return pairs.METRICS[name].metric


def spectra(x, size):
    """Magnitudes as torch.stft's with center=True: [bins, frames]."""
    x = np.pad(np.asarray(x, np.float64), size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[:: size // 4]
    return np.abs(np.fft.rfft(frames * scipy.signal.get_window("hann", size))).T


def test_the_mel_distance_is_the_descript_codecs_with_bands_that_hold_no_bin():
    rate = 96000
    a = sounds(0, 1, 0.1, rate)
    b = noisy(a, 1)
    total = 0
    for mels, size in zip([5, 10, 20, 40, 80, 160, 320], [32, 64, 128, 256, 512, 1024, 2048], strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Empty filters")
            filters = librosa.filters.mel(sr=rate, n_fft=size, n_mels=mels)
        assert size < 2048 or (filters.max(1) == 0).any()
        logs = [np.log10(np.maximum(filters @ spectra(x[0], size), 1e-5)) for x in (a, b)]
        total += np.mean(np.abs(logs[0] - logs[1]))
    assert pairs.mel_distance(a, b, rate)[0] == pytest.approx(total, rel=1e-4)


def test_the_stft_distance_is_that_of_logarithms_and_of_magnitudes():
    a = sounds(0, 1, 0.3)
    b = noisy(a, 1)
    total = 0
    for size in (2048, 512):
        x, y = spectra(a[0], size), spectra(b[0], size)
        total += np.mean(np.abs(np.log10(np.maximum(x, 1e-5) ** 2) - np.log10(np.maximum(y, 1e-5) ** 2)))
        total += np.mean(np.abs(x - y))
    assert pairs.stft_distance(a, b, RATE)[0] == pytest.approx(total, rel=1e-4)


def test_the_multi_resolution_distance_is_spectral_convergence_and_logarithms_as_by_torch():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    a = sounds(0, 2, 0.3)
    a = a.at[1, 1000:3000].set(0)  # below the floor
    b = noisy(a, 1)
    expected = np.zeros(2)
    for size, hop, width in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        for i, pair in enumerate(zip(a, b, strict=True)):
            how = {"window": torch.hann_window(width, dtype=torch.float64), "return_complex": True}
            x, y = (torch.stft(torch.tensor(np.asarray(s, np.float64)), size, hop, width, **how) for s in pair)
            x, y = (z.abs().square().clamp(min=1e-7).sqrt() for z in (x, y))
            expected[i] += torch.linalg.norm(x - y) / torch.linalg.norm(x) + (x.log() - y.log()).abs().mean()
    np.testing.assert_allclose(pairs.multi_resolution_stft(a, b, RATE), expected / 3, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(pairs._multi_resolution_stft)(a, b), expected / 3, rtol=1e-4)


def test_the_multi_resolution_distance_of_white_noises_is_the_closed_form_and_silence_counts_as_70_decibels():
    rng = np.random.default_rng(0)
    noises = jnp.asarray(0.1 * rng.standard_normal((2, 4 * RATE)), jnp.float32)
    closed = np.sqrt(2 - np.pi / 2) + np.log(2)  # of magnitudes that are Rayleigh distributed
    assert pairs.multi_resolution_stft(noises[:1], noises[1:], RATE)[0] == pytest.approx(closed, abs=0.01)

    silence, level = jnp.zeros((1, 4 * RATE)), 10 ** (-70 / 20)
    far = pairs.multi_resolution_stft(silence, 10 * level * noises[:1], RATE)[0]  # a level of 0.1 each: -70 dB
    logs = np.mean([np.log(level * 1e7**0.5 * np.sqrt(np.sum(np.hanning(n) ** 2))) for n in (600, 1200, 240)])
    rayleigh = -np.euler_gamma / 2  # the mean of ln of a Rayleigh variable of mean square 1
    assert far == pytest.approx(1 + logs + rayleigh, abs=0.08)
    half = pairs.multi_resolution_stft(level * 5 * noises[:1], silence, RATE)[0]
    assert half == pytest.approx(0.5 + logs + rayleigh - np.log(2), abs=0.08)
    rounding = jnp.asarray(rng.uniform(-0.5, 0.5, (1, 4 * RATE)) / 32768, jnp.float32)
    assert pairs.multi_resolution_stft(silence, rounding, RATE)[0] < 0.02, "what 16 bits round off is silence"


def test_the_log_spectral_distance_is_the_rms_of_level_differences_whatever_the_rate():
    for rate, size in ((16000, 512), (22050, 704)):
        a = sounds(0, 2, 0.3, rate).at[1, 1000:3000].set(0)  # below the floor
        b = noisy(a, 1)
        for i in range(2):
            x, y = (10 * np.log10(np.maximum(spectra(s[i], size) ** 2, 1e-7)) for s in (a, b))
            expected = np.mean(np.sqrt(np.mean((x - y) ** 2, 0)))
            assert pairs.log_spectral_distance(a, b, rate)[i] == pytest.approx(expected, rel=1e-4)
    halved = pairs.log_spectral_distance(noisy(sounds(0), 1), 0.5 * noisy(sounds(0), 1), RATE)
    np.testing.assert_allclose(halved, 20 * np.log10(2), atol=0.05)
    draws = jnp.asarray(0.1 * np.random.default_rng(0).standard_normal((2, 2 * RATE)), jnp.float32)
    closed = 10 / np.log(10) * np.pi / np.sqrt(3)  # of powers that are exponentially distributed
    assert pairs.log_spectral_distance(draws[:1], draws[1:], RATE)[0] == pytest.approx(closed, abs=0.1)
    rounding = jnp.asarray(np.random.default_rng(1).uniform(-0.5, 0.5, (1, RATE)) / 32768, jnp.float32)
    assert pairs.log_spectral_distance(0 * rounding, rounding, RATE)[0] < 0.5, "what 16 bits round off is silence"


def test_si_sdr_is_the_ratio_of_powers_for_noise_that_is_orthogonal_whatever_the_scale_and_the_mean():
    time = np.arange(RATE) / RATE
    tone, other = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 700 * time)
    reference = jnp.asarray(np.stack([tone, tone]), jnp.float32) * 0.3
    estimate = jnp.asarray(np.stack([tone + 0.1 * other, -0.01 * tone + 0.01 * other + 0.2]), jnp.float32)
    np.testing.assert_allclose(pairs.si_sdr(reference, estimate, RATE), [20, 0], atol=1e-3)
    np.testing.assert_allclose(pairs.si_sdr(reference - 0.1, 2 * estimate, RATE), [20, 0], atol=1e-3)


def test_si_sdr_stays_within_its_limits():
    time = np.arange(RATE) / RATE
    tone = jnp.asarray(np.sin(2 * np.pi * 440 * time), jnp.float32)[None]
    np.testing.assert_array_equal(pairs.si_sdr(tone, tone, RATE), 100)
    half = jnp.where(np.arange(RATE) < RATE // 2, tone, 0)
    np.testing.assert_array_equal(pairs.si_sdr(half, tone - half, RATE), -100)


def test_the_loudness_difference_is_the_gain_in_decibels():
    x = sounds(0)
    gains = jnp.asarray([[2.0], [0.1]])
    expected = 20 * np.log10(np.asarray(gains)[:, 0])
    np.testing.assert_allclose(pairs.loudness_difference(x, gains * x, RATE), expected, atol=1e-3)


def test_the_envelope_correlation_sees_the_envelope_alone():
    time = np.arange(RATE) / RATE
    rng = np.random.default_rng(0)
    swell = 1 + 0.5 * np.sin(2 * np.pi * 4 * time)
    draws = jnp.asarray(swell * rng.standard_normal((2, RATE)), jnp.float32)
    assert pairs.envelope_correlation(draws[:1], draws[1:], RATE)[0] > 0.95
    against = jnp.asarray((2 - swell) * rng.standard_normal((1, RATE)), jnp.float32)
    assert pairs.envelope_correlation(draws[:1], 0.1 * against, RATE)[0] < -0.95

    x, y = np.asarray(draws, np.float64)
    rms = lambda s: np.sqrt(np.mean(np.lib.stride_tricks.sliding_window_view(s, 320)[::160] ** 2, 1))
    expected = np.corrcoef(rms(x), rms(y))[0, 1]
    assert pairs.envelope_correlation(draws[:1], draws[1:], RATE)[0] == pytest.approx(expected, rel=1e-6)
    assert pairs.envelope_correlation(0.001 * draws[:1], draws[1:], RATE)[0] == pytest.approx(expected, rel=1e-5)


def test_the_spectral_correlation_is_pearsons_over_a_log_mel_spectrogram_so_that_level_counts_for_nothing():
    a = sounds(0, 1)
    b = noisy(a, 1)
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80)
    logs = [np.log(np.maximum(filters @ spectra(x[0], 1024), 1e-5)).ravel() for x in (a, b)]
    expected = np.corrcoef(*logs)[0, 1]
    assert 0.5 < expected < 0.999
    assert pairs.spectral_correlation(a, b, RATE)[0] == pytest.approx(expected, abs=1e-5)
    assert pairs.spectral_correlation(4 * a, b, RATE)[0] == pytest.approx(expected, abs=1e-5)


IDEAL = {
    "mel_distance": 0,
    "stft_distance": 0,
    "multi_resolution_stft": 0,
    "log_spectral_distance": 0,
    "si_sdr": 100,
    "loudness_difference": 0,
    "envelope_correlation": 1,
    "spectral_correlation": 1,
    "pesq_wide": 4.644,
    "stoi": 1,
    "visqol_audio": 4.732,
    "visqol_speech": 5,
}


@pytest.mark.parametrize("name", pairs.METRICS)
def test_a_sound_scores_best_against_itself_and_worse_with_more_noise(name):
    metric, x = needs(name), sounds(3, 1)
    levels = [metric(x, noisy(x, 4, level) if level else x, RATE)[0] for level in (0, 0.3, 1.0)]
    assert levels[0] == pytest.approx(IDEAL[name], abs=2e-3)
    sign = {"lower": 1, "zero": 1, "higher": -1}[pairs.METRICS[name].better]
    assert sign * levels[0] < sign * levels[1] < sign * levels[2]


@pytest.mark.parametrize("name", FAST)
def test_rows_are_scored_each_by_itself_however_many_fit_into_memory(name, monkeypatch):
    metric, a = needs(name), sounds(5, 3)
    b = noisy(a, 6)
    together = metric(a, b, RATE)
    assert together.shape == (3,)
    assert together.dtype == np.float64
    np.testing.assert_allclose([metric(a[i : i + 1], b[i : i + 1], RATE)[0] for i in range(3)], together, 1e-5, 1e-5)
    monkeypatch.setattr(pairs, "BLOCK", 2 * RATE)
    np.testing.assert_allclose(metric(a, b, RATE), together, 1e-5, 1e-5)


@pytest.mark.parametrize("name", FAST)
def test_silence_is_refused_by_name_or_has_a_finite_distance_and_measure_leaves_it_out(name):
    metric, x = needs(name), sounds(7, 3)
    y = noisy(x, 8)
    x, y = x.at[0].set(0), y.at[2].set(0.2)  # a constant is as silent as zeros
    np.testing.assert_array_equal(pairs.audible(x, y), [False, True, False])
    values, rows = pairs.measure(name, x, y, RATE)
    assert np.isfinite(values).all()
    if not pairs.METRICS[name].needs_audible:
        np.testing.assert_array_equal(rows, range(3))
        np.testing.assert_array_equal(values, metric(x, y, RATE))
        return
    np.testing.assert_array_equal(rows, [1])
    np.testing.assert_allclose(values, metric(x[rows], y[rows], RATE), rtol=1e-5)
    with pytest.raises(pairs.UndefinedRows, match=f"{name} is undefined on row 0, 2: a sound of the pair is silent"):
        metric(x, y, RATE)
    silence = jnp.zeros((2, RATE))
    values, rows = pairs.measure(name, silence, silence, RATE)
    assert values.shape == rows.shape == (0,)


def test_distances_of_silence_to_itself_are_nothing():
    silence = jnp.zeros((1, RATE))
    for distance in (pairs.mel_distance, pairs.stft_distance, pairs.multi_resolution_stft):
        np.testing.assert_array_equal(distance(silence, silence, RATE), 0)


def test_audible_begins_at_70_decibels_below_an_amplitude_of_1():
    time = np.arange(RATE) / RATE
    level = jnp.asarray([[1.01], [0.99]]) * 10 ** (-70 / 20) * np.sqrt(2)
    tone = level * jnp.asarray(np.sin(2 * np.pi * 440 * time), jnp.float32)[None]
    loud = jnp.ones_like(tone).at[:, ::2].set(-1)
    np.testing.assert_array_equal(pairs.audible(tone, loud), [True, False])
    np.testing.assert_array_equal(pairs.audible(loud, tone + 0.5), [True, False])


def test_a_sound_below_the_loudness_gate_and_a_steady_one_have_no_loudness_and_no_envelope_to_compare():
    time = np.arange(RATE) / RATE
    hum = jnp.asarray(0.0006 * np.sin(2 * np.pi * 20 * time), jnp.float32)[None]
    assert pairs.audible(hum, hum).all()
    with pytest.raises(pairs.UndefinedRows, match="row 0: .* or below -70 LUFS"):
        pairs.loudness_difference(hum, sounds(0, 1), RATE)
    steady = noisy(jnp.asarray(np.sin(2 * np.pi * 400 * time), jnp.float32)[None], 0, 1e-4)
    behind = jnp.zeros((1, RATE + 100)).at[0, RATE:].set(0.5)  # in no whole window
    longer = jnp.pad(sounds(0, 1), ((0, 0), (0, 100)))
    for x, y in ((sounds(0, 1), steady), (1e-3 * sounds(0, 1), steady), (behind, longer)):
        with pytest.raises(pairs.UndefinedRows, match="row 0: .* or an envelope does not change"):
            pairs.envelope_correlation(x, y, RATE)
    impulse = jnp.zeros((1, 1025)).at[0, ::256].set(0.5)
    assert pairs.measure("spectral_correlation", impulse, impulse, RATE)[0] == pytest.approx(1)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, b[:, :-1]), r"both are \[batch, time\], of one shape"),
        (lambda a, b: (a[:0], b[:0]), "not empty"),
        (lambda a, b: (a, b.at[1, 5].set(jnp.nan)), r"estimate row 1 \(of 1 such\) is not finite"),
        (lambda a, b: (a[:, :1], b[:, :1]), "got 1 samples"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(name, change, message):
    a, b = change(sounds(0), sounds(1))
    with pytest.raises(InputError, match=message):
        pairs.METRICS[name].metric(a, b, RATE)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("mel_distance", 1025),
        ("stft_distance", 1025),
        ("multi_resolution_stft", 1025),
        ("log_spectral_distance", 257),
        ("loudness_difference", 6400),
        ("envelope_correlation", 800),
        ("spectral_correlation", 513),
        ("pesq_wide", 4001),
        ("stoi", 6720),
        ("visqol_audio", 16000),
        ("visqol_speech", 11200),
    ],
)
def test_the_shortest_sound_that_a_metric_takes_is_scored_and_a_shorter_one_refused(name, least):
    metric, x = needs(name), jnp.asarray(np.random.default_rng(0).standard_normal((1, least)), jnp.float32) * 0.1
    x = x * jnp.linspace(0.5, 1, least)[None]
    assert np.isfinite(metric(x, noisy(x, 1), RATE)).all()
    with pytest.raises(InputError, match=f"{name} got {least - 1} samples: it needs {least}"):
        metric(x[:, 1:], x[:, 1:], RATE)


def test_the_table_says_of_each_metric_what_the_scorecard_must_know():
    assert set(IDEAL) == set(pairs.METRICS)
    for name, entry in pairs.METRICS.items():
        assert entry.better in ("lower", "higher", "zero")
        assert entry.convention.endswith(".")
        assert (entry.extra == "metrics") == (name in PACKAGES)
        assert entry.metric is getattr(pairs, name)


def test_a_metric_that_is_unknown_or_a_rate_that_is_none_is_refused():
    x = sounds(0)
    with pytest.raises(InputError, match="'pesq' is unknown: choose one of mel_distance, "):
        pairs.measure("pesq", x, x, RATE)
    with pytest.raises(InputError, match="sample_rate is 0"):
        pairs.si_sdr(x, x, 0)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_way_to_install_it(name, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == PACKAGES[name] else found(module))
    x = sounds(0)
    with pytest.raises(InputError, match=r"pip install -e '\.\[metrics\]'"):
        pairs.METRICS[name].metric(x, x, RATE)
