"""Mel spectrograms: filters, logarithm, cepstrum, and the way back to magnitudes."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.core import InputError
from jaxaudio.dsp.stft import Window, magnitudes

Scale = Literal["slaney", "htk"]


def mel_filters(
    sample_rate: int,
    size: int,
    n_mels: int,
    low: float = 0.0,
    high: float | None = None,
    scale: Scale = "slaney",
    norm: Literal["slaney"] | None = "slaney",
) -> np.ndarray:
    """Triangular filters [bins, n_mels], float32: magnitudes @ filters are mels. As librosa.filters.mel, transposed.

    low, high: the outer edges of the first and the last band in Hz; None: half the sample rate. scale: "slaney" is
    linear up to 1 kHz (Auditory Toolbox), "htk" is 2595 log10(1 + f / 700). norm: "slaney" gives every band the same
    area, None the same height of 1. Raises InputError for edges outside 0 to half the sample rate, for no bands, and
    for bands so narrow that no bin falls in.
    """
    nyquist = sample_rate / 2
    high = nyquist if high is None else high
    if not 0 <= low < high <= nyquist:
        raise InputError(
            f"mel bands from {low} to {high} Hz: the edges rise from 0 to at most {nyquist} Hz, half the rate"
        )
    if n_mels < 1:
        raise InputError(f"n_mels is {n_mels}: pass at least 1 band")
    bins = np.arange(size // 2 + 1) * sample_rate / size
    edges = from_mel(np.linspace(*to_mel(np.array([low, high]), scale), n_mels + 2), scale)
    rising = (bins[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    falling = (edges[None, 2:] - bins[:, None]) / np.diff(edges)[None, 1:]
    filters = np.maximum(0, np.minimum(rising, falling))
    empty = int(np.sum(filters.max(0) == 0))
    if empty:
        raise InputError(
            f"{empty} of {n_mels} mel bands hold no bin of a window of {size} samples at {sample_rate} Hz: "
            "use a longer window or fewer mels"
        )
    if norm == "slaney":
        filters *= 2 / (edges[2:] - edges[:-2])[None]
    return filters.astype(np.float32)


def to_mel(hertz: np.ndarray, scale: Scale) -> np.ndarray:
    """Frequencies on the mel scale."""
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4))


def from_mel(mels: np.ndarray, scale: Scale) -> np.ndarray:
    """The frequencies in Hz; inverse of `to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


def log_mel(
    x: Float[Array, "*batch time"],
    filters: Float[np.ndarray, "bins mels"] | Float[Array, "bins mels"],
    size: int,
    hop: int,
    power: float = 1.0,
    floor: float = 1e-5,
    padding: str = "librosa",
    window: Window = "hann",
) -> Float[Array, "*batch frames mels"]:
    """log(max(mel, floor)), the natural logarithm, of the mel bands of the magnitudes to the `power`."""
    spectrum = magnitudes(x, size, hop, window, padding)
    if power != 1:
        spectrum = spectrum * spectrum if power == 2 else spectrum**power
    return jnp.log(jnp.maximum(spectrum @ jnp.asarray(filters), floor))


def mfcc(log_mels: Float[Array, "*batch frames mels"], n: int) -> Float[Array, "*batch frames n"]:
    """The first n mel-frequency cepstral coefficients: orthonormal DCT-II over the bands, as librosa.feature.mfcc.

    Raises InputError for n outside 1 to the number of mels.
    """
    mels = log_mels.shape[-1]
    if not 1 <= n <= mels:
        raise InputError(f"n is {n} coefficients: {mels} mels give 1 to {mels}")
    basis = np.cos(np.pi / mels * np.outer(np.arange(mels) + 0.5, np.arange(n))) * np.sqrt(2 / mels)
    basis[:, 0] /= np.sqrt(2)
    return log_mels @ jnp.asarray(basis, log_mels.dtype)


def mel_inverse(
    mels: Float[Array, "*batch frames mels"],
    filters: Float[np.ndarray, "bins mels"] | Float[Array, "bins mels"],
    iterations: int = 100,
) -> Float[Array, "*batch frames bins"]:
    """Non-negative magnitudes whose mel bands are closest to `mels`: min |m @ filters - mels|^2 over m >= 0.

    Projected gradient with Nesterov's momentum (Beck & Teboulle 2009), from the clipped pseudo-inverse. `filters` are
    known when this is traced, and not negative. 100 iterations come within a few percent of the smallest distance.
    """
    matrix = np.asarray(filters, np.float64)
    # Bins are scaled by the root of what all bands together pull at them: then the largest step is 1 whatever the
    # filters (Lee & Seung's multiplicative update has the same scale), and bands of any shape converge alike.
    pull = matrix @ matrix.sum(0)
    scale = np.sqrt(np.divide(1, pull, out=np.zeros_like(pull), where=pull > 0))
    scaled = matrix * scale[:, None]
    forward, backward, start = (jnp.asarray(array, mels.dtype) for array in (scaled, scaled.T, np.linalg.pinv(scaled)))

    def improve(n: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        now, ahead = state
        new = jnp.maximum(ahead - (ahead @ forward - mels) @ backward, 0)
        return new, new + (n / (n + 3)) * (new - now)

    first = jnp.maximum(mels @ start, 0)
    best, _ = jax.lax.fori_loop(0, iterations, improve, (first, first))
    return best * jnp.asarray(scale, mels.dtype).reshape((1,) * (mels.ndim - 1) + (-1,))
