"""DAC, the Descript audio codec: raw audio as a few codes per frame, and back; and Oobleck, its continuous relative.

Kumar, Seetharaman, Luebs, Kumar, Kumar: High-fidelity audio compression with improved RVQGAN, 2023 (arXiv 2306.06546);
Evans et al.: Stable Audio Open, 2024 (arXiv 2407.14358), preset `oobleck`. Reproduced: encoder, decoder and snake, the
factorised residual quantiser with its dropout, the critics by periods and by bands of complex spectra, all losses and
weights, the two optimisers; of Oobleck both networks, its bottleneck, EnCodec's critic with the hinge, the spectral
distance of sum, difference and both channels. Departs: which examples the dropout hits is drawn, not the first half of
the batch; a layer of odd stride gives as many samples as it should (the original loses its last); all biases start at
0; recordings are neither brought to one loudness nor turned in phase. Oobleck's spectra are not A-weighted, its rates
do not fall, and each of its steps trains both networks. Beyond the paper: averaged codebooks (EnCodec's), scalar
quantisation, a causal variant that streams, and the principal components of the latent frames.

    python train.py dac:small --data FOLDER
    python -m benchmarks.quality runs/dac-small
"""

import dataclasses
import math
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxaudio.core import (
    Carry,
    Codes,
    InputError,
    Latent,
    Metrics,
    Own,
    Params,
    Quantizes,
    Shard,
    State,
    Streams,
    Wave,
    average,
    descend,
    replay,
    unless_skipped,
)
from jaxaudio.dsp.mel import mel_filters
from jaxaudio.losses import (
    feature_distance,
    hinge,
    hinge_made,
    least_squares,
    least_squares_made,
    mel_distance,
    resolution_distance,
)
from jaxaudio.nn.activation import Snake, SnakeBeta
from jaxaudio.nn.conv import folded
from jaxaudio.nn.critics import Maps, Periods, Spectra, compared, edges, levelled
from jaxaudio.nn.quantize import Averaged, Factorised, Quantised, Scalar, follow, start
from jaxaudio.nn.stream import TimeConv, TimeConvTranspose, empty
from jaxaudio.variational import divergence, draw, moments_of, no_moments, posterior, principal

Usage = Float[Array, "codebooks contexts size"]

FOLLOW = 0.999  # decay of the running moments of the latent frames, and of the counts of the codes
MOST_COUNTS = 1 << 20  # of a codebook, in all its contexts
FINE, BACK = 16, 300  # as in data/bitstream.py: parts of a count; counts that all codes are worth to those of a context


