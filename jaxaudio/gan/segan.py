"""SEGAN: noisy speech to clean speech by a generator over raw samples and a critic that compares the two.

Pascual, Bonafonte, Serra: SEGAN: Speech Enhancement Generative Adversarial Network, Interspeech 2017 (arXiv
1703.09452), and its official code. Reproduced: both networks with a bias in every convolution but the critic's last,
least squares without the halves of the paper's equations, as the code has it, L1, RMSprop as TensorFlow's,
pre-emphasis. Departs: a long sound is restored in windows that overlap by half and fade into each other, where the
paper joins them end to end, which can be heard; noise is mixed in at an SNR drawn
per example, from recordings of it, where the paper has 40 conditions on disk; virtual batch norm is by a reference
batch that is chosen once and by the example itself (Salimans et al. 2016, arXiv 1606.03498), where the code takes the
batch at hand for both; the reference pairs are the first recordings of the shuffled data, with noise at the SNRs in
turn; both updates of a step see the same examples.

    python train.py segan --data FOLDER --noise FOLDER
"""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxaudio.core import Batch, Gap, InputError, Metrics, Params, Restores, Shard, State, Wave, descend
from jaxaudio.dsp.degrade import at_snr
from jaxaudio.nn.conv import Conv, ConvTranspose

Pair = Float[Array, "rows time both"]  # what the critic compares: the channels of a clean sound, then the noisy one's
Reference = Float[Array, "references time both"]  # pairs too
Maps = Float[Array, "rows frames features"]
Scores = Float[Array, "rows"]
Noise = Float[Array, "rows frames features"]  # z
TAPS, STRIDE = 31, 2  # of every layer of both networks
SLOPE = 0.3  # of the critic's leaky ReLU below zero
FLOOR = 1e-5  # of a variance
TURNS = 9  # the de-emphasis looks back 2^TURNS samples, over which 0.95 falls to 4e-12
SILENCE = 1e-7  # mean square below which a sound is taken for silent: -70 dB


