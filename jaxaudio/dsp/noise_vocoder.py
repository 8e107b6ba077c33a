"""A channel vocoder that sounds by noise: what is left of a sound when only its envelopes in some bands are kept.

After Dudley 1939 and, with noise for a carrier, Shannon et al. 1995: a few bands are enough to understand speech. What
a codec or an autoencoder gives back should be nearer to the original than this.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxaudio.core import InputError, Wave
from jaxaudio.dsp.mel import from_mel, to_mel

CROSSFADE = 0.25  # of a band's width: how wide neighbouring bands overlap
NARROWEST = 10  # Hz: a narrower band rings longer than the zeros behind a sound


def noise_vocoder(
    wave: Wave, key: Key[Array, ""], sample_rate: int, bands: int, envelope_ms: float = 12.0
) -> Float[Array, "batch time channels"]:
    """White noise with the envelopes of the sound in every band; row i depends on (key, i) and wave[i] alone.

    The bands are equally wide on the mel scale (HTK's) from 0 to half the rate, have no delay, and their powers add up
    to 1: they cross over by sine and cosine within an eighth of a band to either side of an edge. A band's envelope is
    its magnitude as an analytic signal, averaged under a Hann window of `envelope_ms` in all; it multiplies white noise
    of unit power behind the same filter. Raises InputError for no bands, bands narrower than 10 Hz, and no window.
    """
    if bands < 1 or envelope_ms <= 0:
        raise InputError(
            f"bands is {bands} and envelope_ms {envelope_ms}: pass at least 1 band and a window above 0 ms"
        )
    time = wave.shape[1]
    size = _fast(time + round((0.2 + envelope_ms / 1000) * sample_rate))  # zeros: the filters ring without wrapping
    place = jnp.asarray(_places(size, sample_rate, bands)).reshape(1, 1, -1)
    smooth = jnp.asarray(_smoothing(size, envelope_ms * sample_rate / 1000)).reshape(1, 1, -1)
    x = jnp.moveaxis(wave, 2, 1)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(x)))
    noise = jax.vmap(lambda key: jax.random.normal(key, (x.shape[1], size)))(keys)
    sound, carrier = jnp.fft.rfft(x, size), jnp.fft.rfft(noise)

    def add(total: Array, band: Array) -> tuple[Array, None]:
        passed = _response(place, band, bands)
        half = jnp.fft.ifft(jnp.pad(sound * passed, [(0, 0), (0, 0), (0, size - size // 2 - 1)]))
        level = jnp.sqrt(2 * (half.real**2 + half.imag**2))  # of a tone: its RMS
        envelope = jnp.maximum(jnp.fft.irfft(jnp.fft.rfft(level) * smooth, size), 0)
        power = 2 * jnp.sum(passed**2) / size  # of white noise in the band
        return total + envelope * jnp.fft.irfft(carrier * passed, size) / jnp.sqrt(power), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(noise), jnp.arange(bands))
    return jnp.moveaxis(total[..., :time], 1, 2)


def _fast(least: int) -> int:
    """At least so many samples, 8 to 16 times a power of two: lengths of few small factors are fast."""
    unit = 2 ** max(1, least.bit_length() - 4)
    return -(-least // unit) * unit


def _places(size: int, sample_rate: int, bands: int) -> np.ndarray:
    """Where the bins of an FFT lie among the bands: band b reaches from b to b + 1."""
    width = to_mel(np.array([sample_rate / 2]), "htk") / bands
    if from_mel(width, "htk")[0] < NARROWEST:
        raise InputError(f"{bands} bands at {sample_rate} Hz: the lowest is narrower than {NARROWEST} Hz; pass fewer")
    return (to_mel(np.arange(size // 2 + 1) * sample_rate / size, "htk") / width).astype(np.float32)


def _response(place: Array, band: Array | int, bands: int) -> Array:
    """Of the filter of a band; the lowest and the highest reach to the ends."""
    begun, ended = (jnp.clip((place - edge) / CROSSFADE + 0.5, 0, 1) for edge in (band, band + 1))
    begun, ended = jnp.where(band == 0, 1, begun), jnp.where(band == bands - 1, 0, ended)
    smooth = lambda x: jnp.sin(jnp.pi / 2 * x) ** 2  # without corners, which would make the filters ring
    return jnp.sin(jnp.pi / 2 * smooth(begun)) * jnp.cos(jnp.pi / 2 * smooth(ended))


def _smoothing(size: int, width: float) -> np.ndarray:
    """The frequency response of a Hann window of `width` samples around 0, at the bins of an FFT; 1 at 0 Hz."""
    half = np.arange(int(np.ceil(max(width / 2, 1))))
    taper = 1 + np.cos(2 * np.pi * half / max(width, 1))
    taps = np.zeros(size)
    taps[-half], taps[half] = taper, taper
    return np.fft.rfft(taps / taps.sum()).real.astype(np.float32)
