"""The fully connected GAN, the first form of the idea, on log-mel spectrograms: what the others have to beat.

Goodfellow et al.: Generative Adversarial Nets, NeurIPS 2014 (arXiv 1406.2661): networks of dense layers and binary
cross-entropy, here with Adam at DCGAN's settings, leaky ReLU and pictures of 128 frames of 128 mel bands, standardised
per band with the data's own moments. Sound by the non-negative inverse of the mel filters and Griffin-Lim. Added: a
class label as condition, averaged weights to sample from.

    python train.py densegan:digits --data FOLDER
"""

import dataclasses
import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.adversarial import Adversarial, Picture, batch_norm, glorot, logit, with_label
from jaxaudio.core import InputError, Labels, Shard, Wave
from jaxaudio.dsp.griffin_lim import griffin_lim
from jaxaudio.dsp.mel import log_mel, mel_filters, mel_inverse
from jaxaudio.dsp.moments import moments, restore, standardise
from jaxaudio.dsp.stft import frame_count

DEVIATIONS = 3.0  # standard deviations that the range of the pictures spans to either side
FLOOR = 1e-5  # of the mel magnitudes, before the logarithm
SLOPE = 0.2  # of leaky ReLU below zero
PADDING = "hifigan"  # frames lie around their hop, so that the beginning of a clip comes back as loud as it was


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseGAN(Adversarial):
    """Layers by their widths; training is in adversarial.py."""

    sample_rate: int = 16000  # Hz
    segment: int = 16384  # samples: whole hops
    batch_size: int = 64  # clips per step
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "peak"  # peak: every recording is scaled to a peak of 1
    latent: int = 100  # dimensions of z
    noise: Literal["uniform", "normal"] = "uniform"  # distribution of z: in [-1, 1], or of deviation 1
    loss: Literal["wgan-gp", "wgan", "dcgan", "lsgan"] = "dcgan"  # dcgan: binary cross-entropy
    n_critic: int = 1  # critic updates per generator update
    generator_widths: tuple[int, ...] = (256, 512, 1024)  # of its hidden layers
    critic_widths: tuple[int, ...] = (512, 256)  # of its hidden layers
    window: int = 1024  # samples of the Hann window
    hop: int = 128  # samples from one spectrum to the next
    mels: int = 128  # mel bands, from 0 to half the sample rate
    iterations: int = 32  # of Griffin-Lim, the fast variant

    published: ClassVar = MappingProxyType({"generator": 17.48, "critic": 8.52})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "digits": {"conditional": True, "batch_size": 60},
            "tiny": {
                **{"segment": 256, "window": 256, "hop": 32, "mels": 16, "latent": 8, "iterations": 4},
                **{"generator_widths": (32,), "critic_widths": (32,), "conditional": True, "learning_rate": 2e-3},
            },
        }
    )

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.hop <= self.window or self.segment % self.hop:
            raise InputError(
                f"hop is {self.hop}: it divides the segment, {self.segment}, and is at most the window, {self.window}"
            )
        if frame_count(self.segment, self.window, self.hop, PADDING) != self.shape[0]:
            raise InputError(
                f"window {self.window} less hop {self.hop} is odd: frames lie around their hops, make it even"
            )
        if min((self.iterations, *self.generator_widths, *self.critic_widths)) < 1:
            raise InputError("iterations and every entry of generator_widths and critic_widths are at least 1")
        _ = self.filters  # refuses bands without a bin

    @property
    def filters(self) -> np.ndarray:
        """[bins, mels]."""
        return mel_filters(self.sample_rate, self.window, self.mels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, mel bands and channels of a picture."""
        return self.segment // self.hop, self.mels, self.channels

    @property
    def generator(self) -> nn.Module:
        """Latent to picture."""
        return Generator(self)

    @property
    def critic(self) -> nn.Module:
        """Picture to logit."""
        return Critic(self)

    def draw(self, keys) -> Float[Array, "n latent"]:
        """One latent per key."""
        if self.noise == "normal":
            return jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(keys)
        return super().draw(keys)

    def measure(self, batches):
        """Mean and deviation of every band's log-magnitude."""
        return moments(self.spectrogram, (batch.wave for batch in batches), self.mels)

    def spectrogram(self, wave: Wave) -> Float[Array, "batch channels frames mels"]:
        """Log-mel magnitudes."""
        wave = jnp.moveaxis(wave.astype(jnp.float32), -1, 1)
        return log_mel(wave, self.filters, self.window, self.hop, floor=FLOOR, padding=PADDING)

    def picture(self, wave, measured) -> Picture:
        """Standardised log-mel magnitudes [batch, frames, mels, channels] in [-1, 1]."""
        level = standardise(self.spectrogram(wave), measured) / DEVIATIONS
        return jnp.moveaxis(jnp.clip(level, -1, 1), 1, -1)

    def sound(self, picture, measured) -> Wave:
        """Griffin-Lim on the magnitudes whose mel bands the picture shows, in [-1, 1]."""
        mels = jnp.exp(restore(jnp.moveaxis(picture, -1, 1) * DEVIATIONS, measured))
        magnitude = mel_inverse(mels, self.filters)
        options = {"iterations": self.iterations, "padding": PADDING}
        wave = griffin_lim(magnitude, self.window, self.hop, self.segment, **options)
        return jnp.clip(jnp.moveaxis(wave, 1, -1), -1, 1)


class Generator(nn.Module):
    """[batch, latent], [batch] -> [batch, frames, mels, channels]."""

    model: DenseGAN

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"], label: Labels | None, shard: Shard, train: bool):
        x, model = with_label(self.model, latent, label), self.model
        norm = partial(batch_norm, model, shard, train)
        for i, width in enumerate(model.generator_widths):
            x = nn.Dense(width, dtype=model.dtype, kernel_init=glorot, name=f"dense_{i}")(x)
            x = nn.leaky_relu(norm(f"norm_{i}")(x), SLOPE)
        x = nn.Dense(math.prod(model.shape), kernel_init=glorot, name="picture")(x.astype(jnp.float32))
        return jnp.tanh(x).reshape(-1, *model.shape)


class Critic(nn.Module):
    """[batch, frames, mels, channels], [batch] -> [batch]."""

    model: DenseGAN

    @nn.compact
    def __call__(self, picture: Picture, label: Labels, key, shard: Shard) -> Float[Array, "batch"]:
        del key
        x, model = picture.reshape(picture.shape[0], -1), self.model
        norm = partial(batch_norm, model, shard, True)
        for i, width in enumerate(model.critic_widths):
            x = nn.Dense(width, dtype=model.dtype, kernel_init=glorot, name=f"dense_{i}")(x)
            x = nn.leaky_relu(norm(f"norm_{i}")(x) if i else x, SLOPE)
        return logit(model, x.astype(jnp.float32), label)
