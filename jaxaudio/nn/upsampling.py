"""From frames of a mel spectrogram to samples: the residual upsampling network of WaveRNN's public code.

Frames pass through a residual network and are then repeated, a hop each; the mels themselves are repeated and smoothed
factor by factor. That smoothing is linear and the same for every band: a sample of frame f is a sum of the frames
f - REACH to f + REACH, weighted by where in its hop the sample lies. `Smoothing` gives these weights, a small matrix.
So a layer that reads the mels of every sample reads each frame once, and mixes what came of it (`rows`, `mix`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.core import Frames, Shard
from jaxaudio.nn.conv import Conv

REACH = 2  # frames to either side that a frame's samples depend on; filters reach less far for factors from 2 on

Rows = Float[Array, "frames taps batch features"]  # of every frame: what its samples are mixed of


def uniform(inputs: int) -> Callable:
    """PyTorch's start of a layer of so many inputs, kernel and bias; of a recurrent layer: of so many units."""

    def init(key, shape, dtype=jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    return init


class FrameNetwork(nn.Module):
    """A convolution over the frames and residual blocks of each: [batch, frames + 2 REACH, mels] -> [batch, frames,
    features]."""

    width: int
    blocks: int
    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, frames: Frames, shard: Shard, train: bool) -> Float[Array, "batch inner aux"]:
        options = {"axis_name": shard.axis, "dtype": self.dtype, "use_fast_variance": False}
        norm = partial(nn.BatchNorm, not train, momentum=0.9, epsilon=1e-5, **options)
        taps, wide = 2 * REACH + 1, uniform(self.width)
        dense = partial(nn.Dense, kernel_init=wide, bias_init=wide, dtype=self.dtype)
        init = uniform(taps * frames.shape[-1])
        options = {"padding": ((0, 0),), "use_bias": False, "kernel_init": init, "dtype": self.dtype}
        x = nn.relu(norm(name="norm")(Conv(self.width, (taps,), **options, name="first")(frames)))
        for i in range(self.blocks):
            y = dense(self.width, use_bias=False, name=f"block_{i}_first")(x)
            y = nn.relu(norm(name=f"block_{i}_norm_first")(y))
            y = dense(self.width, use_bias=False, name=f"block_{i}_second")(y)
            x = x + norm(name=f"block_{i}_norm_second")(y)
        return dense(self.features, name="last")(x).astype(jnp.float32)


class Smoothing(nn.Module):
    """Of the mels: every value repeated `factor` times, then a filter of 2 factor + 1 taps, for every factor in turn.

    What a call returns: the weights of the 2 REACH + 1 frames around a frame in each of its samples.
    """

    factors: Sequence[int]

    @nn.compact
    def __call__(self) -> Float[Array, "hop taps"]:
        frames = 2 * REACH + 1
        x = jnp.eye(frames)
        for i, factor in enumerate(self.factors):
            width = 2 * factor + 1
            taps = self.param(f"filter_{i}", nn.initializers.constant(1 / width), (width,))
            x = jnp.repeat(x, factor, 1)
            padded = jnp.pad(x, ((0, 0), (factor, factor)))
            x = jnp.tensordot(taps, jnp.stack([padded[:, j : j + x.shape[1]] for j in range(width)]), 1)
        return x.reshape(frames, frames, -1)[:, REACH].T


def rows(
    kernel: Float[Array, "mels features"],
    mels: Float[Array, "batch around mels"],
    still: Float[Array, "batch frames features"],
) -> Rows:
    """What a linear layer makes of the mels around each frame, and `still`, what it adds to all samples of a frame.

    mels: with the REACH frames around.
    """
    seen, count = mels @ kernel, still.shape[1]
    around = [seen[:, i : i + count] for i in range(2 * REACH + 1)]
    return jnp.moveaxis(jnp.stack([*around, still]), 2, 0)


def mix(smoothing: Float[Array, "hop taps"], rows: Float[Array, "*frames more batch features"]) -> Array:
    """The samples [*frames, hop, batch, features] of frames."""
    weights = jnp.concatenate([smoothing, jnp.ones((len(smoothing), 1))], 1)
    flat = rows.reshape(*rows.shape[:-2], -1)
    mixed = jnp.matmul(weights.reshape((1,) * (flat.ndim - 2) + weights.shape), flat)
    return mixed.reshape(*flat.shape[:-2], len(smoothing), *rows.shape[-2:])