@dataclasses.dataclass(frozen=True, kw_only=True)
class SEGAN(Restores):
    """Sections 3 and 4 of the paper."""

    sample_rate: int = 16000  # Hz
    segment: int = 16384  # samples of the window: a whole number of the innermost layer's frames
    batch_size: int = 400  # examples per step: 100 on each of four devices
    widths: tuple[int, ...] = (16, 32, 32, 64, 64, 128, 128, 256, 256, 512, 1024)  # channels, the outermost layer first
    snrs: tuple[float, ...] = (15.0, 10.0, 5.0, 0.0)  # dB, of which training draws one per example
    emphasis: float = 0.95  # of the pre-emphasis; 0: none
    reference: int = 100  # pairs that virtual batch norm compares with
    l1: float = 100.0  # weight of the distance to the clean sound, lambda
    learning_rate: float = 2e-4  # of both networks

    needs_noise: ClassVar = True
    criterion: ClassVar = "lost_db"
    published: ClassVar = MappingProxyType({"generator": 73.1, "critic": 24.37})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "small": {  # this project's own, for two CPU cores
                **{"widths": (8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256), "batch_size": 16, "reference": 16},
            },
            "tiny": {
                **{"segment": 256, "batch_size": 8, "widths": (4, 8, 8), "reference": 3, "learning_rate": 2e-3},
            },
        }
    )

    def __post_init__(self):
        for name in ("batch_size", "channels", "sample_rate", "reference"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 1")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths is {self.widths}: name one layer or more, of 1 channel at least")
        shrink = STRIDE ** len(self.widths)
        if self.segment < 1 or self.segment % shrink:
            raise InputError(
                f"segment is {self.segment}: {len(self.widths)} layers halve it, so it is a multiple of {shrink}"
            )
        if not self.snrs:
            raise InputError("snrs is empty: name one SNR in dB or more")
        if not 0 <= self.emphasis <= 0.97:
            raise InputError(f"emphasis is {self.emphasis}: it is 0 to 0.97, beyond which its inverse remembers long")

    @property
    def steps(self) -> int:
        """About 86 epochs of the paper's data, 9.4 hours cut every half window."""
        return 14_000

    @property
    def hop(self) -> int:
        """Half a window. Its inner layers reach across all of a window, so it is always given a whole one."""
        return self.segment // 2

    @property
    def reach(self) -> int:
        """To the ends of two windows, and as far as the de-emphasis looks back."""
        return -(-(2**TURNS) // self.hop) + 1

    @property
    def frames(self) -> int:
        """Of the innermost layer, in a window."""
        return self.segment // STRIDE ** len(self.widths)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of either network, with TensorFlow's defaults."""
        return optax.rmsprop(self.learning_rate, decay=0.9, eps=1e-10, initial_scale=1.0)

    def measure(self, batches: Iterable[Batch]) -> Mapping[str, Array]:
        """The reference pairs, emphasised, from the first examples, repeated where they are too few; noise if none."""
        found, count = [], 0
        for batch in batches:
            found.append((np.asarray(batch.wave), np.asarray(batch.noise)))
            count += len(batch.wave)
            if count >= self.reference:
                break
        shape = (self.reference, self.segment, self.channels)
        if not found:
            found = [tuple(0.1 * np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32))]
        clean, noise = (np.resize(np.concatenate(part), shape) for part in zip(*found, strict=True))
        snrs = np.resize(np.asarray(self.snrs, np.float32), self.reference)
        noisy = jax.vmap(at_snr)(jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(snrs))
        return {"reference": pair(*(emphasised(x, self.emphasis) for x in (jnp.asarray(clean), noisy)))}

    def init(self, key, measured) -> State:
        """Both networks as their layers start."""
        generator_key, critic_key = jax.random.split(key)
        wave, z = jnp.zeros((1, self.segment, self.channels)), jnp.zeros((1, self.frames, self.widths[-1]))
        params = {
            "generator": Generator(self).init(generator_key, wave, z)["params"],
            "critic": Critic(self).init(critic_key, pair(wave, wave), pair(wave, wave))["params"],
        }
        opt = {name: self.optimizer.init(params[name]) for name in params}
        extra = jax.tree.map(jnp.copy, dict(measured))  # all arrays of a state are donated
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One critic update, then one generator update, on the same examples."""
        del stage
        damage_key, z_key = jax.random.split(key)
        networks, opt, tx = dict(state.params), dict(state.opt), self.optimizer
        damaged, _ = self.damaged(batch, damage_key, shard)
        clean, noisy = (emphasised(x, self.emphasis) for x in (batch.wave, damaged))
        z = self.draw(shard.keys(z_key, len(clean)), jnp.zeros(1, jnp.int32))[:, 0]
        given = {"clean": clean, "noisy": noisy, "reference": state.extra["reference"]}

        fake = self.cleaned(networks["generator"], noisy, z)
        loss = partial(self.critic_loss, fake=fake, **given)
        networks["critic"], opt["critic"], judged = descend(tx, loss, networks["critic"], opt["critic"], shard)
        loss = partial(self.generator_loss, critic=networks["critic"], z=z, **given)
        networks["generator"], opt["generator"], made = descend(
            tx, loss, networks["generator"], opt["generator"], shard
        )
        both = {"critic": judged, "generator": made}
        metrics = {f"{network}/{name}": value for network, values in both.items() for name, value in values.items()}
        return State(state.step + 1, networks, opt, state.extra), metrics

    def critic_loss(self, critic, *, clean: Wave, fake: Wave, noisy: Wave, reference: Reference):
        """Scores to be 1 for clean sounds beside their noisy ones, and 0 for generated ones."""
        pairs = jnp.stack([pair(clean, noisy), pair(fake, noisy)], 1)  # neighbours: no device needs another's rows
        scores = self.score(critic, pairs.reshape(-1, *pairs.shape[2:]), reference).reshape(-1, 2)
        terms = {"real": jnp.mean((scores[:, 0] - 1) ** 2), "fake": jnp.mean(scores[:, 1] ** 2)}
        return sum(terms.values()), terms

    def generator_loss(self, generator, *, critic, clean: Wave, noisy: Wave, z: Noise, reference: Reference):
        """The generated sound's score to be 1, and the sound to be the clean one."""
        fake = self.cleaned(generator, noisy, z)
        score = self.score(critic, pair(fake, noisy), reference)
        terms = {"adversarial": jnp.mean((score - 1) ** 2), "l1": self.l1 * jnp.mean(jnp.abs(fake - clean))}
        return sum(terms.values()), terms

    def damaged(self, batch, key, shard) -> tuple[Wave, Gap]:
        """Noise added at an SNR drawn per example; no gap."""
        drawn = jax.vmap(partial(jax.random.choice, a=jnp.asarray(self.snrs, jnp.float32)))
        snrs = drawn(shard.keys(key, len(batch.wave)))
        return jax.vmap(at_snr)(batch.wave, batch.noise, snrs), jnp.zeros(batch.wave.shape[:2])

    def evaluate(self, state, batch, key) -> Metrics:
        """SI-SDR in dB of the restored and of the noisy sound, and what restoring loses: below 0 where it helps."""
        damage_key, restore_key = jax.random.split(key)
        noisy, _ = self.damaged(batch, damage_key, Shard())
        restored = self.restore(self.weights(state), noisy, None, restore_key)
        before, after = si_sdr(batch.wave, noisy), si_sdr(batch.wave, restored)
        return {"lost_db": before - after, "si_sdr": after, "noisy_si_sdr": before}

    def weights(self, state) -> Params:
        """The generator."""
        return {"generator": state.params["generator"]}

    def restore(self, params, wave, gap, key, first=0) -> Wave:
        """In windows that overlap by half, each with a z of its own."""
        if gap is not None:
            raise InputError("this model takes noise away and fills no gaps: leave the gap away, or train another")
        rows, time, channels = wave.shape
        if not time or time % self.hop:
            raise InputError(f"a sound of {time} samples is no whole number of hops of {self.hop}")
        hops = time // self.hop
        z = self.draw(Shard().keys(key, rows), first + jnp.arange(hops + 1))
        around = jnp.pad(emphasised(wave, self.emphasis), ((0, 0), (self.hop, self.hop), (0, 0)))
        halves = around.reshape(rows, hops + 2, self.hop, channels)
        windows = jnp.concatenate([halves[:, :-1], halves[:, 1:]], 2).reshape(-1, self.segment, channels)
        made = self.cleaned(params["generator"], windows, z.reshape(-1, *z.shape[2:]))
        fade = np.sin(np.pi * (np.arange(self.segment) + 0.5) / self.segment) ** 2
        faded = (made * jnp.asarray(fade, jnp.float32).reshape(1, -1, 1)).reshape(rows, hops + 1, 2, self.hop, channels)
        joined = faded[:, :-1, 1] + faded[:, 1:, 0]
        return jnp.clip(deemphasised(joined.reshape(wave.shape), self.emphasis), -1.0, 1.0)

    def draw(self, keys: Key[Array, "rows"], windows) -> Float[Array, "rows windows frames features"]:
        """Standard normal z: that of a window depends on its row's key and its number."""
        one = lambda key, i: jax.random.normal(jax.random.fold_in(key, i), (self.frames, self.widths[-1]))
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, windows)

    def cleaned(self, generator, noisy: Wave, z: Noise) -> Wave:
        """Generated windows; emphasised, as what they are made of."""
        return Generator(self).apply({"params": generator}, noisy, z)

    def score(self, critic, pairs: Pair, reference: Reference) -> Scores:
        """The critic's score of every pair."""
        return Critic(self).apply({"params": critic}, pairs, reference)


