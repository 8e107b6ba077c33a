"""A model of notes, with one number to learn: every sum of it is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxaudio.core import Plays
from tests.single import Single, run_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned(Single, Plays):
    """A sine of the pitch and, by the instrument, its octave."""

    sample_rate: int = 8000
    segment: int = 4000
    batch_size: int = 8
    pitches: tuple[int, ...] = ()
    off: float = 0.0  # semitones by which notes are out of tune

    presets: ClassVar = {"paper": {}, "tiny": {}}

    def error(self, params, batch, key, shard):
        latent = jax.vmap(lambda key: jax.random.normal(key, (2,)))(shard.keys(key, len(batch.wave)))
        return jnp.mean(jnp.square(self.render(params, latent, batch.label) - batch.wave), (1, 2))

    def latents(self, key, n):
        return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (2,)))(jnp.arange(n))

    def render(self, params, latent, label):
        hertz = 440 * 2 ** ((jnp.asarray(self.pitches, jnp.float32)[label] + self.off - 69) / 12)
        turns = hertz[:, None] * jnp.arange(self.segment)[None] / self.sample_rate
        share = 0.5 * jnp.tanh(latent[:, :1])
        wave = params["loud"] * (jnp.sin(2 * jnp.pi * turns) + share * jnp.sin(4 * jnp.pi * turns)) / 2
        return jnp.repeat(wave[..., None], self.channels, -1)


def tuned(folder, pitches=(60, 61, 62, 64), loud=0.5, **fields):
    """As a trained run."""
    model = Tuned(pitches=pitches, classes=len(pitches), **fields)
    return run_of(folder, model, loud, tuple(map(str, pitches)))
