"""Distances between sounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import losses
from jaxaudio.losses import (
    feature_distance,
    hinge,
    hinge_made,
    least_squares,
    least_squares_made,
    margin,
)

spectral_distance = jax.jit(losses.spectral_distance)
spectral_energy_distance = jax.jit(losses.spectral_energy_distance)
mel_distance = jax.jit(losses.mel_distance, static_argnums=(2, 3, 4))
resolution_distance = jax.jit(losses.resolution_distance, static_argnums=2)


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
    slope = jax.jit(jax.grad(lambda x: spectral_distance(x, sounds(0, [1])).sum()))
    assert np.isfinite(slope(quiet)).all()


def maps(seed, scale=1.0):
    """Of two critics, the second of which folds three phases into its rows."""
    rng = np.random.default_rng(seed)
    shapes = [[(4, 5, 2), (4, 3, 1)], [(12, 6, 2), (12, 2, 3), (12, 4, 1)]]
    return [[jnp.asarray(scale * rng.standard_normal(s), jnp.float32) for s in critic] for critic in shapes]


def test_adversarial_losses_are_their_equations_summed_over_critics():
    real, fake = maps(0), maps(1)
    last = lambda found: [np.asarray(critic[-1]) for critic in found]
    squares = sum(np.mean((1 - r) ** 2) + np.mean(f**2) for r, f in zip(last(real), last(fake), strict=True))
    np.testing.assert_allclose(least_squares(real, fake), squares, rtol=1e-5)
    np.testing.assert_allclose(least_squares_made(fake), sum(np.mean((1 - f) ** 2) for f in last(fake)), rtol=1e-5)
    rise = lambda x: np.mean(np.maximum(0, x))
    margins = sum(rise(1 - r) + rise(1 + f) for r, f in zip(last(real), last(fake), strict=True))
    np.testing.assert_allclose(hinge(real, fake), margins, rtol=1e-5)
    np.testing.assert_allclose(margin(fake, -1), sum(rise(1 + f) for f in last(fake)), rtol=1e-5)
    np.testing.assert_allclose(hinge_made(fake), -sum(np.mean(f) for f in last(fake)), rtol=1e-4)


def test_features_leave_the_scores_out_and_recordings_are_not_pulled():
    real, fake = maps(0), maps(1)
    pairs = [(a, b) for r, f in zip(real, fake, strict=True) for a, b in zip(r[:-1], f[:-1], strict=True)]
    expected = sum(np.mean(np.abs(a - b)) for a, b in pairs)
    np.testing.assert_allclose(feature_distance(real, fake), expected, rtol=1e-5)
    ends = sum(np.mean(np.abs(np.asarray(r[-1]) - np.asarray(f[-1]))) for r, f in zip(real, fake, strict=True))
    np.testing.assert_allclose(feature_distance(real, fake, whole=True), expected + ends, rtol=1e-5)
    by_real, by_fake = jax.grad(feature_distance, (0, 1))(real, fake)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(by_real))
    assert all(np.asarray(critic[0]).any() and not np.asarray(critic[-1]).any() for critic in by_fake)


def test_the_mel_distance_is_that_of_librosas_mels():
    librosa = pytest.importorskip("librosa")
    a, b = sounds(0, [0, 1]), sounds(1, [1, 0])
    found = mel_distance(a, b, 16000, (256, 1024), (20, 80))
    for row in range(2):
        total = 0.0
        for size, count in ((256, 20), (1024, 80)):
            given = {"sr": 16000, "n_fft": size, "hop_length": size // 4, "n_mels": count, "power": 1.0}
            heard = [
                librosa.feature.melspectrogram(y=np.asarray(x)[row, :, 0], pad_mode="reflect", **given) for x in (a, b)
            ]
            levels = [np.log10(np.maximum(mels, 1e-5)) for mels in heard]
            total += np.mean(np.abs(levels[0] - levels[1]))
        assert float(found[row]) == pytest.approx(total, rel=1e-4)
    np.testing.assert_array_equal(mel_distance(a, a, 16000, (256,), (20,)), 0)


def test_the_resolution_distance_is_its_equations_and_silence_has_a_gradient():
    a, b = sounds(0, [0, 1]), sounds(1, [1, 0])
    found = resolution_distance(a, b, (128, 512))
    for row in range(2):
        total = 0.0
        for size in (128, 512):
            x, y = (np.abs(spectrum(np.asarray(s)[row, :, 0], size)) for s in (a, b))
            total += np.linalg.norm(x - y) / np.linalg.norm(x)
            total += np.mean(np.abs(np.log(np.maximum(x, 1e-4)) - np.log(np.maximum(y, 1e-4))))
        assert float(found[row]) == pytest.approx(total / 2, rel=1e-4)
    quiet = jnp.zeros((1, 2048, 1))
    slope = jax.jit(jax.grad(lambda x, other: resolution_distance(other, x, (128,))[0]))
    for other in (quiet, a[:1]):
        assert np.isfinite(slope(quiet, other)).all()


def spectrum(x, size):
    """[frames, bins] of a sound [time], its ends mirrored."""
    padded = np.pad(x, size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 4]
    return np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)))
