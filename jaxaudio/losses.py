"""Losses and distances between signals that more than one paper uses unchanged."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxaudio.core import Wave
from jaxaudio.dsp.stft import magnitudes

SIZES = (128, 512, 2048)  # of the windows of `spectral_distance`, in samples; hop: a quarter


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
