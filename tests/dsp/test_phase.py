"""Phases over time: numpy's unwrapping, and the way to frequencies and back."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxaudio.dsp.phase import instantaneous_frequency, integrate, unwrap


@pytest.fixture(scope="module")
def phase(sound):
    """[2, frames, bins], in [-pi, pi]. Without the real bins: steps of exactly pi may be unwrapped either way."""
    spectrum = librosa.stft(np.stack([sound, sound[::-1]]), n_fft=64, hop_length=16)[:, 1:-1]
    return np.angle(spectrum).swapaxes(1, 2).astype(np.float32)


def test_unwrapped_phases_are_numpys(phase, run):
    theirs = np.unwrap(phase.astype(np.float64), axis=1)
    assert np.abs(theirs).max() > 100
    np.testing.assert_allclose(run(unwrap, phase), theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


def test_steps_of_any_size_unwrap_as_numpys(run):
    steps = np.array([0.5, 0.9, 1.1, 1.9, 2.1, 2.9, 3.1, 5.5]) * np.pi
    phase = np.cumsum(np.concatenate([steps, -steps]))[:, None].astype(np.float32)
    np.testing.assert_allclose(run(unwrap, phase), np.unwrap(phase, axis=0), rtol=0, atol=1e-5)


def test_frequencies_are_the_steps_of_the_unwrapped_phase_over_pi(phase, run):
    unwrapped = np.unwrap(phase.astype(np.float64), axis=1)
    theirs = np.diff(unwrapped, axis=1, prepend=0) / np.pi
    ours = run(instantaneous_frequency, phase)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert np.abs(ours).max() <= 1


def test_a_steady_tone_has_its_frequency_in_every_frame(run):
    cycles = 0.2  # per hop, so 0.4 half turns
    phase = np.angle(np.exp(2j * np.pi * cycles * np.arange(50)))[:, None].astype(np.float32)
    np.testing.assert_allclose(run(instantaneous_frequency, phase)[1:], 2 * cycles, rtol=1e-5)


def test_integrating_gives_the_phase_back_modulo_whole_turns(phase, run):
    back = run(lambda phase: integrate(instantaneous_frequency(phase)), phase)
    assert np.abs(back).max() <= np.float32(np.pi)
    np.testing.assert_allclose(np.abs(np.exp(1j * np.asarray(back)) - np.exp(1j * phase)), 0, atol=1e-5)


def test_integrals_are_partial_sums_modulo_whole_turns(run):
    frequency = np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype(np.float32)
    theirs = np.exp(1j * np.pi * np.cumsum(frequency.astype(np.float64), 0))
    np.testing.assert_allclose(np.exp(1j * np.asarray(run(integrate, frequency))), theirs, rtol=0, atol=1e-5)


def test_gradients_pass_the_wrapping_by(run):
    rng = np.random.default_rng(0)
    phase, pull = (rng.uniform(-3, 3, (2, 9, 4)) for _ in range(2))
    pulled = lambda f: jax.grad(lambda x: jnp.vdot(jnp.asarray(pull, jnp.float32), f(x)))
    phase = phase.astype(np.float32)
    np.testing.assert_allclose(run(pulled(unwrap), phase), pull, rtol=1e-6)
    sums = np.flip(np.cumsum(np.flip(pull, 1), 1), 1) * np.pi
    np.testing.assert_allclose(run(pulled(integrate), phase), sums, rtol=1e-4, atol=1e-5)
    steps = (pull - np.append(pull[:, 1:], np.zeros((2, 1, 4)), 1)) / np.pi
    np.testing.assert_allclose(run(pulled(instantaneous_frequency), phase), steps, rtol=1e-5, atol=1e-6)