@dataclasses.dataclass(frozen=True, kw_only=True)
class DAC(Quantizes, Streams):
    """The paper's hyper-parameters for 44.1 kHz."""

    sample_rate: int = 44100  # Hz
    segment: int = 16896  # samples per training example, a whole number of hops
    batch_size: int = 72  # examples per step
    channels: int = 1  # 1: mono
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)  # by which its stages shorten
    encoder_widths: tuple[int, ...] = (64, 128, 256, 512, 1024)  # channels before its stages, and behind the last
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)  # by which its stages lengthen
    decoder_widths: tuple[int, ...] = (1536, 768, 384, 192, 96)  # channels before its stages, and behind the last
    dilations: tuple[int, ...] = (1, 3, 9)  # of the residual units of a stage
    activation: Literal["snake", "snake_beta"] = "snake"  # snake_beta: amplitude and frequency apart, as logarithms
    bounded: bool = True  # tanh at the end; without it the last layer has no bias (Oobleck's)
    causal: bool = False  # nothing looks ahead, so that sound can be streamed
    latent: int = 1024  # components of a latent frame
    bottleneck: Literal["factorised", "average", "scalar", "vae"] = "factorised"  # vae: continuous, no codes
    codebooks: int = 9  # codes per frame
    codebook_size: int = 1024  # values of a code
    codebook_dim: int = 8  # components of a codebook's rows (factorised)
    codebook_decay: float = 0.99  # of the averages that codebooks follow (average)
    levels: tuple[int, ...] = ()  # of the components behind a code (scalar); their product is codebook_size
    quantizer_dropout: float = 0.5  # share of examples of which only some leading codebooks count
    mel: float = 15.0  # weight of the mel distance
    mel_windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)  # samples, hop a quarter
    mels: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)  # bands of each window
    stft: float = 0.0  # weight of the distance of spectra: of the sum and the difference of two channels, and of each
    adversarial: float = 1.0  # weight of what the critics say
    features: float = 2.0  # weight of the distance of the critics' maps
    commitment: float = 0.25  # weight of how far the latent is from its codes
    codebook: float = 1.0  # weight of how far the codes are from the latent
    divergence: float = 1e-4  # weight of twice the divergence from the prior (vae)
    critic: Literal["descript", "encodec"] = "descript"  # descript: least squares on levelled sound; encodec: the hinge
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)  # of the critics of periods
    period_widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)  # channels of their layers
    windows: tuple[int, ...] = (2048, 1024, 512)  # of the critics of spectra, hop a quarter
    bands: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges of theirs, in shares of the spectrum
    window_width: int = 32  # channels of their layers
    halvings: int = 3  # layers of theirs that halve a band
    learning_rate: float = 1e-4  # of the autoencoder
    critic_rate: float = 1e-4  # of the critics
    rate_decay: float = 0.999996  # factor of both per step
    weight_decay: float = 0.01  # of AdamW, in both
    clip: float = 1000.0  # norm of the autoencoder's gradient at most; 0: any
    critic_clip: float = 10.0  # norm of the critics' gradient at most; 0: any
    decay: float = 0.0  # of the averaged weights to sample from; 0: sample from the last ones
    iterations: int = 400_000  # steps of a run that is asked for no number

    criterion: ClassVar = "distance"
    published: ClassVar = MappingProxyType({"autoencoder": 76.65, "critic": 42.52})  # the critics' as computed
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "44khz": {},
            "24khz": {
                **{"sample_rate": 24000, "segment": 9280, "codebooks": 32},
                **{"encoder_rates": (2, 4, 5, 8), "decoder_rates": (8, 5, 4, 2)},
            },
            "16khz": {
                **{"sample_rate": 16000, "segment": 6080, "codebooks": 12},
                **{"encoder_rates": (2, 4, 5, 8), "decoder_rates": (8, 5, 4, 2)},
            },
            "oobleck": {
                **{"segment": 65536, "batch_size": 16, "channels": 2, "bottleneck": "vae", "latent": 64},
                **{"encoder_rates": (2, 4, 4, 8, 8), "encoder_widths": (128, 128, 256, 512, 1024, 2048)},
                **{"decoder_rates": (8, 8, 4, 4, 2), "decoder_widths": (2048, 1024, 512, 256, 128, 128)},
                **{"activation": "snake_beta", "bounded": False, "mel": 0.0, "stft": 1.0, "critic": "encodec"},
                **{"adversarial": 0.02, "features": 0.2},  # 0.1 and 5, the means over 5 critics and their 5 maps
                **{"periods": (), "windows": (2048, 1024, 512, 256, 128), "bands": (0.0, 1.0), "window_width": 64},
                **{"learning_rate": 1.5e-4, "critic_rate": 3e-4, "rate_decay": 1.0, "weight_decay": 1e-3},
                **{"clip": 0.0, "critic_clip": 0.0, "decay": 0.9999},
            },
            "small": {
                **{"sample_rate": 16000, "segment": 8000, "batch_size": 8, "latent": 128, "codebooks": 8},
                **{"encoder_rates": (2, 4, 5, 8), "encoder_widths": (12, 24, 48, 96, 192)},
                **{"decoder_rates": (8, 5, 4, 2), "decoder_widths": (256, 128, 64, 32, 16)},
                **{"period_widths": (8, 16, 32, 64, 64), "windows": (1024, 512, 256), "window_width": 8},
                **{"learning_rate": 5e-4, "critic_rate": 5e-4, "rate_decay": 0.9999, "decay": 0.999},
                **{"iterations": 6000},
            },
            "tiny": {
                **{"sample_rate": 16000, "segment": 1024, "batch_size": 8, "latent": 4, "dilations": (1,)},
                **{"encoder_rates": (16,), "encoder_widths": (4, 8), "codebooks": 2, "codebook_size": 16},
                **{"decoder_rates": (16,), "decoder_widths": (8, 4), "codebook_dim": 2, "mel_windows": (256,)},
                **{"mels": (20,), "periods": (2,), "period_widths": (2,), "windows": (64,), "window_width": 2},
                **{"bands": (0.0, 1.0), "halvings": 0, "learning_rate": 5e-3, "critic_rate": 1e-3, "clip": 0.0},
                **{"weight_decay": 0.0, "iterations": 1000},
            },
        }
    )

    def __post_init__(self):
        least = dict.fromkeys(("sample_rate", "batch_size", "channels", "latent", "codebooks", "codebook_dim"), 1)
        least |= dict.fromkeys(("window_width", "iterations"), 1) | {"codebook_size": 2, "halvings": 0}
        least |= dict.fromkeys(("mel", "stft", "adversarial", "features", "commitment", "codebook", "divergence"), 0)
        least |= dict.fromkeys(("learning_rate", "critic_rate", "weight_decay", "clip", "critic_clip"), 0)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        for half in ("encoder", "decoder"):
            rates, widths = getattr(self, f"{half}_rates"), getattr(self, f"{half}_widths")
            if len(widths) != len(rates) + 1 or min(rates, default=0) < 2 or min(widths) < 1:
                raise InputError(
                    f"{half}_rates {rates} with {half}_widths {widths}: rates of 2 or more, and one width more than "
                    "there are rates"
                )
        if math.prod(self.encoder_rates) != math.prod(self.decoder_rates):
            raise InputError(
                f"encoder_rates {self.encoder_rates} and decoder_rates {self.decoder_rates}: their products are equal"
            )
        if self.segment < 1 or self.segment % self.hop:
            raise InputError(f"segment is {self.segment}: it is a whole number of hops of {self.hop} samples")
        if not self.mels or len(self.mels) != len(self.mel_windows):
            raise InputError(
                f"mels {self.mels} with mel_windows {self.mel_windows}: so many bands for each, one or more"
            )
        if any(size < 4 or size % 4 for size in (*self.mel_windows, *self.windows)):
            raise InputError(f"windows {self.windows} and mel_windows {self.mel_windows}: multiples of 4 samples")
        longest = max((*self.mel_windows, *self.windows))
        if self.segment <= longest // 2:
            raise InputError(f"segment is {self.segment}: windows of {longest} samples mirror half of theirs; lengthen")
        if self.critic == "encodec" and self.segment < max(self.windows, default=0):
            raise InputError(
                f"segment is {self.segment}: EnCodec's critics see whole windows of {self.windows}; lengthen"
            )
        if self.bottleneck == "scalar" and (
            min(self.levels, default=0) < 2
            or math.prod(self.levels) != self.codebook_size
            or self.latent != self.codebooks * len(self.levels)
        ):
            raise InputError(
                f"levels is {self.levels} with codebook_size {self.codebook_size}, codebooks {self.codebooks} and "
                f"latent {self.latent}: 2 levels or more whose product is the size, and as many components per code"
            )
        if not self.windows and not self.periods:
            raise InputError("windows and periods are empty: name one of either, so that there is a critic")
        if min(self.dilations, default=0) < 1 or min(self.period_widths, default=0) < 1:
            raise InputError(
                f"dilations is {self.dilations} and period_widths {self.period_widths}: at least one, of 1 or more"
            )
        if not self.rate_decay:
            raise InputError("rate_decay is 0: the factor by which the rates fall at each step is above 0")
        for name in ("quantizer_dropout", "rate_decay", "codebook_decay", "decay"):
            value, whole = getattr(self, name), name in ("quantizer_dropout", "rate_decay")
            if not 0 <= value <= 1 or (value == 1 and not whole):
                raise InputError(f"{name} is {value}: from 0 to {'' if whole else 'less than '}1")
        for size in self.windows:
            edges(size, self.bands)
        for size, count in zip(self.mel_windows, self.mels, strict=True):
            mel_filters(self.sample_rate, size, count)  # refuses more bands than the window tells apart

    @property
    def steps(self) -> int:
        """As a field says."""
        return self.iterations

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.encoder_rates)

    @property
    def reach(self) -> int:
        """From the layers' taps, rounded up: what both halves see to one side in samples, or behind if causal."""
        units, total, rate = sum(3 * dilation for dilation in self.dilations), 3, 1
        for each in self.encoder_rates:
            total, rate = total + (units + -(-each // 2)) * rate, rate * each
        total += (1 + 3) * rate
        for each in self.decoder_rates:
            rate //= each
            total += (-(-each // 2) + units) * rate
        return -(-(total + 3) * (2 if self.causal else 1) // self.hop)

    @property
    def contexts(self) -> int:
        """In which codes are counted: one per value of a code, fewer of codebooks that are larger than 1024."""
        return max(1, min(self.codebook_size, MOST_COUNTS // self.codebook_size))

    @property
    def optimizers(self) -> dict[str, optax.GradientTransformation]:
        """AdamW for both, their gradients clipped by the norm."""
        given = {"autoencoder": (self.learning_rate, self.clip), "critic": (self.critic_rate, self.critic_clip)}
        found = {}
        for name, (rate, clip) in given.items():
            parts = [optax.clip_by_global_norm(clip)] if clip else []
            parts.append(optax.scale_by_adam(b1=0.8, b2=0.99))
            parts += [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
            falling = optax.exponential_decay(rate, 1, self.rate_decay)
            found[name] = optax.chain(*parts, optax.scale_by_learning_rate(falling))
        return found

    def init(self, key, measured) -> State:
        """Both networks as PyTorch starts them, which is what weight norm makes of the official code's draws too."""
        del measured
        autoencoder_key, critic_key = jax.random.split(key)
        variables = Autoencoder(self).init(autoencoder_key, self.example)
        critic = Critic(self).init(critic_key, jnp.zeros((1, self.segment, self.channels)))["params"]
        params = {"autoencoder": variables["params"], "critic": critic}
        extra = {"codebooks": variables.get("codebooks", {}), "moments": no_moments(self.latent)}
        if self.decay:
            extra["average"] = jax.tree.map(jnp.copy, variables["params"])
        if self.bottleneck != "vae":
            extra["usage"] = jnp.zeros((self.codebooks, self.contexts, self.codebook_size))
        opt = {name: tx.init(params[name]) for name, tx in self.optimizers.items()}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def stage(self, step: int) -> str | None:
        """Averaged codebooks begin with k-means; else there is one stage."""
        if self.bottleneck != "average":
            return None
        return "start" if step == 0 else "train"

    @property
    def variants(self) -> tuple[str | None, ...]:
        """Those."""
        return ("start", "train") if self.bottleneck == "average" else (None,)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One update of the critics, then one of the autoencoder, on the same clips."""
        example_key, table_key = jax.random.split(key)
        keys, wave = shard.keys(example_key, len(batch.wave)), batch.wave
        networks, opt, tx, tables = dict(state.params), dict(state.opt), self.optimizers, state.extra["codebooks"]
        if stage == "start":
            z = Autoencoder(self).apply({"params": networks["autoencoder"]}, wave, method="encode")
            tables = {"quantizer": start(z, self.codebooks, self.codebook_size, shard, table_key)}
        chance = keys if self.bottleneck == "vae" else self.kept(keys)
        coded = partial(self.coded, tables=tables, wave=wave, chance=chance, shard=shard)

        found, pull = jax.vjp(coded, networks["autoencoder"])
        loss = partial(self.critic_loss, real=wave, fake=found.sound)
        networks["critic"], opt["critic"], critic_metrics = descend(
            tx["critic"], loss, networks["critic"], opt["critic"], shard
        )
        again = replay(found, pull)
        loss = partial(self.autoencoder_loss, coded=again, critic=networks["critic"], wave=wave, state=state)
        networks["autoencoder"], opt["autoencoder"], metrics = descend(
            tx["autoencoder"], loss, networks["autoencoder"], opt["autoencoder"], shard
        )

        z, codes = (metrics.pop(name).value for name in ("latent", "codes"))
        seen, extra = metrics.pop("seen"), state.extra
        followed = {"moments": average(extra["moments"], seen["moments"], FOLLOW, state.step), "codebooks": tables}
        if tables:
            given = tables["quantizer"], z, self.codebook_decay, shard, table_key
            followed["codebooks"] = {"quantizer": follow(*given)}
        if self.decay:
            followed["average"] = average(extra["average"], networks["autoencoder"], self.decay, state.step)
        followed = unless_skipped(metrics, followed, {name: extra[name] for name in followed})
        if codes is not None:
            everyones = shard.gather(codes.astype(jnp.float32)).astype(jnp.int32)
            followed["usage"] = tallied(extra["usage"], everyones, metrics["skipped"] == 0)
        both = {"critic": critic_metrics, "autoencoder": metrics}
        named = {f"{network}/{name}": value for network, values in both.items() for name, value in values.items()}
        return State(state.step + 1, networks, opt, followed), named

    def critic_loss(self, params, *, real: Wave, fake: Wave) -> tuple[Array, Metrics]:
        """Over all critics."""
        judge = partial(Critic(self).apply, {"params": params})
        total = {"descript": least_squares, "encodec": hinge}[self.critic](*compared(judge, real, fake))
        return total, {}

    def autoencoder_loss(self, params, *, coded, critic, wave, state) -> tuple[Array, Metrics]:
        """The weighted terms, and what the running statistics follow."""
        found = coded(params)
        judge = partial(Critic(self).apply, {"params": critic})
        real, fake = jax.lax.stop_gradient(judge(wave)), judge(found.sound)
        made = {"descript": least_squares_made, "encodec": hinge_made}[self.critic](fake)
        terms = {"adversarial": self.adversarial * made, "features": self.features * feature_distance(real, fake)}
        if self.mel:
            terms["mel"] = self.mel * jnp.mean(self.mel_distance(wave, found.sound))
        if self.stft:
            terms["stft"] = self.stft * jnp.mean(self.stft_distance(wave, found.sound))
        losses = {name: jnp.mean(value) for name, value in found.losses.items()}
        terms |= {name: getattr(self, name) * (2 if name == "divergence" else 1) * x for name, x in losses.items()}
        seen = {"moments": moments_of(found.latent, state.extra["moments"]["mean"])}
        seen = jax.lax.stop_gradient({"seen": seen, "latent": Own(found.encoded), "codes": Own(found.codes)})
        return sum(terms.values()), {**terms, **seen}

    def coded(self, params, *, tables, wave, chance, shard) -> "Coded":
        """A sound through the autoencoder, as in training; chance: how many codebooks count, or keys to draw from."""
        apply = partial(Autoencoder(self).apply, {"params": params, "codebooks": tables})
        z = apply(wave, method="encode")
        if self.bottleneck == "vae":
            given = posterior(z)
            latent = draw(given, chance)
            losses = {"divergence": jnp.mean(jnp.sum(divergence(given), -1), 1)}
            return Coded(apply(latent, method="decode"), z, given.mean, None, losses)
        found = apply(z, chance, shard, method="quantise")
        losses = {"commitment": found.commitment, "codebook": found.codebook}
        whole = jax.lax.stop_gradient(apply(found.codes, method="restored"))
        return Coded(apply(found.latent, method="decode"), z, whole, found.codes, losses)

    def kept(self, keys) -> Int[Array, "batch"]:
        """How many codebooks count in each example: all, or 1 and more by chance."""

        def one(key):
            chosen, count = jax.random.split(key)
            fewer = jax.random.randint(count, (), 1, self.codebooks + 1)
            return jnp.where(jax.random.uniform(chosen) < self.quantizer_dropout, fewer, self.codebooks)

        return jax.vmap(one)(keys)

    def mel_distance(self, a: Wave, b: Wave) -> Float[Array, "batch"]:
        """Of the paper."""
        return mel_distance(a, b, self.sample_rate, self.mel_windows, self.mels)

    def stft_distance(self, a: Wave, b: Wave) -> Float[Array, "batch"]:
        """Of two channels: half that of their sum and difference (the mean of both), and half that of either."""
        distance = lambda a, b: resolution_distance(a, b, self.mel_windows)
        if self.channels != 2:
            return distance(a, b)
        mixed = lambda x: x @ jnp.asarray([[1.0, 1.0], [1.0, -1.0]])
        return distance(mixed(a), mixed(b)) + distance(a, b)

    def evaluate(self, state, batch, key) -> Metrics:
        """How far the decoded sound is from the recording, all codebooks counting, and what its codes cost."""
        del key
        wave, apply = batch.wave, partial(Autoencoder(self).apply, self.variables(state))
        z = apply(wave, method="encode")
        if self.bottleneck == "vae":
            latent, found = posterior(z).mean, {"nats_per_frame": jnp.mean(jnp.sum(divergence(posterior(z)), -1), 1)}
        else:
            latent, codes, commitment, _ = apply(z, None, Shard(), method="quantise")
            cost = bits_of(state.extra["usage"], codes)
            found = {"commitment": commitment, "bits_per_frame": jnp.mean(jnp.sum(cost, -1), 1)}
        sound = apply(latent, method="decode")
        kept = jnp.sum(wave * sound, (1, 2)) / (jnp.sum(wave**2, (1, 2)) + 1e-8)
        target = wave * kept.reshape(-1, 1, 1)
        si_sdr = 10 * jnp.log10((jnp.sum(target**2, (1, 2)) + 1e-8) / (jnp.sum((sound - target) ** 2, (1, 2)) + 1e-8))
        return {"distance": self.mel_distance(wave, sound), "si_sdr": si_sdr, **found}

    def variables(self, state: State) -> Params:
        """The autoencoder to sample from, and its codebooks where these are averages."""
        params = state.extra["average"] if self.decay else state.params["autoencoder"]
        return {"params": params, "codebooks": state.extra["codebooks"]}

    def weights(self, state) -> Params:
        """The averaged autoencoder with its weight norms worked in, principal components, how often codes came."""
        variables = self.variables(state)
        folds = {"params": folded(Autoencoder(self), variables, self.example), "codebooks": variables["codebooks"]}
        usage = {"usage": state.extra["usage"]} if "usage" in state.extra else {}
        return {"autoencoder": folds, "principal": principal(state.extra["moments"]), **usage}

    def encode(self, params, wave) -> Latent:
        """Principal components of what the codes tell, or of the posterior means."""
        apply = partial(Autoencoder(self).apply, params["autoencoder"])
        return params["principal"].compact(apply(apply(wave, method="encode"), method="frames"))

    def codes(self, params, wave) -> Codes:
        """All codes."""
        self.refuse_continuous()
        apply = partial(Autoencoder(self).apply, params["autoencoder"])
        return apply(apply(wave, method="encode"), None, Shard(), method="quantise").codes

    def frames_of(self, params, codes) -> Latent:
        """Principal components of what they tell."""
        self.refuse_continuous()
        latent = Autoencoder(self).apply(params["autoencoder"], codes, method="restored")
        return params["principal"].compact(latent)

    def refuse_continuous(self) -> None:
        """Raises InputError where there are no codes."""
        if self.bottleneck == "vae":
            raise InputError("bottleneck is vae: its latent is continuous; for codes train one that is factorised")

    def decode(self, params, latent, key, first=0) -> Wave:
        """The sound of principal components; nothing in it is random."""
        del key, first
        frames = params["principal"].restore(latent)
        return jnp.clip(Autoencoder(self).apply(params["autoencoder"], frames, method="decode"), -1.0, 1.0)

    def spread(self, params) -> Float[Array, "latent"]:
        """Variance of the principal components."""
        return params["principal"].spread

    def open(self, params, batch) -> Carry:
        """What every layer remembers."""
        if not self.causal:
            raise InputError("this model looks ahead: to stream, train one with --model.causal")
        return empty(Autoencoder(self), params["autoencoder"], jnp.zeros((batch, self.hop, self.channels)))

    def push(self, params, carry, wave, key) -> tuple[Carry, Wave]:
        """One chunk."""
        del key
        sound, after = Autoencoder(self).apply({**params["autoencoder"], "carry": carry}, wave, mutable="carry")
        return after["carry"], jnp.clip(sound, -1.0, 1.0)

    @property
    def example(self) -> Wave:
        """What one call of the autoencoder takes: one hop of silence."""
        return jnp.zeros((1, self.hop, self.channels))


class Coded(NamedTuple):
    """A sound that went through the autoencoder."""

    sound: Wave
    encoded: Latent  # what the encoder gave
    latent: Latent  # what all its codes tell, or the posterior means
    codes: Codes | None
    losses: Metrics  # of the bottleneck, each [batch]


def context_of(codes: Codes, usage: Usage) -> Codes:
    """In which context each code is counted: that of the coarsest code of the same frame, and of this code itself that
    of the frame before; in the first frame none, which is the number behind the last."""
    count, size = usage.shape[1:]
    first = codes[..., :1] * count // size
    before = jnp.pad(first[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=count)
    return jnp.concatenate([before, jnp.broadcast_to(first, (*codes.shape[:2], codes.shape[2] - 1))], -1)


def tallied(usage: Usage, codes: Codes, applied: Bool[Array, ""]) -> Usage:
    """Running counts of codes by context, one batch further unless its update was not applied.

    A donated `usage` is changed in place. With `jit` the codes lie on several devices: the copy of all rows brings them
    together, or XLA would count into a table on each device, and add these up.
    """
    codes = jnp.take(codes, jnp.arange(len(codes)), 0, mode="clip")
    k = jnp.arange(codes.shape[-1]).reshape(1, 1, -1)
    faded = jnp.where(applied, FOLLOW, 1.0) * usage
    return faded.at[k, context_of(codes, usage), codes].add(applied.astype(usage.dtype), mode="drop")


def bits_of(usage: Usage, codes: Codes) -> Float[Array, "batch frames codebooks"]:
    """What each code costs by the counts of its context, to which all codes are worth BACK more: as in a stream."""
    whole = jnp.sum(usage, 1) + 1 / FINE
    share = whole / jnp.sum(whole, -1, keepdims=True)
    k, context = jnp.arange(codes.shape[-1]).reshape(1, 1, -1), context_of(codes, usage)
    got = {"mode": "fill", "fill_value": 0}
    seen, total = usage.at[k, context, codes].get(**got), jnp.sum(usage, 2).at[k, context].get(**got)
    return -jnp.log2((seen + BACK * share[k, codes]) / (total + BACK))


class Autoencoder(nn.Module):
    """Both halves, and the quantiser between them."""

    model: DAC

    def setup(self):
        model = self.model
        self.encoder, self.decoder = Encoder(model), Decoder(model)
        sizes = model.codebooks, model.codebook_size
        if model.bottleneck == "factorised":
            self.quantizer = Factorised(*sizes, model.codebook_dim)
        elif model.bottleneck != "vae":
            average = model.bottleneck == "average"
            self.quantizer = Averaged(*sizes) if average else Scalar(model.codebooks, model.levels)

    def __call__(self, wave: Wave) -> Wave:
        """The sound of the codes, or of the posterior mean."""
        return self.decode(self.frames(self.encode(wave)))

    def encode(self, wave: Wave) -> Float[Array, "batch frames encoded"]:
        """What is quantised, or what tells the posterior. Raises InputError where it is no whole number of hops."""
        if not wave.shape[1] or wave.shape[1] % self.model.hop:
            raise InputError(f"a sound of {wave.shape[1]} samples is no whole number of hops of {self.model.hop}")
        return self.encoder(wave)

    def quantise(self, z: Latent, kept: Int[Array, "batch"] | None, shard: Shard) -> Quantised:
        """Codes, and the latent that they tell."""
        return self.quantizer(z, kept, shard)

    def frames(self, z: Float[Array, "batch frames encoded"]) -> Latent:
        """What all codes tell, or the posterior means."""
        if self.model.bottleneck == "vae":
            return posterior(z).mean
        return self.quantise(z, None, Shard()).latent

    def restored(self, codes: Codes) -> Latent:
        """What these codes tell."""
        return self.quantizer.restored(codes)

    def decode(self, latent: Latent) -> Wave:
        """The sound of latent frames."""
        return self.decoder(latent)


class Encoder(nn.Module):
    """[batch, time, channels] -> [batch, frames, latent], twice the latent where it tells a posterior."""

    model: DAC

    @nn.compact
    def __call__(self, wave: Wave) -> Float[Array, "batch frames encoded"]:
        model, conv = self.model, layer(TimeConv, self.model)
        x = conv(model.encoder_widths[0], 7, name="first")(wave)
        for i, rate in enumerate(model.encoder_rates):
            x = active(model, units(model, x, f"units_{i}"), f"active_{i}")
            x = conv(model.encoder_widths[i + 1], 2 * rate, rate, name=f"down_{i}")(x)
        encoded = model.latent * (2 if model.bottleneck == "vae" else 1)
        return conv(encoded, 3, dtype=jnp.float32, name="last")(active(model, x, "active_last"))


class Decoder(nn.Module):
    """[batch, frames, latent] -> [batch, time, channels]."""

    model: DAC

    @nn.compact
    def __call__(self, latent: Latent) -> Wave:
        model, conv, up = self.model, layer(TimeConv, self.model), layer(TimeConvTranspose, self.model)
        x = conv(model.decoder_widths[0], 7, name="first")(latent)
        for i, rate in enumerate(model.decoder_rates):
            x = up(model.decoder_widths[i + 1], 2 * rate, rate, name=f"up_{i}")(active(model, x, f"active_{i}"))
            x = units(model, x, f"units_{i}")
        last = conv(model.channels, 7, use_bias=model.bounded, dtype=jnp.float32, name="last")
        x = last(active(model, x, "active_last"))
        return jnp.tanh(x) if model.bounded else x


class Critic(nn.Module):
    """[batch, time, channels] -> the maps of every critic, its scores last."""

    model: DAC

    @nn.compact
    def __call__(self, wave: Wave) -> list[Maps]:
        model = self.model
        if model.critic == "encodec":
            given = {"slope": 0.2, "matched": False, "normalised": True}
            dilations, heard = tuple(2**i for i in range(model.halvings)), wave
        else:
            given, dilations, heard = {}, (1,) * model.halvings, levelled(wave)
        sizes = model.windows, model.bands, model.window_width, dilations
        spectra = Spectra(*sizes, **given, dtype=model.dtype, name="spectra")
        return Periods(model.periods, model.period_widths, dtype=model.dtype, name="periods")(heard) + spectra(heard)


def layer(kind: Any, model: DAC) -> Any:
    """A kind of layer as the autoencoder has it."""
    return partial(kind, causal=model.causal, weight_norm=True, dtype=model.dtype)


def units(model: DAC, x: Array, name: str) -> Array:
    """Residual units: an activation and a dilated convolution of 7 taps, an activation and one of a single tap."""
    conv = layer(TimeConv, model)
    for i, dilation in enumerate(model.dilations):
        y = active(model, x, f"{name}_{i}_before")
        y = conv(x.shape[-1], 7, dilation=dilation, name=f"{name}_{i}_dilated")(y)
        y = active(model, y, f"{name}_{i}_between")
        x = x + conv(x.shape[-1], 1, name=f"{name}_{i}_plain")(y)
    return x


def active(model: DAC, x: Array, name: str) -> Array:
    """The activation everywhere; to be called inside a network."""
    return {"snake": Snake, "snake_beta": SnakeBeta}[model.activation](name=name)(x)
