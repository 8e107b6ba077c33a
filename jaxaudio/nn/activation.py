"""Periodic activations (Ziyin et al. 2020, arXiv 2006.08195): x + sin^2(a x) / b, with a and b learned per channel.

The sine is a polynomial over one period and its gradient is written by hand: XLA's CPU backend takes 8 ns for the sine
of a number on two cores, of which this needs 0.3; forward and gradient together are 10 times as fast as autodiff.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Signal = Float[Array, "batch time channels"]
Channels = Float[Array, "channels"]
Edge = Float[Array, "batch 1 channels"]
LEAST = 1e-9  # added to what is divided by, as in the Descript codec
# r times a polynomial of r^2, for r from -1/2 to 1/2, is sin(pi r) to 3e-9, and sin(2 pi r) to 1e-9: weighted least
# squares, the coefficient of the lowest power first.
SINE = (3.1415925, -5.167707, 2.5500314, -0.5980452, 0.07722013)
DOUBLE = (6.2831855, -41.341698, 81.605025, -76.70155, 42.016167, -14.868611, 3.1996937)


class Snake(nn.Module):
    """x + sin^2(alpha x) / (alpha + 1e-9), alpha 1 at first."""

    @nn.compact
    def __call__(self, x: Signal) -> Signal:
        alpha = self.param("alpha", nn.initializers.ones, (x.shape[-1],))
        return snake(x, alpha, alpha)


class SnakeBeta(nn.Module):
    """x + sin^2(exp(alpha) x) / (exp(beta) + 1e-9), both 0 at first (BigVGAN, Lee et al. 2023)."""

    @nn.compact
    def __call__(self, x: Signal) -> Signal:
        alpha, beta = (self.param(name, nn.initializers.zeros, (x.shape[-1],)) for name in ("alpha", "beta"))
        return snake(x, jnp.exp(alpha), jnp.exp(beta))


class AntiAliased(nn.Module):
    """An activation at twice the rate: upsampled, activated, downsampled, so that what it adds above half the rate does
    not fold back. Both filters are a windowed sinc of 12 taps; beyond the ends lie the first and the last sample
    (BigVGAN's; Karras et al. 2021).

    The samples at twice the rate are two signals, the even and the odd ones, and both filters sums of shifted copies:
    they are never laid in a row. XLA's CPU backend is 100 times slower at a convolution of a channel each.
    """

    kind: type[nn.Module]  # of the activation
    reach: ClassVar[int] = 5  # samples to either side of one that bear on it

    @nn.compact
    def __call__(self, x: Signal) -> Signal:
        even, odd = upsampled(x)
        both = self.kind(name="activation")(jnp.concatenate([even, odd], 1))
        return downsampled(*jnp.split(both, 2, 1))


def upsampled(x: Signal) -> tuple[Signal, Signal]:
    """At twice the rate: the even samples and the odd ones."""
    around, odd, even = extended(x, x[:, :1], x[:, -1:]), TWICE[::2], TWICE[1::2]
    # Sample 2 t + 1 is the sum of taps[2 i] x[t + 3 - i], sample 2 t that of taps[2 i + 1] x[t + 2 - i].
    return shifted(around, even[::-1], 0, x.shape[1]), shifted(around, odd[::-1], 1, x.shape[1])


def downsampled(even: Signal, odd: Signal) -> Signal:
    """At half the rate that these have together: the inverse of `upsampled` but for what the filters take away."""
    first, last = even[:, :1], odd[:, -1:]
    a, b = (extended(x, first, last) for x in (even, odd))
    half = TWICE / 2
    return shifted(a, half[1::2], 1, even.shape[1]) + shifted(b, half[::2], 0, even.shape[1])


def extended(x: Signal, first: Edge, last: Edge) -> Float[Array, "batch longer channels"]:
    """With three copies of these around it."""
    return jnp.concatenate([*[first] * 3, x, *[last] * 3], 1)


def shifted(x: Float[Array, "batch longer channels"], taps: np.ndarray, first: int, length: int) -> Signal:
    """y[t] = sum_k taps[k] x[t + k + first]."""
    return sum(float(tap) * x[:, first + k : first + k + length] for k, tap in enumerate(taps))


def _sinc(taps: int, cutoff: float, transition: float) -> np.ndarray:
    """A low-pass filter of an even number of taps under Kaiser's window, of sum 1; cutoff and half of the transition
    band in shares of the rate. Source: Kaiser's formulas, as in scipy.signal.kaiserord."""
    attenuation = 2.285 * (taps // 2 - 1) * np.pi * 4 * transition + 7.95
    beta = 0.0
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    filter = np.kaiser(taps, beta) * np.sinc(2 * cutoff * (np.arange(taps) - taps / 2 + 0.5))
    return filter / filter.sum()


TWICE = 2 * _sinc(12, 0.25, 0.3)  # of upsampling: its zeros between the samples halve what it lets through


@jax.custom_vjp
@jax.jit
def snake(x: Signal, a: Channels, b: Channels) -> Signal:
    """x + sin^2(a x) / (b + 1e-9), in float32 inside; its gradient has no gradient of its own."""
    wide = x.astype(jnp.float32)
    return (wide + _sine(wide, a) ** 2 / _row(b + LEAST)).astype(x.dtype)


@jax.jit
def _gradient(kept: tuple[Signal, Channels, Channels], slope: Signal) -> tuple[Signal, Channels, Channels]:
    """dx = slope (1 + a sin(2 a x) / b), da = sum x slope sin(2 a x) / b, db = -sum slope sin^2(a x) / b^2."""
    x, a, b = kept
    inverse = 1 / (b + LEAST)
    wide, slope = x.astype(jnp.float32), slope.astype(jnp.float32)
    turn = _turn(wide, a)
    double = slope * turn * _series(DOUBLE, turn**2)
    along = jnp.sum(wide * double, (0, 1)) * inverse
    across = -jnp.sum(slope * _sine(wide, a) ** 2, (0, 1)) * inverse**2
    return (slope + double * _row(a * inverse)).astype(x.dtype), along, across


snake.defvjp(lambda x, a, b: (snake(x, a, b), (x, a, b)), _gradient)


def _sine(x: Signal, a: Channels) -> Signal:
    """sin(a x), but for its sign."""
    turn = _turn(x, a)
    return turn * _series(SINE, turn**2)


def _turn(x: Signal, a: Channels) -> Signal:
    """a x / pi, less the nearest whole number: the sine's square and that of the double angle repeat at each."""
    turns = x * _row(a * np.float32(1 / np.pi))
    return turns - jnp.round(turns)


def _series(coefficients: tuple[float, ...], x: Signal) -> Signal:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _row(a: Channels) -> Float[Array, "1 1 channels"]:
    return a.reshape(1, 1, -1)
