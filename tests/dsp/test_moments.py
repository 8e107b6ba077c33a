"""Means and deviations per bin, against numpy in double precision."""

import jax.numpy as jnp
import numpy as np

from jaxaudio.dsp.moments import moments, restore, standardise

BINS = 5


def spectra(n, offset=0.0, seed=0):
    """n spectrograms of 40 frames: every bin has a mean and a deviation of its own, and they drift from row to row."""
    rng, bin_ = np.random.default_rng(seed), np.arange(1, BINS + 1)
    drift = 0.3 * np.arange(n).reshape(n, 1, 1)
    return (offset + bin_ + drift + bin_ / 3 * rng.standard_normal((n, 40, BINS))).astype(np.float32)


def of(*waves):
    return moments(lambda x: x, waves, BINS)


def truth(x):
    """Mean and deviation over all rows and frames."""
    flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return flat.mean(0), flat.std(0)


def test_the_moments_are_numpys_however_the_waves_are_batched():
    x = spectra(9)
    for cuts in ((), (1,), (1, 2, 7)):
        measured = of(*np.split(x, cuts))
        for ours, theirs in zip((measured["mean"], measured["deviation"]), truth(x), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_frames_and_channels_of_a_spectrogram_all_count():
    x = spectra(6).reshape(3, 2, 40, BINS)
    measured = of(x)
    for ours, theirs in zip((measured["mean"], measured["deviation"]), truth(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_without_a_wave_they_are_zero_and_one():
    measured = of()
    np.testing.assert_array_equal(measured["mean"], np.zeros(BINS))
    np.testing.assert_array_equal(measured["deviation"], np.ones(BINS))
    assert {value.dtype for value in measured.values()} == {jnp.dtype("float32")}


def test_a_large_offset_costs_no_precision_of_the_deviation():
    x = spectra(8, -1e3)
    measured = of(x[:3], x[3:])
    for ours, theirs in zip((measured["mean"], measured["deviation"]), truth(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_standardised_data_has_mean_zero_and_deviation_one_in_every_bin():
    x = spectra(6)
    mean, deviation = truth(standardise(jnp.asarray(x), of(x)))
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    np.testing.assert_allclose(deviation, 1, rtol=1e-5)


def test_restoring_inverts_standardising():
    x, other = jnp.asarray(spectra(2)), of(spectra(4, 2.0, seed=1))
    np.testing.assert_allclose(restore(standardise(x, other), other), x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(standardise(restore(x, other), other), x, rtol=1e-5, atol=1e-5)


def test_a_constant_bin_is_not_divided_by_zero():
    x = spectra(4)
    x[..., 2:4] = 0, np.log(np.float32(1e-6))  # the second has no exact mean
    measured = of(x[:1], x[1:])
    y = standardise(jnp.asarray(x), measured)
    assert float(jnp.max(jnp.abs(y[..., 2:4]))) <= 3, "rounding is not blown up"
    np.testing.assert_allclose(restore(y, measured), x, rtol=1e-5, atol=1e-6)
