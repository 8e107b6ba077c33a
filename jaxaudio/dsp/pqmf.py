"""A pseudo-quadrature mirror filter bank: a signal as critically sampled bands of equal width, and back.

Cosine modulation of one low-pass prototype (Nguyen 1994; Vaidyanathan 1993, chapter 8). Analysis and synthesis are one
convolution each over frames of as many samples as there are bands. A frame of bands is [..., bands], low to high, and
within every band frequency rises (the spectrum of every other band, which decimation turns around, is turned back).
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.core import InputError

SPAN = 16  # frames that a filter is long
PAST = SPAN - 1  # frames before the current one that either direction looks back, where it looks at nothing ahead
CENTRED = ((SPAN // 2, SPAN - 1 - SPAN // 2), (SPAN - 1 - SPAN // 2, SPAN // 2))  # of analysis, of synthesis: no delay
ATTENUATION_DB = 90.0  # of the Kaiser window that the prototype starts from


def analyse(
    x: Float[Array, "batch time"], bands: int, edges: tuple[int, int] = CENTRED[0]
) -> Float[Array, "batch frames bands"]:
    """The bands of a signal; `edges`: frames of zeros around it.

    Frame n of the result sees the SPAN frames of the padded signal from n on. With `edges` (PAST, 0) here and in
    `synthesise` nothing looks ahead and the signal comes back PAST frames late; with (0, 0) the caller has put the past
    in front. The first frame is an even one of its signal (a band's sign alternates). Raises InputError where the
    signal is no whole number of frames.
    """
    if x.shape[-1] % bands:
        raise InputError(
            f"a signal of {x.shape[-1]} samples is no whole number of frames of {bands}: pad it with zeros"
        )
    folded = x.reshape(len(x), -1, bands)
    return _signed(_filter(folded, _kernels(bands)[0], edges))


def synthesise(
    bands: Float[Array, "batch frames bands"], edges: tuple[int, int] = CENTRED[1], first: int = 0
) -> Float[Array, "batch time"]:
    """The signal of these bands; inverse of `analyse` to better than 100 dB, but for SPAN frames at both ends.

    first: the number of the first frame, where it is not an even one.
    """
    return _filter(_signed(bands, first), _kernels(bands.shape[-1])[1], edges).reshape(len(bands), -1)


@lru_cache
def prototype(bands: int) -> np.ndarray:
    """The low-pass filter [SPAN * bands] behind all bands, float64, of unit power.

    A Kaiser-windowed sinc at the cutoff where neighbouring bands add up best reconstructs to 60 dB. From there on,
    steps of sequential quadratic programming take the energy beyond the neighbouring band to its minimum under the
    conditions of perfect reconstruction (Koilpillai & Vaidyanathan 1992): it ends 60 dB down and less.
    """
    if bands < 2 or bands % 2:
        raise InputError(f"bands is {bands}: a filter bank has an even number of them")
    size = SPAN * bands
    time = np.arange(size) - (size - 1) / 2
    window = np.kaiser(size, 0.1102 * (ATTENUATION_DB - 8.7))

    def windowed(cutoff: float) -> np.ndarray:
        taps = np.sinc(cutoff * time) * window
        return taps / np.sqrt(np.sum(taps**2))

    def leak(cutoff: float) -> float:
        correlation = np.correlate(windowed(cutoff), windowed(cutoff), "full")
        return float(np.abs(correlation[size - 1 + 2 * bands :: 2 * bands]).max())

    half = windowed(min(np.linspace(0.5, 0.7, 401) / bands, key=leak))[: size // 2]
    mirror = np.concatenate([np.eye(size // 2), np.eye(size // 2)[::-1]])
    beyond = (
        mirror.T @ (np.eye(size) - np.sinc((time[:, None] - time) / bands) / bands) @ mirror
    )  # energy above pi / bands
    beyond += 1e-8 * np.eye(size // 2)
    for _ in range(40):
        missed, slope = _complementary(half, bands)
        optimality = np.block([[beyond, slope.T], [slope, np.zeros((len(missed),) * 2)]])
        half = half + np.linalg.solve(optimality, np.concatenate([-beyond @ half, -missed]))[: size // 2]
    return np.concatenate([half, half[::-1]])


def _complementary(half: np.ndarray, bands: int) -> tuple[np.ndarray, np.ndarray]:
    """How far a symmetric prototype is from perfect reconstruction, and the derivative by its first half.

    For every component k < bands and shift s: sum_l p[k + 2 l bands] p[k + 2 (l + s) bands], plus the same from
    k + bands, is 1 / bands at s = 0 and else 0, for a prototype of unit power.
    """
    size = 2 * len(half)
    taps = np.concatenate([half, half[::-1]])
    missed, slope = [], []
    for k in range(bands // 2):  # the other half is the mirror image
        for shift in range(size // (2 * bands)):
            total, row = -(shift == 0) / bands, np.zeros(size)
            for first in range(k, size - 2 * bands * shift, bands):
                second = first + 2 * bands * shift
                total += taps[first] * taps[second]
                row[first] += taps[second]
                row[second] += taps[first]
            missed.append(total)
            slope.append(row[: size // 2] + row[: size // 2 - 1 : -1])
    return np.array(missed), np.array(slope)


@lru_cache
def _kernels(bands: int) -> tuple[np.ndarray, np.ndarray]:
    """Of analysis [SPAN, samples, bands] and of synthesis [SPAN, bands, samples], over folded frames."""
    size = SPAN * bands
    taps, time = prototype(bands), np.arange(size) - (size - 1) / 2
    band = np.arange(bands)[:, None]
    angle = (2 * band + 1) * np.pi / (2 * bands) * time + (-1.0) ** band * np.pi / 4
    filters = np.sqrt(2) * taps * np.cos(angle)  # [bands, size]
    # A filter reads its signal backwards, and the bands' transposed filters rebuild it.
    analysis = filters[:, ::-1].reshape(bands, SPAN, bands).transpose(1, 2, 0)
    synthesis = filters[:, ::-1].reshape(bands, SPAN, bands).transpose(1, 0, 2)[::-1]
    return analysis.astype(np.float32), np.ascontiguousarray(synthesis).astype(np.float32)


def _filter(x: Array, kernel: np.ndarray, edges: tuple[int, int]) -> Array:
    numbers = ("NHC", "HIO", "NHC")
    return jax.lax.conv_general_dilated(x, jnp.asarray(kernel, x.dtype), (1,), (edges,), dimension_numbers=numbers)


def _signed(bands: Array, first: int = 0) -> Array:
    """Every odd frame of every odd band with its sign changed: frequency rises in all bands alike."""
    frames, count = bands.shape[1:]
    odd = np.outer((first + np.arange(frames)) % 2, np.arange(count) % 2)
    return bands * jnp.asarray(1 - 2 * odd, bands.dtype)[None]
