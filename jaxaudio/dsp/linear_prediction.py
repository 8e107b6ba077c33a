"""Linear prediction: a sample as a weighted sum of those before it; what went on behind a sound's end, and in a gap."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxaudio.core import InputError

FLOOR = 1e-9  # of the sound's power: what is left of it below that is rounding, and is not fitted
BOUND = 2.0  # times the largest past sample: what goes on does not exceed it


def burg(x: Float[Array, "*batch time"], order: int) -> Float[Array, "*batch {order}"]:
    """The coefficients a of x[t] ~ sum_k a[k] x[t - 1 - k] that Burg's method finds (Burg 1975), as librosa.lpc.

    It minimises the errors of the prediction forwards and backwards, order by order, which keeps the recursion with
    these coefficients stable. A reflection coefficient shrinks as the error falls below `FLOOR` of the sound's power;
    silence has coefficients of 0. Raises InputError for an order below 1 or above half as many samples as there are.
    """
    _check(order, x.shape[-1])
    return _burg(x, jnp.zeros(x.shape[:-1], jnp.int32), order)


def extrapolate(
    past: Float[Array, "*batch order"], coefficients: Float[Array, "*batch order"], count: int
) -> Float[Array, "*batch {count}"]:
    """The `count` samples that follow `past` (its last sample is the newest) if all that comes is as predicted.

    They are kept within `BOUND` times the largest of `past`: rounded to float32, the coefficients of many tones
    without any noise may belong to a recursion that grows. Recordings are nowhere near.
    """
    most = BOUND * jnp.max(jnp.abs(past), -1)

    def add(ahead: Array, sample: Array) -> Array:
        """`ahead`: what the samples so far add to each of the next ones. Elementwise, where a sum over the past would
        be a reduction at every sample, which a CPU takes longer for."""
        shifted = jnp.concatenate([ahead[..., 1:], jnp.zeros_like(ahead[..., :1])], -1)
        return shifted + coefficients * sample[..., None]

    def follow(ahead: Array, _: None) -> tuple[Array, Array]:
        sample = jnp.clip(ahead[..., 0], -most, most)
        return add(ahead, sample), sample

    ahead, _ = jax.lax.scan(
        lambda a, p: (add(a, p), None), jnp.zeros_like(coefficients), jnp.moveaxis(past, -1, 0), unroll=4
    )
    _, samples = jax.lax.scan(follow, ahead, None, length=count, unroll=4)
    return jnp.moveaxis(samples, 0, -1)


def interpolate(
    x: Float[Array, "time"],
    start: Int[Array, ""] | int,
    length: Int[Array, ""] | int,
    most: int,
    order: int,
    context: int,
) -> Float[Array, "{most}"]:
    """What belongs into the gap [start, start + length) of a sound, in the first `length` of `most` samples; 0 behind.

    The sound before the gap goes on forwards, the one behind it backwards, each with coefficients from its `context`
    samples next to the gap, and a raised cosine fades from one to the other (Kauppinen and Roth 2002, Audio signal
    extrapolation). A side that is cut off by the end of the sound counts by its share of `context`, and has an order
    of at most half its samples: a gap at the very beginning is filled from behind alone. What x holds inside the gap
    has no influence. `start` and `length` (at most `most`) may be traced. Raises InputError for an order below 1 or
    above half the context.
    """
    _check(order, context)
    start, length = jnp.asarray(start, jnp.int32), jnp.asarray(length, jnp.int32)
    padded = jnp.pad(x, context)
    before = jax.lax.dynamic_slice(padded, (start,), (context,))
    behind = jnp.flip(jax.lax.dynamic_slice(padded, (start + length + context,), (context,)))
    known = jnp.clip(jnp.stack([start, x.shape[0] - start - length]), 0, context)
    sides = jnp.stack([before, behind])
    ahead = extrapolate(sides[:, -order:], _burg(sides, context - known, order), most)
    # The samples from behind come last first, and end at the gap's end.
    backwards = jax.lax.dynamic_slice(jnp.pad(jnp.flip(ahead[1]), (0, most)), (most - length,), (most,))
    place = (jnp.arange(most) + 0.5) / jnp.maximum(length, 1)
    fade = jnp.square(jnp.cos(jnp.pi / 2 * jnp.stack([place, 1 - place]))) * (known / context)[:, None]
    fade = fade / jnp.maximum(jnp.sum(fade, 0, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.where(jnp.arange(most) < length, fade[0] * ahead[0] + fade[1] * backwards, 0)


def _check(order: int, samples: int) -> None:
    if not 1 <= order <= samples // 2:
        raise InputError(f"order is {order}: {samples} samples allow 1 to {samples // 2}")


def _burg(x: Float[Array, "*batch time"], first: Int[Array, "*batch"], order: int) -> Float[Array, "*batch {order}"]:
    """Burg's coefficients of x from its sample `first` on, those beyond half as many samples being 0.

    The errors of all orders lie in arrays of one size: what has not as many samples before it is 0. The polynomials of
    the prediction are the same lattice's answer to an impulse.
    """
    batch, time = x.shape[:-1], x.shape[-1]
    total = partial(jnp.sum, axis=-1, keepdims=True)
    at = jnp.arange(time).reshape((1,) * len(batch) + (-1,))
    first = first[..., None]
    known = jnp.where(at >= first, x, 0)
    least = FLOOR * 2 * total(jnp.square(known))
    impulse = jnp.zeros((*batch, order + 1), x.dtype).at[..., 0].set(1)

    def lattice(reflection: Array, errors: tuple[Array, Array]) -> tuple[Array, Array]:
        forward, backward = errors
        return forward - reflection * backward, _delayed(backward - reflection * forward)

    def step(m: Array, held: tuple) -> tuple:
        (forward, backward), polynomials = held
        product = 2 * total(forward * backward)
        power = total(jnp.square(forward) + jnp.square(backward)) + least
        enough = (power > 0) & (2 * (m + 1) <= time - first)
        reflection = jnp.where(enough, product / jnp.where(power > 0, power, 1), 0)
        forward, backward = lattice(reflection, (forward, backward))
        forward = jnp.where(at > first + m + 1, forward, 0)
        return (forward, backward), lattice(reflection, polynomials)

    errors = jnp.where(at > first, known, 0), _delayed(known)
    _, (polynomial, _) = jax.lax.fori_loop(0, order, step, (errors, (impulse, _delayed(impulse))))
    return -polynomial[..., 1:]


def _delayed(x: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], -1)
