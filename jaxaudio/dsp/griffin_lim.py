"""Signals from magnitudes alone (Griffin & Lim 1984; fast variant: Perraudin, Balazs & Sondergaard 2013)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.core import InputError
from jaxaudio.dsp.stft import Window, frame_count, istft, stft


def griffin_lim(
    magnitude: Float[Array, "*batch frames bins"],
    size: int,
    hop: int,
    length: int,
    iterations: int = 32,
    momentum: float = 0.99,
    window: Window = "hann",
    padding: str = "librosa",
    phase: Float[Array, "*batch frames bins"] | None = None,
) -> Float[Array, "*batch time"]:
    """A signal of `length` samples whose magnitudes are near the given ones.

    momentum: 0 is the algorithm of 1984, above it the fast variant (its alpha is momentum / (1 + momentum), as in
    librosa.griffinlim). phase: where to start, in radians; None: 0 everywhere. Raises InputError where a signal of
    `length` has another number of frames than `magnitude`.
    """
    expected = frame_count(length, size, hop, padding)
    if magnitude.shape[-2] != expected:
        raise InputError(
            f"magnitude has {magnitude.shape[-2]} frames: {length} samples at size {size}, hop {hop} and padding "
            f"{padding!r} have {expected}; pass the length and padding that it was made with"
        )
    invert = lambda spectrum: istft(spectrum, size, hop, window, padding, length)
    tiny, pull = np.finfo(np.float32).tiny, momentum / (1 + momentum)

    def improve(n: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        spectrum, before = state
        rebuilt = stft(invert(spectrum), size, hop, window, padding)
        ahead = rebuilt - pull * before
        return ahead * (magnitude / (jnp.sqrt(ahead.real**2 + ahead.imag**2) + tiny)), rebuilt

    start = jnp.zeros_like(magnitude) if phase is None else phase
    spectrum = jax.lax.complex(magnitude * jnp.cos(start), magnitude * jnp.sin(start))
    spectrum, _ = jax.lax.fori_loop(0, iterations, improve, (spectrum, jnp.zeros_like(spectrum)))
    return invert(spectrum)
