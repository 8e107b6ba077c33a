"""Models that draw sample by sample, and one that has codes, with nothing to learn: every sum of them is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.autoregressive import Autoregressive, uniforms
from jaxaudio.core import Continues, InputError, Quantizes, Vocodes
from jaxaudio.runtime.folder import Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk(Autoregressive, Continues):
    """A sample is a share of the one before, a draw, and a little for its label."""

    sample_rate: int = 1000
    segment: int = 64
    batch_size: int = 1
    frame: int = 8
    share: float = 0.75
    levels: int = 256
    law: str = "linear"

    criterion = "none"
    init = train_step = evaluate = bits = None

    def weights(self, state):
        return state

    def begin(self, params, n, label):
        return {"last": jnp.zeros((n, self.channels)), "drawn": jnp.int32(0), "label": label}

    def hear(self, params, wave, label):
        assert wave.shape[1]
        assert wave.shape[1] % self.frame == 0
        return {"last": wave[:, -1], "drawn": jnp.int32(0), "label": label}

    def extend(self, params, carry, key, frames):
        count, label = frames * self.frame, carry["label"]
        rows, channels = carry["last"].shape
        draws = uniforms(key, carry["drawn"], count, rows, channels).swapaxes(1, 2) - 0.5
        raised = 0.0 if label is None else 0.01 * label[:, None]

        def step(last, draw):
            new = self.share * last + params["loud"] * 0.2 * self.temperature * draw + raised
            return new, new

        last, wave = jax.lax.scan(step, carry["last"], draws)
        return {**carry, "last": last, "drawn": carry["drawn"] + count}, wave.swapaxes(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Still(Autoregressive, Vocodes):
    """A frame is its samples and a share of those around it; a sample hisses, and a share of the one before stays."""

    sample_rate: int = 1000
    segment: int = 64
    batch_size: int = 1
    hop: int = 8
    reach: int = 2
    around: float = 0.0  # share of the frames at a distance of `reach`, on the way in and out
    stays: float = 0.0
    hiss: float = 0.0

    criterion = "none"
    init = train_step = evaluate = None

    def weights(self, state):
        return state

    def mixed(self, frames):
        """Of [batch, frames, n], all but the first and the last `reach`."""
        far = 2 * self.reach
        return frames[:, self.reach : -self.reach] + self.around * (frames[:, :-far] + frames[:, far:])

    def features(self, wave):
        frames = wave.reshape(len(wave), -1, self.hop * self.channels)
        return self.mixed(jnp.pad(frames, ((0, 0), (self.reach, self.reach), (0, 0))))

    def open(self, params, batch):
        return jnp.zeros((batch, self.channels)), jnp.int32(0)

    def vocode(self, params, carry, frames, key):
        (last, drawn), inner = carry, self.mixed(frames)
        draws = jnp.moveaxis(uniforms(key, drawn, inner.shape[1] * self.hop, len(frames), self.channels), -1, 0) - 0.5
        sound = inner.reshape(draws.shape) * params["loud"] + self.temperature * self.hiss * draws

        def step(last, now):
            new = now + self.stays * last
            return new, new

        last, wave = jax.lax.scan(step, last, sound.swapaxes(0, 1))
        return (last, drawn + sound.shape[1]), wave.swapaxes(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps(Quantizes):
    """A frame is the mean of a hop and of those around it, in steps of 1 / size, 1 / size ** 2, ...: a code of each.

    Sound of 16 bits has sums that float32 holds exactly, so that its codes are the same however it is cut.
    """

    sample_rate: int = 1000
    segment: int = 64
    batch_size: int = 1
    codebooks: int = 3
    codebook_size: int = 16
    delay: int = 0
    around: float = 0.0  # share of the frames at a distance of `reach`, on the way in and out
    offset: float = 0.0  # so that silence is not what lies beyond the ends
    hiss: float = 0.0
    continuous: bool = False

    criterion = "none"
    init = train_step = evaluate = None
    hop = property(lambda self: 8)
    reach = property(lambda self: 2 + -(-self.delay // self.hop))

    def weights(self, state):
        return state

    def mixed(self, frames):
        """[batch, frames, n]; beyond the ends are zeros."""
        around = jnp.pad(frames, ((0, 0), (2, 2), (0, 0)))
        return frames + self.around * (around[:, :-4] + around[:, 4:])

    def encode(self, params, wave):
        frames = wave.reshape(len(wave), -1, self.hop * self.channels).mean(-1, keepdims=True)
        return self.mixed(frames + self.offset)

    def codes(self, params, wave):
        if self.continuous:
            raise InputError("this model is continuous")
        whole = self.codebook_size**self.codebooks
        steps = jnp.clip(jnp.floor((self.encode(params, wave) + 1) / 2 * whole), 0, whole - 1).astype(jnp.int32)
        places = self.codebook_size ** np.arange(self.codebooks)[::-1].reshape(1, 1, -1)
        return jnp.where(jnp.isnan(self.encode(params, wave)), -1, steps // places % self.codebook_size)

    def frames_of(self, params, codes):
        places = 2.0 / self.codebook_size ** np.arange(1, codes.shape[-1] + 1, dtype=np.float32)
        return (codes * places.reshape(1, 1, -1)).sum(-1, keepdims=True) - 1

    def decode(self, params, latent, key, first=0):
        draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (self.hop * self.channels,), minval=-1.0)
        noise = self.hiss * jax.vmap(draw)(first + jnp.arange(latent.shape[1]))
        wave = (self.mixed(latent) + noise[None]).reshape(len(latent), -1, self.channels)
        return jnp.pad(wave, ((0, 0), (self.delay, 0), (0, 0)))[:, : wave.shape[1]]

    def spread(self, params):
        return jnp.ones(1)


def steps(folder, **fields):
    """As a trained run, whose training saw the middle codes most, and the coarsest stay near those before."""
    model = Steps(**fields)
    codes = np.arange(model.codebook_size)
    middle = np.exp(-np.abs(codes - (model.codebook_size - 1) / 2))
    usage = np.tile(1000 * middle[:, None] * middle, (model.codebooks, 1, 1))
    usage[0] = 1000 * middle[:, None] * np.exp(-np.abs(codes[:, None] - codes))
    return Trained(folder, model, {"usage": usage.astype(np.float32)}, 2, ())


PARAMS = {"loud": np.float32(1)}


def run_of(model, folder, labels=()):
    """As a trained run."""
    return Trained(folder, model, PARAMS, 2, labels)
