"""A model that encodes and streams, with nothing to learn: every sum of it is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Encodes, InputError, Streams
from jaxaudio.runtime.folder import Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Encodes, Streams):
    """A frame is rotated, mixed with its neighbours on the way in and on the way out, and hisses by its number."""

    sample_rate: int = 1000
    segment: int = 64
    batch_size: int = 1
    hop: int = 8
    delay: int = 0
    past: float = 0.0  # share of the frame before
    ahead: float = 0.0  # share of the frame behind
    offset: float = 0.0  # so that silence is not what lies beyond the ends
    hiss: float = 0.0

    criterion = "none"
    init = train_step = evaluate = None

    def weights(self, state):
        return state

    @property
    def reach(self):
        return 2 + -(-self.delay // self.hop)

    @property
    def basis(self):
        size = self.hop * self.channels
        return np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0].astype(np.float32)

    def mixed(self, x, before, after):
        return (
            x + self.past * jnp.concatenate([before, x[:, :-1]], 1) + self.ahead * jnp.concatenate([x[:, 1:], after], 1)
        )

    def encode(self, params, wave):
        frames = wave.reshape(len(wave), -1, self.hop * self.channels) + self.offset
        edge = jnp.zeros_like(frames[:, :1])
        return self.mixed(frames, edge, edge) @ self.basis

    def noise(self, key, first, frames):
        one = lambda i: jax.random.normal(jax.random.fold_in(key, i), (self.hop * self.channels,))
        return self.hiss * jax.vmap(one)(first + jnp.arange(frames))[None]

    def decode(self, params, latent, key, first=0):
        frames = latent @ self.basis.T[: latent.shape[-1]]
        edge = jnp.zeros_like(frames[:, :1])
        wave = self.mixed(frames, edge, edge) + self.noise(key, first, frames.shape[1])
        wave = wave.reshape(len(wave), -1, self.channels)
        return jnp.pad(wave, ((0, 0), (self.delay, 0), (0, 0)))[:, : wave.shape[1]]

    def spread(self, params):
        return jnp.asarray(params["spread"])

    def open(self, params, batch):
        if self.ahead:
            raise InputError("this model looks ahead: train one with --model.causal")
        edge = jnp.zeros((batch, 1, self.hop * self.channels))
        return {
            "wave": edge,
            "sound": edge,
            "late": jnp.zeros((batch, self.delay, self.channels)),
            "first": jnp.int32(0),
        }

    def push(self, params, carry, wave, key):
        rows = wave.reshape(len(wave), -1, self.hop * self.channels) + self.offset
        frames = self.mixed(rows, carry["wave"], rows[:, :1]) @ self.basis @ self.basis.T
        sound = self.mixed(frames, carry["sound"], rows[:, :1]) + self.noise(key, carry["first"], rows.shape[1])
        late = jnp.concatenate([carry["late"], sound.reshape(len(wave), -1, self.channels)], 1)
        after = {"wave": rows[:, -1:], "sound": frames[:, -1:], "late": late[:, wave.shape[1] :]}
        return {**after, "first": carry["first"] + rows.shape[1]}, late[:, : wave.shape[1]]


def toy(folder, **fields):
    """As a trained run."""
    model = Toy(**fields)
    spread = np.arange(model.hop * model.channels, 0, -1, dtype=np.float32)
    return Trained(folder, model, {"spread": spread}, 2, ())


MIXING = {"past": 0.5, "ahead": 0.25, "offset": 0.3, "hiss": 0.2}


def sound(frames, channels=1, level=0.1, seed=0):
    """Noise [frames, channels] of 16-bit samples."""
    wave = (np.random.default_rng(seed).standard_normal((frames, channels)) * level).clip(-0.9, 0.9)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)
