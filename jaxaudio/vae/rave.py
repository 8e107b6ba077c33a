"""RAVE: an autoencoder of raw audio over the bands of a filter bank, fast enough for real time.

Caillon, Esling: RAVE, a variational autoencoder for fast and high-quality neural audio synthesis, 2021 (arXiv
2111.05011). Reproduced: the PQMF, encoder and decoder of the paper (v1) and of its successor (v2), the multi-scale
spectral distance over bands and full band, the second phase with frozen encoder, hinge loss and feature matching, the
filtered noise, the compaction of the latent space by its principal components. Departs: the filter bank rebuilds
exactly; the relative part of the distance is floored for quiet examples; the components that compaction leaves out take
their mean instead of noise; losses are over the whole segment; a frame of noise is filtered as a circle; no
augmentation. Feature matching is weighted once; the official code multiplies by the weight twice
(`feature_matching_twice`).

    python train.py rave:small --data FOLDER
    python -m benchmarks.quality runs/rave-small

speech22k, 17 minutes on two cores: multi-resolution STFT distance 1.08 to held-out sentences (noise vocoders of 16 and
64 bands: 1.46 and 1.17), 38 % of that to another sentence.
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
import optax
from jaxtyping import Array, Float

from jaxaudio.core import (
    Carry,
    Encodes,
    Generates,
    InputError,
    Latent,
    Metrics,
    Params,
    Shard,
    State,
    Streams,
    Wave,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.dsp import pqmf
from jaxaudio.dsp.stft import magnitudes, window
from jaxaudio.losses import hinge_made, margin
from jaxaudio.nn.conv import folded
from jaxaudio.nn.critics import Maps
from jaxaudio.nn.stream import TimeConv, TimeConvTranspose, empty, past
from jaxaudio.variational import (
    Posterior,
    divergence,
    draw,
    geometric,
    moments_of,
    no_moments,
    posterior,
    principal,
)

Bands = Float[Array, "batch steps bands"]
AMPLITUDES = 5  # of a frame of noise, per band, from low to high
PERIODS = (2, 3, 5, 7, 11)  # of the second version's critic
SCALES = 3  # of the critic, each half as fine as the one before
QUIET = 1e-4  # mean power that a quieter example is taken for in the relative distance, lest silence rule a batch
FOLLOW = 0.999  # decay of the running moments of the latent frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class RAVE(Generates, Encodes, Streams):
    """The paper's hyper-parameters; v1 where nothing is said."""

    sample_rate: int = 48000  # Hz
    segment: int = 131072  # samples per training example, a whole number of hops
    batch_size: int = 8  # examples per step
    channels: int = 1  # 1: mono
    network: Literal["v1", "v2"] = "v1"  # v1: the paper's; v2: dilated units, weight norm throughout
    causal: bool = False  # nothing looks ahead, so that sound can be streamed
    bands: int = 16  # of the filter bank
    capacity: int = 64  # channels of the outermost layer
    ratios: tuple[int, ...] = (4, 4, 4, 2)  # by which the layers of the encoder shorten
    latent: int = 128  # components of a latent frame
    noise_strides: tuple[int, ...] = (4, 4, 4)  # of the noise synthesiser; empty: no noise
    scales: tuple[int, ...] = (2048, 1024, 512, 256, 128)  # windows of the spectral distance, hop a quarter
    floor: float = 1e-7  # added to magnitudes inside the distance's logarithm
    warm_up: int = 1_000_000  # steps of the first phase; then the encoder is frozen and the critic comes in
    second: int = 5_000_000  # steps of the second phase in a run that is asked for no number of steps
    beta: float = 0.1  # weight of twice the divergence from the prior, as the official code has it
    beta_first: float = 1e-6  # the weight at the first step, if it grows
    beta_steps: int = 0  # steps over which it grows from there by equal factors; 0: it is constant
    adversarial: float = 1.0  # weight of the hinge loss
    feature_matching: float = 10.0  # weight of the critic's features
    feature_matching_twice: bool = False  # that weight squared, as in effect in the official code: 100 (v1), 400 (v2)
    relative_features: bool = False  # feature distance relative to the features' size (v2)
    periods: bool = False  # a critic of periods beside that of scales (v2)
    critic_width: int = 64  # channels of the critic's first layer, doubled in each further one
    critic_layers: int = 4  # of every critic
    critic_every: int = 2  # in the second phase every so many-th step trains the critic, the others the decoder
    learning_rate: float = 1e-3  # of the autoencoder, falling in a line to
    last_rate: float = 1e-4  # this at the end of the first phase
    critic_rate: float = 1e-4  # of the critic
    decay: float = 0.0  # of the averaged weights to sample from; 0: sample from the last ones

    criterion: ClassVar = "distance"  # which the second phase trades for detail: its best may be of the first
    published: ClassVar = MappingProxyType({"autoencoder": 17.61, "critic": 7.75})  # the critic's as computed
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "v1": {},
            "v2": {
                **{"network": "v2", "capacity": 96, "noise_strides": (), "beta": 0.05, "beta_steps": 20000},
                **{"feature_matching": 20.0, "relative_features": True, "periods": True, "critic_width": 96},
                **{"critic_every": 4},
            },
            "small": {
                **{"sample_rate": 22050, "segment": 32768, "capacity": 32, "ratios": (4, 4, 2), "latent": 64},
                **{"noise_strides": (4, 4, 2), "warm_up": 6000, "second": 1000, "critic_width": 16, "decay": 0.999},
                **{"learning_rate": 2e-3, "beta": 0.005},
            },
            "tiny": {
                **{"sample_rate": 16000, "segment": 2048, "bands": 4, "capacity": 4, "ratios": (4,), "latent": 4},
                **{"noise_strides": (4,), "scales": (256, 64), "floor": 1e-2, "warm_up": 500, "second": 500},
                **{"critic_width": 2, "critic_layers": 2, "learning_rate": 5e-3, "beta": 1e-3, "batch_size": 8},
            },
        }
    )

    def __post_init__(self):
        pqmf.prototype(self.bands)  # refuses an odd number
        least = dict.fromkeys(("batch_size", "channels", "capacity", "latent", "critic_width", "critic_layers"), 1)
        least |= {"sample_rate": 1, "warm_up": 1, "second": 0, "beta": 0, "beta_steps": 0, "feature_matching": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        if not self.ratios or min(self.ratios) < 2 or math.prod(self.ratios) % 2:
            raise InputError(f"ratios is {self.ratios}: name one or more, 2 at least, an even one among them")
        if self.segment < 1 or self.segment % self.hop:  # a hop is a multiple of 4, so SCALES fit
            raise InputError(f"segment is {self.segment}: it is a whole number of hops of {self.hop} samples")
        most = self.segment // self.bands
        if not self.scales or min(self.scales) < 4 or max(self.scales) > most:
            raise InputError(
                f"scales is {self.scales}: windows of 4 to {most} samples, as many as a segment has frames of bands; "
                "lengthen the segment or name shorter ones"
            )
        if min(self.noise_strides, default=1) < 1 or math.prod(self.ratios) % math.prod(self.noise_strides):
            raise InputError(
                f"noise_strides is {self.noise_strides}: their product divides {math.prod(self.ratios)}, that of the "
                "ratios; choose others, or none"
            )
        if self.critic_every < 2:
            raise InputError(f"critic_every is {self.critic_every}: at 1 the decoder would never be trained; 2 or more")
        if self.beta_steps and not 0 < self.beta_first <= self.beta:
            raise InputError(
                f"beta_first is {self.beta_first}: to grow by factors it is above 0, at most beta {self.beta}"
            )
        if self.floor <= 0 or not 0 <= self.decay < 1:
            raise InputError(f"floor is {self.floor} and decay {self.decay}: above 0, and from 0 to less than 1")

    @property
    def steps(self) -> int:
        """Both phases."""
        return self.warm_up + self.second

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.bands * math.prod(self.ratios)

    @property
    def delay(self) -> int:
        """Of the two filter banks, where these do not look ahead."""
        return pqmf.PAST * self.bands if self.causal else 0

    @property
    def reach(self) -> int:
        """From the layers' taps, rounded up."""
        total, rate = 2 * pqmf.SPAN + 6, 1  # of the first layer, in frames of bands
        for ratio in self.ratios:
            units = 0 if self.network == "v1" else sum(2 * d for d in dilations(ratio))
            total, rate = total + (units + 2 * ratio) * rate, rate * ratio
        total += (4 + 6) * rate  # of the innermost layers
        for ratio in reversed(self.ratios) if self.network == "v2" else self.ratios:
            rate //= ratio
            units = (
                sum(2 * (d + 1) for d in (1, 3, 5)) if self.network == "v1" else sum(2 * d for d in dilations(ratio))
            )
            total += (2 * ratio + units) * rate
        total += 6 + 2 * math.prod(self.noise_strides)
        return -(-total // (math.prod(self.ratios) * (1 if self.causal else 2))) + 1

    @property
    def feature_weight(self) -> float:
        """In effect."""
        return self.feature_matching ** (2 if self.feature_matching_twice else 1)

    @property
    def optimizers(self) -> dict[str, optax.GradientTransformation]:
        """Adam as for GANs; the autoencoder's rate falls during the first phase."""
        rate = optax.linear_schedule(self.learning_rate, self.last_rate, self.warm_up)
        adam = partial(optax.adam, b1=0.5, b2=0.9)
        return {"autoencoder": adam(rate), "critic": adam(self.critic_rate)}

    def init(self, key, measured) -> State:
        """Both networks as PyTorch starts them, the average at the autoencoder."""
        del measured
        autoencoder_key, critic_key = jax.random.split(key)
        wave = jnp.zeros((1, self.segment, self.channels))
        variables = Autoencoder(self).init(autoencoder_key, *self.example)
        critic = Critic(self).init(critic_key, wave)["params"]
        extra = {
            "average": jax.tree.map(jnp.copy, variables["params"]),
            "statistics": variables.get("batch_stats", {}),
            "moments": no_moments(self.latent),
        }
        params = {"autoencoder": variables["params"], "critic": critic}
        opt = {name: tx.init(params[name]) for name, tx in self.optimizers.items()}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def stage(self, step: int) -> str:
        """The first phase, then the critic and the decoder in turn."""
        if step < self.warm_up:
            return "autoencoder"
        return "critic" if step % self.critic_every == 0 else "decoder"

    @property
    def variants(self) -> tuple[str, ...]:
        """All three."""
        return "autoencoder", "critic", "decoder"

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One update of the autoencoder, of the critic, or of the decoder, as the stage says."""
        networks, opt, tx = dict(state.params), dict(state.opt), self.optimizers
        network = "critic" if stage == "critic" else "autoencoder"
        terms = {"autoencoder": self.first_loss, "critic": self.critic_loss, "decoder": self.second_loss}[stage]
        loss = partial(terms, state=state, wave=batch.wave, keys=shard.keys(key, len(batch.wave)), shard=shard)
        new, opt[network], metrics = descend(tx[network], loss, networks[network], opt[network], shard)
        if stage == "decoder":  # the encoder is frozen: its gradient is 0, but Adam has momentum
            new = {**new, "encoder": networks[network]["encoder"]}
        networks[network], extra = new, state.extra
        if stage != "critic":
            averaged = average(extra["average"], new, self.decay, state.step)
            if stage == "decoder":  # what is sampled is frozen too: the encoder that the decoder learns to follow
                averaged = {**averaged, "encoder": new["encoder"]}
            followed = {
                "average": averaged,
                "statistics": metrics.pop("statistics"),
                "moments": average(extra["moments"], metrics.pop("moments"), FOLLOW, state.step),
            }
            extra = unless_skipped(metrics, followed, extra)
        return State(state.step + 1, networks, opt, extra), {f"{network}/{k}": v for k, v in metrics.items()}

    def first_loss(self, params, *, state, wave, keys, shard) -> tuple[Array, Metrics]:
        """The first phase: distance over bands and full band, and the divergence from the prior."""
        variables = {"params": params, "batch_stats": state.extra["statistics"]}
        encode = partial(Autoencoder(self).apply, method="encode", mutable="batch_stats")
        (bands, given), changed = encode(variables, wave, shard, True)
        made = Autoencoder(self).apply(variables, draw(given, keys), None, method="decode")
        nats = jnp.mean(jnp.sum(divergence(given), -1), 1)
        beta = geometric(state.step, self.beta_first, self.beta, self.beta_steps)
        terms = {
            **self.distances(wave, self.whole(made), bands, made),
            "divergence": beta * 2 * jnp.mean(nats),
        }
        seen = {"statistics": changed.get("batch_stats", {}), "moments": self.moments(given, state)}
        return sum(terms.values()), {**terms, "nats_per_frame": jnp.mean(nats), **jax.lax.stop_gradient(seen)}

    def second_loss(self, params, *, state, wave, keys, shard) -> tuple[Array, Metrics]:
        """The second phase: the distance, what the critic says, and how far its features are. The encoder is frozen."""
        bands, given, made = self.reconstructed(params, state, wave, keys, shard)
        sound, judge = self.whole(made), partial(Critic(self).apply, {"params": state.params["critic"]})
        real, fake = judge(self.late(wave)), judge(sound)
        features = ([maps[:-1] for maps in found] for found in (real, fake))
        terms = {
            **self.distances(wave, sound, bands, made),
            "adversarial": self.adversarial * hinge_made(fake),
            "features": self.feature_weight * jnp.mean(self.feature_distance(*features)),
        }
        seen = {"statistics": state.extra["statistics"], "moments": self.moments(given, state)}
        return sum(terms.values()), {**terms, **jax.lax.stop_gradient(seen)}

    def critic_loss(self, params, *, state, wave, keys, shard) -> tuple[Array, Metrics]:
        """The hinge, summed over the critics."""
        *_, made = self.reconstructed(state.params["autoencoder"], state, wave, keys, shard)
        judge = partial(Critic(self).apply, {"params": params})
        terms = {"real": margin(judge(self.late(wave))), "fake": margin(judge(self.whole(made)), -1)}
        return sum(terms.values()), terms

    def reconstructed(self, params, state, wave, keys, shard) -> tuple[Bands, Posterior, Bands]:
        """In the second phase: the bands of the recording, its posterior, and the bands made of a draw from it."""
        variables = {"params": params, "batch_stats": state.extra["statistics"]}
        bands, given = jax.lax.stop_gradient(Autoencoder(self).apply(variables, wave, shard, False, method="encode"))
        draw_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        noise = self.noise(noise_keys, given.mean.shape[1])
        return bands, given, Autoencoder(self).apply(variables, draw(given, draw_keys), noise, method="decode")

    def distances(self, wave, sound, bands, made) -> Metrics:
        """The spectral distance of the full band, and of the bands."""
        full = jnp.mean(multi_scale_distance(self.late(wave), sound, self.scales, self.floor))
        return {"full_band": full, "multi_band": jnp.mean(multi_scale_distance(bands, made, self.scales, self.floor))}

    def feature_distance(self, real, fake) -> Float[Array, "batch"]:
        """L1 of the critics' features, the mean over a critic's maps, summed over critics."""
        examples = len(real[-1][0])  # a period folds into the rows
        rows = lambda x: jnp.mean(jnp.abs(x).reshape(examples, -1), 1)
        total = 0.0
        for reals, fakes in zip(real, fake, strict=True):
            gaps = [rows(a - b) for a, b in zip(reals, fakes, strict=True)]
            if self.relative_features:
                gaps = [gap / (rows(a) + 1e-6) for gap, a in zip(gaps, reals, strict=True)][1:]
            total += sum(gaps) / len(gaps)
        return total

    def whole(self, bands: Bands) -> Wave:
        """The sound of bands."""
        return Autoencoder(self).apply({}, bands, method="whole")

    def late(self, wave: Wave) -> Wave:
        """As late as what comes back."""
        return jnp.pad(wave, ((0, 0), (self.delay, 0), (0, 0)))[:, : wave.shape[1]]

    def moments(self, given: Posterior, state: State) -> Params:
        """What the principal components of the latent space are followed by."""
        return moments_of(given.mean, state.extra["moments"]["mean"])

    def noise(self, keys, frames: int, first=0):
        """White noise in [-1, 1] for the synthesiser, [batch, frames of it, bands, samples]; None where it has none.

        What a latent frame gets depends on its row's key and its number, counted from `first`.
        """
        if not self.noise_strides:
            return None
        size = math.prod(self.noise_strides)
        shape = (math.prod(self.ratios) // size, self.bands * self.channels, size)
        one = lambda key, frame: jax.random.uniform(jax.random.fold_in(key, frame), shape, minval=-1.0)
        rows = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, first + jnp.arange(frames))
        return rows.reshape(len(keys), -1, *shape[1:])

    def evaluate(self, state, batch, key) -> Metrics:
        """How far the decoded posterior mean is from the recording, and how much the posterior says."""
        variables = {"params": state.extra["average"], "batch_stats": state.extra["statistics"]}
        bands, given = Autoencoder(self).apply(variables, batch.wave, Shard(), False, method="encode")
        noise = self.audible(state.step, self.noise(Shard().keys(key, len(batch.wave)), given.mean.shape[1]))
        made = Autoencoder(self).apply(variables, given.mean, noise, method="decode")
        full = multi_scale_distance(self.late(batch.wave), self.whole(made), self.scales, self.floor)
        multi = multi_scale_distance(bands, made, self.scales, self.floor)
        nats = jnp.mean(jnp.sum(divergence(given), -1), 1)
        return {"distance": full + multi, "full_band": full, "multi_band": multi, "nats_per_frame": nats}

    def weights(self, state) -> Params:
        """The averaged autoencoder with its weight norms worked in, batch statistics, and principal components."""
        variables = {"params": state.extra["average"], "batch_stats": state.extra["statistics"]}
        return {
            "autoencoder": {
                "params": folded(Autoencoder(self), variables, *self.example),
                "batch_stats": variables["batch_stats"],
            },
            "principal": principal(state.extra["moments"]),
            "step": state.step,
        }

    def encode(self, params, wave) -> Latent:
        """Principal components of the posterior means."""
        _, given = Autoencoder(self).apply(params["autoencoder"], wave, Shard(), False, method="encode")
        return params["principal"].compact(given.mean)

    def decode(self, params, latent, key, first=0) -> Wave:
        """Their sound."""
        return self.sound(params, params["principal"].restore(latent), key, first)

    def spread(self, params) -> Float[Array, "latent"]:
        """Variance of the principal components."""
        return params["principal"].spread

    def sound(self, params, frames: Latent, key, first=0) -> Wave:
        """The sound of latent frames as the network knows them."""
        noise = self.audible(params["step"], self.noise(Shard().keys(key, len(frames)), frames.shape[1], first))
        made = Autoencoder(self).apply(params["autoencoder"], frames, noise, method="decode")
        return jnp.clip(self.whole(made), -1.0, 1.0)

    def audible(self, step, noise):
        """The noise, of which the first phase has none: the decoder learns to shape it in the second."""
        return None if noise is None else noise * (step > self.warm_up)

    def generate(self, params, key, n, length, label) -> Wave:
        """The sound of independent draws from the prior, frame by frame."""
        del label
        if length < 1:
            raise InputError(f"length is {length}: ask for one sample at least")
        latent_key, noise_key = jax.random.split(key)
        frames = -(-(length + self.delay) // self.hop)
        drawn = jax.vmap(lambda key: jax.random.normal(key, (frames, self.latent)))(Shard().keys(latent_key, n))
        return self.sound(params, drawn, noise_key)[:, self.delay : self.delay + length]

    def open(self, params, batch) -> Carry:
        """What every layer remembers, and the number of the next frame."""
        if not self.causal:
            raise InputError("this model looks ahead: to stream, train one with --model.causal")
        wave, noise = self.example
        chunk = (jnp.zeros((batch, *wave.shape[1:])), None if noise is None else jnp.zeros((batch, *noise.shape[1:])))
        return {"layers": empty(Autoencoder(self), params["autoencoder"], *chunk), "frame": jnp.zeros((), jnp.int32)}

    def push(self, params, carry, wave, key) -> tuple[Carry, Wave]:
        """One chunk."""
        frames = wave.shape[1] // self.hop
        if not frames or wave.shape[1] % self.hop:
            raise InputError(f"a chunk of {wave.shape[1]} samples: push a whole number of hops of {self.hop}")
        noise = self.audible(params["step"], self.noise(Shard().keys(key, len(wave)), frames, carry["frame"]))
        variables = {**params["autoencoder"], "carry": carry["layers"]}
        sound, after = Autoencoder(self).apply(variables, wave, noise, mutable="carry")
        return {"layers": after["carry"], "frame": carry["frame"] + frames}, jnp.clip(sound, -1.0, 1.0)

    @property
    def example(self) -> tuple[Wave, Array | None]:
        """What one call of the autoencoder takes: one hop of silence, and no noise."""
        noise = jax.eval_shape(lambda: self.noise(jax.random.split(jax.random.key(0), 1), 1))
        return jnp.zeros((1, self.hop, self.channels)), None if noise is None else jnp.zeros(noise.shape)


class Autoencoder(nn.Module):
    """Both halves, with the filter bank around them."""

    model: RAVE

    def setup(self):
        self.analysis, self.synthesis = Analysis(self.model), Synthesis(self.model)
        self.encoder = {"v1": Encoder, "v2": EncoderV2}[self.model.network](self.model)
        self.decoder = {"v1": Decoder, "v2": DecoderV2}[self.model.network](self.model)

    def __call__(self, wave: Wave, noise) -> Wave:
        """The sound of the posterior mean."""
        _, given = self.encode(wave, Shard(), False)
        return self.whole(self.decode(given.mean, noise))

    def encode(self, wave: Wave, shard: Shard, train: bool) -> tuple[Bands, Posterior]:
        """A sound's bands and posterior. Raises InputError where it is no whole number of hops."""
        if wave.shape[1] % self.model.hop:
            raise InputError(f"a sound of {wave.shape[1]} samples is no whole number of hops of {self.model.hop}")
        bands = self.analysis(wave)
        return bands, posterior(self.encoder(bands, shard, train))

    def decode(self, latent: Latent, noise) -> Bands:
        """The bands of latent frames; `noise` for the synthesiser, None: without."""
        return self.decoder(latent, noise)

    def whole(self, bands: Bands) -> Wave:
        """The sound of bands."""
        return self.synthesis(bands)


class Analysis(nn.Module):
    """[batch, time, channels] -> [batch, time / bands, channels * bands]."""

    model: RAVE

    @nn.compact
    def __call__(self, wave: Wave) -> Bands:
        bands, edges = self.model.bands, pqmf.CENTRED[0]
        mono = jnp.moveaxis(wave, -1, 1).reshape(len(wave) * wave.shape[-1], -1)
        if self.model.causal:
            x, before = past(self, mono.reshape(len(mono), -1, bands), pqmf.PAST)
            mono, edges = x.reshape(len(mono), -1), (before, 0)
        found = pqmf.analyse(mono, bands, edges).reshape(len(wave), wave.shape[-1], -1, bands)
        return jnp.moveaxis(found, 1, 2).reshape(len(wave), -1, wave.shape[-1] * bands)


class Synthesis(nn.Module):
    """The inverse of `Analysis`."""

    model: RAVE

    @nn.compact
    def __call__(self, bands: Bands) -> Wave:
        count, channels = self.model.bands, self.model.channels
        mono = jnp.moveaxis(bands.reshape(*bands.shape[:2], channels, count), 2, 1).reshape(-1, bands.shape[1], count)
        edges, first = pqmf.CENTRED[1], 0
        if self.model.causal:
            mono, before = past(self, mono, pqmf.PAST)
            edges, first = (before, 0), before - pqmf.PAST
        wave = pqmf.synthesise(mono, edges, first)
        return jnp.moveaxis(wave.reshape(len(bands), channels, -1), 1, 2)


class Encoder(nn.Module):
    """[batch, frames, bands] -> [batch, latent frames, 2 * latent] (v1)."""

    model: RAVE

    @nn.compact
    def __call__(self, bands: Bands, shard: Shard, train: bool) -> Array:
        model = self.model
        conv = layer(TimeConv, model, weight_norm=False)
        norm = partial(nn.BatchNorm, not train, momentum=0.9, axis_name=shard.axis, dtype=model.dtype)
        x = conv(model.capacity, 7, name="first")(bands)
        for i, ratio in enumerate(model.ratios):
            x = leaky(norm(name=f"norm_{i}")(x))
            x = conv(model.capacity * 2 ** (i + 1), 2 * ratio + 1, ratio, name=f"down_{i}")(x)
        return conv(2 * model.latent, 5, groups=2, dtype=jnp.float32, name="last")(leaky(x))


class EncoderV2(nn.Module):
    """The same of v2: dilated units, no batch norm."""

    model: RAVE

    @nn.compact
    def __call__(self, bands: Bands, shard: Shard, train: bool) -> Array:
        del shard, train
        model = self.model
        conv = layer(TimeConv, model)
        x = conv(model.capacity, 7, name="first")(bands)
        for i, ratio in enumerate(model.ratios):
            x = units(conv, x, dilations(ratio), 1, f"units_{i}")
            x = conv(model.capacity * 2 ** (i + 1), 2 * ratio, ratio, name=f"down_{i}")(leaky(x))
        return conv(2 * model.latent, 3, dtype=jnp.float32, name="last")(leaky(x))


class Decoder(nn.Module):
    """[batch, latent frames, latent] -> [batch, frames, bands] (v1): a wave, its loudness, and filtered noise.

    The ratios are in the encoder's order, not mirrored: that gives the published number of parameters.
    """

    model: RAVE

    @nn.compact
    def __call__(self, latent: Latent, noise) -> Bands:
        model = self.model
        conv, up = layer(TimeConv, model), layer(TimeConvTranspose, model)
        width = model.capacity * 2 ** len(model.ratios)
        x = conv(width, 7, name="first")(latent)
        for i, ratio in enumerate(model.ratios):
            width //= 2
            x = up(width, 2 * ratio, ratio, name=f"up_{i}")(leaky(x))
            x = units(conv, x, (1, 3, 5), 3, f"units_{i}")
        wave = jnp.tanh(conv(model.bands * model.channels, 7, dtype=jnp.float32, name="wave")(x))
        loudness = conv(1, 3, dtype=jnp.float32, name="loudness")(x)
        return wave * mod_sigmoid(loudness) + hissing(model, conv, x, noise)


class DecoderV2(nn.Module):
    """The same of v2: dilated units, an amplitude per band."""

    model: RAVE

    @nn.compact
    def __call__(self, latent: Latent, noise) -> Bands:
        model = self.model
        conv, up = layer(TimeConv, model), layer(TimeConvTranspose, model)
        width = model.capacity * 2 ** len(model.ratios)
        x = conv(width, 3, name="first")(latent)
        for i, ratio in enumerate(reversed(model.ratios)):
            width //= 2
            x = up(width, 2 * ratio, ratio, name=f"up_{i}")(leaky(x))
            x = units(conv, x, dilations(ratio), 1, f"units_{i}")
        x = leaky(x)
        both = conv(2 * model.bands * model.channels, 7, dtype=jnp.float32, name="wave")(x)
        wave, amplitude = jnp.split(both, 2, -1)
        return jnp.tanh(wave * nn.sigmoid(amplitude)) + hissing(model, conv, x, noise)


class Critic(nn.Module):
    """[batch, time, channels] -> the maps of every critic, its scores last."""

    model: RAVE

    @nn.compact
    def __call__(self, wave: Wave) -> list[Maps]:
        found = []
        if self.model.periods:
            for period in PERIODS:
                x = jnp.pad(wave, ((0, 0), (0, -wave.shape[1] % period), (0, 0)))
                x = jnp.moveaxis(x.reshape(len(x), -1, period, x.shape[-1]), 2, 1)
                found.append(self.maps(x.reshape(-1, *x.shape[2:]), 5, f"period_{period}"))
        for scale in range(SCALES):
            if scale:
                wave = jnp.mean(wave.reshape(len(wave), -1, 2, wave.shape[-1]), 2)
            found.append(self.maps(wave, 15, f"scale_{scale}"))
        return found

    def maps(self, x: Array, taps: int, name: str) -> Maps:
        """Every layer's output, before its activation, and the score."""
        model, features = self.model, []
        for i in range(model.critic_layers):
            x = TimeConv(model.critic_width * 2**i, taps, 4, weight_norm=True, dtype=model.dtype, name=f"{name}_{i}")(x)
            features.append(x)
            x = leaky(x)
        score = TimeConv(1, 1, weight_norm=True, name=f"{name}_score")(x)
        return [*(x.astype(jnp.float32) for x in features), score]


def layer(kind, model: RAVE, weight_norm: bool = True):
    """A kind of layer as the autoencoder has it: without a bias."""
    return partial(kind, causal=model.causal, use_bias=False, weight_norm=weight_norm, dtype=model.dtype)


def units(conv, x, spread: tuple[int, ...], second: int, name: str):
    """Residual units: an activation and a dilated convolution of 3 taps, an activation and one of `second` taps."""
    for i, dilation in enumerate(spread):
        y = conv(x.shape[-1], 3, dilation=dilation, name=f"{name}_{i}_dilated")(leaky(x))
        x = x + conv(x.shape[-1], second, name=f"{name}_{i}_plain")(leaky(y))
    return x


def hissing(model: RAVE, conv, x, noise):
    """Noise through filters that the network draws: `AMPLITUDES` per band for every frame of it; to be called inside a
    network."""
    if noise is None:
        return 0.0
    for i, stride in enumerate(model.noise_strides):
        last = i == len(model.noise_strides) - 1
        features = model.bands * model.channels * AMPLITUDES if last else x.shape[-1]
        x = conv(features, 3, stride, dtype=jnp.float32 if last else model.dtype, name=f"noise_{i}")(
            leaky(x) if i else x
        )
    amplitude = mod_sigmoid(x - 5).reshape(*x.shape[:2], -1, AMPLITUDES)
    response = amplitude @ jnp.asarray(_responses(noise.shape[-1]))
    hiss = jnp.fft.irfft(jnp.fft.rfft(noise) * response, noise.shape[-1])
    return jnp.moveaxis(hiss, 2, 3).reshape(len(x), -1, noise.shape[2])


def _responses(size: int) -> np.ndarray:
    """[AMPLITUDES, size // 2 + 1]: the frequency response of the zero-phase filter that each amplitude stands for, its
    impulse response under a Hann window."""
    taps = 2 * (AMPLITUDES - 1)
    impulses = np.roll(np.fft.irfft(np.eye(AMPLITUDES), taps), taps // 2, -1) * np.hanning(taps + 1)[:taps]
    if size < taps:
        return np.ones((AMPLITUDES, size // 2 + 1), np.float32) / AMPLITUDES
    around = np.roll(np.pad(impulses, ((0, 0), (0, size - taps))), -(taps // 2), -1)
    return np.fft.rfft(around).real.astype(np.float32)


def mod_sigmoid(x):
    """2 sigmoid(x)^2.3 + 1e-7: amplitudes of a wide range (DDSP's, Engel et al. 2020, with another power)."""
    return 2 * nn.sigmoid(x) ** 2.3 + 1e-7


def leaky(x):
    """The activation everywhere."""
    return nn.leaky_relu(x, 0.2)


def dilations(ratio: int) -> tuple[int, ...]:
    """Of v2's units around a layer of this ratio."""
    return (1, 3, 9) if ratio > 2 else (1, 3)


def multi_scale_distance(a: Wave, b: Wave, sizes: tuple[int, ...], floor: float) -> Float[Array, "batch"]:
    """Over windows of several sizes, hop a quarter: |A - B|^2 / |A|^2 plus mean |log A - log B|; A, B the magnitudes.

    Magnitudes are by the root of the window's energy, so that those of white noise do not depend on the size.
    """
    total = jnp.zeros(len(a))
    for size in sizes:
        norm = float(np.sqrt(np.sum(window("hann", size) ** 2)))
        x, y = (magnitudes(jnp.moveaxis(s, -1, 1), size, size // 4) / norm for s in (a, b))
        power = jnp.maximum(jnp.mean(x**2, (1, 2, 3)), QUIET)
        total += jnp.mean((x - y) ** 2, (1, 2, 3)) / power
        total += jnp.mean(jnp.abs(jnp.log(x + floor) - jnp.log(y + floor)), (1, 2, 3))
    return total
