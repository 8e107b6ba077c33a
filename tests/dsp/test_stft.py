"""Spectrograms against librosa."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxaudio.dsp.stft import frames, magnitudes


@pytest.mark.parametrize(("size", "hop"), [(128, 32), (256, 64), (1024, 256)])
@pytest.mark.parametrize("length", [4096, 5000])
def test_magnitudes_are_librosas(size, hop, length):
    x = np.random.default_rng(0).standard_normal((2, length)).astype(np.float32)
    theirs = np.abs(librosa.stft(x, n_fft=size, hop_length=hop, center=False)).transpose(0, 2, 1)
    ours = magnitudes(jnp.asarray(x), size, hop)[:, : theirs.shape[1]]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_signal_shorter_than_the_window_is_one_frame_of_it_and_zeros():
    x = jnp.ones((1, 100))
    (spectrum,) = magnitudes(x, 256, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    np.testing.assert_allclose(spectrum[0], np.abs(np.fft.rfft(window * (np.arange(256) < 100))), rtol=1e-4, atol=1e-4)


def test_frames_are_every_stretch_that_lies_within():
    x = jnp.arange(23)
    want = [range(start, start + 8) for start in range(0, 16, 2)]
    np.testing.assert_array_equal(frames(x.astype(jnp.float32), 8, 2), np.array(want))


def test_the_gradient_of_silence_is_finite():
    gradient = jax.grad(lambda x: jnp.sum(jnp.log(magnitudes(x, 128, 32) + 1e-2)))(jnp.zeros((1, 512)))
    assert np.isfinite(gradient).all()
