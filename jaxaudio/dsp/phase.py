"""Phase of a spectrum over time: unwrapped, and as the instantaneous frequency that GANSynth generates."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Phase = Float[Array, "*batch frames bins"]  # radians


def unwrap(phase: Phase) -> Phase:
    """The phase plus multiples of 2 pi such that no step from frame to frame exceeds pi, as np.unwrap along time.

    Its gradient is the identity.
    """
    step = jnp.diff(phase, axis=-2) / (2 * np.pi)
    # Whole turns are counted, and small integers add without error: radians added up would drift.
    turns = jnp.cumsum(jnp.sign(step) * jnp.ceil(jnp.abs(step) - 0.5), -2)
    first = phase[..., :1, :]
    return phase - 2 * np.pi * jax.lax.stop_gradient(jnp.concatenate([jnp.zeros_like(first), turns], -2))


def instantaneous_frequency(phase: Phase) -> Phase:
    """Steps of the unwrapped phase over pi, in [-1, 1] for phases in [-pi, pi]; the first frame is phase / pi.

    1 is a step of half a turn per hop. Source: Engel et al. 2019 (GANSynth, arXiv 1902.08710), section 2.1.
    """
    # The step of the unwrapped phase is the wrapped step of the phase, and so keeps its last digits.
    steps = wrap(jnp.diff(phase, axis=-2) / np.pi)
    return jnp.concatenate([phase[..., :1, :] / np.pi, steps], -2)


def integrate(frequency: Phase) -> Phase:
    """The phase, in [-pi, pi], of an instantaneous frequency: inverse of `instantaneous_frequency` modulo 2 pi."""
    # Every partial sum is wrapped, so that rounding does not grow with the phase.
    return np.pi * jax.lax.associative_scan(lambda a, b: wrap(a + b), wrap(frequency), axis=frequency.ndim - 2)


def wrap(x: Array) -> Array:
    """x modulo 2 in [-1, 1]; its gradient is the identity."""
    return x - 2 * jnp.round(x / 2)
