"""SpecGAN: one second of sound as a picture of its spectrogram, from a 100-dimensional latent vector.

Donahue, McAuley, Puckette: Adversarial Audio Synthesis, ICLR 2019 (arXiv 1802.04208), and its official code.
Reproduced: log-magnitudes of 256 samples every 128, standardised per frequency bin with the data's own moments and
clipped at three deviations, 5 x 5 convolutions of stride 2, WGAN-GP and the code's other losses, sound by Griffin-Lim
from phase zero. Added: a class label as condition, averaged weights to sample from, longer segments.

    python train.py specgan:digits --data FOLDER
"""

import dataclasses
import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.adversarial import Adversarial, Picture, batch_norm, glorot, logit, with_label
from jaxaudio.core import InputError, Labels, Shard, Wave
from jaxaudio.dsp.griffin_lim import griffin_lim
from jaxaudio.dsp.moments import moments, restore, standardise
from jaxaudio.dsp.stft import magnitudes
from jaxaudio.nn.conv import Conv, ConvTranspose

TAPS, STRIDE = (5, 5), (2, 2)
SIDE = 4  # the shorter side of the innermost layer's picture
FLOOR = 1e-6  # below the magnitudes, before the logarithm
DEVIATIONS = 3.0  # standard deviations that the range of the pictures spans to either side


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecGAN(Adversarial):
    """Section 4 of the paper and its appendix, and the flags of its code; training is in adversarial.py."""

    sample_rate: int = 16000  # Hz
    segment: int = 16384  # samples: 2^n hops
    batch_size: int = 320  # clips per step: n_critic updates of the critic on 64 each
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "peak"  # peak: every recording is scaled to a peak of 1, as the official code does
    width: int = 64  # channels of the outermost layer, d in the paper
    latent: int = 100  # dimensions of z, uniform in [-1, 1]
    window: int = 256  # samples of the Hann window: 2^n; half as many bins (the topmost is dropped)
    hop: int = 128  # samples from one spectrum to the next
    iterations: int = 16  # of Griffin-Lim
    momentum: float = 0.0  # of Griffin-Lim; 0: the paper's, 0.99: the fast variant

    published: ClassVar = MappingProxyType({"generator": 19.07, "critic": 17.43})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "dcgan": {"loss": "dcgan", "batch_norm": True, "n_critic": 1, "batch_size": 64},
            "lsgan": {"loss": "lsgan", "n_critic": 1, "batch_size": 64},
            "digits": {
                **{"width": 16, "batch_size": 80, "conditional": True, "learning_rate": 3e-4},
                **{"iterations": 32, "momentum": 0.99},
            },
            "tiny": {
                **{"segment": 256, "window": 32, "hop": 16, "width": 4, "latent": 8, "iterations": 4},
                **{"batch_size": 64, "n_critic": 2, "conditional": True, "learning_rate": 5e-3},
            },
        }
    )

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.hop <= self.window:
            raise InputError(f"hop is {self.hop}: it is at least 1 and at most the window, {self.window}")
        frames, bins = self.shape
        if self.segment % self.hop or not all(n >= 2 * SIDE and n & (n - 1) == 0 for n in (frames, bins)):
            raise InputError(
                f"segment {self.segment}, hop {self.hop} and window {self.window} make a picture of {frames} frames of "
                f"{bins} bins: both must be powers of two from {2 * SIDE} on (segment / hop and window / 2)"
            )
        if self.iterations < 1:
            raise InputError(f"iterations is {self.iterations}: Griffin-Lim needs at least 1")

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and bins of a picture."""
        return self.segment // self.hop, self.window // 2

    @property
    def depth(self) -> int:
        """Layers of either network: each halves or doubles both sides."""
        return int(math.log2(min(self.shape) // SIDE))

    @property
    def generator(self) -> nn.Module:
        """Table 5."""
        return Generator(self)

    @property
    def critic(self) -> nn.Module:
        """Table 6."""
        return Critic(self)

    def measure(self, batches):
        """Mean and deviation of every bin's log-magnitude."""
        return moments(self.spectrogram, (batch.wave for batch in batches), self.shape[1])

    def spectrogram(self, wave: Wave) -> Float[Array, "batch channels frames bins"]:
        """Log-magnitudes without the topmost bin."""
        level = magnitudes(jnp.moveaxis(wave.astype(jnp.float32), -1, 1), self.window, self.hop, padding="tensorflow")
        return jnp.log(level[..., :-1] + FLOOR)

    def picture(self, wave, measured) -> Picture:
        """Standardised log-magnitudes [batch, frames, bins, channels] in [-1, 1]."""
        level = standardise(self.spectrogram(wave), measured) / DEVIATIONS
        return jnp.moveaxis(jnp.clip(level, -1, 1), 1, -1)

    def sound(self, picture, measured) -> Wave:
        """Griffin-Lim on the magnitudes that the picture shows, in [-1, 1]."""
        level = restore(jnp.moveaxis(picture, -1, 1) * DEVIATIONS, measured)
        magnitude = jnp.pad(jnp.maximum(jnp.exp(level) - FLOOR, 0), ((0, 0), (0, 0), (0, 0), (0, 1)))
        options = {"iterations": self.iterations, "momentum": self.momentum, "padding": "tensorflow"}
        wave = griffin_lim(magnitude, self.window, self.hop, self.segment, **options)
        return jnp.clip(jnp.moveaxis(wave, 1, -1), -1, 1)


class Generator(nn.Module):
    """[batch, latent], [batch] -> [batch, frames, bins, channels]."""

    model: SpecGAN

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"], label: Labels | None, shard: Shard, train: bool):
        model, depth = self.model, self.model.depth
        frames, bins = (n // 2**depth for n in model.shape)
        width = model.width * 2 ** (depth - 1)
        norm = partial(batch_norm, model, shard, train)
        up = partial(ConvTranspose, taps=TAPS, stride=STRIDE)
        x = with_label(model, latent, label)
        x = nn.Dense(frames * bins * width, dtype=model.dtype, kernel_init=glorot, name="dense")(x)
        x = nn.relu(norm("norm")(x.reshape(-1, frames, bins, width)))
        for i in range(depth - 1):
            width //= 2
            x = nn.relu(norm(f"norm_{i}")(up(width, dtype=model.dtype, name=f"up_{i}")(x)))
        return jnp.tanh(up(model.channels, name=f"up_{depth - 1}")(x))


class Critic(nn.Module):
    """[batch, frames, bins, channels], [batch] -> [batch]."""

    model: SpecGAN

    @nn.compact
    def __call__(self, picture: Picture, label: Labels, key, shard: Shard) -> Float[Array, "batch"]:
        del key
        model, x = self.model, picture
        norm = partial(batch_norm, model, shard, True)
        for i in range(model.depth):
            x = Conv(model.width * 2**i, TAPS, STRIDE, dtype=model.dtype, name=f"down_{i}")(x)
            x = nn.leaky_relu(norm(f"norm_{i}")(x) if i else x, 0.2)
        return logit(model, x.reshape(x.shape[0], -1).astype(jnp.float32), label)
