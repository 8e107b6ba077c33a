"""Mean and deviation of spectrograms per bin: what a network sees them relative to."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Moments = Mapping[str, Float[Array, "bins"]]  # "mean" and "deviation"


def moments(spectrogram: Callable[[Array], Array], waves: Iterable[np.ndarray], bins: int) -> Moments:
    """Mean and standard deviation of every bin (the last axis) of `spectrogram(wave)`, in one pass over the waves.

    The sums of a batch are float32, those over batches float64. Without any wave: 0 and 1.
    """

    @jax.jit
    def sums(wave: Array) -> tuple[Array, Array]:
        rows = spectrogram(wave).reshape(-1, bins)
        return jnp.mean(rows, 0), jnp.mean((rows - jnp.mean(rows, 0, keepdims=True)) ** 2, 0)

    count, mean, spread = 0, np.zeros(bins), np.zeros(bins)
    for wave in waves:
        here, around = (np.asarray(x, np.float64) for x in sums(wave))
        total = count + len(wave)
        step = here - mean
        mean += step * len(wave) / total
        spread += around * len(wave) + step**2 * count * len(wave) / total
        count = total
    deviation = np.sqrt(spread / count) if count else np.ones(bins)
    as_array = lambda x: jnp.asarray(x, jnp.float32)
    return {"mean": as_array(mean), "deviation": as_array(np.maximum(deviation, 1e-6))}


def standardise(x: Float[Array, "*batch bins"], given: Moments) -> Float[Array, "*batch bins"]:
    """Zero mean and unit deviation in every bin."""
    mean, deviation = (given[name].reshape((1,) * (x.ndim - 1) + (-1,)) for name in ("mean", "deviation"))
    return (x - mean) / deviation


def restore(x: Float[Array, "*batch bins"], given: Moments) -> Float[Array, "*batch bins"]:
    """The inverse of `standardise`."""
    mean, deviation = (given[name].reshape((1,) * (x.ndim - 1) + (-1,)) for name in ("mean", "deviation"))
    return x * deviation + mean
