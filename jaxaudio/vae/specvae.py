"""The spectrogram VAE: a clip's log-mel spectrogram as one latent vector, with an exact account of the bound in nats.

Kingma, Welling: Auto-Encoding Variational Bayes, ICLR 2014 (arXiv 1312.6114), with the free bits of Kingma et al. 2016
(arXiv 1606.04934) and the importance-weighted estimate of Burda et al. 2016 (arXiv 1509.00519). Departs: both halves
are a linear map plus a network. The linear maps are a Gaussian model's, fitted to the data before training:
probabilistic PCA (Tipping, Bishop 1999) or, where variances differ, factor analysis. The networks start at zero, so
training starts at the exact likelihood of that model (near it, with a fixed variance). Clips are moved in time and
warped in frequency. The sizes are this project's own. Sound by the non-negative inverse of the mel filters and
Griffin-Lim.

The likelihood is a density over log-mels in nats (natural logarithm of magnitudes), whatever is standardised inside.
Digital silence lies on the floor of the mels, a constant, whose density has no upper limit: the deviation of the
likelihood is bounded from below (`least`), and a bound with another `least` is another number.

    python train.py specvae:dense --data FOLDER --eval-every 200
    python -m benchmarks.bound runs/specvae-dense

digits16k, speakers held out, nats per frame: -49.4 of `dense`, -45.5 of `conv` (factor analysis as large: -59.2); of
`dense` with one variance, without the warp, -62.7 (probabilistic PCA: -64.6).
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
from jaxtyping import Array, Float, Key

from jaxaudio.core import (
    Batch,
    Encodes,
    InputError,
    Latent,
    Metrics,
    Morphs,
    Params,
    Shard,
    State,
    Wave,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.dsp.griffin_lim import griffin_lim
from jaxaudio.dsp.mel import log_mel, mel_filters, mel_inverse
from jaxaudio.dsp.stft import frame_count, magnitudes
from jaxaudio.nn.conv import Conv, ConvTranspose
from jaxaudio.variational import (
    LEAST,
    Posterior,
    divergence,
    draw,
    factor_analysis,
    geometric,
    moments_of,
    no_moments,
    posterior,
    principal,
)

Picture = Float[Array, "batch frames mels channels"]

FLOOR = 1e-5  # of the mel magnitudes, before the logarithm
LOUDEST = 8.0  # nats: a log-mel above it, which no sound in [-1, 1] has, is taken for this
PADDING = "hifigan"  # frames lie around their hop: a segment has a whole number of them, and segments join
MOST = 2048  # clips that the Gaussian model is fitted to
COPIES = 3  # of each, where training moves clips
ROUNDS = 20  # of expectation maximisation, where variances differ
WARPS = 9  # warps of the frequency axis that clips are given, evenly spaced
KNEE = 0.8  # of half the sample rate, up to where a warp is a stretch
FOLLOW = 0.99  # decay of the running moments of the latents


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecVAE(Morphs, Encodes):
    """What is seen of a sound, both networks, the likelihood, the training."""

    sample_rate: int = 16000  # Hz
    segment: int = 16000  # samples: whole hops
    batch_size: int = 64  # clips per step
    channels: int = 1  # 1: mono
    window: int = 1024  # samples of the Hann window
    frame_hop: int = 250  # samples from one spectrum to the next
    mels: int = 64  # mel bands, from 0 to half the sample rate
    iterations: int = 32  # of Griffin-Lim, the fast variant

    network: Literal["dense", "conv"] = "conv"  # of both halves
    latent: int = 64  # components of a clip's vector
    width: int = 16  # units of the two hidden layers (dense), channels of the outermost layer (conv)
    stages: int = 3  # of the convolutions, each halves the picture and doubles the channels
    variance: Literal["fixed", "one", "band", "bin"] = "bin"  # learned: one, one per mel band, or predicted per bin
    deviation: float = 1.0  # nats, of the likelihood if its variance is fixed
    least: float = 0.1  # nats, below which no learned deviation of the likelihood falls

    beta_first: float = 0.1  # weight of the divergence at the first step
    beta_steps: int = 0  # over which it grows from there to 1 by equal factors
    free_bits: float = 0.0  # nats per component that the divergence, as a mean over the batch, costs nothing
    shift: float = 0.1  # clips are moved in time by up to this share of the segment, either way
    warp: float = 0.12  # frequencies are stretched by up to this share, either way
    level: float = 0.0  # nats by which clips are made louder or softer, at most
    learning_rate: float = 1e-3  # at its highest
    decay_steps: int = 1500  # steps after which it has fallen to zero along a cosine; 0: constant
    weight_decay: float = 0.0  # of the kernels
    decay: float = 0.99  # of the averaged weights; 0: the last ones
    draws: int = 64  # of the importance-weighted estimate

    criterion: ClassVar = "importance"
    published: ClassVar = MappingProxyType({"autoencoder": 0.88})  # as computed: the sizes are this project's own
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "conv": {},
            "dense": {"network": "dense", "width": 512, "learning_rate": 3e-4},
            "tiny": {
                **{"segment": 256, "window": 256, "frame_hop": 32, "mels": 16, "latent": 4, "iterations": 4},
                **{"batch_size": 16, "width": 4, "stages": 2, "variance": "bin", "beta_steps": 20, "free_bits": 0.1},
                **{"shift": 0.02, "warp": 0.02, "level": 0.1, "decay": 0.9, "draws": 4},
                **{"learning_rate": 1e-2, "weight_decay": 1e-4, "decay_steps": 0},
            },
        }
    )

    def __post_init__(self):
        least = dict.fromkeys(("batch_size", "channels", "iterations", "latent", "width", "stages", "draws"), 1)
        least |= dict.fromkeys(("beta_steps", "free_bits", "shift", "warp", "level", "decay_steps", "weight_decay"), 0)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        for name in ("deviation", "least", "beta_first"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it is above 0")
        if self.shift >= 1 or self.warp >= 0.25:
            raise InputError(f"shift is {self.shift} and warp {self.warp}: they are below 1 and 0.25")
        if not 1 <= self.frame_hop <= self.window or self.segment < 1 or self.segment % self.frame_hop:
            raise InputError(
                f"frame_hop is {self.frame_hop}: it divides the segment, {self.segment}, and is at most the window, "
                f"{self.window}"
            )
        if (self.window - self.frame_hop) % 2:
            raise InputError(
                f"window {self.window} less frame_hop {self.frame_hop} is odd: frames lie around their hops, make it "
                "even"
            )
        frame_count(self.segment, self.window, self.frame_hop, PADDING)  # refuses a segment that can't be mirrored
        if self.latent >= math.prod(self.shape):
            raise InputError(f"latent is {self.latent}: a clip has {math.prod(self.shape)} numbers; take fewer")
        _ = self.filters  # refuses bands without a bin

    @property
    def steps(self) -> int:
        """To where the learning rate has fallen to zero."""
        return self.decay_steps or super().steps

    @property
    def hop(self) -> int:
        """A clip has one latent vector."""
        return self.segment

    @property
    def reach(self) -> int:
        """Griffin-Lim carries a sample by one window per iteration."""
        return -(-(self.iterations + 1) * self.window // self.segment)

    @property
    def filters(self) -> np.ndarray:
        """[bins, mels]."""
        return mel_filters(self.sample_rate, self.window, self.mels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, mel bands and channels of a clip's picture."""
        return self.segment // self.frame_hop, self.mels, self.channels

    @property
    def encoder(self) -> nn.Module:
        """Picture to what is added to the linear map's means and (before the softplus) deviations."""
        return {"dense": DenseEncoder, "conv": ConvEncoder}[self.network](self)

    @property
    def decoder(self) -> nn.Module:
        """Latent to what is added to the linear map's picture, and (before the softplus) to the deviations."""
        return {"dense": DenseDecoder, "conv": ConvDecoder}[self.network](self)

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser with its schedule."""
        rate = self.learning_rate
        if self.decay_steps:
            rate = optax.cosine_decay_schedule(rate, self.decay_steps)
        kernels = partial(jax.tree.map_with_path, lambda path, x: path[-1].key == "kernel")
        return optax.adamw(rate, weight_decay=self.weight_decay, mask=kernels)

    def measure(self, batches):
        """The Gaussian model of the pictures of the first clips, `MOST` at most, each as often as `COPIES` says and
        moved as in training; by the same draws for every seed of a run."""
        moving, rows = self.shift or self.level or self.warp, []
        augmented = jax.jit(self.augmented)
        for i, batch in enumerate(batches):
            if i * self.batch_size >= MOST:
                break
            for copy in range(COPIES if moving else 1):
                key = jax.random.fold_in(jax.random.key(copy), i)
                seen = np.asarray(augmented(jnp.asarray(batch.wave), Shard().keys(key, len(batch.wave))))
                rows.append(seen.reshape(len(seen), -1))
        size = math.prod(self.shape)
        if not rows:
            zeros, components = np.zeros(size), np.zeros((self.latent, size))
            found = {"mean": zeros, "components": components, "noise": zeros + 1, "deviation": np.ones(())}
        else:
            rows = np.concatenate(rows)
            period = {"band": self.mels * self.channels, "bin": size}.get(self.variance, 1)
            deviation = np.maximum(rows.std(0).mean(), self.least)
            found = {**factor_analysis(rows, self.latent, period, self.least, ROUNDS), "deviation": deviation}
        return {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}

    def init(self, key, measured) -> State:
        """The networks at zero, the deviations of the likelihood at the Gaussian model's."""
        encoder_key, decoder_key = jax.random.split(key)
        network = {
            "encoder": self.encoder.init(encoder_key, jnp.zeros((1, *self.shape)))["params"],
            "decoder": self.decoder.init(decoder_key, jnp.zeros((1, self.latent)))["params"],
        }
        if self.variance != "fixed":
            shared = {"one": (0, 1, 2), "band": (0,), "bin": ()}[self.variance]
            noise = jnp.mean(measured["noise"].reshape(self.shape), shared)
            network["deviation"] = before_softplus(jnp.maximum(jnp.sqrt(noise) - self.least, 1e-2))
        copies = jax.tree.map(jnp.copy, (network, dict(measured)))  # all arrays of a state are donated
        extra = {"average": copies[0], "measured": copies[1], "moments": no_moments(self.latent)}
        opt = {"autoencoder": self.tx.init(network)}
        return State(step=jnp.zeros((), jnp.int32), params={"autoencoder": network}, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One update."""
        del stage
        network, extra = state.params["autoencoder"], state.extra
        loss = partial(self.loss, extra=extra, step=state.step, wave=batch.wave, key=key, shard=shard)
        network, opt, metrics = descend(self.tx, loss, network, state.opt["autoencoder"], shard)
        averaged = average(extra["average"], network, self.decay, state.step)
        followed = average(extra["moments"], metrics.pop("moments"), FOLLOW, state.step)
        kept = {"average": averaged, "moments": followed}
        kept = {**extra, **unless_skipped(metrics, kept, {name: extra[name] for name in kept})}
        metrics = {f"autoencoder/{name}": value for name, value in metrics.items()}
        return State(state.step + 1, {"autoencoder": network}, {"autoencoder": opt}, kept), metrics

    def loss(self, network, *, extra, step, wave: Wave, key, shard: Shard):
        """The negative evidence lower bound per frame, the divergence weighted and with its free bits."""
        keys, measured, frames = shard.keys(key, wave.shape[0]), extra["measured"], self.shape[0]
        picture = self.augmented(wave, keys)
        given = self.posterior(network, measured, picture)
        latent = draw(given, jax.vmap(lambda each: jax.random.fold_in(each, 1))(keys))[:, 0]
        per_component = jnp.mean(divergence(given), (0, 1))
        # The mean over the whole batch decides which components are free; the gradient needs no other device's.
        paid = jax.lax.stop_gradient(shard.mean(per_component)) > self.free_bits
        beta = geometric(step, self.beta_first, 1.0, self.beta_steps)
        terms = {
            "distortion": -jnp.mean(self.log_likelihood(network, measured, picture, latent)) / frames,
            "divergence": beta * jnp.sum(jnp.where(paid, per_component, self.free_bits)) / frames,
        }
        moments = moments_of(jax.lax.stop_gradient(given.mean), extra["moments"]["mean"])
        metrics = {**terms, "components": jnp.sum(paid.astype(jnp.float32)), "moments": moments}
        return sum(terms.values()), metrics

    def augmented(self, wave: Wave, keys: Key[Array, "batch"]) -> Picture:
        """The pictures of clips that are moved in time, level and frequency, each by its own key. In time, the ends are
        mirrored into what is missing; frequencies are stretched up to `KNEE` and squeezed above it, or the other way
        round (vocal tract length perturbation, Jaitly & Hinton 2013)."""
        most = round(self.shift * self.segment)

        def one(x, key):
            at = jax.random.split(jax.random.fold_in(key, 0), 3)
            start = jax.random.randint(at[0], (), 0, 2 * most + 1)
            x = jax.lax.dynamic_slice_in_dim(jnp.pad(x, ((most, most), (0, 0)), "reflect"), start, self.segment)
            level = jax.random.uniform(at[1], minval=-self.level, maxval=self.level)
            return x * jnp.exp(level), jax.random.randint(at[2], (), 0, WARPS)

        wave, which = jax.vmap(one)(wave, keys)
        if not self.warp:
            return self.picture(wave)
        size, hop = self.window, self.frame_hop
        spectra = magnitudes(jnp.moveaxis(wave.astype(jnp.float32), -1, 1), size, hop, padding=PADDING)
        filters = [warped(self.filters, factor) for factor in np.linspace(1 - self.warp, 1 + self.warp, WARPS)]
        bands = jnp.einsum("ncfb,nbm->ncfm", spectra, jnp.asarray(np.stack(filters))[which])
        return jnp.moveaxis(jnp.log(jnp.maximum(bands, FLOOR)), 1, -1)

    def picture(self, wave: Wave) -> Picture:
        """Log-mel magnitudes [clips, frames, mels, channels]."""
        wave = jnp.moveaxis(wave.astype(jnp.float32), -1, 1)
        level = log_mel(wave, self.filters, self.window, self.frame_hop, floor=FLOOR, padding=PADDING)
        return jnp.moveaxis(level, 1, -1)

    def posterior(self, network: Params, measured: Params, picture: Picture) -> Posterior:
        """Of the latents of pictures, [batch, 1, latent]: that of the Gaussian model, and what the encoder adds."""
        centred = picture - measured["mean"].reshape(1, *self.shape)
        scaled = measured["components"] / measured["noise"].reshape(1, -1)
        precision = 1 + jnp.sum(scaled * measured["components"], 1).reshape(1, -1)
        mean = centred.reshape(len(picture), -1) @ scaled.T / precision
        deviation = before_softplus(jnp.maximum(1 / jnp.sqrt(precision), 2 * LEAST) - LEAST)
        linear = jnp.concatenate([mean, jnp.broadcast_to(deviation, mean.shape)], -1)
        added = self.encoder.apply({"params": network["encoder"]}, centred / measured["deviation"])
        return posterior((linear + added)[:, None])

    def likelihood(self, network: Params, measured: Params, latent: Float[Array, "n latent"]) -> tuple[Picture, Array]:
        """Mean and deviation of the pictures at these latents, in nats; deviation: [n or 1, frames or 1, ...]."""
        added, raw = self.decoder.apply({"params": network["decoder"]}, latent)
        linear = measured["mean"].reshape(1, -1) + latent @ measured["components"]
        mean = linear.reshape(-1, *self.shape) + added * measured["deviation"]
        if self.variance == "fixed":
            return mean, jnp.full((1, 1, 1, 1), self.deviation)
        start = {"one": (1, 1, 1), "band": (1, *self.shape[1:]), "bin": self.shape}[self.variance]
        own = network["deviation"].reshape(1, *start)
        return mean, self.least + nn.softplus(own if raw is None else own + raw)

    def log_likelihood(self, network, measured, picture: Picture, latent) -> Float[Array, "batch"]:
        """ln p(picture | latent), a density over log-mels in nats; summed over the clip."""
        mean, deviation = self.likelihood(network, measured, latent)
        deviation = jnp.broadcast_to(deviation, mean.shape)
        # Flat: on a CPU a sum over a last axis of one is ten times slower.
        picture, mean, deviation = (x.reshape(len(x), -1) for x in (picture, mean, deviation))
        density = -(((picture - mean) / deviation) ** 2) / 2 - jnp.log(deviation) - math.log(2 * math.pi) / 2
        return jnp.sum(density, 1)

    def bounds(self, params: Params, wave: Wave, key: Key[Array, ""]) -> Metrics:
        """Upper bounds of -ln p(log-mel) of each clip, in nats per frame.

        bound: the negative evidence lower bound, which is `distortion` plus `divergence`. importance: from the mean of
        `draws` importance weights (Burda et al. 2016, eq. 8), which is nearer to the truth, but not beyond it on
        average. Each is computed on its own draws from the posterior.
        """
        network, measured, frames = params["autoencoder"], params["measured"], self.shape[0]
        picture = self.picture(wave)
        given = self.posterior(network, measured, picture)

        def weigh(key):
            latent = draw(given, Shard().keys(key, len(picture)))
            log_p = self.log_likelihood(network, measured, picture, latent[:, 0])
            noise = (latent - given.mean) / given.deviation
            log_ratio = jnp.sum((noise**2 - latent**2) / 2 + jnp.log(given.deviation), (1, 2))  # ln p(z) - ln q(z)
            return log_p, log_p + log_ratio

        log_p, weights = jax.lax.map(weigh, jax.random.split(key, self.draws))
        distortion, spent = -jnp.mean(log_p, 0) / frames, jnp.sum(divergence(given), (1, 2)) / frames
        importance = (math.log(self.draws) - jax.nn.logsumexp(weights, 0)) / frames
        return {"importance": importance, "bound": distortion + spent, "distortion": distortion, "divergence": spent}

    def evaluate(self, state, batch: Batch, key) -> Metrics:
        """The bounds of the averaged networks."""
        return self.bounds(self.weights(state), batch.wave, key)

    def weights(self, state) -> Params:
        """The averaged networks, the Gaussian model, and the directions that the latents take."""
        return {"autoencoder": state.extra["average"], **{name: state.extra[name] for name in ("measured", "moments")}}

    def latents(self, key, n) -> Float[Array, "n latent"]:
        """Draws from the prior."""
        return jax.vmap(lambda each: jax.random.normal(each, (self.latent,)))(Shard().keys(key, n))

    def render(self, params, latent, label) -> Wave:
        """The sounds at these points of the latent space as the networks know it, not of its principal components;
        softer where the normal distribution of a level in nats would make one louder than 1."""
        del label
        wave = self.sound(params, latent[:, None])
        return wave / jnp.maximum(jnp.max(jnp.abs(wave), (1, 2), keepdims=True), 1)

    def encode(self, params, wave) -> Latent:
        """The principal components of the posterior means, one vector per segment."""
        batch, length, channels = wave.shape
        if length % self.segment:
            raise InputError(f"{length} samples are no whole number of segments of {self.segment}: fill up with zeros")
        picture = self.picture(wave.reshape(-1, self.segment, channels))
        mean = self.posterior(params["autoencoder"], params["measured"], picture).mean
        return principal(params["moments"]).compact(mean.reshape(batch, -1, self.latent))

    def decode(self, params, latent, key, first=0) -> Wave:
        """The sound of all segments in one, so that their phases join; nothing in it is random."""
        del key, first
        return jnp.clip(self.sound(params, principal(params["moments"]).restore(latent)), -1, 1)

    def spread(self, params) -> Float[Array, "latent"]:
        """Of the posterior means."""
        return principal(params["moments"]).spread

    def sound(self, params: Params, latent: Latent) -> Wave:
        """Griffin-Lim on the magnitudes whose mel bands the likelihood's means are."""
        batch, segments, _ = latent.shape
        mean, _ = self.likelihood(params["autoencoder"], params["measured"], latent.reshape(-1, self.latent))
        level = jnp.moveaxis(mean.reshape(batch, -1, *self.shape[1:]), -1, 1)
        magnitude = mel_inverse(jnp.exp(jnp.clip(level, math.log(FLOOR), LOUDEST)), self.filters)
        options = {"iterations": self.iterations, "padding": PADDING}
        wave = griffin_lim(magnitude, self.window, self.frame_hop, segments * self.segment, **options)
        return jnp.moveaxis(wave, 1, -1)


def warped(filters: Float[np.ndarray, "bins mels"], factor: float) -> Float[np.ndarray, "bins mels"]:
    """Mel filters that hear frequency f times `factor` where they heard f; above `KNEE` in a line to the highest."""
    last = len(filters) - 1
    bins = np.arange(last + 1)
    source = np.interp(bins, [0, KNEE * last, last], [0, factor * KNEE * last, last])
    below = np.minimum(source.astype(int), last - 1)
    part = (source - below)[:, None]
    spread = np.zeros((last + 1, last + 1))
    np.put_along_axis(spread, below[:, None], 1 - part, 1)
    np.put_along_axis(spread, below[:, None] + 1, part, 1)
    return (spread.T @ filters).astype(np.float32)


def before_softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """What softplus takes to x > 0."""
    return x + jnp.log(-jnp.expm1(-x))


class DenseEncoder(nn.Module):
    """Two hidden layers. [batch, frames, mels, channels] -> [batch, 2 latent]."""

    model: SpecVAE

    @nn.compact
    def __call__(self, x: Picture) -> Float[Array, "batch both"]:
        x = hidden(self.model, x.reshape(len(x), -1))
        return last(2 * self.model.latent)(x.astype(jnp.float32))


class DenseDecoder(nn.Module):
    """Two hidden layers. [batch, latent] -> two pictures, the second None where deviations are not predicted."""

    model: SpecVAE

    @nn.compact
    def __call__(self, x: Float[Array, "batch latent"]) -> tuple[Picture, Picture | None]:
        model, both = self.model, self.model.variance == "bin"
        x = last(math.prod(model.shape) * (1 + both))(hidden(model, x).astype(jnp.float32))
        return parted(x.reshape(len(x), *model.shape[:2], -1), model)


class ConvEncoder(nn.Module):
    """Each stage halves the picture and doubles the channels. [batch, frames, mels, channels] -> [batch, 2 latent]."""

    model: SpecVAE

    @nn.compact
    def __call__(self, x: Picture) -> Float[Array, "batch both"]:
        model = self.model
        for i in range(model.stages):
            conv = Conv(model.width * 2**i, (4, 4), (2, 2), dtype=model.dtype, name=f"conv_{i}")
            x = nn.silu(conv(x))
        return last(2 * model.latent)(x.reshape(len(x), -1).astype(jnp.float32))


class ConvDecoder(nn.Module):
    """The encoder's stages the other way round. [batch, latent] -> two pictures, as the dense one."""

    model: SpecVAE

    @nn.compact
    def __call__(self, x: Float[Array, "batch latent"]) -> tuple[Picture, Picture | None]:
        model, both = self.model, self.model.variance == "bin"
        sizes = [[-(-n // 2**i) for n in model.shape[:2]] for i in range(model.stages + 1)]
        start = (*sizes[-1], model.width * 2 ** (model.stages - 1))
        x = nn.silu(nn.Dense(math.prod(start), dtype=model.dtype, kernel_init=glorot, name="start")(x))
        x = x.reshape(-1, *start)
        for i in reversed(range(1, model.stages)):
            conv = ConvTranspose(model.width * 2 ** (i - 1), (4, 4), (2, 2), dtype=model.dtype, name=f"conv_{i}")
            x = nn.silu(conv(x))[:, : sizes[i][0], : sizes[i][1]]
        zeros = nn.initializers.zeros
        last = ConvTranspose(model.channels * (1 + both), (4, 4), (2, 2), kernel_init=zeros, name="last")
        x = last(x.astype(jnp.float32))[:, : sizes[0][0], : sizes[0][1]]
        return parted(x, model)


def hidden(model: SpecVAE, x: Float[Array, "batch input"]) -> Float[Array, "batch width"]:
    """The two hidden layers of a dense half; to be called inside it."""
    for i in range(2):
        x = nn.silu(nn.Dense(model.width, dtype=model.dtype, kernel_init=glorot, name=f"dense_{i}")(x))
    return x


def last(features: int) -> nn.Module:
    """A layer that starts at zero, so that the linear map is all there is at first."""
    return nn.Dense(features, kernel_init=nn.initializers.zeros, name="last")


def parted(x: Float[Array, "batch frames mels both"], model: SpecVAE) -> tuple[Picture, Picture | None]:
    """The means, and the deviations if they are predicted."""
    return x[..., : model.channels], x[..., model.channels :] if model.variance == "bin" else None


glorot = nn.initializers.glorot_uniform()
