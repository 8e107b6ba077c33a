"""Restorer: one generator for noise, gaps, clipping, lost bandwidth and rooms, chosen by what its training damages.

Our own. A network of dilated convolutions over the frames of a spectrum, all frequencies being channels, says for every
frame and bin what to multiply the spectrum by, and how much noise to add. Why this and no modern reference:
- Masks of complex spectra (DCCRN, CMGAN, MP-SENet) win by the data they see, not by attention: on an hour of speech a
  network on frames (6 Mflop each in `small`, 44 in `paper`) sees every second many times over in the same time.
  Networks on the waveform (SEGAN, Demucs) need a hundred times as much work to learn what a transform knows.
- A bin's own floor, the least of its power within half a second, is an input (Martin 2001): what is steady is told from
  what is not before anything is learned, and for noises that were never heard.
- A gap is first filled by linear prediction from both sides (Burg 1975, Kauppinen & Roth 2002), whose phases no network
  guesses as well; the network weighs that against shaped noise (as DDSP's, Engel et al. 2020), without which what
  is filled sounds dull. Diffusion and codec models fill longer gaps, at a thousand times the work.
- Distances of spectra and of the waveform give the numbers; critics of spectra (those of the Descript codec) come in
  late, for the detail that these distances average away.

    python train.py restorer:small --data FOLDER --noise FOLDER
    python -m benchmarks.quality runs/restorer-small
"""

import dataclasses
import math
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Complex, Float, Key

