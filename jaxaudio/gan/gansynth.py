"""GANSynth: a note of a given pitch as a picture of its spectrum, grown from a coarse picture to a fine one.

Engel et al.: GANSynth, ICLR 2019 (arXiv 1902.08710), and its official code (`mel_prog_hires`); the networks are those
of Karras et al.: Progressive Growing of GANs, ICLR 2018 (arXiv 1710.10196).
Reproduced: log-magnitudes and instantaneous frequencies on the mel scale (dsp/specgram.py), seven resolutions that are
blended one after another, optimisers that start afresh at every stage, pixel norm, equalised learning rates, minibatch
deviation, WGAN-GP whose slopes are those of the picture before it is normalised, a pitch classifier, averaged weights.
Departs: pictures are computed at the resolution of the stage, which gives the same numbers; one draw of latents serves
both updates of a step; generated notes take the pitches of the batch. Added: fewer bands than bins.

What the analysis alone does to 64 notes of two seconds (medians of SI-SDR; `spectral_distance`): 4.9 dB and 0.25 with
1024 bands, 0.0 dB and 0.32 with 512 that are means, -6.4 dB and 0.46 with 256, 86 dB without the mel scale. Every pitch
survives in all of these (24 of 24 notes by YIN).

    python train.py gansynth:small --data FOLDER

gives notes of which pYIN hears 93 % at the pitch that was asked for, after 41 minutes on two cores (README).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxaudio.core import (
    InputError,
    Labels,
    Metrics,
    Params,
    Plays,
    Shard,
    State,
    Wave,
    average,
    descend,
    replay,
    unless_skipped,
)
from jaxaudio.dsp.specgram import Specgram
from jaxaudio.losses import spectral_energy_distance
from jaxaudio.nn.conv import biased, conv, conv_transpose

Picture = Float[Array, "batch frames bands features"]  # normalised: mostly in [-1, 1]
Resized = Float[Array, "batch other_frames other_bands features"]
Parts = Mapping[int, Float[Array, ""] | float]  # which resolutions make up a picture, and each one's share
Stage = tuple[int, bool]  # the finest resolution, and whether it is being blended in

SLOPE = 0.2  # of the leaky ReLU


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANSynth(Plays):
    """Section 3 of the paper, and `mel_prog_hires` of its code."""

    sample_rate: int = 16000  # Hz
    segment: int = 64000  # samples of a note
    batch_size: int = 8  # notes per step: one update of the critic and one of the generator
    channels: int = 1  # 1: mono
    pitches: tuple[int, ...] = ()  # MIDI numbers of the classes, in their order; filled in from the data
    latent: int = 256  # dimensions of z, normal
    window: int = 2048  # samples of the Hann window; half as many bins (that of 0 Hz is left out)
    hop: int = 512  # samples from one frame to the next
    scale: Literal["mel", "linear"] = "mel"  # of the frequencies; linear: the bins themselves
    steps_of_bands: Literal["sum", "mean"] = "sum"  # of the bins' steps of phase; mean: for fewer bands than bins
    start_frames: int = 2  # of the coarsest picture
    start_bands: int = 16  # of it
    resolutions: int = 7  # each doubles both sides
    width: int = 4096  # channels of resolution b (from 1 on) are width / 2^b,
    width_most: int = 256  # at most so many
    stable_images: int = 800_000  # notes that a resolution is trained on
    blend_images: int = 800_000  # and before, while it is blended in
    images: int = 11_000_000  # notes in all
    learning_rate: float = 8e-4  # of both networks; Adam with betas 0 and 0.99
    penalty: float = 10.0  # weight of the gradient penalty
    slopes: Literal["unnormalised", "normalised"] = "unnormalised"  # in which pictures it sees them
    drift: float = 1e-3  # weight of the squared scores of recordings
    auxiliary: float = 10.0  # weight of the cross-entropy of pitches, in both losses
    level_scale: float = 0.0661371661726  # log-powers become pictures: times this,
    level_offset: float = 0.113718730221  # plus this
    step_scale: float = 0.8  # steps of phase, in half turns, become pictures
    decay: float = 0.999  # of the averaged generator weights

    criterion: ClassVar = "spectral_energy"
    published: ClassVar = MappingProxyType({"generator": 6.89, "critic": 6.82})  # 10 pitches; 7.31, 6.83 with all 61
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "small": {
                **{"segment": 16000, "latent": 16, "steps_of_bands": "mean", "balanced": True},
                **{"start_frames": 8, "start_bands": 64, "resolutions": 3, "width": 64, "width_most": 64},
                **{"learning_rate": 2.5e-3, "slopes": "normalised", "auxiliary": 20.0},
                **{"stable_images": 6400, "blend_images": 3200, "images": 180_000},
            },
            "tiny": {
                **{"segment": 240, "batch_size": 8, "latent": 4, "window": 32, "hop": 16, "start_frames": 8},
                **{"start_bands": 8, "resolutions": 2, "width": 8, "width_most": 4, "learning_rate": 5e-3},
                **{"stable_images": 400, "blend_images": 400, "images": 8000, "decay": 0.98},
            },
        }
    )

    def __post_init__(self):
        ones = "sample_rate segment hop batch_size latent start_frames start_bands resolutions channels width_most"
        least = dict.fromkeys(ones.split(), 1) | dict.fromkeys(("penalty", "drift", "auxiliary"), 0)
        least |= dict.fromkeys(("stable_images", "blend_images", "images"), self.batch_size)
        least |= {"window": 4, "width": 2**self.resolutions}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least {value}")
        if self.window % 2:
            raise InputError(f"window is {self.window}: it is an even number of samples")
        bins, bands = self.front.bins, self.shape()[1]  # the front refuses a segment that its frames do not hold
        if self.scale == "linear" and bands != bins:
            raise InputError(
                f"scale is linear, but pictures have {bands} bands (start_bands * 2^(resolutions - 1)) and the window "
                f"{bins} bins: these are equal, or scale is mel"
            )
        if not 0 <= self.decay < 1:
            raise InputError(f"decay is {self.decay}: from 0 to less than 1")

    def shape(self, resolution: int | None = None) -> tuple[int, int]:
        """Frames and bands of a picture; of the finest where nothing is said."""
        doubled = 2 ** (self.resolutions - 1 if resolution is None else resolution)
        return self.start_frames * doubled, self.start_bands * doubled

    def features(self, resolution: int) -> int:
        """Channels of the layers of a resolution; -1: of the critic's last."""
        return min(self.width // 2 ** (resolution + 1), self.width_most)

    @property
    def front(self) -> Specgram:
        """What turns sound into pictures and back."""
        frames, bands = self.shape()
        given = {"bins": self.window // 2, "bands": 0 if self.scale == "linear" else bands}
        mean = self.steps_of_bands == "mean"
        return Specgram(self.sample_rate, self.segment, frames, self.hop, **given, mean=mean)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of either network."""
        return optax.adam(self.learning_rate, b1=0.0, b2=0.99)

    @property
    def steps(self) -> int:
        """To the last of all notes."""
        return -(-self.images // self.batch_size)

    def stage(self, step: int) -> Stage:
        """Every resolution is blended in, but for the first, and trained on."""
        whole, within = divmod(step * self.batch_size, self.stable_images + self.blend_images)
        finest = self.resolutions - 1
        if whole >= finest:
            return finest, False
        return (whole + 1, True) if within >= self.stable_images else (whole, False)

    @property
    def variants(self) -> tuple[Stage, ...]:
        """Blended and stable in turn."""
        both = ((resolution, blending) for resolution in range(self.resolutions) for blending in (True, False))
        return tuple(both)[1:]

    def begins(self, stage: Stage) -> int:
        """Notes seen before a stage."""
        resolution, blending = stage
        before = resolution * (self.stable_images + self.blend_images)
        return before - self.blend_images if blending else before

    def parts(self, stage: Stage, step) -> Parts:
        """What a picture is made up of at this step."""
        resolution, blending = stage
        if not blending:
            return {resolution: 1.0}
        share = (step * self.batch_size - self.begins(stage)) / self.blend_images
        return {resolution - 1: 1 - share, resolution: share}

    def all_parts(self, step) -> Parts:
        """The same at any step, of all resolutions: what does not know its stage beforehand."""
        whole, within = jnp.divmod(step * self.batch_size, self.stable_images + self.blend_images)
        progress = whole + jnp.clip((within - self.stable_images) / self.blend_images, 0, 1)
        return self.shares(jnp.minimum(progress, self.resolutions - 1.0))

    def shares(self, progress: Float[Array, ""]) -> Parts:
        """Of every resolution, where `progress` is that of the finest one, and in between while it is blended in."""
        return {k: jnp.maximum(0, 1 - jnp.abs(progress - k)) for k in range(self.resolutions)}

    def init(self, key, measured) -> State:
        """Both networks with all resolutions, the average at the generator."""
        del measured
        generator_key, critic_key = jax.random.split(key)
        parts, label = self.shares(jnp.zeros(())), jnp.zeros(1, int)
        generator = Generator(self).init(generator_key, jnp.zeros((1, self.latent)), label, parts)["params"]
        picture = jnp.zeros((1, *self.shape(), 2 * self.channels))
        params = {"generator": generator, "critic": Critic(self).init(critic_key, picture, parts, Shard())["params"]}
        opt = {name: self.optimizer.init(each) for name, each in params.items()}
        extra = {"average": jax.tree.map(jnp.copy, generator)}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """An update of the critic, then one of the generator."""
        generator, critic = state.params["generator"], state.params["critic"]
        first = -(-self.begins(stage) // self.batch_size)
        fresh = lambda opt: jax.tree.map(lambda x: jnp.where(state.step == first, jnp.zeros_like(x), x), opt)
        opt = fresh(state.opt)
        latent_key, alpha_key = jax.random.split(key)
        latent = self.draw(shard.keys(latent_key, len(batch.label)))
        parts = self.parts(stage, state.step)
        real = self.blended(self.picture(batch.wave), parts)
        given = {"label": batch.label, "parts": parts, "shard": shard}

        fake, pull = jax.vjp(lambda params: self.drawn(params, latent, batch.label, parts), generator)
        loss = partial(self.critic_loss, real=real, fake=fake, keys=shard.keys(alpha_key, len(real)), **given)
        critic, critic_opt, critic_metrics = descend(self.optimizer, loss, critic, opt["critic"], shard)

        loss = partial(self.generator_loss, made=replay(fake, pull), critic=critic, **given)
        generator, generator_opt, metrics = descend(self.optimizer, loss, generator, opt["generator"], shard)
        averaged = average(state.extra["average"], generator, self.decay, state.step)
        state = State(
            step=state.step + 1,
            params={"generator": generator, "critic": critic},
            opt={"generator": generator_opt, "critic": critic_opt},
            extra=unless_skipped(metrics, {"average": averaged}, state.extra),
        )
        both = {"critic": critic_metrics, "generator": metrics}
        return state, {f"{net}/{name}": value for net, values in both.items() for name, value in values.items()}

    def critic_loss(self, critic, *, real: Picture, fake: Picture, label, parts: Parts, keys, shard: Shard):
        """Scores of recordings and generated notes, the slope between them, and the recordings' pitches."""
        score = lambda picture: Critic(self).apply({"params": critic}, picture, parts, shard)
        (real_score, logits), (fake_score, _) = score(real), score(fake)
        terms = {
            "adversarial": jnp.mean(fake_score - real_score),
            "drift": self.drift * jnp.mean(real_score**2),
            "auxiliary": self.auxiliary * jnp.mean(cross_entropy(logits, label)),
        }
        if self.penalty:
            alpha = jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(keys)
            slopes = jax.grad(lambda picture: jnp.sum(score(picture)[0]))(real + alpha * (fake - real))
            terms["penalty"] = self.penalty * jnp.mean((self.norms(slopes) - 1) ** 2)
        metrics = {"real": jnp.mean(real_score), "fake": jnp.mean(fake_score), "accuracy": correct(logits, label)}
        return sum(terms.values()), {**metrics, **terms}

    def generator_loss(self, generator, *, made: Callable, critic, label, parts: Parts, shard: Shard):
        """The generated notes' scores, to be raised, and their pitches, to be told."""
        fake = made(generator)
        score, logits = Critic(self).apply({"params": critic}, fake, parts, shard)
        terms = {
            "adversarial": -jnp.mean(score),
            "auxiliary": self.auxiliary * jnp.mean(cross_entropy(logits, label)),
        }
        return sum(terms.values()), {"accuracy": correct(logits, label), **terms}

    def norms(self, slopes: Picture) -> Float[Array, "batch"]:
        """Of slopes in every pixel of the finest picture: a pixel of a coarser one is the mean of several, and so has
        that many times their slope. The official code has those of the picture before it is normalised, in which
        levels count for twelve times as much as steps of phase."""
        scale = self.normaliser[0] if self.slopes == "unnormalised" else 1.0
        scale = scale / (self.shape()[0] / slopes.shape[1])
        return jnp.sqrt(jnp.maximum(jnp.sum((scale * slopes) ** 2, (1, 2, 3)), 1e-24))  # a slope of 0 has a gradient

    def evaluate(self, state, batch, key) -> Metrics:
        """How far generated notes are from held-out ones of the same pitches, what the critic thinks of both, and
        whether it knows their pitches."""
        parts = self.all_parts(state.step)
        picture = self.drawn(state.extra["average"], self.draw(Shard().keys(key, len(batch.label))), batch.label, parts)
        known = lambda x: Critic(self).apply({"params": state.params["critic"]}, x, parts, Shard())
        (real, real_logits), (fake, fake_logits) = known(self.blended(self.picture(batch.wave), parts)), known(picture)
        right = lambda logits: (jnp.argmax(logits, -1) == batch.label).astype(jnp.float32)
        return {
            "spectral_energy": spectral_energy_distance(batch.wave, self.sound(picture)),
            **{"real": real, "fake": fake, "real_pitch": right(real_logits), "fake_pitch": right(fake_logits)},
        }

    def weights(self, state) -> Params:
        """The averaged generator, and the share of each resolution."""
        return {"generator": state.extra["average"], "shares": jnp.stack([*self.all_parts(state.step).values()])}

    def latents(self, key, n) -> Float[Array, "n latent"]:
        """Draws from the prior."""
        return self.draw(Shard().keys(key, n))

    def render(self, params, latent, label) -> Wave:
        """Notes of these pitches, by class."""
        if label is None:
            raise InputError(f"this model makes notes of a pitch: give a label, 0 to {self.classes - 1}")
        return self.sound(self.drawn(params["generator"], latent, label, dict(enumerate(params["shares"]))))

    def draw(self, keys) -> Float[Array, "n latent"]:
        """One latent per key."""
        return jax.vmap(lambda key: jax.random.normal(key, (self.latent,)))(keys)

    def drawn(self, generator, latent, label, parts: Parts) -> Picture:
        """The pictures at these latents, of the finest resolution among the parts."""
        return Generator(self).apply({"params": generator}, latent, label, parts)

    @property
    def normaliser(self) -> tuple[Float[Array, "1 1 1 features"], Float[Array, "1 1 1 features"]]:
        """Scale and offset of pictures."""
        scale, offset = (self.level_scale, self.step_scale), (self.level_offset, 0.0)
        return tuple(jnp.asarray(pair * self.channels, jnp.float32).reshape(1, 1, 1, -1) for pair in (scale, offset))

    def picture(self, wave: Wave) -> Picture:
        """The finest picture of a sound, normalised."""
        scale, offset = self.normaliser
        seen = jnp.moveaxis(self.front.analyse(jnp.moveaxis(wave.astype(jnp.float32), -1, 1)), 1, -2)
        return seen.reshape(*seen.shape[:3], -1) * scale + offset

    def sound(self, picture: Picture) -> Wave:
        """The sound that the finest picture shows, in [-1, 1]."""
        scale, offset = self.normaliser
        seen = ((picture - offset) / scale).reshape(*picture.shape[:3], -1, 2)
        return jnp.clip(jnp.moveaxis(self.front.resynthesise(jnp.moveaxis(seen, -2, 1)), 1, -1), -1, 1)

    def blended(self, picture: Picture, parts: Parts) -> Resized:
        """The finest picture as one of these parts."""
        finest = max(parts)
        seen = lambda k: upscaled(downscaled(picture, 2 ** (self.resolutions - 1 - k)), 2 ** (finest - k))
        return sum(share * seen(k) for k, share in parts.items())


class Generator(nn.Module):
    """[batch, latent], [batch] -> a picture of the finest resolution among the parts."""

    model: GANSynth

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"], label: Labels, parts: Parts) -> Picture:
        model, finest, total = self.model, max(parts), 0.0
        layer = partial(Layer, dtype=model.dtype)
        active = lambda x: pixel_norm(nn.leaky_relu(x, SLOPE))
        x = pixel_norm(jnp.concatenate([latent, jax.nn.one_hot(label, model.classes)], -1))
        for k in range(finest + 1):
            width, taps = model.features(k), (3, 3) if k else model.shape(0)
            x = active(layer(width, taps, doubled=k > 0, name=f"first_{k}")(x))
            x = active(layer(width, (3, 3), name=f"second_{k}")(x))
            if k in parts:
                seen = Layer(2 * model.channels, (1, 1), slope=1.0, name=f"picture_{k}")(x.astype(jnp.float32))
                total += parts[k] * upscaled(jnp.tanh(seen), 2 ** (finest - k))
        return total


class Critic(nn.Module):
    """A picture of the finest resolution among the parts -> scores [batch], logits of pitches [batch, classes]."""

    model: GANSynth

    @nn.compact
    def __call__(
        self, picture: Picture, parts: Parts, shard: Shard
    ) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
        model, finest = self.model, max(parts)
        layer = lambda *given, name: lambda x: nn.leaky_relu(Layer(*given, dtype=model.dtype, name=name)(x), SLOPE)
        picture = jnp.clip(picture, -1, 1)
        seen = lambda k: layer(model.features(k), (1, 1), name=f"picture_{k}")(downscaled(picture, 2 ** (finest - k)))
        x = seen(finest)
        for k in range(finest, 0, -1):
            x = layer(model.features(k), (3, 3), name=f"first_{k}")(x)
            x = downscaled(layer(model.features(k - 1), (3, 3), name=f"second_{k}")(x), 2)
            if coarser := [share for j, share in parts.items() if j < k]:
                x = blend(sum(coarser), seen(k - 1), x)
        x = x.astype(jnp.float32)
        deviation = jnp.full_like(x[..., :1], 1) * minibatch_deviation(x, shard)
        x = layer(model.features(0), (3, 3), name="first_0")(jnp.concatenate([x, deviation], -1))
        x = layer(model.features(-1), model.shape(0), True, name="second_0")(x).astype(jnp.float32)
        score, logits = Layer(1, slope=1.0, name="score"), Layer(model.classes, slope=1.0, name="pitch")
        return score(x)[:, 0], logits(x)


class Layer(nn.Module):
    """A convolution, or a dense layer, that learns at an equal rate whatever its size: weights start at a deviation of
    1 and are scaled at run time (section 4.1 of Karras et al.).

    [batch, into] becomes [batch, *taps, features]; [batch, frames, bands, into] keeps its sides, has every pixel
    repeated twice beforehand (`doubled`) or, as large as the taps (`whole`), becomes [batch, features].
    """

    features: int
    taps: Sequence[int] = ()
    whole: bool = False
    doubled: bool = False
    slope: float = 0.0  # of what follows, for the scale (He et al. 2015)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.whole:
            kernel = self.kernel((*self.taps, x.shape[-1]))
            return biased(self, x.reshape(len(x), -1).astype(self.dtype) @ kernel.reshape(-1, self.features))
        kernel, x = self.kernel((*self.taps, x.shape[-1])), x.astype(self.dtype)
        if x.ndim == 2:
            return biased(self, jnp.tensordot(x, kernel, (1, kernel.ndim - 2)))
        if self.doubled:  # in one transposed convolution, of four taps a pixel instead of nine
            flipped, sides = jnp.flip(kernel, (0, 1)), ((0, 1), (1, 0))
            spread = sum(jnp.pad(flipped, (rows, columns, (0, 0), (0, 0))) for rows in sides for columns in sides)
            return biased(self, conv_transpose(x, spread, (2, 2), 1))
        return biased(self, conv(x, kernel, (1, 1), "SAME", (1, 1)))

    def kernel(self, into: Sequence[int]) -> Array:
        """Scaled, of so many inputs."""
        kernel = self.param("kernel", nn.initializers.normal(1.0), (*into, self.features))
        return (kernel * math.sqrt(2 / ((1 + self.slope**2) * math.prod(into)))).astype(self.dtype)


def pixel_norm(x: Array) -> Array:
    """Channels over the root of their mean square, everywhere (eq. in section 4.2 of Karras et al.)."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-8)).astype(x.dtype)


def minibatch_deviation(x: Picture, shard: Shard) -> Float[Array, ""]:
    """How much the examples of the whole batch differ: the deviation of every value, averaged (section 3)."""
    apart = x - shard.mean(jnp.mean(x, 0))[None]
    return jnp.mean(jnp.sqrt(shard.mean(jnp.mean(apart**2, 0)) + 1e-6))


def blend(share, a: Array, b: Array) -> Array:
    """`a` by this share, the rest `b`."""
    return (share * a + (1 - share) * b).astype(b.dtype)


def upscaled(x: Picture, times: int) -> Resized:
    """Every pixel repeated."""
    if times == 1:
        return x
    batch, frames, bands, features = x.shape
    shape = batch, frames, times, bands, times, features
    return jnp.broadcast_to(x[:, :, None, :, None], shape).reshape(batch, frames * times, bands * times, features)


def downscaled(x: Picture, times: int) -> Resized:
    """The mean of every `times` x `times` pixels."""
    if times == 1:
        return x
    batch, frames, bands, features = x.shape
    return x.reshape(batch, frames // times, times, bands // times, times, features).mean((2, 4))


def cross_entropy(logits: Float[Array, "batch classes"], label: Labels) -> Float[Array, "batch"]:
    """Of the classes."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def correct(logits: Float[Array, "batch classes"], label: Labels) -> Float[Array, ""]:
    """The share of labels that are found."""
    return jnp.mean(jnp.argmax(logits, -1) == label)
