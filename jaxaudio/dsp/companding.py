"""Waveforms as integer codes: mu-law (ITU-T G.711's curve, continuous, as WaveNet and torchaudio have it) and linear.

Both put `levels` values on [-1, 1], the outermost at -1 and 1, evenly spaced behind the curve; a code is the number of
the nearest one, so an odd number of levels has one at 0 and an even number has none. librosa.mu_compress differs: its
codes are signed and not rounded to the nearest level. Codes have no gradient.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxaudio.core import InputError

BYTE = 256  # levels of the upper and of the lower half of 16 bits


def mu_law_encode(x: Float[Array, "*shape"], levels: int = 256) -> Int[Array, "*shape"]:
    """Codes 0 to levels - 1 of amplitudes in [-1, 1] (clipped to that), as torchaudio's mu_law_encoding.

    mu = levels - 1. Decoded again, x is off by at most (|x| + 1 / mu) ((1 + mu)^(1 / mu) - 1).
    """
    mu = _steps(levels)
    return linear_encode(jnp.sign(x) * jnp.log1p(mu * jnp.minimum(jnp.abs(x), 1)) / np.log1p(mu).item(), levels)


def mu_law_decode(codes: Int[Array, "*shape"], levels: int = 256) -> Float[Array, "*shape"]:
    """Amplitudes in [-1, 1], float32, of codes 0 to levels - 1, as torchaudio's mu_law_decoding."""
    mu = _steps(levels)
    y = linear_decode(codes, levels)
    return jnp.sign(y) * jnp.minimum(jnp.expm1(jnp.abs(y) * np.log1p(mu).item()) / mu, 1)  # which rounding exceeds


def linear_encode(x: Float[Array, "*shape"], levels: int = 256) -> Int[Array, "*shape"]:
    """Codes 0 to levels - 1 of amplitudes in [-1, 1] (clipped to that).

    Decoded again, x is off by at most 1 / (levels - 1).
    """
    steps = _steps(levels)
    return jnp.floor((jnp.clip(x, -1, 1) + 1) / 2 * steps + 0.5).astype(jnp.int32)


def linear_decode(codes: Int[Array, "*shape"], levels: int = 256) -> Float[Array, "*shape"]:
    """Amplitudes in [-1, 1], float32, of codes 0 to levels - 1."""
    return codes.astype(jnp.float32) * (2 / _steps(levels)) - 1


def _steps(levels: int) -> int:
    """The intervals between the levels; float32 tells so many apart."""
    if not 2 <= levels <= 2**16:
        raise InputError(f"levels is {levels}: pass 2 to {2**16}, 256 for 8 bits")
    return levels - 1
