"""From frames to samples: the small matrix against repetition and filters over the whole signal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.core import Shard
from jaxaudio.nn.upsampling import REACH, FrameNetwork, Smoothing, mix, rows


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("factors", [(2,), (2, 2, 2), (5, 5, 11), (7, 3)])
def test_a_layer_on_mixed_frames_is_the_layer_on_every_samples_smoothed_mels(factors):
    hop, mels, kernel, still = int(np.prod(factors)), normal(2, 7 + 2 * REACH, 3), normal(3, 4), normal(2, 7, 4)
    taps = {f"filter_{i}": normal(2 * factor + 1) for i, factor in enumerate(factors)}
    smoothing = Smoothing(factors).apply({"params": taps})
    assert smoothing.shape == (hop, 2 * REACH + 1)
    fine = mels.astype(np.float64)
    for i, factor in enumerate(factors):
        fine = np.repeat(fine, factor, 1)
        along = lambda x, i=i: np.convolve(x, taps[f"filter_{i}"][::-1], "same")
        fine = np.apply_along_axis(along, 1, fine)
    wanted = fine[:, REACH * hop : -REACH * hop] @ kernel + np.repeat(still, hop, 1)
    found = mix(smoothing, rows(jnp.asarray(kernel), jnp.asarray(mels), jnp.asarray(still)))
    assert found.shape == (7, hop, 2, 4)
    wide = np.abs(wanted).max()
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), 2, 0).reshape(2, -1, 4), wanted, atol=1e-5 * wide)


def test_the_filters_start_as_moving_averages_so_that_steady_frames_stay_as_they_are():
    variables = Smoothing((5, 8)).init(jax.random.key(0))
    assert {name: x.shape for name, x in variables["params"].items()} == {"filter_0": (11,), "filter_1": (17,)}
    smoothing = Smoothing((5, 8)).apply(variables)
    np.testing.assert_allclose(jnp.sum(smoothing, 1), 1, rtol=1e-5)
    assert float(jnp.min(smoothing)) >= 0


def test_a_frames_features_depend_on_the_frames_within_reach_alone():
    network, frames = FrameNetwork(6, 2, 4), jnp.asarray(normal(1, 12, 3))
    variables = network.init(jax.random.key(0), frames, Shard(), False)
    program = jax.jit(lambda frames: network.apply(variables, frames, Shard(), False))
    before, after = program(frames), program(frames.at[0, 6].add(1.0))
    assert before.shape == (1, 12 - 2 * REACH, 4)
    changed = np.flatnonzero(np.abs(np.asarray(after - before)).max((0, 2)) > 0)
    np.testing.assert_array_equal(changed, np.arange(6 - 2 * REACH, 6 + 1))


def test_layers_start_as_pytorchs_uniform_within_one_over_the_root_of_their_inputs():
    params = FrameNetwork(64, 1, 16).init(jax.random.key(0), jnp.zeros((1, 5, 80)), Shard(), False)["params"]
    sizes = {"first": 400, "block_0_first": 64, "last": 64}
    for name, inputs in sizes.items():
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel).max() <= inputs**-0.5
        np.testing.assert_allclose(kernel.std(), (3 * inputs) ** -0.5, rtol=0.05)
    assert float(jnp.std(params["last"]["bias"])) > 0
