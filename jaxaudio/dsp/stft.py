"""Short-time Fourier transform of waveforms, in jax.numpy."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def frames(x: Float[Array, "*batch time"], size: int, hop: int) -> Float[Array, "*batch frames size"]:
    """Every stretch of `size` samples that starts at a multiple of `hop` (a divisor of size) and lies within x.

    By reshape and concatenation: a gather is several times slower, and more so in the gradient.
    """
    count = (x.shape[-1] - size) // hop + 1
    parts = size // hop
    x = x[..., : (count + parts - 1) * hop].reshape(*x.shape[:-1], count + parts - 1, hop)
    return jnp.concatenate([x[..., p : p + count, :] for p in range(parts)], -1)


def magnitudes(x: Float[Array, "*batch time"], size: int, hop: int) -> Float[Array, "*batch frames bins"]:
    """|STFT| with a periodic Hann window, not centred, zeros behind the last whole frame; bins = size / 2 + 1."""
    behind = size - hop if x.shape[-1] >= size else size - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, behind + -x.shape[-1] % hop)])
    window = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size), jnp.float32)
    cut = frames(x, size, hop)
    spectrum = jnp.fft.rfft(cut * window.reshape((1,) * (cut.ndim - 1) + (-1,)))
    return jnp.abs(spectrum)
