"""Codes of waveforms, by their definition and the bound of their error."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.dsp.companding import linear_decode, linear_encode, mu_law_decode, mu_law_encode

GRID = np.linspace(-1, 1, 20001).astype(np.float32)


@pytest.mark.parametrize("levels", [255, 256])
def test_mu_law_codes_are_the_nearest_levels_behind_librosas_curve(levels, run):
    curve = (librosa.mu_compress(GRID.astype(np.float64), mu=levels - 1, quantize=False) + 1) / 2 * (levels - 1)
    codes = run(mu_law_encode, GRID, levels=levels)
    assert codes.dtype == np.int32
    assert (codes.min(), codes.max()) == (0, levels - 1)
    assert np.abs(codes - curve).max() < 0.5 + 1e-4 * levels / 256


@pytest.mark.parametrize("levels", [255, 256])
def test_mu_law_levels_are_librosas(levels, run):
    theirs = librosa.mu_expand(2 * np.arange(levels) / (levels - 1) - 1, mu=levels - 1, quantize=False)
    np.testing.assert_allclose(run(mu_law_decode, np.arange(levels), levels=levels), theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("levels", [2, 255, 256])
def test_the_error_of_mu_law_reaches_its_bound_and_keeps_it(levels, run):
    mu = levels - 1
    error = np.abs(run(lambda x: mu_law_decode(mu_law_encode(x, levels), levels), GRID) - GRID)
    bound = (np.abs(GRID) + 1 / mu) * ((1 + mu) ** (1 / mu) - 1)
    assert (error <= bound * (1 + 1e-4) + 1e-6).all()
    assert (error / bound).max() > 0.9


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_the_error_of_linear_codes_reaches_its_bound_and_keeps_it(levels, run):
    error = np.abs(run(lambda x: linear_decode(linear_encode(x, levels), levels), GRID) - GRID)
    assert 0.9 / (levels - 1) < error.max() <= 1 / (levels - 1) + 2e-7


@pytest.mark.parametrize("levels", [2, 256, 65536])
@pytest.mark.parametrize(("encode", "decode"), [(mu_law_encode, mu_law_decode), (linear_encode, linear_decode)])
def test_every_code_comes_back(encode, decode, levels, run):
    there = lambda codes: decode(codes, levels)
    waves, back = run(lambda codes: (there(codes), encode(there(codes), levels)), np.arange(levels))
    np.testing.assert_array_equal(back, np.arange(levels))
    assert (waves[0], waves[-1]) == (-1, 1)


@pytest.mark.parametrize("encode", [mu_law_encode, linear_encode])
def test_amplitudes_beyond_one_get_the_outermost_codes(encode, run):
    np.testing.assert_array_equal(run(encode, np.array([-7, 7], np.float32)), [0, 255])


@pytest.mark.parametrize("levels", [1, 65537])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(InputError, match=f"levels is {levels}: pass 2 to 65536"):
        mu_law_encode(jnp.zeros(3), levels)
    with pytest.raises(InputError, match=f"levels is {levels}"):
        linear_decode(jnp.zeros(3, int), levels)
