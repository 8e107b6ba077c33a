"""Short-time Fourier transform of waveforms and its inverse, in the framing conventions of the libraries in use.

Time comes before frequency: a spectrum is [*batch, frames, bins] with bins = size // 2 + 1; `size` is the window's and
`hop` the distance of two frames, both in samples. Which samples a frame sees at the ends of a signal differs from
library to library, and a model must see the frames its paper saw: `PADDINGS` has them by name.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxaudio.core import InputError

Window = str | np.ndarray  # a name of `WINDOWS`, or at most `size` samples
Spectrum = Complex[Array, "*batch frames bins"]

# The largest window whose spectrum is a matrix product with the windowed Fourier basis instead of an FFT, by platform.
# Of `python -m benchmarks.spectrum`: on CPUs the FFT is the faster from 64 samples on. Not measured: gpu, tpu.
MATMUL_UP_TO: Mapping[str, int] = {"cpu": 0, "gpu": 0, "tpu": 0}

WINDOWS: Mapping[str, tuple[float, ...]] = {  # a0 - a1 cos(2 pi n / size) + a2 cos(4 pi n / size)
    "hann": (0.5, 0.5),
    "hamming": (0.54, 0.46),
    "blackman": (0.42, 0.5, 0.08),
    "rectangular": (1.0,),
}


class Padding(NamedTuple):
    """What is put around a signal before it is cut: (before, behind) samples of a signal of `length` samples."""

    sides: Callable[[int, int, int], tuple[int, int]]  # of (length, size, hop)
    reflected: bool = False  # the signal mirrored at its first and last sample, which are not repeated; or zeros
    least: float = 0.0  # in `istft`: a sample that has less than this share of the usual overlap fades, see there


PADDINGS: Mapping[str, Padding] = {
    # librosa.stft: frame n is centred on sample n * hop; 1 + length // hop frames.
    "librosa": Padding(lambda length, size, hop: (size // 2, size // 2)),
    # torch.stft, librosa's pad_mode="reflect": the same frames; needs more than size // 2 samples.
    "torch": Padding(lambda length, size, hop: (size // 2, size // 2), reflected=True),
    # tf.signal.stft(pad_end=True): frame n begins at sample n * hop; ceil(length / hop) frames.
    "tensorflow": Padding(
        lambda length, size, hop: (0, max(0, (-(-length // hop) - 1) * hop + size - length)), least=0.1
    ),
    # HiFi-GAN's meldataset.py: frame n is centred on sample (n + 1/2) * hop; length // hop frames.
    "hifigan": Padding(lambda length, size, hop: ((size - hop) // 2, (size - hop) // 2), reflected=True),
    # center=False in librosa and PyTorch, pad_end=False in TensorFlow: whole frames only.
    "valid": Padding(lambda length, size, hop: (0, 0)),
}


def window(name_or_array: Window, size: int) -> np.ndarray:
    """A periodic window of `size` samples, float32; an own array gets zeros on both sides, as win_length < n_fft does.

    Raises InputError for a name that `WINDOWS` lacks, and for an array that is longer than `size` or has other axes.
    """
    if isinstance(name_or_array, str):
        if name_or_array not in WINDOWS:
            raise InputError(f"window is {name_or_array!r}: there are {', '.join(WINDOWS)}, or pass an array")
        if size == 1:
            return np.ones(1, np.float32)
        angle = 2 * np.pi * np.arange(size) / size
        terms = (a * (-1) ** n * np.cos(n * angle) for n, a in enumerate(WINDOWS[name_or_array]))
        return sum(terms).astype(np.float32)
    if name_or_array.ndim != 1 or len(name_or_array) > size:
        raise InputError(f"window has shape {name_or_array.shape}: pass one axis of at most size = {size} samples")
    missing = size - len(name_or_array)
    return np.pad(name_or_array, (missing // 2, missing - missing // 2)).astype(np.float32)


def frame_count(length: int, size: int, hop: int, padding: str) -> int:
    """How many frames a signal of `length` samples has. Raises InputError where the padding or a frame does not fit."""
    padded = length + sum(_around(length, size, hop, padding))
    if padded < size:
        raise InputError(
            f"a signal of {padded} samples, padding included, has no frame of {size}: pass a longer signal, "
            "a smaller size, or padding 'tensorflow'"
        )
    return (padded - size) // hop + 1


def frames(x: Float[Array, "*batch time"], size: int, hop: int) -> Float[Array, "*batch frames size"]:
    """Every stretch of `size` samples that starts at a multiple of `hop` and lies within x.

    By reshape and concatenation: a gather is several times slower, and more so in the gradient. Raises InputError
    where there is none.
    """
    count, parts = frame_count(x.shape[-1], size, hop, "valid"), -(-size // hop)
    batch, rows = x.shape[:-1], count + parts - 1
    x = _fit(x, rows * hop).reshape(*batch, rows, 1, hop)
    # Joined along an axis of their own, as XLA copies that twice as fast as along time.
    joined = jnp.concatenate([x[..., p : p + count, :, :] for p in range(parts)], -2)
    return joined.reshape(*batch, count, parts * hop)[..., :size]


def overlap_add(x: Float[Array, "*batch frames size"], hop: int) -> Float[Array, "*batch time"]:
    """The sum of frames that start at multiples of `hop`, (frames - 1) * hop + size samples: `frames` transposed."""
    *batch, count, size = x.shape
    parts = -(-size // hop)
    flat = [(0, 0)] * len(batch)
    x = jnp.pad(x, [*flat, (0, 0), (0, parts * hop - size)])
    shifted = (jnp.pad(x[..., p * hop : (p + 1) * hop], [*flat, (p, parts - 1 - p), (0, 0)]) for p in range(1, parts))
    total = sum(shifted, jnp.pad(x[..., :hop], [*flat, (0, parts - 1), (0, 0)]))
    return total.reshape(*batch, -1)[..., : (count - 1) * hop + size]


def stft(
    x: Float[Array, "*batch time"], size: int, hop: int, window: Window = "hann", padding: str = "librosa"
) -> Spectrum:
    """The spectrum of every frame, without scaling. Raises InputError where the signal is too short for the padding."""
    taper = _window(window, size)
    cut = frames(pad(x, size, hop, padding), size, hop)
    return spectrum_matmul(cut, taper) if _matmul(size) else spectrum_fft(cut, taper)


def istft(
    spectrum: Spectrum,
    size: int,
    hop: int,
    window: Window = "hann",
    padding: str = "librosa",
    length: int | None = None,
) -> Float[Array, "*batch time"]:
    """The signal whose spectrum is closest (least squares; Griffin & Lim 1984, eq. 6), its padding taken off.

    The frames are windowed once more, added, and divided by the sum of the squared windows; samples that no window
    sees are 0. `length`: the result is cut, or filled with zeros, to so many samples; None: as many as the frames tell
    (a signal that did not fill its last hop comes back without its end, or with zeros behind it).

    "tensorflow" begins under the rising half of a single window, where that division would blow up what is
    inconsistent in a spectrum a thousandfold. There the divisor is at least a tenth of what it is where all windows
    overlap: the first samples fade in (about a fifth of a Hann window), those behind them are exact.
    "valid" divides there too, as librosa does: use it for spectra of signals only.
    """
    count = spectrum.shape[-2]
    if spectrum.shape[-1] != size // 2 + 1:
        raise InputError(f"the spectrum has {spectrum.shape[-1]} bins: size {size} needs {size // 2 + 1}")
    taper = _window(window, size)
    before, behind = _sides(count * hop, size, hop, padding)
    if length is None:
        length = (count - 1) * hop + size - before - behind
    wide = (1,) * (spectrum.ndim - 2)
    total = overlap_add(jnp.fft.irfft(spectrum, size) * taper.reshape(*wide, 1, size), hop)
    scale = _inverse_overlap(taper, count, hop, PADDINGS[padding].least).reshape(*wide, -1)
    return _fit((total * scale)[..., before:], length)


def magnitudes(
    x: Float[Array, "*batch time"], size: int, hop: int, window: Window = "hann", padding: str = "tensorflow"
) -> Float[Array, "*batch frames bins"]:
    """|STFT|. Values below 1e-19 come out as 0, and the gradient of a bin that is 0 is 0."""
    return _modulus(stft(x, size, hop, window, padding))


def pad(x: Float[Array, "*batch time"], size: int, hop: int, padding: str) -> Float[Array, "*batch padded"]:
    """The signal with what `PADDINGS` puts around it. Raises InputError where it is too short to be reflected."""
    before, behind = _around(x.shape[-1], size, hop, padding)
    if not before and not behind:
        return x
    if PADDINGS[padding].reflected:  # not jnp.pad's mode: its gradient is several times slower
        left, right = x[..., 1 : before + 1], x[..., x.shape[-1] - behind - 1 : -1]
        mirrored = jnp.concatenate([jnp.flip(left, -1), x, jnp.flip(right, -1)], -1)
        # Without the barrier XLA computes the whole gradient of the frames anew for each of the three pieces.
        return jax.lax.optimization_barrier(mirrored)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, behind)])


def spectrum_fft(cut: Float[Array, "*batch frames size"], taper: np.ndarray) -> Spectrum:
    """The spectrum of frames under a window, by the FFT."""
    return jnp.fft.rfft(cut * taper.reshape((1,) * (cut.ndim - 1) + (-1,)))


def spectrum_matmul(cut: Float[Array, "*batch frames size"], taper: np.ndarray) -> Spectrum:
    """The spectrum of frames under a window, by a matrix product with the windowed Fourier basis."""
    size = len(taper)
    turns = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size / size
    angle = 2 * np.pi * turns
    basis = taper[:, None] * np.concatenate([np.cos(angle), -np.sin(angle)], 1)
    product = jnp.matmul(cut, jnp.asarray(basis, cut.dtype), precision=jax.lax.Precision.HIGHEST)
    return jax.lax.complex(*jnp.split(product, 2, -1))


def _matmul(size: int) -> bool:
    return size <= MATMUL_UP_TO.get(jax.default_backend(), 0)


_window = window  # the functions above have an argument of that name


def _sides(length: int, size: int, hop: int, padding: str) -> tuple[int, int]:
    """(before, behind) of this padding, of checked arguments."""
    if padding not in PADDINGS:
        raise InputError(f"padding is {padding!r}: there are {', '.join(PADDINGS)}")
    if size < 1 or hop < 1:
        raise InputError(f"size is {size} and hop is {hop} samples: both are at least 1")
    before, behind = PADDINGS[padding].sides(length, size, hop)
    if before < 0:
        raise InputError(f"hop is {hop}: padding {padding!r} needs one of at most size = {size}")
    return before, behind


@jax.custom_jvp
def _modulus(z: Spectrum) -> Float[Array, "*batch frames bins"]:
    """|z|. Not jnp.abs, whose derivative divides complex numbers: a tenth of the time of the whole gradient."""
    return jnp.sqrt(z.real**2 + z.imag**2)


@_modulus.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """d|z| = Re(conj(z) dz) / |z|, and 0 at 0."""
    (z,), (dz,) = primals, tangents
    modulus = _modulus(z)
    scale = 1 / jnp.where(modulus > 0, modulus, jnp.inf)
    return modulus, scale * (z.real * dz.real + z.imag * dz.imag)


def _around(length: int, size: int, hop: int, padding: str) -> tuple[int, int]:
    """(before, behind) of a signal of `length` samples, which has to be long enough."""
    before, behind = _sides(length, size, hop, padding)
    if PADDINGS[padding].reflected and length <= max(before, behind):
        raise InputError(
            f"a signal of {length} samples: padding {padding!r} at size {size} mirrors {max(before, behind)} of them "
            "and needs one more; pass a longer signal, or padding 'librosa', which puts zeros"
        )
    return before, behind


def _fit(x: Float[Array, "*batch time"], length: int) -> Float[Array, "*batch fitted"]:
    """Cut, or filled with zeros behind, to `length` samples."""
    missing = length - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing > 0 else x[..., :length]


def _inverse_overlap(taper: np.ndarray, count: int, hop: int, least: float) -> np.ndarray:
    """1 / the sum of the squared windows of `count` frames; 0 where they are all 0."""
    squares = taper.astype(np.float64) ** 2
    total = np.zeros((count - 1) * hop + len(taper))
    for start in range(0, count * hop, hop):
        total[start : start + len(taper)] += squares
    parts = -(-len(taper) // hop)
    usual = np.pad(squares, (0, parts * hop - len(taper))).reshape(parts, hop).sum(0)
    total = np.maximum(total, least * np.resize(usual, len(total)))
    return np.divide(1, total, out=np.zeros_like(total), where=total > np.finfo(np.float32).tiny).astype(np.float32)
