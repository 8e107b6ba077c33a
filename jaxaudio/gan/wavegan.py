"""WaveGAN: one second of raw audio from a 100-dimensional latent vector, in one pass.

Donahue, McAuley, Puckette: Adversarial Audio Synthesis, ICLR 2019 (arXiv 1802.04208), and its official code.
Reproduced: generator and critic for 16384, 32768 or 65536 samples, WGAN-GP and the code's other losses, phase shuffle,
nearest-neighbour upsampling, post filter, batch norm. Added: a class label as condition, averaged weights to sample
from. Departs: the generated clips of all `n_critic` updates of a step come from one pass of the generator.

    python train.py wavegan:digits --data FOLDER
"""

import dataclasses
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.adversarial import Adversarial, batch_norm, glorot, logit, with_label
from jaxaudio.core import InputError, Labels, Shard, Wave
from jaxaudio.nn.conv import Conv, ConvTranspose, biased, conv_transpose

TAPS = 25
STRIDES = {256: (4, 4), 16384: (4,) * 5, 32768: (4,) * 5 + (2,), 65536: (4,) * 6}  # of both networks, in their order
FRAMES = 16  # time steps of the innermost layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaveGAN(Adversarial):
    """Table 2 and 3 of the paper, and the flags of its code; training is in adversarial.py."""

    sample_rate: int = 16000  # Hz
    segment: int = 16384  # samples: 16384, 32768 or 65536
    batch_size: int = 320  # clips per step: n_critic updates of the critic on 64 each
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "peak"  # peak: every recording is scaled to a peak of 1, as the official code does
    width: int = 64  # channels of the outermost layer, d in the paper
    latent: int = 100  # dimensions of z, uniform in [-1, 1]
    shuffle: int = 2  # samples of phase shuffle to either side, n in the paper; 0: off
    upsample: Literal["zeros", "nearest"] = "zeros"  # zeros: transposed convolution
    post_filter: int = 0  # taps of a learned filter behind the generator; 512 in the paper; 0: none

    published: ClassVar = MappingProxyType({"generator": 19.07, "critic": 17.43})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "digits": {"width": 16, "batch_size": 80, "conditional": True, "learning_rate": 3e-4},
            "tiny": {
                **{"segment": 256, "width": 8, "batch_size": 64, "n_critic": 2, "latent": 8, "conditional": True},
                "learning_rate": 5e-3,
            },
        }
    )

    def __post_init__(self):
        super().__post_init__()
        if self.segment not in STRIDES:
            raise InputError(f"segment is {self.segment}: WaveGAN makes 16384, 32768 or 65536 samples (256 in tests)")
        if not 0 <= self.shuffle < FRAMES:
            raise InputError(
                f"shuffle is {self.shuffle}: the critic's innermost layers have room for 0 to {FRAMES - 1}"
            )

    @property
    def generator(self) -> nn.Module:
        """Table 3."""
        return Generator(self)

    @property
    def critic(self) -> nn.Module:
        """Table 4."""
        return Critic(self)

    @property
    def apart(self) -> bool:
        """Phase shuffle moves all clips of a call alike."""
        return self.batch_norm or self.shuffle > 0

    def picture(self, wave, measured) -> Wave:
        """The critic hears the sound itself."""
        del measured
        return wave

    def sound(self, picture, measured) -> Wave:
        """The generator makes the sound itself."""
        del measured
        return picture


class Generator(nn.Module):
    """[batch, latent], [batch] -> [batch, segment, channels] (Table 3)."""

    model: WaveGAN

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"], label: Labels | None, shard: Shard, train: bool) -> Wave:
        model, strides = self.model, STRIDES[self.model.segment]
        width = model.width * 2 ** (len(strides) - 1)
        norm = partial(batch_norm, model, shard, train)
        x = with_label(model, latent, label)
        x = nn.Dense(FRAMES * width, dtype=model.dtype, kernel_init=glorot, name="dense")(x)
        x = nn.relu(norm("norm")(x.reshape(-1, FRAMES, width)))
        for i, stride in enumerate(strides[:-1]):
            width //= 2
            x = nn.relu(norm(f"norm_{i}")(self.up(f"up_{i}", width, stride, model.dtype)(x)))
        x = jnp.tanh(self.up(f"up_{len(strides) - 1}", model.channels, strides[-1], jnp.float32)(x))
        if model.post_filter:
            x = Conv(model.channels, (model.post_filter,), use_bias=False, name="filter")(x)
        return x

    def up(self, name, features, stride, dtype):
        layer = ConvTranspose if self.model.upsample == "zeros" else NearestConv
        return layer(features, (TAPS,), (stride,), dtype=dtype, name=name)


class NearestConv(nn.Module):
    """Every sample repeated `stride` times, then a SAME convolution, as one transposed convolution, a wider one."""

    features: int
    taps: tuple[int]
    stride: tuple[int]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", glorot, (*self.taps, x.shape[-1], self.features))
        (taps,), (stride,), half = self.taps, self.stride, (self.taps[0] - 1) // 2
        spread = sum(jnp.pad(kernel[::-1], ((j, stride - 1 - j), (0, 0), (0, 0))) for j in range(stride))
        spread = spread.astype(self.dtype)
        y = conv_transpose(x.astype(self.dtype), spread, (stride,), ((half, taps - 1 - half),))
        return biased(self, y)


class Critic(nn.Module):
    """[batch, segment, channels], [batch] -> [batch] (Table 4). The label is scored by projection (Miyato 2018)."""

    model: WaveGAN

    @nn.compact
    def __call__(self, wave: Wave, label: Labels, key, shard: Shard) -> Float[Array, "batch"]:
        model, x = self.model, wave
        norm = partial(batch_norm, model, shard, True)
        for i, stride in enumerate(STRIDES[model.segment]):
            x = Conv(model.width * 2**i, (TAPS,), (stride,), dtype=model.dtype, name=f"down_{i}")(x)
            x = nn.leaky_relu(norm(f"norm_{i}")(x) if i else x, 0.2)
            if model.shuffle and i < min(4, len(STRIDES[model.segment]) - 1):
                x = phase_shuffle(x, jax.random.fold_in(key, i), model.shuffle)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return logit(model, x, label)


def phase_shuffle(x: Float[Array, "batch time channels"], key, n: int) -> Float[Array, "batch time channels"]:
    """Shifts the whole batch by one draw from -n..n, the edge reflected (section 3.3)."""
    shift = jax.random.randint(key, (), -n, n + 1)
    padded = jnp.pad(x, ((0, 0), (n, n), (0, 0)), mode="reflect")
    return jax.lax.dynamic_slice_in_dim(padded, n - shift, x.shape[1], 1)
