"""A model of notes, with one number to learn: every sum of it is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxaudio.core import Plays, Shard, State, descend
from jaxaudio.runtime.folder import Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned(Plays):
    """A sine of the pitch and, by the instrument, its octave."""

    sample_rate: int = 8000
    segment: int = 4000
    batch_size: int = 8
    pitches: tuple[int, ...] = ()
    off: float = 0.0  # semitones by which notes are out of tune

    presets: ClassVar = {"paper": {}, "tiny": {}}
    criterion = "error"

    def init(self, key, measured):
        params = {"own": {"loud": jnp.float32(0.1)}}
        return State(jnp.int32(0), params, {"own": self.tx.init(params["own"])}, {})

    @property
    def tx(self):
        return optax.adam(1e-2)

    def error(self, params, batch, key, shard):
        latent = jax.vmap(lambda key: jax.random.normal(key, (2,)))(shard.keys(key, len(batch.wave)))
        return jnp.mean(jnp.square(self.render(params, latent, batch.label) - batch.wave), (1, 2))

    def train_step(self, state, batch, key, shard, stage):
        loss = lambda params: (jnp.mean(self.error(params, batch, key, shard)), {})
        own, opt, metrics = descend(self.tx, loss, state.params["own"], state.opt["own"], shard)
        return State(state.step + 1, {"own": own}, {"own": opt}, state.extra), metrics

    def evaluate(self, state, batch, key):
        return {"error": self.error(state.params["own"], batch, key, Shard())}

    def weights(self, state):
        return state.params["own"]

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
    return Trained(folder, model, {"loud": np.float32(loud)}, 2, tuple(map(str, pitches)))
