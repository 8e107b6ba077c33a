"""A convolutional classifier of sounds on log-mel spectrograms: spoken words, notes, environmental sound.

Two published networks, as fields. `panns`: CNN14 of Kong et al., PANNs, 2020 (arXiv 1912.10211), and its official code:
blocks of two 3 x 3 convolutions with batch norm, SpecAugment (Park et al. 2019, masks only), mixup (Zhang et al. 2018).
`sc09`: the network that Donahue et al., Adversarial Audio Synthesis, 2019, score generated digits with. Departs: one
label per recording (softmax), so AudioSet's tags are not reproduced; mixup keeps both of a pair; averaged weights; in
`digits` a random warp of the frequency axis (Jaitly & Hinton 2013), cosine decay and AdamW.

    python train.py classifier:digits --data FOLDER --eval-every 100
"""

import dataclasses
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from jaxaudio.core import (
    Batch,
    Classifies,
    InputError,
    Metrics,
    Params,
    Shard,
    State,
    Wave,
    average,
    descend,
    unless_skipped,
)
from jaxaudio.dsp.mel import mel_filters
from jaxaudio.dsp.stft import frame_count, magnitudes
from jaxaudio.nn.conv import Conv

Picture = Float[Array, "batch frames mels channels"]
Logits = Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Classifies):
    """What is heard, which network, how it is trained."""

    sample_rate: int = 16000  # Hz
    segment: int = 16384  # samples; a longer recording is classified in parts
    batch_size: int = 64  # recordings per step
    channels: int = 1  # 1: mono
    gain: Literal["peak", "none"] = "peak"  # peak: every recording is scaled to a peak of 1
    window: int = 1024  # samples of the Hann window
    hop: int = 128  # samples from one spectrum to the next
    mels: int = 128  # mel bands
    low: float = 40.0  # Hz, edge of the lowest band
    high: float = 7800.0  # Hz, edge of the highest band
    scale: Literal["slaney", "htk"] = "htk"  # of the mel bands
    norm: Literal["slaney", "none"] = "none"  # slaney: all mel bands have the same area, none: the same height
    floor: float = 1e-6  # added to the mel bands (sc09), or their least value (panns), before the logarithm
    power: float = 1.0  # 1: mel bands of magnitudes, 2: of powers

    network: Literal["sc09", "panns"] = "sc09"  # which published architecture
    widths: tuple[int, ...] = (128, 128, 128, 128)  # channels of its blocks
    hidden: int = 0  # units of the dense layer before the last (panns); 0: none
    dropout: float = 0.0  # behind the pooled features and the hidden layer (panns), as a probability
    block_dropout: float = 0.0  # behind every block (panns)

    optimizer: Literal["sgd", "adamw", "amsgrad"] = "sgd"  # the published networks': sgd and amsgrad
    learning_rate: float = 1e-4  # at its highest
    warmup: int = 0  # steps of linear rise
    decay_steps: int = 0  # steps after which the rate has fallen to zero along a cosine; 0: constant
    weight_decay: float = 0.0  # of the kernels (adamw)
    decay: float = 0.0  # of the averaged weights; 0: the last ones
    smoothing: float = 0.0  # label smoothing: share of the target that is spread over all classes
    mixup: float = 0.0  # alpha of the Beta distribution by which neighbours in a batch are mixed; 0: off
    time_masks: int = 0  # SpecAugment: how many
    time_width: int = 0  # frames that a mask hides at most
    mel_masks: int = 0  # SpecAugment: how many
    mel_width: int = 0  # bands that a mask hides at most
    warp: float = 0.0  # the frequency axis is stretched by up to this share, either way
    shift: float = 0.0  # the picture is moved in time by up to this share of its length, either way

    criterion: ClassVar = "cross_entropy"
    needs_labels: ClassVar = True
    published: ClassVar = MappingProxyType({"network": 1.33})
    presets: ClassVar = MappingProxyType(
        {
            "paper": {},
            "sc09": {},
            "cnn14": {
                **{"sample_rate": 32000, "segment": 320000, "batch_size": 32, "gain": "none"},
                **{"window": 1024, "hop": 320, "mels": 64, "low": 50.0, "high": 14000.0, "scale": "slaney"},
                **{
                    "norm": "slaney",
                    "floor": 1e-10,
                    "power": 2.0,
                    "network": "panns",
                    "widths": (64, 128, 256, 512, 1024, 2048),
                },
                **{"hidden": 2048, "dropout": 0.5, "block_dropout": 0.2, "optimizer": "amsgrad", "learning_rate": 1e-3},
                **{"mixup": 1.0, "time_masks": 2, "time_width": 64, "mel_masks": 2, "mel_width": 8},
            },
            "digits": {
                **{"segment": 16000, "window": 512, "hop": 200, "mels": 64, "low": 50.0, "high": 8000.0},
                **{"network": "panns", "widths": (16, 32, 64, 128), "dropout": 0.2, "optimizer": "adamw"},
                **{"learning_rate": 4e-3, "warmup": 50, "decay_steps": 500, "weight_decay": 0.02, "decay": 0.99},
                **{"smoothing": 0.1, "mixup": 0.2, "time_masks": 2, "time_width": 12, "mel_masks": 2, "mel_width": 8},
                **{"warp": 0.1, "shift": 0.1},
            },
            "notes": {  # the pitch of notes: fine in frequency, which is neither masked nor warped
                **{"segment": 16000, "window": 2048, "hop": 512, "mels": 256, "low": 20.0, "high": 8000.0},
                **{"widths": (16, 32, 32, 32), "optimizer": "adamw", "learning_rate": 4e-3, "warmup": 50},
                **{"decay_steps": 500, "weight_decay": 0.02, "decay": 0.99, "smoothing": 0.1, "mixup": 0.2},
                **{"time_masks": 2, "time_width": 12},
            },
            "tiny": {
                **{"segment": 512, "batch_size": 16, "window": 256, "hop": 64, "mels": 16, "low": 0.0, "high": 8000.0},
                **{"network": "panns", "widths": (8, 8), "hidden": 8, "dropout": 0.1, "optimizer": "adamw"},
                **{"learning_rate": 1e-2, "decay": 0.9, "smoothing": 0.01, "mixup": 0.2, "time_masks": 1},
                **{"time_width": 1, "mel_masks": 1, "mel_width": 2, "warp": 0.05, "shift": 0.1},
            },
        }
    )

    def __post_init__(self):
        if not 1 <= self.hop <= self.window:
            raise InputError(f"hop is {self.hop}: it is at least 1 and at most the window, {self.window}")
        for name in ("batch_size", "channels", "segment"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 1")
        for name in ("mixup", "time_masks", "mel_masks", "learning_rate", "warmup", "decay_steps", "hidden"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 0")
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths is {self.widths}: a number of channels for each block, 1 block at least")
        if self.classes == 1:
            raise InputError("the data has one class: there is nothing to tell apart; give a folder per class")
        smallest = 2 ** (len(self.widths) - (self.network == "panns"))  # CNN14 does not pool behind its last block
        if min(self.shape) < smallest:
            raise InputError(
                f"the picture has {self.shape[0]} frames of {self.shape[1]} mel bands: {len(self.widths)} blocks halve "
                f"both, which takes {smallest} of each; lengthen segment, or shorten hop or widths"
            )
        if not 0 <= self.time_width <= self.shape[0] or not 0 <= self.mel_width <= self.mels:
            raise InputError(
                f"time_width is {self.time_width} and mel_width {self.mel_width}: a mask hides at most the "
                f"{self.shape[0]} frames and {self.mels} bands that there are"
            )
        if self.mixup and self.batch_size % 2:
            raise InputError(f"batch_size is {self.batch_size}: mixup pairs neighbours, so make it even")
        for name in ("dropout", "block_dropout", "smoothing", "warp", "shift"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 0 and less than 1")
        _ = self.filters  # refuses bands without a bin

    @property
    def filters(self) -> np.ndarray:
        """[bins, mels]."""
        norm = None if self.norm == "none" else self.norm
        return mel_filters(self.sample_rate, self.window, self.mels, self.low, self.high, self.scale, norm)

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and mel bands of a picture."""
        return frame_count(self.segment, self.window, self.hop, self.padding), self.mels

    @property
    def padding(self) -> str:
        """Where frames lie, as each official code has it: TensorFlow's, and torchlibrosa's."""
        return "tensorflow" if self.network == "sc09" else "torch"

    @property
    def module(self) -> nn.Module:
        """(picture, keys or None, shard) -> logits, embedding; in training, augmented, if there are keys."""
        return {"sc09": SC09, "panns": PANNs}[self.network](self)

    @property
    def steps(self) -> int:
        """To where the learning rate has fallen to zero."""
        return self.decay_steps or super().steps

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser with its schedule."""
        rate = self.learning_rate
        if self.decay_steps:
            rate = optax.warmup_cosine_decay_schedule(0.0, rate, self.warmup, max(self.decay_steps, self.warmup + 1))
        elif self.warmup:
            rate = optax.linear_schedule(0.0, rate, self.warmup)
        kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
        return {
            "sgd": lambda: optax.sgd(rate),
            "adamw": lambda: optax.adamw(rate, weight_decay=self.weight_decay, mask=kernels),
            "amsgrad": lambda: optax.amsgrad(rate),
        }[self.optimizer]()

    def init(self, key: Key[Array, ""], measured) -> State:
        """One network."""
        del measured
        picture = jnp.zeros((1, *self.shape, self.channels))
        variables = self.module.init(key, picture, None, Shard())
        params = {"network": variables["params"]}
        extra = {"average": jax.tree.map(jnp.copy, params["network"]), "statistics": variables["batch_stats"]}
        opt = {"network": self.tx.init(params["network"])}
        return State(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra=extra)

    def train_step(self, state, batch, key, shard, stage) -> tuple[State, Metrics]:
        """One update on augmented pictures."""
        del stage
        loss = partial(self.loss, batch=batch, statistics=state.extra["statistics"], key=key, shard=shard)
        network, opt, metrics = descend(self.tx, loss, state.params["network"], state.opt["network"], shard)
        averaged = average(state.extra["average"], network, self.decay, state.step)
        extra = {"average": averaged, "statistics": metrics.pop("statistics")}
        state = State(
            step=state.step + 1,
            params={"network": network},
            opt={"network": opt},
            extra=unless_skipped(metrics, extra, state.extra),
        )
        return state, {f"network/{name}": value for name, value in metrics.items()}

    def loss(self, network, *, batch: Batch, statistics, key, shard: Shard):
        """Cross-entropy with smoothed, mixed targets."""
        keys = shard.keys(key, batch.label.shape[0])
        target = optax.smooth_labels(jax.nn.one_hot(batch.label, self.classes), self.smoothing)
        target = mixed(target, keys, self.mixup)
        picture = self.augment(self.picture(batch.wave), keys)
        given = {"params": network, "batch_stats": statistics}
        (logits, _), changed = self.module.apply(given, picture, keys, shard, mutable="batch_stats")
        right = jnp.argmax(logits, -1) == jnp.argmax(target, -1)
        metrics = {"accuracy": jnp.mean(right.astype(jnp.float32)), "statistics": changed["batch_stats"]}
        return jnp.mean(optax.softmax_cross_entropy(logits, target)), metrics

    def picture(self, wave: Wave) -> Picture:
        """Log-mel bands [batch, frames, mels, channels]."""
        wave = jnp.moveaxis(wave.astype(jnp.float32), -1, 1)
        bands = magnitudes(wave, self.window, self.hop, padding=self.padding) ** self.power @ jnp.asarray(self.filters)
        bands = bands + self.floor if self.network == "sc09" else jnp.maximum(bands, self.floor)
        return jnp.moveaxis(jnp.log(bands), 1, -1)

    def augment(self, picture: Picture, keys: Key[Array, "batch"]) -> Picture:
        """Stretched along the frequency axis and moved in time, each example by its own key; masks and mixup come in
        the network, behind its first normalisation."""

        def one(picture, key):
            frames, mels, _ = picture.shape
            stretch_key, shift_key = jax.random.split(jax.random.fold_in(key, 0))
            if self.warp:
                factor = 1 + jax.random.uniform(stretch_key, minval=-self.warp, maxval=self.warp)
                picture = resampled(picture, jnp.arange(mels) * factor, 1)
            if self.shift:
                most = round(self.shift * frames)
                by = jax.random.randint(shift_key, (), -most, most + 1)
                picture = jnp.roll(picture, by, 0)
            return picture

        return jax.vmap(one)(picture, keys) if self.warp or self.shift else picture

    def evaluate(self, state, batch, key) -> Metrics:
        """Cross-entropy and share of errors."""
        del key
        logits, _ = self.classify(self.weights(state), batch.wave)
        wrong = (jnp.argmax(logits, -1) != batch.label).astype(jnp.float32)
        return {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels(logits, batch.label), "error": wrong}

    def weights(self, state) -> Params:
        """The averaged network and the statistics of its batch norm."""
        return {"network": state.extra["average"], "statistics": state.extra["statistics"]}

    def classify(self, params, wave) -> tuple[Logits, Float[Array, "batch features"]]:
        """Logits, and the features that the last layer reads."""
        given = {"params": params["network"], "batch_stats": params["statistics"]}
        return self.module.apply(given, self.picture(wave), None, Shard())


def mixed(x: Float[Array, "batch ..."], keys: Key[Array, "batch"] | None, alpha: float) -> Float[Array, "batch ..."]:
    """Every row mixed with its neighbour in the pair (0, 1), (2, 3), ..., its share drawn from Beta(alpha, alpha) by
    its key; x itself without keys or with alpha 0. Raises InputError for an odd number of rows."""
    if not alpha or keys is None:
        return x
    if len(x) % 2:
        raise InputError(f"mixup pairs neighbours, but a device has {len(x)} rows: give it an even number")
    share = jax.vmap(lambda key: jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha))(keys)
    other = jnp.flip(x.reshape(-1, 2, *x.shape[1:]), 1).reshape(x.shape)
    share = share.reshape(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * other


def resampled(x: Float[Array, "..."], at: Float[Array, "points"], axis: int) -> Float[Array, "..."]:
    """x at fractional places along an axis, by linear interpolation; beyond the end the last value."""
    last = x.shape[axis] - 1
    at = jnp.clip(at, 0, last)
    below = jnp.minimum(at.astype(jnp.int32), last - 1)
    part = (at - below).reshape([-1 if n == axis else 1 for n in range(x.ndim)])
    return (1 - part) * jnp.take(x, below, axis) + part * jnp.take(x, below + 1, axis)


def hidden_stripes(x: Float[Array, "..."], keys: Key[Array, "batch"], axis: int, count: int, width: int):
    """SpecAugment: `count` stripes across `axis` of every example set to 0, each up to `width` wide."""

    def one(x, key):
        place = jnp.arange(x.shape[axis - 1]).reshape([-1 if n == axis - 1 else 1 for n in range(x.ndim)])
        for i in range(count):
            width_key, start_key = jax.random.split(jax.random.fold_in(key, 10 + 2 * i + axis))
            wide = jax.random.randint(width_key, (), 0, width + 1)
            start = jax.random.randint(start_key, (), 0, x.shape[axis - 1] - wide + 1)
            x = jnp.where((place >= start) & (place < start + wide), 0.0, x)
        return x

    return jax.vmap(one)(x, keys) if count and width else x


def dropout(x: Float[Array, "..."], rate: float, keys: Key[Array, "batch"] | None, place: int):
    """Zeros with probability `rate`, drawn per example; `place` tells the layers of a network apart."""
    if not rate or keys is None:
        return x
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1000 + place), 1 - rate, x.shape[1:])
    return jnp.where(jax.vmap(draw)(keys), x / (1 - rate), 0.0)


class PANNs(nn.Module):
    """CNN14's layers, as many as there are widths."""

    model: Classifier

    @nn.compact
    def __call__(self, picture: Picture, keys: Any, shard: Shard) -> tuple[Logits, Float[Array, "batch features"]]:
        model, glorot = self.model, nn.initializers.glorot_uniform()
        norm = partial(nn.BatchNorm, keys is None, momentum=0.9, epsilon=1e-5, axis_name=shard.axis)
        x = norm(name="norm_mels", axis=2)(picture)
        if keys is not None:
            x = hidden_stripes(x, keys, 1, model.time_masks, model.time_width)
            x = hidden_stripes(x, keys, 2, model.mel_masks, model.mel_width)
        x = mixed(x, keys, model.mixup)
        for i, width in enumerate(model.widths):
            for n in (0, 1):
                conv = Conv(width, (3, 3), (1, 1), use_bias=False, dtype=model.dtype, name=f"conv_{i}_{n}")
                x = nn.relu(norm(name=f"norm_{i}_{n}", dtype=model.dtype)(conv(x)))
            if i + 1 < len(model.widths):
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = dropout(x, model.block_dropout, keys, i)
        x = jnp.mean(x.astype(jnp.float32), 2)
        x = jnp.max(x, 1) + jnp.mean(x, 1)
        if model.hidden:
            x = dropout(x, model.dropout, keys, 20)
            x = nn.relu(nn.Dense(model.hidden, kernel_init=glorot, name="hidden")(x))
        logits = nn.Dense(model.classes, kernel_init=glorot, name="classes")(dropout(x, model.dropout, keys, 21))
        return logits, x


class SC09(nn.Module):
    """The network of the WaveGAN code's eval/inception: batch norm, 5 x 5 convolution, ReLU, max pooling, 4 times."""

    model: Classifier

    @nn.compact
    def __call__(self, picture: Picture, keys: Any, shard: Shard) -> tuple[Logits, Float[Array, "batch features"]]:
        model = self.model
        norm = partial(nn.BatchNorm, keys is None, momentum=0.99, epsilon=1e-3, axis_name=shard.axis)
        x = mixed(picture, keys, model.mixup)
        for i, width in enumerate(model.widths):
            x = norm(name=f"norm_{i}", axis=2 if i == 0 else -1, dtype=model.dtype)(x)
            x = nn.relu(Conv(width, (5, 5), (1, 1), dtype=model.dtype, name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = norm(name="norm")(x.reshape(x.shape[0], -1).astype(jnp.float32))
        return nn.Dense(model.classes, kernel_init=nn.initializers.glorot_uniform(), name="classes")(x), x
