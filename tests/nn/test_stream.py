"""Layers over time: lengths, causality, and chunks that join to the whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.nn.conv import Conv, ConvTranspose, folded
from jaxaudio.nn.stream import TimeConv, TimeConvTranspose, empty

LAYERS = {
    "plain": TimeConv(6, 3, causal=True),
    "dilated": TimeConv(6, 3, dilation=5, causal=True, weight_norm=True),
    "strided": TimeConv(6, 9, 4, causal=True),
    "groups": TimeConv(6, 5, groups=2, causal=True),
    "gaps": TimeConv(6, 3, 4, causal=True),
    "up": TimeConvTranspose(6, 8, 4, causal=True, weight_norm=True),
    "up by itself": TimeConvTranspose(6, 4, 4, causal=True),
}


def made(layer, frames=48):
    x = jax.random.normal(jax.random.key(0), (2, frames, 4))
    return layer.init(jax.random.key(1), x[:, :4]), x


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [4, 12])
def test_chunks_join_to_the_whole(name, size):
    layer = LAYERS[name]
    variables, x = made(layer)
    whole = layer.apply(variables, x)
    carry, parts = {"carry": empty(layer, variables, x[:, :size])}, []
    for first in range(0, x.shape[1], size):
        part, carry = layer.apply({**variables, **carry}, x[:, first : first + size], mutable="carry")
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_a_causal_layer_looks_at_nothing_ahead(name):
    layer = LAYERS[name]
    variables, x = made(layer)
    ratio = layer.apply(variables, x).shape[1] / x.shape[1]
    known = layer.apply(variables, x)[:, : int(24 * ratio)]
    ahead = layer.apply(variables, x.at[:, 24:].set(9.0))[:, : int(24 * ratio)]
    np.testing.assert_array_equal(known, ahead)


def test_a_centred_layer_looks_as_far_ahead_as_back():
    for layer, ratio in ((TimeConv(1, 7), 1), (TimeConv(1, 3, dilation=3), 1), (TimeConvTranspose(1, 8, 4), 4)):
        variables, x = made(layer, 49)
        touched = np.flatnonzero(
            np.asarray(layer.apply(variables, x.at[:, 24].add(1.0)) - layer.apply(variables, x))[0]
        )
        centre = (24 + 0.5) * ratio - 0.5
        assert touched[0] + touched[-1] == pytest.approx(2 * centre)


def test_they_compute_what_the_plain_layers_do():
    variables, x = made(TimeConv(6, 9, 4))
    plain = Conv(6, (9,), (4,), ((3, 2),))
    same = plain.apply({"params": variables["params"]["conv"]}, x)
    np.testing.assert_allclose(TimeConv(6, 9, 4).apply(variables, x), same, atol=1e-6)
    variables, x = made(TimeConvTranspose(6, 8, 4))
    plain = ConvTranspose(6, (8,), (4,), ((2, 2),))
    same = plain.apply({"params": variables["params"]["conv"]}, x)
    np.testing.assert_allclose(TimeConvTranspose(6, 8, 4).apply(variables, x), same, atol=1e-6)


class Pair(nn.Module):
    """Two layers with weight norm, a plain one between them."""

    @nn.compact
    def __call__(self, x):
        x = TimeConv(6, 3, weight_norm=True, name="first")(x)
        x = TimeConv(6, 3, name="plain")(x)
        return TimeConvTranspose(6, 4, 2, weight_norm=True, name="last")(x)


def test_folded_weights_give_the_same_and_have_no_scales():
    variables, x = made(Pair())
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 3 if path[-1].key == "scale" else leaf, variables["params"]
    )
    flat = folded(Pair(), {"params": scaled}, x[:, :4])
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(flat)}
    assert names == {"kernel", "bias"}
    expected = Pair().apply({"params": scaled}, x)
    np.testing.assert_allclose(Pair().apply({"params": flat}, x), expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected - Pair().apply(variables, x)).max()) > 0.1
