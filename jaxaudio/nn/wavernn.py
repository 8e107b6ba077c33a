"""The network of WaveRNN: its weights for some frames, and its outputs behind true samples.

Its first layer, the source, is a linear map of (sample, mels, features of the frame), and so is the layer that reads it
as one with it. Such a map reads a frame once (`conditions`), however many samples the frame has.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.core import Frames, Shard
from jaxaudio.dsp.companding import BYTE
from jaxaudio.nn.recurrent import Dense, Linear, Recurrent, Weights, sequence, silent
from jaxaudio.nn.upsampling import FrameNetwork, Rows, Smoothing, mix, rows, uniform

Sequence = Float[Array, "time batch features"]

MIXTURES = 10  # logistics of `mol`


class Ready(NamedTuple):
    """The network for some frames: what depends on them alone is computed, weights are ready to be applied."""

    smoothing: Float[Array, "hop taps"]
    mels: Frames  # with REACH around
    aux: tuple[Float[Array, "batch frames aux"], ...]  # a part for each layer
    source: Linear | None  # of (sample, mels, aux), the first layer; none: the recurrent one sees them
    layers: tuple[Weights, ...]
    dense: tuple[Linear, ...]  # with the output; of `dual` two for the upper byte, two for the lower


class Network(nn.Module):
    """All parameters: [batch, frames + 2 REACH, mels] -> Ready."""

    model: Any  # its fields are the model's

    @nn.compact
    def __call__(self, frames: Frames, shard: Shard, train: bool) -> Ready:
        m = self.model
        count = 1 if m.output == "dual" else m.layers + m.dense
        aux = FrameNetwork(m.width, m.blocks, m.aux * count, m.dtype, name="frames")(frames, shard, train)
        aux, seen = tuple(jnp.split(aux, count, -1)), (2 if m.output == "dual" else 1) + m.mels + m.aux

        def linear(name, inputs, features, dtype=m.dtype):
            init = uniform(inputs)
            return Dense(inputs, features, kernel_init=init, bias_init=init, dtype=dtype, name=name)()

        def layer(i, inputs):
            init = {name: uniform(m.units) for name in ("kernel_init", "recurrent_init", "bias_init")}
            return Recurrent(inputs, m.units, **init, name=f"layer_{i}")()

        smoothing = Smoothing(m.factors, name="smoothing")()
        if m.output == "dual":
            half = m.units // 2
            sizes = {"hidden": (half, m.hidden), "last": (m.hidden, BYTE)}
            kinds = {"hidden": m.dtype, "last": jnp.float32}
            named = [(part, name) for part in ("coarse", "fine") for name in sizes]
            dense = [linear(f"{part}_{name}", *sizes[name], kinds[name]) for part, name in named]
            return Ready(smoothing, frames, aux, None, (without_own(layer(0, seen + 1)),), tuple(dense))
        source = linear("source", seen, m.units, jnp.float32)
        layers = [layer(i, m.units + (m.aux if i else 0)) for i in range(m.layers)]
        dense = [linear(f"dense_{i}", (m.hidden if i else m.units) + m.aux, m.hidden) for i in range(m.dense)]
        last = linear("last", m.hidden, 3 * MIXTURES if m.output == "mol" else m.levels, jnp.float32)
        return Ready(smoothing, frames, aux, source, tuple(layers), (*dense, last))


def without_own(layer: Weights) -> Weights:
    """The layer of `dual`, whose first half does not see the upper byte that it is to predict (the third input)."""
    kernel = layer.input.kernel
    inputs, gates = kernel.shape
    first_half = jnp.arange(gates) % (gates // 3) < gates // 6
    hidden = (jnp.arange(inputs) == 2)[:, None] & first_half[None]
    return layer._replace(input=layer.input._replace(kernel=jnp.where(hidden, 0, kernel)))


def behind(source: Linear, linear: Linear) -> Linear:
    """Two linear maps as one."""
    return Linear(source.kernel @ linear.kernel, linear(source.bias[None])[0])


def conditions(ready: Ready, linear: Linear, parts: int) -> Rows:
    """What a linear map of (`parts` numbers of a sample, mels, aux) makes of the frames."""
    bands = ready.mels.shape[-1]
    _, of_mels, of_aux = jnp.split(linear.kernel, (parts, parts + bands))
    return rows(of_mels, ready.mels, linear._replace(kernel=of_aux)(ready.aux[0]))


def over_frames(
    x: Float[Array, "time batch inputs"], linear: Linear, aux: Float[Array, "batch frames aux"]
) -> Sequence:
    """A linear map of (x, aux), aux being that of a sample's frame."""
    of_x, of_aux = jnp.split(linear.kernel, (x.shape[-1],))
    still = jnp.moveaxis(linear._replace(kernel=of_aux)(aux.astype(of_aux.dtype)), 0, 1)[:, None]
    y = x.astype(of_x.dtype) @ of_x
    return (y.reshape(still.shape[0], -1, *y.shape[1:]) + still).reshape(y.shape)


def teach(ready: Ready, inputs: Float[Array, "time batch parts"]) -> Sequence:
    """The outputs behind true inputs. The first recurrent layer reads the source, a linear map, as one with it: the
    product with its many features is spared."""

    def of_samples(linear: Linear) -> Sequence:
        parts = inputs.shape[-1]
        mixed = mix(ready.smoothing, conditions(ready, linear, parts))
        return mixed.reshape(len(inputs), *mixed.shape[2:]) + inputs @ linear.kernel[:parts]

    run = lambda layer, x: sequence("gru", layer, silent("gru", x.shape[1], x.shape[2] // 3), x)[1]
    if ready.source is None:
        (layer,), (*both,) = ready.layers, ready.dense
        halves = jnp.split(run(layer, of_samples(layer.input)).astype(both[0].kernel.dtype), 2, -1)
        outputs = [last(nn.relu(first(x))) for x, first, last in zip(halves, both[::2], both[1::2], strict=True)]
        return jnp.concatenate(outputs, -1)
    x = of_samples(ready.source)
    for i, layer in enumerate(ready.layers):
        projected = over_frames(x, layer.input, ready.aux[i]) if i else of_samples(behind(ready.source, layer.input))
        x = x + run(layer, projected)
    *dense, last = ready.dense
    for linear, aux in zip(dense, ready.aux[len(ready.layers) :], strict=True):
        x = nn.relu(over_frames(x, linear, aux))
    return last(x)
