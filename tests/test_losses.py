"""Distances between sounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.losses import spectral_distance, spectral_energy_distance


def sounds(seed, label):
    """Tones whose pitch range is their label's, with noise: [n, 2048, 1]."""
    rng = np.random.default_rng(seed)
    pitch = (300 * 2.0 ** (1 + np.asarray(label)) + rng.uniform(-100, 100, len(label)))[:, None]
    tone = np.sin(2 * np.pi * pitch * np.arange(2048) / 16000 + rng.uniform(0, 6, (len(label), 1)))
    return jnp.asarray((0.3 * tone + 0.01 * rng.standard_normal(tone.shape))[..., None], jnp.float32)


def test_a_sound_is_at_no_distance_from_itself_and_channels_count_alike():
    a, b = sounds(0, [0, 1]), sounds(1, [1, 0])
    np.testing.assert_allclose(spectral_distance(a, a), 0)
    stereo = spectral_distance(jnp.concatenate([a, a], -1), jnp.concatenate([a, b], -1))
    np.testing.assert_allclose(stereo, spectral_distance(a, b) / 2, rtol=1e-4)


@pytest.mark.parametrize("order", ["cyclic", "sorted", "random"])
def test_the_energy_distance_of_one_distribution_is_nothing_in_whatever_order_labels_come(order):
    label = np.arange(240) % 4
    label = {"cyclic": label, "sorted": np.sort(label), "random": np.random.default_rng(0).permutation(label)}[order]
    same = float(jnp.mean(spectral_energy_distance(sounds(0, label), sounds(1, label))))
    other = float(jnp.mean(spectral_energy_distance(sounds(0, label), sounds(1, label) * 0.1)))
    assert abs(same) < 0.05
    assert other > 0.5


def test_spectral_distance_has_finite_gradients_for_silence():
    quiet = jnp.zeros((1, 2048, 1))
    assert np.isfinite(jax.grad(lambda x: spectral_distance(x, sounds(0, [1])).sum())(quiet)).all()
