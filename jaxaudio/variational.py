"""What variational autoencoders share: Gaussian posteriors, their divergence from the prior, and which directions of
the latent space they use (Kingma & Welling 2014; the compaction is that of Caillon & Esling 2021, section 3.3)."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxaudio.core import Latent, Params

LEAST = 1e-4  # of a posterior's deviation
EXACT = jax.lax.Precision.HIGHEST  # else an accelerator rounds factors to a few bits: latents would not come back


class Posterior(NamedTuple):
    """Independent Gaussians."""

    mean: Latent
    deviation: Latent


class Principal(NamedTuple):
    """The principal components of latent frames: frame = mean + components @ axes."""

    mean: Float[Array, "latent"]
    axes: Float[Array, "component latent"]
    spread: Float[Array, "component"]  # variance along each axis, the largest first

    def compact(self, frames: Latent) -> Latent:
        """Components of latent frames."""
        return jnp.matmul(frames - self.mean.reshape(1, 1, -1), self.axes.T, precision=EXACT)

    def restore(self, components: Float[Array, "batch frames kept"]) -> Latent:
        """The latent frames of their leading components, the others at their mean."""
        kept = self.axes[: components.shape[-1]]
        return jnp.matmul(components, kept, precision=EXACT) + self.mean.reshape(1, 1, -1)


def posterior(x: Float[Array, "batch frames both"]) -> Posterior:
    """What an encoder's last layer says: means, then deviations before a softplus."""
    mean, raw = jnp.split(x, 2, -1)
    return Posterior(mean, jax.nn.softplus(raw) + LEAST)


def draw(given: Posterior, keys: Key[Array, "batch"]) -> Latent:
    """One sample of each frame; row i from keys[i]."""
    noise = jax.vmap(lambda key: jax.random.normal(key, given.mean.shape[1:]))(keys)
    return given.mean + given.deviation * noise


def divergence(given: Posterior) -> Latent:
    """From the standard normal prior, in nats, of every component of every frame."""
    return (given.mean**2 + given.deviation**2 - 1) / 2 - jnp.log(given.deviation)


def geometric(step: Int[Array, ""], first: float, last: float, steps: int) -> Float[Array, ""]:
    """A weight that grows from `first` to `last` by equal factors over `steps` steps."""
    if not steps:
        return jnp.float32(last)
    return first * (last / first) ** jnp.minimum(step / steps, 1.0)


def no_moments(latent: int) -> Params:
    """Of latent frames that were not looked at yet."""
    return {"mean": jnp.zeros(latent), "covariance": jnp.eye(latent)}


def moments_of(frames: Latent, centre: Float[Array, "latent"]) -> Params:
    """Mean and covariance (around `centre`) of the latent frames of a batch; means over devices are those of all."""
    centred = frames - centre.reshape(1, 1, -1)
    covariance = jnp.einsum("bfi,bfj->ij", centred, centred) / (frames.shape[0] * frames.shape[1])
    return {"mean": jnp.mean(frames, (0, 1)), "covariance": covariance}


def principal(moments: Mapping[str, Array]) -> Principal:
    """The axes of most variance, each with its largest entry positive."""
    spread, vectors = jnp.linalg.eigh(moments["covariance"])
    axes = vectors.T[::-1]
    largest = jnp.take_along_axis(axes, jnp.argmax(jnp.abs(axes), 1)[:, None], 1)
    return Principal(moments["mean"], axes * jnp.sign(largest), jnp.maximum(spread[::-1], 0))


def factor_analysis(
    rows: Float[np.ndarray, "n size"], latent: int, period: int, least: float, rounds: int
) -> Mapping[str, np.ndarray]:
    """The Gaussian model row = mean + z @ components + noise: "mean" [size], "components" [latent, size] and the
    variances "noise" [size], which columns that lie a multiple of `period` apart share.

    With a period of 1 this is probabilistic PCA in closed form (Tipping & Bishop 1999, eqs. 7 and 8), its subspace
    found by iteration (Halko et al. 2011); else `rounds` of expectation maximisation from there (Rubin & Thayer 1982).
    No deviation falls below `least`. The posterior of z has independent components, the best known first.
    """
    n, size = rows.shape
    mean = rows.mean(0)
    centred = rows - mean
    basis = np.random.default_rng(0).standard_normal((size, min(2 * latent, n, size)), np.float32)
    for _ in range(12):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    _, values, axes = np.linalg.svd(centred @ basis, full_matrices=False)
    values, axes = (values**2 / n)[:latent], (axes @ basis.T)[:latent]
    power = np.mean(centred**2, 0)
    one = max((power.sum() - values.sum()) / (size - latent), least**2)
    components = np.zeros((latent, size), rows.dtype)
    components[: len(axes)] = axes * np.sqrt(np.maximum(values - one, 0))[:, None]
    noise = np.full(size, one, rows.dtype)
    for _ in range(rounds if period > 1 else 0):
        scaled = components / noise
        covariance = np.linalg.inv(np.eye(latent, dtype=rows.dtype) + scaled @ components.T)
        expected = centred @ (covariance @ scaled).T
        across = expected.T @ centred / n
        components = np.linalg.solve(expected.T @ expected / n + covariance, across)
        left = power - np.sum(components * across, 0)
        noise = np.maximum(np.tile(left.reshape(-1, period).mean(0), size // period), least**2)
    turned = np.linalg.eigh(components / noise @ components.T)[1][:, ::-1]
    return {"mean": mean, "components": turned.T @ components, "noise": noise}
