"""Sound drawn sample by sample: what the recurrent papers have in common.

A network tells the distribution of the next sample, as the logits of its code or as a mixture of logistics (Salimans et
al., PixelCNN++, 2017), and a uniform number picks one from it. The numbers are drawn ahead, for many samples at once.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxaudio.core import InputError, Model
from jaxaudio.dsp.companding import BYTE

LEAST_SCALE = 1e-7  # of a logistic; amplitudes are in [-1, 1]
LEAST = 1e-3  # temperature that is not 0, and top_p: float32 does not hold what comes of much smaller ones
GROUP = 16  # levels of a cumulative sum that are summed at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoregressive(Model):
    """How samples are picked; training does not look at it."""

    temperature: float = 1.0  # of drawing: logits are divided by it; 0: always the most likely sample
    top_p: float = 1.0  # of drawing: only the most likely levels, which together have this probability; 1: all

    def __post_init__(self):
        if self.temperature != 0 and not LEAST <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}: it is at least {LEAST}, or 0: the most likely sample")
        if not LEAST <= self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: it is a probability, {LEAST} at least, 1 for all levels")


def uniforms(
    key: Key[Array, ""], first: Int[Array, ""] | int, count: int, rows: int, draws: int = 1
) -> Float[Array, "count draws rows"]:
    """`draws` numbers in [0, 1) for each of `count` samples from number `first` on, of each row: those of sample i in
    row b depend on (key, b, i) alone."""
    each = lambda i, b: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, b), i), (draws,))
    numbers = jax.vmap(jax.vmap(each, (None, 0)), (0, None))(first + jnp.arange(count), jnp.arange(rows))
    return jnp.swapaxes(numbers, 1, 2)


def pick(
    logits: Float[Array, "*rows levels"], uniform: Float[Array, "*rows"], temperature: float = 1.0, top_p: float = 1.0
) -> Int[Array, "*rows"]:
    """The level at which the cumulative probability passes a uniform number: one number per draw, not one per level.

    temperature 0: the most likely level. top_p: of the most likely levels, the fewest that have this probability, and
    those that are as likely as the last of them. -1 where a logit is not a number.
    """
    logits = logits.astype(jnp.float32)
    most = jnp.max(logits, -1)
    if temperature == 0:
        return jnp.where(jnp.isnan(most), -1, jnp.argmax(logits, -1))
    weight = jnp.exp((logits - most[..., None]) / temperature)
    if top_p < 1:
        falling = -jnp.sort(-weight, -1)
        before = jnp.cumsum(falling, -1) - falling
        wanted = before < top_p * jnp.sum(weight, -1, keepdims=True)
        least = jnp.min(jnp.where(wanted, falling, jnp.inf), -1, keepdims=True)
        weight = jnp.where(weight >= least, weight, 0)
    summed = cumulative(weight)
    passed = summed <= jnp.expand_dims(uniform, -1) * summed[..., -1:]
    whole = summed[..., -1] > 0  # not so of what is no number; asking the logits takes XLA's CPU backend much longer
    return jnp.where(whole, jnp.minimum(jnp.sum(passed, -1), logits.shape[-1] - 1), -1)


def cumulative(x: Float[Array, "*rows levels"]) -> Float[Array, "*rows levels"]:
    """Cumulative sum of the last axis, a multiple of GROUP: two small matrix products, where XLA's own takes a pass
    per doubling."""
    parts = x.reshape(*x.shape[:-1], -1, GROUP)
    groups = parts.shape[-2]
    sums = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # TPUs would round them to 8 bits
    within = sums(parts, jnp.triu(jnp.ones((GROUP, GROUP), x.dtype)))
    before = sums(within[..., -1], jnp.triu(jnp.ones((groups, groups), x.dtype), 1))
    return (within + before[..., None]).reshape(x.shape)


def log_likelihood(logits: Float[Array, "*rows levels"], codes: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """ln of the probability of each code. Not by a gather: its gradient, a scatter, runs on one core of a CPU."""
    chosen = jnp.arange(logits.shape[-1]).reshape((1,) * codes.ndim + (-1,)) == codes[..., None]
    return jnp.sum(jnp.where(chosen, logits, 0), -1) - jax.nn.logsumexp(logits, -1)


def coarse_fine(codes: Int[Array, "*rows"]) -> tuple[Int[Array, "*rows"], Int[Array, "*rows"]]:
    """The upper and the lower 8 of 16 bits."""
    return codes // BYTE, codes % BYTE


def mixture_log_likelihood(
    parameters: Float[Array, "*rows parameters"], codes: Int[Array, "*rows"], levels: int
) -> Float[Array, "*rows"]:
    """ln of the probability of each code of `levels`, evenly spaced on [-1, 1], by a mixture of logistics.

    parameters: logits of the components, their means, the logarithms of their scales. A code has what lies nearer to
    its level than to any other, the outermost ones all that is beyond. Exact for narrow cells and far tails too:
    s(a) - s(b) = (1 - exp(b - a)) s(a) s(-b), s being the sigmoid; PixelCNN++ and WaveRNN take the density instead.
    """
    logits, mean, log_scale = _mixture(parameters)
    width = 2 / (levels - 1)
    away = (codes.astype(jnp.float32) * width - 1)[..., None] - mean
    sharp = jnp.exp(-log_scale)
    below, above = (away - width / 2) * sharp, (away + width / 2) * sharp
    lowest, highest = (codes == 0)[..., None], (codes == levels - 1)[..., None]
    cell = jnp.where(lowest | highest, 0, jnp.log(-jnp.expm1(-width * sharp)))
    cell -= jnp.where(highest, 0, jax.nn.softplus(-above)) + jnp.where(lowest, 0, jax.nn.softplus(below))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + cell, -1)


def mixture_pick(
    parameters: Float[Array, "*rows parameters"], uniform: Float[Array, "2 *rows"], temperature: float = 1.0
) -> Float[Array, "*rows"]:
    """An amplitude in [-1, 1] by two uniform numbers: one picks the component, one its value.

    temperature: the components' logits are divided by it and their scales are multiplied; 0: the mean of the most
    likely component. Not a number where a logit is none.
    """
    logits, mean, log_scale = _mixture(parameters)
    missing = -logits.shape[-1] % GROUP
    full = jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, missing)], constant_values=-jnp.inf)
    chosen = jnp.arange(logits.shape[-1]).reshape((1,) * (logits.ndim - 1) + (-1,))
    component = pick(full, uniform[0], temperature)
    chosen = chosen == component[..., None]
    mean, log_scale = (jnp.sum(jnp.where(chosen, x, 0), -1) for x in (mean, log_scale))
    between = uniform[1] + 2.0**-24  # the numbers are multiples of 2^-23: none is at the end of the range now
    logistic = jnp.log(between) - jnp.log1p(-between)
    value = jnp.clip(mean + temperature * jnp.exp(log_scale) * logistic, -1, 1)
    return jnp.where(component < 0, jnp.nan, value)


def _mixture(parameters):
    """Logits, means and log-scales of the components."""
    logits, mean, log_scale = jnp.split(parameters, 3, -1)
    return logits, mean, jnp.maximum(log_scale, math.log(LEAST_SCALE))
