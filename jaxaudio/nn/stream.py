"""Convolutions over time that also work on a signal that is still coming.

T frames make T / stride frames, or T * stride. A layer is centred, or `causal`: then no output looks ahead, and the
layer can be fed in chunks. It puts the last inputs of each call into flax's collection "carry", in front of the next
chunk. Without that collection (training, whole recordings) zeros are in front, which is what a carry starts from too
(`empty`). So the outputs of the chunks, joined, are the output of the whole:

    y, carry = module.apply({**variables, **carry}, chunk, mutable="carry")
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.nn.conv import Conv, ConvTranspose

Signal = Float[Array, "batch time channels"]
Result = Float[Array, "batch frames features"]
INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's: uniform within 1 / sqrt(fan in)
INIT_TRANSPOSED = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)


class TimeConv(nn.Module):
    """[batch, time, in] -> [batch, time / stride, features]."""

    features: int
    taps: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    causal: bool = False
    use_bias: bool = True
    weight_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Signal) -> Result:
        before, behind = edges(self.taps, self.stride, self.dilation, self.causal)
        if self.causal and before > 0:
            x, before = past(self, x, before)
        return Conv(
            self.features,
            (self.taps,),
            (self.stride,),
            ((before, behind),),
            (self.dilation,),
            self.groups,
            self.use_bias,
            self.weight_norm,
            self.dtype,
            INIT,
            name="conv",
        )(x)


class TimeConvTranspose(nn.Module):
    """[batch, time, in] -> [batch, time * stride, features]; taps: a multiple of the stride, twice it as a rule."""

    features: int
    taps: int
    stride: int
    causal: bool = False
    use_bias: bool = True
    weight_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Signal) -> Result:
        over, known = self.taps - self.stride, 0
        left = 0 if self.causal else over - over // 2
        if self.causal and over:
            before = -(-over // self.stride)
            x, missing = past(self, x, before)
            known = before - missing
        return ConvTranspose(
            self.features,
            (self.taps,),
            (self.stride,),
            ((left + known * self.stride, over - left),),
            (1,),
            1,
            self.use_bias,
            self.weight_norm,
            self.dtype,
            INIT_TRANSPOSED,
            name="conv",
        )(x)


def edges(taps: int, stride: int, dilation: int, causal: bool) -> tuple[int, int]:
    """(before, behind): the frames of zeros that make T / stride outputs of T inputs. An odd one is put before, as the
    Descript codec has it."""
    over = dilation * (taps - 1) + 1 - stride
    return (over, 0) if causal else (over - over // 2, over // 2)


def past(module: nn.Module, x: Signal, frames: int) -> tuple[Float[Array, "batch longer channels"], int]:
    """The signal with the `frames` frames before it in front, and how many of these are missing: 0 in a stream, where
    the carry has them, else all (they are zeros, and padding is cheaper)."""
    if not module.is_mutable_collection("carry") or module.is_initializing():
        return x, frames
    kept = module.variable("carry", "past", jnp.zeros, (len(x), frames, x.shape[-1]), x.dtype)
    joined = jnp.concatenate([kept.value, x], 1)
    kept.value = joined[:, joined.shape[1] - frames :]
    return joined, 0


def empty(module: nn.Module, variables: Mapping[str, Any], *chunk: Any) -> Any:
    """The carry before the first chunk: `chunk` is what one call of the module takes, its values do not matter."""
    after = jax.eval_shape(lambda given: module.apply(given, *chunk, mutable="carry")[1], variables)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(after).get("carry", {}))
