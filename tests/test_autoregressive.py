"""Draws and likelihoods of codes and of mixtures of logistics, against exact distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.autoregressive import (
    coarse_fine,
    cumulative,
    log_likelihood,
    mixture_log_likelihood,
    mixture_pick,
    pick,
    uniforms,
)
from jaxaudio.core import InputError

EVEN = (np.arange(4096) + 0.5) / 4096  # what uniform numbers are on average
LEVELS = 2**16


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def softmax(x):
    weight = np.exp(x - x.max())
    return weight / weight.sum()


def shares(logits, **options):
    """How often each level is picked as the uniform number goes evenly over its range."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[None], (len(EVEN), len(logits)))
    picked = jax.jit(lambda rows, u: pick(rows, u, **options))(rows, jnp.asarray(EVEN, jnp.float32))
    return np.bincount(picked, minlength=len(logits)) / len(EVEN)


# ---------------------------------------------------------------------------------------------------------- of codes


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_level_is_picked_as_often_as_its_probability_says(temperature):
    logits = 2 * normal(48)
    np.testing.assert_allclose(shares(logits, temperature=temperature), softmax(logits / temperature), atol=1 / 4096)


def test_a_level_is_picked_in_the_order_of_the_cumulative_probability_and_never_beyond_the_last():
    logits = jnp.asarray(normal(3, 32), jnp.float32)
    for u in (0.0, 0.3, 1 - 2**-24):
        summed = np.cumsum(jax.nn.softmax(logits, -1), -1)
        np.testing.assert_array_equal(pick(logits, jnp.full(3, u)), np.minimum((summed <= u).sum(-1), 31))
    certain = jnp.full((1, 32), -1e4).at[0, 7].set(1e4)
    assert {int(pick(certain, jnp.array([u]))[0]) for u in (0.0, 0.5, 1 - 2**-24)} == {7}


def test_temperature_0_picks_the_most_likely_level_whatever_the_number():
    logits = jnp.asarray(normal(5, 16), jnp.float32)
    for u in (0.0, 0.99):
        np.testing.assert_array_equal(pick(logits, jnp.full(5, u), 0.0), np.argmax(logits, -1))


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9])
def test_top_p_keeps_the_fewest_levels_that_have_this_probability(top_p):
    logits = 2 * normal(32)
    probability = softmax(logits)
    order = np.argsort(-probability)
    count = int(np.searchsorted(np.cumsum(probability[order]), top_p)) + 1
    wanted = np.zeros(32)
    wanted[order[:count]] = probability[order[:count]] / probability[order[:count]].sum()
    np.testing.assert_allclose(shares(logits, top_p=top_p), wanted, atol=1 / 4096)


def test_top_p_looks_at_what_the_temperature_made_of_the_logits():
    logits = np.log(np.array([0.5, 0.3, 0.2] + [1e-9] * 13))
    cold = np.array([0.25, 0.09, 0.04])
    np.testing.assert_allclose(shares(logits, temperature=0.5, top_p=0.8)[:3], [25 / 34, 9 / 34, 0], atol=1 / 4096)
    assert cold[:2].sum() / cold.sum() > 0.8 > 0.5 + 0.2, "at temperature 1 it would be two levels of other shares"


@pytest.mark.parametrize("shape", [(16,), (3, 32), (2, 3, 256)])
def test_the_cumulative_sum_is_numpys(shape):
    x = np.abs(normal(*shape)).astype(np.float32)
    np.testing.assert_allclose(cumulative(jnp.asarray(x)), np.cumsum(x, -1), rtol=1e-5)


def test_the_log_likelihood_is_that_of_the_softmax_and_so_is_its_gradient():
    logits, codes = normal(4, 3, 16), np.random.default_rng(0).integers(0, 16, (4, 3))
    probability = np.apply_along_axis(softmax, -1, logits)
    chosen = np.eye(16)[codes]
    given = jnp.asarray(logits, jnp.float32), jnp.asarray(codes)
    np.testing.assert_allclose(log_likelihood(*given), np.log((probability * chosen).sum(-1)), rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(log_likelihood(x, given[1])))(given[0])
    np.testing.assert_allclose(slope, chosen - probability, atol=1e-6)


def test_uniform_numbers_do_not_depend_on_how_a_range_is_cut_and_on_other_rows():
    key = jax.random.key(7)
    whole = uniforms(key, 0, 10, 3, 2)
    assert whole.shape == (10, 2, 3)
    parts = [uniforms(key, 0, 4, 3, 2), uniforms(key, jnp.int32(4), 6, 3, 2)]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    np.testing.assert_array_equal(uniforms(key, 0, 10, 2, 2), whole[:, :, :2])
    assert len(np.unique(whole)) == whole.size
    many = np.asarray(uniforms(key, 0, 2000, 2, 1)).ravel()
    assert many.min() >= 0
    assert many.max() < 1
    np.testing.assert_allclose(np.histogram(many, 4, (0, 1))[0] / len(many), 0.25, atol=0.03)


def test_two_bytes_are_the_code():
    upper, lower = coarse_fine(jnp.arange(LEVELS))
    np.testing.assert_array_equal(upper * 256 + lower, np.arange(LEVELS))
    assert int(lower.max()) == int(upper.max()) == 255


# ------------------------------------------------------------------------------------------- of mixtures of logistics


def parameters(seed=0, components=4, scale=-3.0):
    rng = np.random.default_rng(seed)
    of_components = rng.normal(size=components), rng.uniform(-1, 1, components), scale + rng.normal(size=components)
    return np.concatenate(of_components)