from jaxaudio.core import (
    Batch,
    Gap,
    InputError,
    Metrics,
    Params,
    Restores,
    Shard,
    State,
    Wave,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.dsp import degrade
from jaxaudio.dsp.linear_prediction import interpolate
from jaxaudio.dsp.stft import istft, magnitudes, stft
from jaxaudio.losses import feature_distance, least_squares, least_squares_made
from jaxaudio.nn.conv import Conv
from jaxaudio.nn.critics import Spectra, compared

Spectrum = Complex[Array, "batch frames bins"]
Part = Float[Array, "batch part channels"]  # of sounds

DAMAGES = ("noise", "gap", "clip", "band", "reverb", "crush")
EMPTY = {"gap", "clip", "band", "crush"}  # leave too little behind for a mask: the network adds noise of its own
COMPRESSION = 0.3  # the power of magnitudes that the network sees and the loss compares
QUIET = 1e-4  # the magnitude that a smaller one is taken for
CHANCES = (0.62, 0.16, 0.08, 0.05, 0.09)  # of noise that is recorded, coloured, babble, hum, clicks
SWELLS = 32  # of coloured noise in a segment
MEAN, LEAST = 9, 64  # frames that a bin's power is averaged over, and of which the least is its floor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restorer(Restores):
    """Hyper-parameters; damage by noise where nothing is said."""

    sample_rate: int = 16000  # Hz
    segment: int = 32768  # samples per training example, a whole number of hops
    batch_size: int = 32  # examples per step
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "peak"  # peak: every recording is scaled to a peak of 1; so is what is restored
    damages: tuple[str, ...] = ("noise",)  # of noise, gap, clip, band, reverb, crush; several: each in half of all
    snr_least: float = -5.0  # dB, of noise
    snr_most: float = 20.0  # dB
    gap_shortest_ms: float = 10.0  # of a gap in training
    gap_longest_ms: float = 60.0  # and of one that is filled
    size: int = 512  # samples of a window of the spectrum
    hop: int = 128  # samples from one to the next
    width: int = 512  # channels of every layer
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16) * 4  # frames, of the layers
    order: int = 300  # of the linear prediction that fills a gap at first
    context: int = 2048  # samples that it knows on either side
    windows: tuple[int, ...] = (512, 1024, 256)  # samples, of the spectral distance; hop a quarter
    spectral: float = 1.0  # weight of that distance
    waveform: float = 0.1  # weight of the error's level, in dB
    adversarial: float = 0.02  # weight of what the critics say
    features: float = 0.02  # weight of their features
    critic_windows: tuple[int, ...] = (1024, 512, 256)  # samples
    critic_width: int = 32  # channels of every layer of the critics
    critic_segment: int = 16384  # samples of each example that they hear, from its middle, at most
    warm_up: int = 400_000  # steps before the critics come in
    second: int = 100_000  # steps with them
    learning_rate: float = 5e-4  # of the generator, falling to 1/50 as a cosine over all steps
    critic_rate: float = 2e-4  # of the critics
    decay: float = 0.998  # of the averaged weights to restore with

    criterion: ClassVar = "error_db"
    published: ClassVar = MappingProxyType({"generator": 22.07, "critic": 0.28})  # as computed
    presets: ClassVar = MappingProxyType(
        {
            "paper": {"damages": DAMAGES},
            "denoise": {},
            "inpaint": {"damages": ("gap",), "segment": 16384},
            "all": {"damages": DAMAGES},
            "small": {
                **{"segment": 16384, "width": 256, "dilations": (1, 2, 4, 8, 16) * 2, "learning_rate": 1e-3},
                **{"critic_windows": (512, 256), "critic_width": 8, "critic_segment": 4096},
                **{"warm_up": 2400, "second": 500},
            },
            "small-gaps": {
                **{"damages": ("gap",), "segment": 8192, "width": 256, "dilations": (1, 2, 4, 8, 16) * 2},
                **{"windows": (256, 512, 128), "learning_rate": 1e-3},
                **{"critic_windows": (512, 256), "critic_width": 8, "critic_segment": 4096},
                **{"warm_up": 1500, "second": 300},
            },
            "tiny": {
                **{"damages": ("noise", "gap"), "segment": 2048, "batch_size": 8, "size": 64, "hop": 16, "width": 16},
                **{
                    "dilations": (1,),
                    "order": 8,
                    "context": 64,
                    "windows": (64,),
                    "critic_windows": (64,),
                    "critic_segment": 512,
                },
                **{"gap_shortest_ms": 2.0, "gap_longest_ms": 8.0, "critic_width": 2, "warm_up": 500, "second": 500},
                **{"learning_rate": 5e-3},
            },
        }
    )

    def __post_init__(self):
        least = {"sample_rate": 1, "batch_size": 1, "channels": 1, "width": 1, "order": 1, "critic_width": 1}
        least |= {"warm_up": 1, "second": 0, "gap_shortest_ms": 0, "spectral": 0, "waveform": 0, "adversarial": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        if not self.damages or set(self.damages) - set(DAMAGES) or len(set(self.damages)) < len(self.damages):
            raise InputError(f"damages is {self.damages}: name one or more of {', '.join(DAMAGES)}, each once")
        if self.needs_noise and self.batch_size % 2:
            raise InputError(f"batch_size is {self.batch_size}: an even number, as babble is made of pairs of examples")
        if self.hop < 1 or self.size % self.hop or self.size < 2 * self.hop:
            raise InputError(
                f"size {self.size} and hop {self.hop}: the window is a multiple of the hop, twice at least"
            )
        if self.segment < 1 or self.segment % self.hop:
            raise InputError(f"segment is {self.segment}: it is a whole number of hops of {self.hop} samples")
        shortest = min(self.segment, self.critic_segment)
        for name in ("windows", "critic_windows"):
            if not (given := getattr(self, name)) or min(given) < 4 or max(given) > shortest:
                raise InputError(f"{name} is {given}: one or more, of 4 to {shortest} samples, those of a segment")
        if self.snr_least > self.snr_most or not 0 <= self.decay < 1:
            raise InputError(
                f"snr_least {self.snr_least} and snr_most {self.snr_most}: from the least to the most; decay "
                f"{self.decay}: from 0 to less than 1"
            )
        room = self.segment - 2 * self.size
        if "gap" in self.damages and not 0 < self.gap_samples[0] <= self.gap_samples[1] <= room:
            raise InputError(
                f"gap_shortest_ms {self.gap_shortest_ms} and gap_longest_ms {self.gap_longest_ms}: a sample or more, "
                f"at most {max(0, 1000 * room / self.sample_rate):.4g} ms, a segment without a window on either side"
            )
        if 2 * self.order > self.context:
            raise InputError(f"order is {self.order}: at most half of context, {self.context} samples")

    @property
    def needs_noise(self) -> bool:
        """Recordings of it."""
        return "noise" in self.damages

    @property
    def steps(self) -> int:
        """With and without critics."""
        return self.warm_up + self.second

    @property
    def reach(self) -> int:
        """From the windows, the floor and the layers' taps."""
        floor = (MEAN + LEAST) // 2 + 1
        return 2 * (self.size // self.hop) + floor + sum(self.dilations)

    @property
    def gap_samples(self) -> tuple[int, int]:
        """Of the shortest and the longest gap."""
        return tuple(round(ms * self.sample_rate / 1000) for ms in (self.gap_shortest_ms, self.gap_longest_ms))

    @property
    def fills_only(self) -> bool:
        """What is outside of a gap stays as it is."""
        return self.damages == ("gap",)

    @property
    def longest(self) -> int:
        """As in training."""
        return self.gap_samples[1] if "gap" in self.damages else 0

    @property
    def optimizers(self) -> dict[str, optax.GradientTransformation]:
        """Adam, the generator's gradient at a norm of 1 at most."""
        start = min(200, self.warm_up // 4)
        rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, start, self.steps, self.learning_rate / 50)
        clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))
        return {"generator": clipped, "critic": optax.adam(self.critic_rate, b1=0.8, b2=0.99)}

    def init(self, key, measured) -> State:
        """Both networks as their layers start, the average at the generator."""
        del measured
        generator_key, critic_key = jax.random.split(key)
        bins = jnp.zeros((1, 2, self.size // 2 + 1))
        generator = Generator(self).init(generator_key, bins + 0j, bins + 0j, bins[..., :1])["params"]
        critic = self.critic.init(critic_key, jnp.zeros((1, self.critic_segment, self.channels)))["params"]
        params = {"generator": generator, "critic": critic}
        opt = {name: tx.init(params[name]) for name, tx in self.optimizers.items()}
        extra = {"average": jax.tree.map(jnp.copy, generator)}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    @property
    def critic(self) -> Spectra:
        """Of the Descript codec, without its bands."""
        return Spectra(self.critic_windows, (0.0, 1.0), self.critic_width, dtype=self.dtype)

    def stage(self, step: int) -> str:
        """The generator alone, then both."""
        return "alone" if step < self.warm_up else "critics"

    @property
    def variants(self) -> tuple[str, ...]:
        """Both."""
        return "alone", "critics"

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """Damage; then an update of the critics, if it is their time; then one of the generator."""
        vary_key, damage_key, hiss_key = jax.random.split(key, 3)
        clean = self.varied(batch, vary_key, shard)
        harmed, gap = self.damaged(clean, damage_key, shard)
        given = {"harmed": harmed, "gap": gap if self.longest else None, "keys": shard.keys(hiss_key, len(harmed))}
        prepared = self.prepared(**given)
        params, opt, tx, metrics = dict(state.params), dict(state.opt), self.optimizers, {}
        if stage == "critics":
            made = jax.lax.stop_gradient(self.made(params["generator"], **prepared))
            loss = partial(self.critic_loss, pair=self.compared(clean.wave, made, gap))
            params["critic"], opt["critic"], seen = descend(tx["critic"], loss, params["critic"], opt["critic"], shard)
            metrics |= {f"critic/{name}": value for name, value in seen.items()}
        critic = params["critic"] if stage == "critics" else None
        loss = partial(self.generator_loss, clean=clean.wave, gap=gap, prepared=prepared, critic=critic)
        generator, opt["generator"], seen = descend(tx["generator"], loss, params["generator"], opt["generator"], shard)
        averaged = average(state.extra["average"], generator, self.decay, state.step)
        params["generator"], extra = generator, unless_skipped(seen, {"average": averaged}, state.extra)
        metrics |= {f"generator/{name}": value for name, value in seen.items()}
        return State(state.step + 1, params, opt, extra), metrics

    def critic_loss(self, params, *, pair) -> tuple[Array, Metrics]:
        """Least squares."""
        real, fake = compared(partial(self.critic.apply, {"params": params}), *pair)
        return least_squares(real, fake), {}

    def generator_loss(self, params, *, clean, gap, prepared, critic) -> tuple[Array, Metrics]:
        """How far what is made is from the recording, and what the critics say of it."""
        made, terms = self.made(params, **prepared), {}
        if not self.fills_only:
            terms["spectral"] = self.spectral * jnp.mean(compressed_distance(clean, made, self.windows))
            terms["waveform"] = self.waveform * jnp.mean(error_db(clean, made))
        if self.longest:
            lost, around = jnp.max(gap, 1), (self.around(x, gap) for x in (clean, made))
            terms["gap_spectral"] = self.spectral * jnp.mean(lost * compressed_distance(*around, self.windows))
            terms["gap_waveform"] = self.waveform * jnp.mean(lost * error_db(clean, made, gap))
        if critic is not None:
            real, fake = compared(partial(self.critic.apply, {"params": critic}), *self.compared(clean, made, gap))
            terms["adversarial"] = self.adversarial * least_squares_made(fake)
            terms["features"] = self.features * feature_distance(real, fake)
        return sum(terms.values()), terms

    def evaluate(self, state, batch, key) -> Metrics:
        """The error's level before and behind, where sound is lost if that is all the damage."""
        damage_key, hiss_key = jax.random.split(key)
        harmed, gap = self.damaged(batch, damage_key, Shard())
        keys = Shard().keys(hiss_key, len(harmed))
        prepared = self.prepared(harmed=harmed, gap=gap if self.longest else None, keys=keys)
        made = self.made(state.extra["average"], **prepared)
        where = gap if self.fills_only else jnp.ones_like(gap)
        heard = lambda x: self.around(x, gap) if self.fills_only else x
        return {
            "error_db": error_db(batch.wave, made, where),
            "damaged_db": error_db(batch.wave, harmed, where),
            "spectral": compressed_distance(heard(batch.wave), heard(made), self.windows),
        }

    def weights(self, state) -> Params:
        """The averaged generator."""
        return state.extra["average"]

    def restore(self, params, wave, gap, key, first=0) -> Wave:
        """As training has it, what is outside of a gap too."""
        if gap is not None and not self.longest:
            raise InputError(f"damages is {self.damages}: this model was not trained to fill a gap")
        if wave.shape[1] % self.hop:
            raise InputError(f"a sound of {wave.shape[1]} samples is no whole number of hops of {self.hop}")
        keys = Shard().keys(key, len(wave))
        return jnp.clip(self.made(params, **self.prepared(wave, gap, keys, first)), -1.0, 1.0)

    # ------------------------------------------------------------------------------------------------ the damage

    def varied(self, batch: Batch, key: Key[Array, ""], shard: Shard) -> Batch:
        """Recordings at drawn levels and, half of them, through a drawn filter: more voices than there are."""

        def one(key, wave):
            level_key, filter_key, choice_key = jax.random.split(key, 3)
            filtered = jax.random.uniform(choice_key) < 0.5
            wave = jnp.where(filtered, degrade.equalised(filter_key, wave, 4.0), wave)
            level_db = jax.random.uniform(level_key, minval=-25.0, maxval=-2.0)
            return wave * 10 ** (level_db / 20) / jnp.maximum(jnp.max(jnp.abs(wave)), 1e-3)

        return batch._replace(wave=jax.vmap(one)(shard.keys(key, len(batch.wave)), batch.wave))

    def damaged(self, batch, key, shard) -> tuple[Wave, Gap]:
        """Each kind of damage at a drawn strength, in the order in which sound meets them; all, or each in half of all
        examples."""
        rows, time, _ = batch.wave.shape
        keys = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(shard.keys(key, rows)), 1, 0)
        noise = self.noises(keys[0], batch) if self.needs_noise else jnp.zeros_like(batch.wave)
        harmed, hit = jax.vmap(self.damage)(keys[1], batch.wave, noise)
        if not self.longest:
            return harmed, jnp.zeros((rows, time))
        gap, *_ = jax.vmap(lambda key: degrade.gap(key, time, *self.gap_samples, edge=self.size))(keys[2])
        gap = gap * hit.astype(jnp.float32).reshape(-1, 1)
        return harmed * (1 - gap)[..., None], gap

    def damage(self, key, wave, noise):
        """All but gaps, of one example; and whether it has one."""
        draw_key, room_key = jax.random.split(key)
        strengths = jax.random.uniform(draw_key, (2 * len(DAMAGES) + 4,))
        several = len(self.damages) > 1
        hit = {name: strengths[i] < 0.5 if several else True for i, name in enumerate(DAMAGES)}
        of = {name: strengths[len(DAMAGES) + i] for i, name in enumerate(DAMAGES)}
        between = lambda name, low, high: low + (high - low) * of[name]
        smooth, curved, shape, wet = strengths[2 * len(DAMAGES) :]
        chain = {
            "reverb": lambda x: degrade.reverberated(
                room_key, x, between("reverb", 0.2, 0.8), 10 * wet - 5, self.sample_rate
            ),
            "noise": lambda x: degrade.at_snr(x, noise, between("noise", self.snr_least, self.snr_most)),
            "band": lambda x: jnp.where(
                smooth < 0.5,
                degrade.low_passed(x, 2 ** -between("band", 0.5, 2.0), 2 + 14 * shape),
                degrade.resampled(x, 2 ** between("band", 0.5, 2.0), jnp.maximum(0, 2 * shape - 1)),
            ),
            "clip": lambda x: degrade.clipped(x, between("clip", 0.1, 0.7)),
            "crush": lambda x: jnp.where(
                curved < 0.5,
                degrade.mu_law(x, 2.0 ** between("crush", 4, 8)),
                degrade.crushed(x, between("crush", 5, 10)),
            ),
        }
        for name, act in chain.items():
            if name in self.damages:
                wave = jnp.where(hit[name], act(wave), wave) if several else act(wave)
        return wave, jnp.asarray(hit["gap"])

    def noises(self, keys, batch: Batch) -> Wave:
        """Noise for each example: recorded and filtered by chance, coloured and swelling, babble, hum or clicks, and in
        a quarter of them a second kind."""
        time, channels = batch.wave.shape[1:]
        babble_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        babble = degrade.babble(babble_keys, batch.wave)

        def one(key, recorded, babble):
            filter_key, colour_key, sway_key, hum_key, click_key, draw_key = jax.random.split(key, 6)
            drawn = jax.random.uniform(draw_key, (8,))
            recorded = jnp.where(drawn[0] < 0.6, degrade.equalised(filter_key, recorded, 4.0), recorded)
            colour = degrade.coloured_noise(colour_key, (time, channels), -0.5 + 2.7 * drawn[1])
            sway = jnp.exp(0.8 * jax.random.normal(sway_key, (SWELLS,)))
            swell = jnp.interp(jnp.arange(time), jnp.linspace(0, time, SWELLS), jnp.where(drawn[2] < 0.4, sway, 1.0))
            wide = lambda x: jnp.broadcast_to(x, (time, channels))
            clicks = degrade.clicks(click_key, time, 1.0 + 15.0 * drawn[6], self.sample_rate) + 1e-3 * colour
            kinds = [recorded, colour * swell[:, None], babble, degrade.hum(hum_key, time, self.sample_rate), clicks]
            kinds = jnp.stack([wide(kind) for kind in kinds])
            power = jnp.mean(jnp.square(kinds), (1, 2), keepdims=True)
            chances = jnp.cumsum(jnp.asarray(CHANCES))
            pick = lambda x: jax.nn.one_hot(jnp.searchsorted(chances, x * chances[-1]), len(CHANCES))
            loud = pick(drawn[3]) + jnp.where(drawn[4] < 0.25, 0.3 + 0.7 * drawn[7], 0.0) * pick(drawn[5])
            return jnp.sum(loud.reshape(-1, 1, 1) * kinds * jax.lax.rsqrt(jnp.maximum(power, 1e-10)), 0)

        return jax.vmap(one)(keys, batch.noise, babble)

    # ----------------------------------------------------------------------------------------------- the network

    def prepared(self, harmed: Wave, gap: Gap | None, keys, first=0) -> dict[str, Array | None]:
        """All that `made` takes and no gradient reaches: the sound with its gap filled by linear prediction, the gap,
        and white noise, of which hop i depends on (key, first + i)."""
        filled = harmed if gap is None else jax.vmap(self.filled)(harmed, gap)
        hiss = None
        if EMPTY & set(self.damages):
            shape = (self.hop, self.channels)
            draw = lambda key, i: jax.random.normal(jax.random.fold_in(key, i), shape)
            hops = first + jnp.arange(harmed.shape[1] // self.hop)
            hiss = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, hops).reshape(harmed.shape)
        if gap is None and self.longest:
            gap = jnp.zeros(harmed.shape[:2])
        return {"filled": filled, "gap": gap, "hiss": hiss}

    def filled(self, wave, gap):
        """One example [time, channels] without its gap, if it has one."""
        start, length, most = jnp.argmax(gap), jnp.sum(gap).astype(jnp.int32), self.longest
        one = lambda x: interpolate(x, start, length, most, self.order, self.context)
        missing = jax.vmap(one, 1, 1)(wave)
        placed = jnp.zeros((len(wave) + most, wave.shape[1]))
        placed = jax.lax.dynamic_update_slice(placed, missing, (start, 0))[: len(wave)]
        return jnp.where(gap[:, None] > 0, placed, wave)

    def made(self, params, filled: Wave, gap: Gap | None, hiss: Wave | None) -> Wave:
        """The sound as it was, says the generator; of sound whose only damage is a gap, that alone is new."""
        rows, time, channels = filled.shape
        spectrum = lambda x: stft(jnp.moveaxis(x, -1, 1).reshape(rows * channels, time), self.size, self.hop)
        share = None
        if gap is not None:
            share = jnp.repeat(self.share(gap), channels, 0)
        loud = None if hiss is None else spectrum(hiss) * math.sqrt(8 / 3 / self.size)  # of power 1 in each bin
        result = Generator(self).apply({"params": params}, spectrum(filled), loud, share)
        sound = istft(result, self.size, self.hop, length=time)
        sound = jnp.moveaxis(sound.reshape(rows, channels, time), 1, 2)
        return jnp.where(gap[..., None] > 0, sound, filled) if self.fills_only else sound

    def share(self, gap: Gap) -> Float[Array, "batch frames 1"]:
        """How much of each frame is lost, 0 to 1."""
        hops = jnp.mean(gap.reshape(len(gap), -1, self.hop), 2)
        around = jnp.pad(hops, ((0, 0), (self.size // self.hop // 2,) * 2))
        count = hops.shape[1] + 1
        parts = [around[:, i : i + count] for i in range(self.size // self.hop)]
        return (sum(parts) / len(parts))[..., None]

    # -------------------------------------------------------------------------------------------- the comparison

    def around(self, wave: Wave, gap: Gap) -> Part:
        """The stretches of the longest gap and a window that hold the gaps."""
        most = min(self.longest + self.size, wave.shape[1])
        start = jnp.argmax(gap, 1) - self.size // 2
        return jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, most))(wave, start)

    def compared(self, clean: Wave, made: Wave, gap: Gap) -> tuple[Part, Part]:
        """What the critics hear: the middle, or what lies around the gaps."""
        if self.fills_only:
            return self.around(clean, gap), self.around(made, gap)
        first = max(0, self.segment - self.critic_segment) // 2
        return tuple(wave[:, first : first + self.critic_segment] for wave in (clean, made))


class Generator(nn.Module):
    """(spectrum, spectrum of noise, share of each frame that is lost) -> spectrum. The last two may be None."""

    model: Restorer

    @nn.compact
    def __call__(self, spectrum: Spectrum, hiss: Spectrum | None, share) -> Spectrum:
        model, bins = self.model, spectrum.shape[-1]
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        x = nn.Dense(model.width, dtype=model.dtype, name="first")(seen(spectrum, share if model.longest else None))
        for i, dilation in enumerate(model.dilations):
            y = nn.LayerNorm(dtype=model.dtype, name=f"norm_{i}")(x)
            around = ((dilation, dilation),)
            options = {"kernel_init": nn.initializers.lecun_normal(), "dtype": model.dtype, "name": f"conv_{i}"}
            y = nn.silu(Conv(model.width, (3,), (1,), around, (dilation,), **options)(y))
            x = x + nn.Dense(model.width, kernel_init=small, dtype=model.dtype, name=f"dense_{i}")(y)
        x = nn.LayerNorm(dtype=model.dtype, name="norm")(x)
        heads = 4 if EMPTY & set(model.damages) else 3
        x = nn.Dense(heads * bins, kernel_init=small, name="last")(x.astype(jnp.float32))
        mask, real, imaginary, *more = jnp.split(x, heads, -1)
        result = spectrum * nn.sigmoid(mask + 1) * jax.lax.complex(1 + real, imaginary)
        if not more:
            return result
        return result + hiss * nn.softplus(more[0] - 3) ** (1 / COMPRESSION)


def seen(spectrum: Spectrum, share) -> Float[Array, "batch frames features"]:
    """What the network knows of a spectrum: compressed magnitudes, their floors, and both parts."""
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag) + QUIET**2
    level = power ** (COMPRESSION / 2)
    phased = power ** ((COMPRESSION - 1) / 2)
    parts = [level, steady(power) ** (COMPRESSION / 2), spectrum.real * phased, spectrum.imag * phased]
    return jnp.concatenate([2 * jnp.concatenate(parts, -1) - 0.5, *([] if share is None else [share])], -1)


def steady(power: Float[Array, "batch frames bins"]) -> Float[Array, "batch frames bins"]:
    """The noise floor: the least, within LEAST frames around each, of the mean of MEAN frames."""
    shifted = lambda x, k: (x[:, :-k], x[:, k:])
    around = jnp.pad(power, ((0, 0), (MEAN // 2, MEAN // 2), (0, 0)), "edge")
    mean = sum(around[:, i : i + power.shape[1]] for i in range(MEAN)) / MEAN
    least = jnp.pad(mean, ((0, 0), (LEAST // 2, LEAST // 2 - 1), (0, 0)), constant_values=jnp.inf)
    span = 1
    while span < LEAST:
        least = jnp.minimum(*shifted(least, span))
        span *= 2
    return least


def compressed_distance(a: Wave, b: Wave, windows: tuple[int, ...]) -> Float[Array, "batch"]:
    """Of magnitudes A and B, mean over windows, hop a quarter: 4 |A^0.3 - B^0.3| + |ln A - ln B| / 2, at -40 dB in the
    logarithm at least."""
    total = jnp.zeros(len(a))
    for size in windows:
        x, y = (jnp.maximum(magnitudes(jnp.moveaxis(s, -1, 1), size, size // 4), QUIET) for s in (a, b))
        total += 4 * jnp.mean(jnp.abs(x**COMPRESSION - y**COMPRESSION), (1, 2, 3))
        total += jnp.mean(jnp.abs(jnp.log(x + 1e-2) - jnp.log(y + 1e-2)), (1, 2, 3)) / 2
    return total / len(windows)


def error_db(real: Wave, made: Wave, where: Gap | None = None) -> Float[Array, "batch"]:
    """Power of the error over that of the recording, in dB, of all samples or those where `where` is 1; of a part that
    is quieter than the whole by 30 dB over that, and of silence over -70 dB."""
    power, error = (jnp.mean(jnp.square(x), 2) for x in (real, made - real))
    least = 1e-3 * jnp.mean(power, 1)
    where = jnp.ones_like(power) if where is None else where
    over = lambda x: jnp.sum(x * where, 1) / jnp.maximum(jnp.sum(where, 1), 1)
    return 10 * jnp.log10((over(error) + least + 1e-8) / (over(power) + least + 1e-7))
