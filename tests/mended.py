"""A model that restores, with one number to learn: every sum of it is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Restores
from tests.single import Single, run_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mended(Single, Restores):
    """A sample is what was heard times the number, a share of those around it, and a hiss by its hop; a gap is a
    straight line between what it lies between."""

    sample_rate: int = 8000
    segment: int = 256
    batch_size: int = 8
    hop: int = 8
    reach: int = 2
    longest: int = 20
    around: float = 0.0  # share of the samples at a distance of `reach` hops
    hiss: float = 0.0

    presets: ClassVar = {"paper": {}, "tiny": {}, "deaf": {"longest": 0}}
    needs_noise = True

    def init(self, key, measured):
        return super().init(key, measured)._replace(extra={"heard": measured.get("noise", jnp.float32(0))})

    def measure(self, batches):
        levels = [np.mean(np.square(batch.noise)) for batch in batches]
        return {"noise": jnp.float32(np.mean(levels) if levels else 0)}

    def damaged(self, batch, key, shard):
        rows, length, _ = batch.wave.shape

        def lost(key):
            return jax.random.randint(key, (), 1, length - self.longest - 1) + jnp.arange(self.longest)

        keys = shard.keys(key, rows)
        gap = jax.vmap(lambda key: jnp.zeros(length).at[lost(key)].set(1.0) if self.longest else jnp.zeros(length))(
            keys
        )
        return (batch.wave + 0.5 * batch.noise) * (1 - gap)[..., None], gap

    def error(self, params, batch, key, shard):
        heard, gap = self.damaged(batch, key, shard)
        made = self.restore(params, heard, gap if self.longest else None, key)
        return jnp.mean(jnp.square(made - batch.wave), (1, 2))

    def restore(self, params, wave, gap, key, first=0):
        assert wave.shape[1] % self.hop == 0
        far, frames = self.reach * self.hop, wave.shape[1] // self.hop
        wide = jnp.pad(wave, ((0, 0), (far, far), (0, 0)))
        one = lambda i: jax.random.normal(jax.random.fold_in(key, i), (self.hop, self.channels))
        hiss = jax.vmap(one)(first + jnp.arange(frames)).reshape(1, -1, self.channels)
        made = params["loud"] * wave + self.around * (wide[:, : -2 * far] + wide[:, 2 * far :]) + self.hiss * hiss
        return made if gap is None else jax.vmap(bridged)(made, wave, gap)


def bridged(made, wave, gap):
    """[time, channels]: `made`, but in the gap a straight line between the samples of `wave` around it."""
    count, start = jnp.sum(gap).astype(int), jnp.argmax(gap)
    before, after = wave[jnp.maximum(start - 1, 0)], wave[jnp.minimum(start + count, len(wave) - 1)]
    share = ((jnp.arange(len(wave)) - start + 1) / (count + 1))[:, None]
    return jnp.where(gap[:, None] > 0, (1 - share) * before[None] + share * after[None], made)


def mended(folder, loud=0.5, **fields):
    """As a trained run."""
    return run_of(folder, Mended(**fields), loud)