class Generator(nn.Module):
    """[rows, segment, channels], z -> [rows, segment, channels] (figure 2)."""

    model: SEGAN

    @nn.compact
    def __call__(self, noisy: Wave, z: Noise) -> Wave:
        model, x, skips = self.model, noisy, []
        down, up = (partial(kind, taps=(TAPS,), stride=(STRIDE,), kernel_init=start) for kind in (Conv, ConvTranspose))
        for i, width in enumerate(model.widths):
            x = down(width, dtype=model.dtype, name=f"down_{i}")(x)
            skips.append(x)
            x = PReLU(name=f"down_slope_{i}")(x)
        x = jnp.concatenate([z.astype(x.dtype), x], -1)
        outer = range(len(model.widths) - 1)
        for i in outer:
            x = PReLU(name=f"up_slope_{i}")(up(model.widths[-2 - i], dtype=model.dtype, name=f"up_{i}")(x))
            x = jnp.concatenate([x, skips[-2 - i]], -1)
        return jnp.tanh(up(model.channels, name=f"up_{len(outer)}")(x))


class PReLU(nn.Module):
    """Below zero a slope per feature, which starts at 0."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        slope = self.param("slope", nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
        return jnp.where(x < 0, slope.reshape(1, 1, -1) * x, x)


class Critic(nn.Module):
    """Pairs, reference pairs -> [rows] (section 4.2)."""

    model: SEGAN

    @nn.compact
    def __call__(self, pairs: Pair, reference: Reference) -> Scores:
        model, both = self.model, (pairs, reference)
        for i, width in enumerate(model.widths):
            layer = Conv(width, (TAPS,), (STRIDE,), dtype=model.dtype, kernel_init=start, name=f"down_{i}")
            both = VirtualNorm(name=f"norm_{i}")(*map(layer, both))
            both = tuple(nn.leaky_relu(x, SLOPE) for x in both)
        x = Conv(1, (1,), use_bias=False, kernel_init=start, name="last")(both[0])
        return nn.Dense(1, kernel_init=nn.initializers.glorot_uniform(), name="dense")(x[:, :, 0])[:, 0]


class VirtualNorm(nn.Module):
    """Virtual batch norm (Salimans et al. 2016, section 3.5; the share as in their code): an example is normalised per
    feature by the statistics of n reference examples and of itself, which counts as 1 of n + 1; the reference by its
    own."""

    @nn.compact
    def __call__(self, x: Maps, reference: Float[Array, "references frames features"]) -> tuple[Any, Any]:
        features, share = x.shape[-1], 1 / (len(reference) + 1)
        drawn = lambda key, shape: 1 + 0.02 * jax.random.normal(key, shape)
        scale = self.param("scale", drawn, (features,)).reshape(1, 1, -1)
        bias = self.param("bias", nn.initializers.zeros, (features,)).reshape(1, 1, -1)
        normal = lambda x, mean, variance: (x - mean) * (scale * jax.lax.rsqrt(variance + FLOOR)) + bias
        x, reference = x.astype(jnp.float32), reference.astype(jnp.float32)
        moments = lambda x, axes: (jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True))
        (mean, variance), (own_mean, own_variance) = moments(reference, (0, 1)), moments(x, 1)
        apart = own_mean - mean
        both_mean = mean + share * apart
        both_variance = (1 - share) * variance + share * own_variance + share * (1 - share) * apart**2
        return normal(x, both_mean, both_variance), normal(reference, mean, variance)


def pair(clean: Wave, noisy: Wave) -> Pair:
    """What the critic compares."""
    return jnp.concatenate([clean, noisy], -1)


def emphasised(wave: Wave, share: float) -> Wave:
    """x[t] - share x[t - 1]; silence before the beginning."""
    return wave - share * later(wave, 1)


def deemphasised(wave: Wave, share: float) -> Wave:
    """The inverse of `emphasised`: sum of share^k x[t - k] over 2^TURNS samples, each turn doubling how far it looks
    back. Nothing earlier bears on a sample, so a part of a sound with that much before it comes out as the whole."""
    for turn in range(TURNS):
        wave = wave + share ** (2**turn) * later(wave, 2**turn)
    return wave


def later(wave: Wave, count: int) -> Wave:
    """So many samples later, silence before."""
    return jnp.pad(wave, ((0, 0), (count, 0), (0, 0)))[:, : wave.shape[1]]


def si_sdr(clean: Wave, estimate: Wave) -> Float[Array, "batch"]:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), means taken off, all channels as one
    sound. What is weaker than -70 dB counts as that, so that silence has one too."""
    r, e = (x.reshape(len(x), -1) for x in (clean, estimate))
    r, e = (x - jnp.mean(x, 1, keepdims=True) for x in (r, e))
    power = lambda x: jnp.mean(x**2, 1, keepdims=True)
    target = r * (jnp.mean(r * e, 1, keepdims=True) / jnp.maximum(power(r), SILENCE))
    return 10 * jnp.log10(jnp.maximum(power(target), SILENCE) / jnp.maximum(power(e - target), SILENCE))[:, 0]


start = nn.initializers.truncated_normal(0.02)
