"""A codec and a model of its codes with nothing to learn: every sum of them is known."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.autoregressive import Autoregressive, uniforms
from jaxaudio.core import Composes, Quantizes
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks import generate

FAR = 2  # frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled(Quantizes):
    """A code for each sample of a frame: its amplitude in coarse steps. Decoding mixes a frame with its neighbours."""

    presets: ClassVar = {}
    sample_rate: int = 1000
    segment: int = 64
    batch_size: int = 1
    hop: int = 8
    delay: int = 0
    codebooks: int = 8
    codebook_size: int = 64
    around: float = 0.1  # share of the frames at a distance of FAR

    criterion = "none"
    init = train_step = evaluate = spread = None

    @property
    def reach(self):
        return FAR + -(-self.delay // self.hop)

    def weights(self, state):
        return state

    def encode(self, params, wave):
        return self.frames_of(params, self.codes(params, wave))

    def codes(self, params, wave):
        level = jnp.clip(jnp.round((wave[..., 0] + 1) / 2 * (self.codebook_size - 1)), 0, self.codebook_size - 1)
        return level.astype(jnp.int32).reshape(len(wave), -1, self.hop)

    def frames_of(self, params, codes):
        return params["loud"] * (2 * codes.astype(jnp.float32) / (self.codebook_size - 1) - 1)

    def decode(self, params, latent, key, first=0):
        padded = jnp.pad(latent, ((0, 0), (FAR, FAR), (0, 0)))
        mixed = latent + self.around * (padded[:, : -2 * FAR] + padded[:, 2 * FAR :])
        late = jnp.pad(mixed.reshape(len(latent), -1), ((0, 0), (self.delay, 0)))[:, : latent.shape[1] * self.hop]
        return jnp.clip(late, -1, 1)[..., None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stroll(Autoregressive, Composes):
    """A code is the one before in its codebook, a draw, and its label further; none where `wide` is negative."""

    presets: ClassVar = {}
    sample_rate: int = 1000
    segment: int = 64
    batch_size: int = 1
    hop: int = 8
    codebooks: int = 8
    codebook_size: int = 64

    criterion = "none"
    init = train_step = evaluate = bits = None

    def weights(self, state):
        return state

    def begin(self, params, n, label):
        return {"last": jnp.full((n, self.codebooks), 30), "drawn": jnp.int32(0), "label": label}

    def hear(self, params, codes, label):
        return {"last": codes[:, -1], "drawn": jnp.int32(0), "label": label}

    def extend(self, params, carry, key, frames):
        numbers = uniforms(key, carry["drawn"], frames, len(carry["last"]), self.codebooks).swapaxes(1, 2)
        further = 0 if carry["label"] is None else carry["label"][:, None]

        def step(last, number):
            new = jnp.clip(last + jnp.round(params["wide"] * (number - 0.5)).astype(jnp.int32) + further, 0, 63)
            return new, jnp.where(params["wide"] < 0, -1, new)

        last, codes = jax.lax.scan(step, carry["last"], numbers)
        return {**carry, "last": last, "drawn": carry["drawn"] + frames}, codes.swapaxes(0, 1)


def composed(folder, monkeypatch, wide=9.0, labels=(), **fields):
    """A model of codes as a trained run, and the codec whose codes it learned, which is found in folder/codec."""
    model = Stroll(classes=len(labels), **{k: v for k, v in fields.items() if k in generate.FROM_CODEC})
    codec = Trained(folder / "codec", Sampled(**fields), {"loud": np.float32(1)}, 7, ())
    (folder / "run.json").write_text(json.dumps({"codec": generate.told(codec)}))
    monkeypatch.setattr(generate, "codec_at", lambda where, step: codec._replace(folder=where))
    return Trained(folder, model, {"wide": np.float32(wide)}, 2, labels), codec


def decoded(codec, codes):
    """Their sound [n, time, channels], at once and in time; beyond their end is their last frame."""
    latents = codec.model.frames_of(codec.params, jnp.pad(codes, ((0, 0), (0, codec.model.reach), (0, 0)), "edge"))
    return np.asarray(codec.model.decode(codec.params, latents, jax.random.key(3)))[:, codec.model.delay :]
