"""How loud a signal is: A-weighting, root mean square, and the integrated loudness of ITU-R BS.1770-4."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxaudio.core import InputError
from jaxaudio.dsp.stft import frames, pad

SILENCE = -70.0  # LUFS: the absolute gate, and the loudness of what never passes it
GAINS = (1.0, 1.0, 1.0, 1.41, 1.41)  # of left, right, centre, left surround, right surround


def a_weighting(frequencies: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The A-weighting (IEC 61672) of frequencies in Hz, in dB, at least -80, as librosa.A_weighting."""
    poles = np.square([12194.217, 20.598997, 107.65265, 737.86223]).tolist()
    square = jnp.square(frequencies)
    outer = 2 * jnp.log10(square) - jnp.log10(square + poles[0]) - jnp.log10(square + poles[1])
    inner = (jnp.log10(square + poles[2]) + jnp.log10(square + poles[3])) / 2
    return jnp.maximum(2 + 20 * (np.log10(poles[0]).item() + outer - inner), -80)


def rms(x: Float[Array, "*batch time"], size: int, hop: int, padding: str = "librosa") -> Float[Array, "*batch frames"]:
    """Root mean square of every frame, as librosa.feature.rms. The gradient of a frame of zeros is 0."""
    power = jnp.mean(jnp.square(frames(pad(x, size, hop, padding), size, hop)), -1)
    heard = power > 0
    return jnp.where(heard, jnp.sqrt(jnp.where(heard, power, 1)), 0)


def integrated_loudness(x: Float[Array, "*batch time channels"], sample_rate: int) -> Float[Array, "*batch"]:
    """Integrated loudness in LUFS per ITU-R BS.1770-4, both gates, as pyloudnorm.Meter(rate).integrated_loudness.

    What no block of 400 ms lifts above the absolute gate, silence among it, is -70 LUFS (`SILENCE`; -inf in
    pyloudnorm), with gradient 0. The gates are masks: the gradient is that of the blocks that pass them.

    Raises InputError for a signal shorter than one block, for more than five channels, and for rates that are not
    multiples of 10 Hz (the blocks, a tenth of a second apart, are whole samples).
    """
    hop, length, channels = sample_rate // 10, x.shape[-2], x.shape[-1]
    if sample_rate % 10:
        raise InputError(f"sample_rate is {sample_rate} Hz: loudness needs a multiple of 10, resample first")
    if length < 4 * hop:
        raise InputError(
            f"a signal of {length} samples: loudness needs a block of {4 * hop} (400 ms); pass a longer one"
        )
    if channels > len(GAINS):
        raise InputError(f"{channels} channels: BS.1770 weighs at most {len(GAINS)}; mix down first")
    weighted = k_weighted(jnp.moveaxis(x, -1, -2), sample_rate)
    blocks = round((length / sample_rate - 0.4) / 0.1 + 1)  # the last may reach beyond the end, as in pyloudnorm
    weighted = jnp.pad(weighted, [(0, 0)] * (x.ndim - 1) + [(0, max(0, (blocks + 3) * hop - length))])
    tenths = jnp.sum(jnp.square(weighted[..., : (blocks + 3) * hop]).reshape(*weighted.shape[:-1], -1, hop), -1)
    powers = sum(tenths[..., n : n + blocks] for n in range(4)) / (4 * hop)
    gains = jnp.asarray(GAINS[:channels], x.dtype).reshape((1,) * (x.ndim - 2) + (-1, 1))
    power = jnp.sum(powers * gains, -2)

    def mean(passed: Array) -> Array:
        return jnp.sum(power * passed, -1, keepdims=True) / jnp.maximum(jnp.sum(passed, -1, keepdims=True), 1)

    absolute = 10 ** ((SILENCE + 0.691) / 10)
    heard = power >= absolute
    gated = mean(heard & (power > jax.lax.stop_gradient(mean(heard)) / 10))[..., 0]
    return -0.691 + 10 * jnp.log10(jnp.maximum(gated, absolute))


def k_weighted(x: Float[Array, "*batch time"], sample_rate: int) -> Float[Array, "*batch time"]:
    """The signal behind the two filters of BS.1770 (the head's high shelf, the high pass), which start at rest.

    By the FFT with the filters' exact frequency response. Sampling a response at N points wraps the impulse response
    around every N samples; it decays by e every 4.2 ms (the high pass: a double pole at 38 Hz), so that after the
    quarter of a second of zeros put behind the signal less than 1e-23 of it is left, far below rounding: the product
    is the recursion's result, without its scan over time.
    """
    length = x.shape[-1]
    wanted = length + sample_rate // 4
    unit = 2 ** max(0, wanted.bit_length() - 4)  # lengths of few small factors are fast: 8 to 16 times a power of two
    padded = -(-wanted // unit) * unit
    response = jnp.asarray(_response(sample_rate, padded)).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.fft.irfft(jnp.fft.rfft(x, padded) * response, padded)[..., :length]


def _response(sample_rate: int, size: int) -> np.ndarray:
    """The K-weighting's frequency response at the bins of an FFT of `size`, complex64.

    BS.1770 tabulates coefficients at 48 kHz alone; these are the analogue filters behind them at any rate (the
    cookbook of R. Bristow-Johnson), the choice of pyloudnorm, within 0.05 dB of the table at 48 kHz.
    """
    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    response = np.ones(1)
    for numerator, denominator in (_shelf(sample_rate), _high_pass(sample_rate)):
        response = response * np.polyval(numerator[::-1], delay) / np.polyval(denominator[::-1], delay)
    return response.astype(np.complex64)


def _shelf(sample_rate: int, gain_db: float = 4.0, quality: float = 0.5**0.5, hertz: float = 1500.0) -> np.ndarray:
    """(numerator, denominator) in powers of the delay."""
    amplitude, angle = 10 ** (gain_db / 40), 2 * np.pi * hertz / sample_rate
    cosine, width = np.cos(angle), 2 * np.sqrt(amplitude) * np.sin(angle) / (2 * quality)
    up, down = amplitude + 1, amplitude - 1
    numerator = amplitude * np.array(
        [up + down * cosine + width, -2 * (down + up * cosine), up + down * cosine - width]
    )
    denominator = np.array([up - down * cosine + width, 2 * (down - up * cosine), up - down * cosine - width])
    return np.stack([numerator, denominator])


def _high_pass(sample_rate: int, quality: float = 0.5, hertz: float = 38.0) -> np.ndarray:
    """(numerator, denominator) in powers of the delay."""
    angle = 2 * np.pi * hertz / sample_rate
    width = np.sin(angle) / (2 * quality)
    numerator = (1 + np.cos(angle)) / 2 * np.array([1.0, -2.0, 1.0])
    return np.stack([numerator, np.array([1 + width, -2 * np.cos(angle), 1 - width])])
