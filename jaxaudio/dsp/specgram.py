"""A sound as a picture of log-magnitudes and instantaneous frequencies, on the mel scale or not, and back.

Engel et al. 2019 (GANSynth, arXiv 1902.08710), section 2, and the helpers of its official code: all padding lies in
front, so that what is last in a sound fades within the last window; the bin of 0 Hz is left out; bands are triangles
at least 1.5 bins wide; they weight the power of the bins, and the steps of their unwrapped phases. Departs: sums of
phases are taken modulo whole turns from frame to frame, as float32 loses digits in the many turns of an unwrapped one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.core import InputError
from jaxaudio.dsp.mel import from_mel, to_mel
from jaxaudio.dsp.phase import instantaneous_frequency, integrate, wrap
from jaxaudio.dsp.stft import Spectrum, overlap_add, stft, window

FLOOR = 1e-6  # below magnitudes and below the power of bands, before the logarithm
WIDTH = 1.5  # bins that a band is wide at least
BREAK_HZ = 700.0  # of the mel scale: linear below, logarithmic above

Picture = Float[Array, "*batch frames bands two"]  # log-magnitude, or log-power of bands; steps of phase over pi


@dataclasses.dataclass(frozen=True)
class Specgram:
    """Pictures [frames, bands, 2] of sounds of `length` samples. Raises InputError where these do not fit."""

    sample_rate: int  # Hz
    length: int  # samples
    frames: int
    hop: int  # samples from one frame to the next; the window is 2 * bins samples
    bins: int  # frequencies but 0 Hz
    bands: int  # 0: the bins themselves, not on the mel scale; as many as bins: as in the official code
    mean: bool = False  # a band's step is the mean of its bins' instead of their weighted sum: few bands are wide

    def __post_init__(self):
        if self.hop < 1 or self.size % self.hop or self.size < 2 * self.hop:
            raise InputError(f"hop is {self.hop}: the window, {self.size} samples, is a multiple, twice at least")
        if self.before < 0:
            raise InputError(
                f"{self.frames} frames every {self.hop} samples span {self.length + self.before} samples: a sound of "
                f"{self.length} does not fit; more frames, or a larger hop"
            )
        if not 0 <= self.bands <= self.bins:
            raise InputError(f"bands is {self.bands}: 0 (no mel scale) to the number of bins, {self.bins}")

    @property
    def size(self) -> int:
        """Samples of a window."""
        return 2 * self.bins

    @property
    def before(self) -> int:
        """Zeros in front of a sound."""
        return self.hop * (self.frames - 1) + self.size - self.length

    def analyse(self, wave: Float[Array, "*batch time"]) -> Picture:
        """The picture of a sound."""
        spectrum = self.spectrum(wave)
        silent = (spectrum.real == 0) & (spectrum.imag == 0)  # where neither modulus nor angle has a derivative
        real, imaginary = jnp.where(silent, 1, spectrum.real), jnp.where(silent, 0, spectrum.imag)
        magnitude = jnp.where(silent, 0, jnp.sqrt(real**2 + imaginary**2)) + FLOOR
        steps = instantaneous_frequency(jnp.arctan2(imaginary, real))
        level = jnp.log(magnitude)
        if self.bands:
            power, weights = bank(self.sample_rate, self.bins, self.bands, self.mean)[:2]
            level, steps = jnp.log(_product(magnitude**2, power) + FLOOR), _product(steps, weights)
            steps = jnp.concatenate([steps[..., :1, :], wrap(steps[..., 1:, :])], -2)
        return jnp.stack([level, steps], -1)

    def resynthesise(self, picture: Picture) -> Float[Array, "*batch time"]:
        """The sound that a picture shows."""
        level, steps = picture[..., 0], picture[..., 1]
        magnitude = jnp.exp(level)
        if self.bands:
            power, weights = bank(self.sample_rate, self.bins, self.bands, self.mean)[2:]
            magnitude, steps = jnp.sqrt(_product(magnitude, power) + FLOOR), _product(steps, weights)
        phase = integrate(steps)
        spectrum = jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))
        return self.sound(jnp.pad(spectrum, [(0, 0)] * (spectrum.ndim - 1) + [(1, 0)]))

    def spectrum(self, wave: Float[Array, "*batch time"]) -> Spectrum:
        """The spectrum of a sound, zeros in front, without 0 Hz."""
        padded = jnp.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(self.before, 0)])
        return stft(padded, self.size, self.hop, padding="valid")[..., 1:]

    def sound(self, spectrum: Spectrum) -> Float[Array, "*batch time"]:
        """The frames windowed again and added, over what the squared windows add up to where all overlap."""
        taper = window("hann", self.size)
        usual = np.sum((taper.astype(np.float64) ** 2).reshape(-1, self.hop), 0)
        scale = np.tile(1 / usual, len(taper) // self.hop).astype(np.float32) * taper
        cut = jnp.fft.irfft(spectrum, self.size) * scale.reshape((1,) * (spectrum.ndim - 1) + (-1,))
        return overlap_add(cut, self.hop)[..., self.before :]


@functools.cache
def bank(sample_rate: int, bins: int, bands: int, mean: bool) -> tuple[np.ndarray, ...]:
    """Weights from bins to bands [bins, bands], of power and of steps, and from bands to bins [bands, bins], of both.

    Triangles of height 1. The way back are the same weights such that what is alike in all bins comes back as it was.
    The official code counts the bins from 0 Hz though it has left that out, and to half the rate, where the last band
    ends: the lowest bin and the highest belong to no band.
    """
    resolution = sample_rate / 2 / bins
    hertz = np.linspace(0, sample_rate / 2, bins)[:, None]
    edges = from_mel(np.linspace(*to_mel(np.array([0, sample_rate / 2]), "htk"), bands + 2), "htk")
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    # As wide as they must be, and as far to either side of the middle on the mel scale.
    share = np.arcsinh(WIDTH * resolution / 2 / (middle + BREAK_HZ))
    narrow = high - low < WIDTH * resolution
    low = np.where(narrow, (middle + BREAK_HZ) * np.exp(-share) - BREAK_HZ, low)
    high = np.where(narrow, (middle + BREAK_HZ) * np.exp(share) - BREAK_HZ, high)
    weights = np.maximum(0, np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)))
    weights[0] = 0
    back = weights.T * _inverse(weights @ weights.sum(0))
    of_steps = (weights, back)
    if mean:
        of_steps = (weights * _inverse(weights.sum(0)), weights.T * _inverse(weights.sum(1)))
    return tuple(matrix.astype(np.float32) for matrix in (weights, of_steps[0], back, of_steps[1]))


def _inverse(x: np.ndarray) -> np.ndarray:
    """1 / x, and 0 for 0."""
    return np.divide(1, x, out=np.zeros_like(x), where=x > 1e-8)


def _product(x: Float[Array, "*batch frames into"], matrix: np.ndarray) -> Float[Array, "*batch frames out"]:
    """Not in the reduced precision of accelerators: phases add up over the frames."""
    return jnp.matmul(x, jnp.asarray(matrix), precision=jax.lax.Precision.HIGHEST)