def exact(given, codes, levels):
    """In double precision, from the cumulative distribution itself, on the side where it is small."""
    logits, mean, log_scale = np.split(np.asarray(given, np.float64), 3)
    level = 2 * np.asarray(codes, np.float64)[:, None] / (levels - 1) - 1
    below, above = ((level + side / (levels - 1) - mean) / np.exp(log_scale) for side in (-1, 1))
    below = np.where(np.asarray(codes)[:, None] == 0, -np.inf, below)
    above = np.where(np.asarray(codes)[:, None] == levels - 1, np.inf, above)
    turned = below + above > 0
    below, above = np.where(turned, -above, below), np.where(turned, -below, above)
    with np.errstate(over="ignore", divide="ignore"):
        cell = 1 / (1 + np.exp(-above)) - 1 / (1 + np.exp(-below))
        return np.log(cell @ softmax(logits))


@pytest.mark.parametrize("scale", [-8.0, -3.0, 2.0])
def test_the_probabilities_of_all_codes_sum_to_1(scale):
    given = jnp.asarray(parameters(scale=scale), jnp.float32)
    all_codes = lambda levels: mixture_log_likelihood(jnp.tile(given[None], (levels, 1)), jnp.arange(levels), levels)
    for levels in (LEVELS, 16):
        total = np.sum(np.exp(np.asarray(jax.jit(all_codes, static_argnums=0)(levels), np.float64)))
        assert total == pytest.approx(1, abs=1e-3 if scale == -8 else 1e-4)


@pytest.mark.parametrize("scale", [-9.0, -5.0, -1.0, 3.0])
@pytest.mark.parametrize("levels", [LEVELS, 32])
def test_a_mixtures_likelihood_is_the_difference_of_its_distribution_function(levels, scale):
    codes = np.unique(np.concatenate([np.linspace(0, levels - 1, 60).astype(int), [1, levels - 2]]))
    given = parameters(1, scale=scale).astype(np.float32)
    found = mixture_log_likelihood(jnp.tile(jnp.asarray(given)[None], (len(codes), 1)), jnp.asarray(codes), levels)
    wanted = exact(given, codes, levels)
    seen = np.isfinite(wanted)
    assert seen.sum() > 5
    np.testing.assert_allclose(np.asarray(found)[seen], wanted[seen], rtol=2e-4, atol=2e-4)
    assert np.isfinite(found).all(), "far from all components it is small, but not 0"


def test_the_likelihoods_gradient_is_that_of_finite_differences_and_finite_for_any_scale():
    given, codes = parameters(2, scale=-4.0), np.array([0, 20000, 65535])
    tiled = lambda p: jnp.tile(p[None], (len(codes), 1))
    total = lambda p: jnp.sum(mixture_log_likelihood(tiled(p), jnp.asarray(codes), LEVELS))
    slope = jax.grad(total)(jnp.asarray(given, jnp.float32))
    for i in range(len(given)):
        step = 1e-4 * np.eye(len(given))[i]
        wanted = np.sum(exact(given + step, codes, LEVELS) - exact(given - step, codes, LEVELS)) / 2e-4
        assert float(slope[i]) == pytest.approx(wanted, rel=2e-3, abs=1e-3)
    for log_scale in (-40.0, 20.0):
        extreme = jnp.asarray(given, jnp.float32).at[8:].set(log_scale)
        assert np.isfinite(total(extreme))
        assert np.isfinite(jax.grad(total)(extreme)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_mixture_have_its_distribution(temperature):
    given = parameters(3, scale=-2.5)
    logits, mean, log_scale = np.split(given, 3)
    rng = np.random.default_rng(0)
    numbers = jnp.asarray(rng.uniform(size=(2, 40000)).astype(np.float32))
    tiled = jnp.tile(jnp.asarray(given, jnp.float32)[None], (40000, 1))
    drawn = np.sort(jax.jit(mixture_pick, static_argnums=2)(tiled, numbers, temperature))
    edges = np.linspace(-0.95, 0.95, 20)
    sharp = np.exp(-log_scale) / temperature
    function = (1 / (1 + np.exp(-(edges[:, None] - mean) * sharp))) @ softmax(logits / temperature)
    np.testing.assert_allclose(np.searchsorted(drawn, edges) / len(drawn), function, atol=0.01)
    assert abs(drawn).max() <= 1


def test_a_draw_of_a_mixture_is_finite_for_every_number_and_symmetric():
    given = jnp.tile(jnp.asarray([0.0, 0.0, -3.0])[None], (2, 1))
    ends = mixture_pick(given, jnp.array([[0.5, 0.5], [0.0, 1 - 2**-23]]))
    assert float(ends[0]) == pytest.approx(-float(ends[1]), rel=1e-5)
    assert float(ends[1]) == pytest.approx(np.exp(-3) * np.log(2**24 - 1), rel=1e-4)


def test_temperature_0_draws_the_mean_of_the_most_likely_component():
    given = jnp.asarray([[0.0, 2.0, 1.0, -0.5, 0.25, 0.75, 0.0, 1.0, 2.0]])
    for u in (0.0, 0.9):
        assert float(mixture_pick(given, jnp.full((2, 1), u), 0.0)[0]) == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"temperature": -0.1}, "temperature is -0.1"), ({"temperature": float("inf")}, "temperature is inf"),
     ({"top_p": 0.0}, "top_p is 0.0"), ({"top_p": 1.1}, "top_p is 1.1")],
)  # fmt: skip
def test_temperatures_and_shares_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(zoo.load("samplernn:tiny"), **fields)
