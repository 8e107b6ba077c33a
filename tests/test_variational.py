"""Gaussian posteriors, their divergence, warm-up and principal components, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.core import average
from jaxaudio.variational import Posterior, divergence, draw, geometric, moments_of, no_moments, posterior, principal


def test_the_divergence_is_that_of_two_gaussians():
    mean, deviation = jnp.array([[[0.5, -2.0]]]), jnp.array([[[0.3, 1.7]]])
    x = np.linspace(-30, 30, 400001)
    log_normal = lambda x, m, s: -(((x - m) / s) ** 2) / 2 - np.log(s * np.sqrt(2 * np.pi))
    for i in range(2):
        m, s = float(mean[0, 0, i]), float(deviation[0, 0, i])
        density = np.exp(log_normal(x, m, s))
        expected = np.trapezoid(density * (log_normal(x, m, s) - log_normal(x, 0, 1)), x)
        assert float(divergence(Posterior(mean, deviation))[0, 0, i]) == pytest.approx(expected, rel=1e-4)
    assert float(divergence(Posterior(jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))))[0, 0, 0]) == 0


def test_draws_have_the_posteriors_moments_and_a_row_depends_on_its_key_alone():
    given = Posterior(jnp.full((3, 20000, 2), 1.5), jnp.full((3, 20000, 2), 0.2))
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = draw(given, keys)
    np.testing.assert_allclose(jnp.mean(drawn, 1), 1.5, atol=0.01)
    np.testing.assert_allclose(jnp.std(drawn, 1), 0.2, rtol=0.03)
    row = draw(Posterior(given.mean[1:2], given.deviation[1:2]), keys[1:2])
    np.testing.assert_allclose(row[0], drawn[1], atol=1e-6)


def test_a_posterior_never_has_no_width():
    given = posterior(jnp.concatenate([jnp.zeros((1, 1, 3)), jnp.full((1, 1, 3), -1e4)], -1))
    assert float(given.deviation.min()) > 0
    assert np.isfinite(divergence(given)).all()


def test_a_weight_grows_by_equal_factors_and_then_stays():
    weights = [float(geometric(jnp.int32(i), 1e-4, 1.0, 4)) for i in range(7)]
    np.testing.assert_allclose(weights, [1e-4, 1e-3, 1e-2, 1e-1, 1, 1, 1], rtol=1e-5)
    assert float(geometric(jnp.int32(0), 0.1, 0.1, 0)) == pytest.approx(0.1)


def test_principal_components_are_those_of_the_frames_that_were_followed():
    rng = np.random.default_rng(0)
    mixing = np.diag([2.0, 1.0, 0.2]) @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    moments = no_moments(3)
    for i in range(60):
        frames = jnp.asarray(rng.standard_normal((8, 200, 3)) @ mixing + [1.0, -2.0, 0.0], jnp.float32)
        moments = average(moments, moments_of(frames, moments["mean"]), 0.95, jnp.int32(i))
    found = principal(moments)
    np.testing.assert_allclose(found.mean, [1, -2, 0], atol=0.05)
    np.testing.assert_allclose(found.spread, [4, 1, 0.04], rtol=0.1)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(3), atol=1e-5)
    components = found.compact(frames)
    np.testing.assert_allclose(jnp.mean(components**2, (0, 1)), found.spread, rtol=0.15)
    np.testing.assert_allclose(found.restore(components), frames, atol=1e-5)
    for way in (found.compact, found.restore):
        assert "Precision.HIGHEST" in str(jax.make_jaxpr(way)(frames)), "an accelerator would round to a few bits"
    assert bool(jnp.all(jnp.max(found.axes, 1) == jnp.max(jnp.abs(found.axes), 1))), "the sign of an axis is fixed"
