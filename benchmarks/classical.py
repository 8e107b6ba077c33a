"""What restoring sound takes without a network: the baselines of the cards of models that restore.

numpy and scipy. Sounds are of one channel, [rows, time] as many as go at once, amplitude in [-1, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from numpy.lib.stride_tricks import sliding_window_view
from scipy.interpolate import CubicSpline
from scipy.ndimage import minimum_filter1d, uniform_filter1d
from scipy.signal import get_window, lfilter

from jaxaudio.dsp import linear_prediction

Sounds = Float[np.ndarray, "rows time"]
Fillings = Float[np.ndarray, "rows length"]
Powers = Float[np.ndarray, "rows frames bins"]
Spectra = Complex[np.ndarray, "rows frames bins"]

# Found by trial on training recordings: 156 mixtures at 0, 5 and 10 dB of speech (LibriSpeech, spoken digits) and noise
# (machines and household; ESC-10), as many of every kind. The mean improvement in SI-SDR was 4.19 dB by the Wiener
# filter, 4.18 dB by subtraction; neighbouring numbers cost up to 0.1 dB. Martin's own estimate, which looks back alone,
# gave the Wiener filter 2.7 dB at best, of 3 lengths of its memory, 2 windows and 2 factors.
WINDOW_MS, OVERLAP = 48.0, 4  # of the spectra
SMOOTHED_S = 0.05  # over which powers are averaged before their minimum is looked for,
MEMORY_S = 0.5  # in which a frequency is taken to be noise alone at some time,
AVERAGED_S = 1.0  # and over which these minima are averaged
BIAS = 7.0  # noise over that average
ALPHA, LEAST_SNR_DB = 0.8, -15.0  # of the decision-directed estimate
SUBTRACTED, SLOPE, REST = 2.5, 0.094, 0.01  # times the noise: at 0 dB, less per dB, and what is left at least
TINY = 1e-20  # of powers

ORDER, CONTEXT_MS = 300, 128.0  # of the linear prediction into a gap: coefficients, and what they are fitted to
ENVELOPE_ORDER = 32  # of the spectral envelope of the noise that fills a gap
LAG_MS, TEMPLATE_MS = 20.0, 10.0  # how much further off than it must a copy lies, to go on from the last samples
AT_LEVEL = 0.999  # of the largest amplitude: a sample that reaches it is clipped
HIGHEST = 2.0  # times that: what a spline may reach; more lets it run away (found as the above)


# ------------------------------------------------------------------------------------------------------------- noise


def wiener(noisy: Sounds, sample_rate: int) -> Sounds:
    """The decision-directed Wiener filter (Ephraim and Malah 1984; Scalart and Filho 1996) over minimum statistics."""
    frames, joined = spectra(noisy, sample_rate)
    power = _powers(frames)
    return joined(frames * decision_directed(power, noise_powers(power, sample_rate)))


def spectral_subtraction(noisy: Sounds, sample_rate: int) -> Sounds:
    """Over-subtraction of powers down to a floor (Boll 1979; Berouti et al. 1979, eq. 5 and 6) over the same noise."""
    frames, joined = spectra(noisy, sample_rate)
    power = _powers(frames)
    return joined(frames * subtraction_gain(power, noise_powers(power, sample_rate)))


def noise_powers(power: Powers, sample_rate: int) -> Powers:
    """The noise in every frame and bin by minimum statistics (Martin 2001): the minimum over time of smoothed powers,
    times what a minimum falls short of the mean.

    A recording is there as a whole, so that all windows look both ways: no delay, where Martin's estimate rises late.
    The compensation is one number, found as the others.
    """
    per_second = sample_rate / _sizes(sample_rate)[1]
    odd = lambda seconds: 2 * round(seconds * per_second / 2) + 1
    smooth = uniform_filter1d(power, odd(SMOOTHED_S), axis=1, mode="mirror")
    least = minimum_filter1d(smooth, odd(MEMORY_S), axis=1, mode="mirror")
    return BIAS * np.maximum(uniform_filter1d(least, odd(AVERAGED_S), axis=1, mode="mirror"), 0)  # rounding


def decision_directed(power: Powers, noise: Powers) -> Powers:
    """The gain xi / (1 + xi): the signal-to-noise ratio xi is ALPHA of what the frame before came out as, and 1 - ALPHA
    of what this frame has above the noise."""
    floor, noise = 10 ** (LEAST_SNR_DB / 10), np.maximum(noise, TINY)
    gain = np.empty_like(power)
    before = np.maximum(power[:, 0] - noise[:, 0], 0)
    for t in range(power.shape[1]):
        now = np.maximum(power[:, t] / noise[:, t] - 1, 0)
        ratio = np.maximum(ALPHA * before / noise[:, t] + (1 - ALPHA) * now, floor)
        gain[:, t] = ratio / (1 + ratio)
        before = gain[:, t] ** 2 * power[:, t]
    return gain


def subtraction_gain(power: Powers, noise: Powers) -> Powers:
    """The root of the share of power that is left; more is taken off frames of a low ratio of signal to noise."""
    total = power.sum(2, keepdims=True) / np.maximum(noise.sum(2, keepdims=True), TINY)
    level_db = np.clip(10 * np.log10(np.maximum(total, TINY)), -5, 20)
    left = power - (SUBTRACTED - SLOPE * level_db) * noise
    return np.sqrt(np.maximum(left, REST * np.minimum(noise, power)) / np.maximum(power, TINY))


def spectra(x: Sounds, sample_rate: int) -> tuple[Spectra, Callable[[Spectra], Sounds]]:
    """Spectra of frames whose ends are the sound reflected, and what makes them sounds again."""
    size, hop = _sizes(sample_rate)
    time = x.shape[1]
    taper = np.sqrt(get_window("hann", size)).astype(np.float32)
    padded = np.pad(
        x.astype(np.float32), ((0, 0), (size, size + -time % hop)), mode="reflect" if time > 2 * size else "edge"
    )
    frames = np.fft.rfft(sliding_window_view(padded, size, axis=1)[:, ::hop] * taper)

    def joined(frames: Spectra) -> Sounds:
        sound = np.zeros_like(padded)
        for i, frame in enumerate(np.moveaxis(np.fft.irfft(frames, size) * taper, 1, 0)):
            sound[:, i * hop : i * hop + size] += frame
        return sound[:, size : size + time] * (2 / OVERLAP)

    return frames, joined


def _sizes(sample_rate: int) -> tuple[int, int]:
    """Window and hop in samples."""
    hop = max(1, round(WINDOW_MS / OVERLAP / 1000 * sample_rate))
    return OVERLAP * hop, hop


def _powers(frames: Spectra) -> Powers:
    return frames.real**2 + frames.imag**2


# -------------------------------------------------------------------------------------------------------------- gaps
# Each gives what belongs into the gap [start, start + length) of every row, whatever the row holds there.


def zeros(x: Sounds, start: int, length: int, sample_rate: int) -> Fillings:
    """Silence."""
    del start, sample_rate
    return np.zeros((len(x), length))


def copied(x: Sounds, start: int, length: int, sample_rate: int) -> Fillings:
    """The stretch before the gap passing into the one behind it; each is the one, of those that end or begin up to
    LAG_MS from the gap, that goes on best from the samples next to the gap."""
    reversed_rows, behind = x[:, ::-1], x.shape[1] - start - length
    ahead = np.stack([_continued(row[:start], length, sample_rate) for row in x])
    back = np.stack([_continued(row[:behind], length, sample_rate) for row in reversed_rows])
    share = _fade(length)
    return share * ahead + (1 - share) * back[:, ::-1]


def linear_predicted(x: Sounds, start: int, length: int, sample_rate: int) -> Fillings:
    """Linear prediction of order 300 from 128 ms on both sides (Burg's method; Kauppinen and Roth 2002)."""
    context = round(CONTEXT_MS / 1000 * sample_rate)

    def fill(row: Array) -> Array:
        return linear_prediction.interpolate(row, start, length, length, ORDER, context)

    return np.asarray(jax.jit(jax.vmap(fill))(jnp.asarray(x, jnp.float32)), np.float64)


def noise_excited(x: Sounds, start: int, length: int, sample_rate: int) -> Fillings:
    """White noise through the spectral envelopes, at the levels, of 128 ms on both sides; the one passes into the
    other."""
    context, rng = round(CONTEXT_MS / 1000 * sample_rate), np.random.default_rng(0)
    share = _fade(length)
    sides = x[:, start - context : start], x[:, start + length : start + length + context]
    shaped = []
    for side in sides:
        coefficients = np.asarray(linear_prediction.burg(jnp.asarray(side, jnp.float32), ENVELOPE_ORDER), np.float64)
        noise = rng.standard_normal((len(x), context + length))  # `context`: until the filter has settled
        rows = [lfilter([1], [1, *-a], row) for a, row in zip(coefficients, noise, strict=True)]
        level = np.sqrt(np.mean(side**2, 1) / np.maximum(np.mean(np.square(rows), 1), TINY))
        shaped.append(level[:, None] * np.array(rows)[:, context:])
    return np.sqrt(share) * shaped[0] + np.sqrt(1 - share) * shaped[1]  # of equal power: the two are independent


FILLINGS = {
    "linear prediction": linear_predicted,
    "zeros": zeros,
    "copy": copied,
    "noise-excited LP": noise_excited,
}


def _continued(past: Float[np.ndarray, "past"], length: int, sample_rate: int) -> Float[np.ndarray, "length"]:
    """The `length` samples of the past that come behind what is most like its last TEMPLATE_MS."""
    known, most = (round(ms / 1000 * sample_rate) for ms in (TEMPLATE_MS, LAG_MS))
    ends = np.arange(max(known, len(past) - length - most), len(past) - length + 1)  # where the like of it may end
    like = sliding_window_view(past, known)[ends - known]
    fit = like @ past[-known:] / np.sqrt(np.maximum(np.sum(like**2, 1), TINY))
    end = ends[::-1][np.argmax(fit[::-1])]  # the nearest of equals
    return past[end : end + length]


def _fade(length: int) -> Float[np.ndarray, "length"]:
    """From 1 to 0 by a raised cosine."""
    return np.cos(np.pi / 2 * (np.arange(length) + 0.5) / length) ** 2


# ---------------------------------------------------------------------------------------------------------- clipping


def declipped(clipped: Sounds) -> Sounds:
    """Cubic splines through the samples that are not clipped; where these are clipped, from their level to HIGHEST
    times it."""
    return np.stack([_declipped(row) for row in clipped])


def _declipped(row: Float[np.ndarray, "time"]) -> Float[np.ndarray, "time"]:
    level = np.abs(row).max()
    lost = np.abs(row) >= AT_LEVEL * level
    if np.count_nonzero(~lost) < 4:
        return row
    places = np.arange(len(row))
    spline = CubicSpline(places[~lost], row[~lost])(places)
    inside = lost & (places > places[~lost][0]) & (places < places[~lost][-1])  # beyond them it runs away
    return np.where(inside, np.sign(row) * np.clip(np.sign(row) * spline, np.abs(row), HIGHEST * level), row)
