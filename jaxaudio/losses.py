"""Losses and distances between signals that more than one paper uses unchanged."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.core import Wave
from jaxaudio.dsp.mel import log_mel, mel_filters
from jaxaudio.dsp.stft import magnitudes
from jaxaudio.nn.critics import Maps

SIZES = (128, 512, 2048)  # of the windows of `spectral_distance`, in samples; hop: a quarter
QUIET = 1e-2  # the norm that a quieter spectrum is taken for in a relative distance, lest silence rule a batch


def spectral_distance(a: Wave, b: Wave) -> Float[Array, "batch"]:
    """Distance of two sounds: mean |log A - log B| over the magnitudes A, B of three window sizes.

    The floor of 1e-2 (-60 dB of a full-scale sine, about) keeps silence from counting as detail.
    """
    total = jnp.zeros(a.shape[0])
    for size in SIZES:
        channels = (jnp.moveaxis(x.astype(jnp.float32), -1, 1) for x in (a, b))
        spectra = [jnp.log(magnitudes(x, size, size // 4) + 1e-2) for x in channels]
        total += jnp.mean(jnp.abs(spectra[0] - spectra[1]), (1, 2, 3))
    return total / len(SIZES)


def spectral_energy_distance(real: Wave, fake: Wave) -> Float[Array, "batch"]:
    """Energy distance between the distributions that two batches are drawn from, one unbiased estimate per example.

    d(real_i, fake_j) + d(fake_i, real_j) - d(real_i, real_j) - d(fake_i, fake_j) with j = i + 1 and d the
    `spectral_distance`: its mean is 0 if the two distributions are one, and above 0 otherwise. All four pairs are of
    the same two rows, so that it stays so where row i of both has the same label. It needs no other network, so it
    compares runs of any model. Source: Szekely and Rizzo 2013; for audio, Gritsenko et al. 2020 (arXiv 2008.01160).
    """
    next_real, next_fake = jnp.roll(real, -1, 0), jnp.roll(fake, -1, 0)
    across = spectral_distance(real, next_fake) + spectral_distance(fake, next_real)
    return across - spectral_distance(real, next_real) - spectral_distance(fake, next_fake)


def least_squares(real: list[Maps], fake: list[Maps]) -> Float[Array, ""]:
    """What critics are to lower, summed over them: (1 - real)^2 + fake^2 of their scores (Mao et al. 2017)."""
    return sum(_over_batch((1 - scores(r)) ** 2) + _over_batch(scores(f) ** 2) for r, f in zip(real, fake, strict=True))


def hinge(real: list[Maps], fake: list[Maps]) -> Float[Array, ""]:
    """The same with max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017)."""
    return margin(real) + margin(fake, -1)


def margin(found: list[Maps], sign: int = 1) -> Float[Array, ""]:
    """Of the hinge what is for recordings or, sign -1, for what was made: max(0, 1 - sign score)."""
    return sum(_over_batch(jnp.maximum(1 - sign * scores(maps), 0)) for maps in found)


def least_squares_made(fake: list[Maps]) -> Float[Array, ""]:
    """What is to be lowered by what made the sounds: (1 - fake)^2."""
    return sum(_over_batch((1 - scores(f)) ** 2) for f in fake)


def hinge_made(fake: list[Maps]) -> Float[Array, ""]:
    """The same where critics have the hinge: -fake."""
    return -sum(_over_batch(scores(f)) for f in fake)


def feature_distance(real: list[Maps], fake: list[Maps], whole: bool = False) -> Float[Array, ""]:
    """L1 of the critics' maps, their scores only if `whole`, summed over maps and critics; recordings are not to
    follow."""
    end = None if whole else -1
    pairs = ((a, b) for r, f in zip(real, fake, strict=True) for a, b in zip(r[:end], f[:end], strict=True))
    return sum(_over_batch(jnp.abs(jax.lax.stop_gradient(a) - b)) for a, b in pairs)


def mel_distance(
    a: Wave, b: Wave, sample_rate: int, windows: Sequence[int], mels: Sequence[int]
) -> Float[Array, "batch"]:
    """Mean |log10 A - log10 B| over mel bands, summed over windows with so many bands each; hop a quarter.

    As in the Descript codec (arXiv 2306.06546): bands from 0 Hz to half the rate, mels of at least 1e-5, the ends of
    the sound mirrored. Raises InputError where a band holds no bin of its window.
    """
    total = jnp.zeros(a.shape[0])
    for size, count in zip(windows, mels, strict=True):
        filters = mel_filters(sample_rate, size, count)
        heard = lambda x, size=size, filters=filters: log_mel(
            jnp.moveaxis(x, -1, 1), filters, size, size // 4, floor=1e-5, padding="torch"
        )
        total += jnp.mean(jnp.abs(heard(a) - heard(b)), (1, 2, 3)) / math.log(10)
    return total


def resolution_distance(a: Wave, b: Wave, windows: Sequence[int]) -> Float[Array, "batch"]:
    """Mean over windows, hop a quarter, of the spectral convergence |A - B| / |A| and of mean |log A - log B|, where A
    and B are magnitudes, 1e-4 at least in the logarithm (Yamamoto et al. 2020, arXiv 1910.11480, eqs. 4 to 6)."""
    total = jnp.zeros(a.shape[0])
    for size in windows:
        x, y = (magnitudes(jnp.moveaxis(s, -1, 1), size, size // 4, padding="torch") for s in (a, b))
        size_of = lambda z: jnp.sqrt(jnp.sum(z**2, (2, 3)) + 1e-12)
        total += jnp.mean(size_of(x - y) / jnp.maximum(size_of(x), QUIET), 1)
        total += jnp.mean(jnp.abs(jnp.log(jnp.maximum(x, 1e-4)) - jnp.log(jnp.maximum(y, 1e-4))), (1, 2, 3))
    return total / len(windows)


def scores(maps: Maps) -> Float[Array, "..."]:
    """The last map of a critic."""
    return maps[-1]


def _over_batch(x: Float[Array, "rows *more"]) -> Float[Array, ""]:
    """The mean over each row, then over the rows: means over devices are those of all."""
    return jnp.mean(jnp.mean(x.reshape(len(x), -1), 1))
