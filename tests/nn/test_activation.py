"""Periodic activations and their hand-written gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.nn.activation import AntiAliased, Snake, SnakeBeta, downsampled, snake, upsampled


def plain(x, a, b):
    """In doubles, as the papers have it."""
    return x + np.sin(a * x) ** 2 / (b + 1e-9)


@pytest.fixture(scope="module")
def given():
    """A signal over many periods, frequencies, amplitudes and what comes back from above; all far from 1."""
    rng = np.random.default_rng(0)
    x, slope = 6 * rng.standard_normal((3, 500, 4)), rng.standard_normal((3, 500, 4))
    return x, np.array([0.3, 1.0, -2.0, 5.0]), np.array([0.7, 1.0, 2.0, 0.2]), slope


def test_values_and_gradients_are_those_of_the_equation(given):
    x, a, b, slope = given
    single = [jnp.asarray(part, jnp.float32) for part in (x, a, b)]
    value, pull = jax.vjp(snake, *single)
    np.testing.assert_allclose(value, plain(x, a, b), atol=3e-5)
    by_x, by_a, by_b = pull(jnp.asarray(slope, jnp.float32))
    np.testing.assert_allclose(by_x, slope * (1 + a * np.sin(2 * a * x) / b), rtol=1e-4, atol=3e-4)
    np.testing.assert_allclose(by_a, np.sum(slope * x * np.sin(2 * a * x) / b, (0, 1)), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(by_b, -np.sum(slope * np.sin(a * x) ** 2 / b**2, (0, 1)), rtol=1e-4, atol=1e-3)


def test_the_sine_is_exact_to_float32_within_a_few_periods():
    x = jnp.linspace(-12, 12, 20001).reshape(1, -1, 1)
    one = jnp.ones(1)
    np.testing.assert_allclose(snake(x, one, one), plain(np.asarray(x, np.float64), 1, 1), atol=2e-6)
    slope = jax.grad(lambda x: jnp.sum(snake(x, one, one)))(x)
    np.testing.assert_allclose(slope, 1 + np.sin(2 * np.asarray(x, np.float64)), atol=5e-6)


def test_both_layers_start_as_x_plus_the_squared_sine_and_learn_per_channel(given):
    x = jnp.asarray(given[0], jnp.float32)
    for layer, names in ((Snake(), {"alpha"}), (SnakeBeta(), {"alpha", "beta"})):
        params = layer.init(jax.random.key(0), x)["params"]
        assert params.keys() == names
        assert {leaf.shape for leaf in params.values()} == {(4,)}
        np.testing.assert_allclose(layer.apply({"params": params}, x), plain(given[0], 1, 1), atol=2e-5)
    grown = {"alpha": jnp.log(jnp.asarray(given[2])), "beta": jnp.asarray([0.1, -0.3, 1.0, 0.0])}
    grown = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grown)
    expected = plain(given[0], given[2], np.exp([0.1, -0.3, 1.0, 0.0]))
    np.testing.assert_allclose(SnakeBeta().apply({"params": grown}, x), expected, atol=3e-5)


def test_an_alpha_that_is_both_frequency_and_amplitude_gets_both_gradients(given):
    x = jnp.asarray(given[0], jnp.float32)
    alpha = jnp.asarray(given[2], jnp.float32)
    ours = jax.grad(lambda alpha: jnp.sum(Snake().apply({"params": {"alpha": alpha}}, x)))(alpha)
    auto = jax.grad(lambda alpha: jnp.sum(x + jnp.sin(alpha * x) ** 2 / (alpha + 1e-9)))
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(ours, auto(alpha), rtol=1e-3)


def test_half_precision_comes_back_as_it_came(given):
    x = jnp.asarray(given[0], jnp.bfloat16)
    ones = jnp.ones(4)
    value, pull = jax.vjp(snake, x, ones, ones)
    assert value.dtype == jnp.bfloat16
    assert [leaf.dtype for leaf in pull(value)] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(value.astype(jnp.float32), plain(np.asarray(x, np.float64), 1, 1), rtol=1e-2, atol=1e-2)


def test_an_activation_at_twice_the_rate_equals_bigvgans():
    """Values and gradients, the ends among them; a signal may be shorter than the filters."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    from benchmarks.peers import hifigan as peer

    layer, rng = AntiAliased(SnakeBeta), np.random.default_rng(0)
    for length in (40, 2):
        x, slope = rng.standard_normal((2, 2, length, 3)).astype(np.float32)
        params = {"params": {"activation": {"alpha": jnp.asarray([0.3, -0.5, 1.0]), "beta": jnp.asarray([0.1, 0, -1])}}}
        theirs = peer.AntiAliased(peer.SnakeBeta(3))
        peer.load(theirs, params["params"])
        signal = torch.tensor(x).mT.requires_grad_()
        found = theirs(signal)
        (by_signal,) = torch.autograd.grad(found, signal, torch.tensor(slope).mT)
        value, pull = jax.vjp(jax.jit(lambda x, params=params: layer.apply(params, x)), jnp.asarray(x))
        np.testing.assert_allclose(value, found.detach().mT, atol=5e-5)
        np.testing.assert_allclose(pull(jnp.asarray(slope))[0], by_signal.mT, atol=5e-5)


def test_at_twice_the_rate_a_harmonic_beyond_half_the_rate_folds_back_12_db_softer():
    """A sine at 0.35 of the rate: its square has a partial at 0.7, which folds to 0.3; 12 taps take 12 dB."""
    time = np.arange(1000)
    wave = jnp.asarray(np.sin(2 * np.pi * 0.35 * time), jnp.float32).reshape(1, -1, 1)
    at = lambda x: np.abs(np.sum(np.asarray(x)[0, :, 0] * np.exp(-2j * np.pi * 0.3 * time)))
    folded, clean = (at(layer.init_with_output(jax.random.key(0), wave)[0]) for layer in (Snake(), AntiAliased(Snake)))
    assert clean < 0.25 * folded
    np.testing.assert_allclose(downsampled(*upsampled(jnp.ones((1, 9, 2)))), 1, atol=1e-5)
