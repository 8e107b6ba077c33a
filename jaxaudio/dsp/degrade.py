"""Damage to sound, for a train step that learns to mend it: noises, and what rooms, wires and formats do.

Each is a pure function of one example, a sound [time, channels] in [-1, 1] and, where anything is drawn, a key; over a
batch by jax.vmap. Strengths may be traced, so that they can be drawn too. Silence stays silence (but see `mu_law`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxaudio.core import InputError, Wave

Sound = Float[Array, "time channels"]
Strength = Float[Array, ""] | float | int
# Of one example: what is drawn of a key is drawn at once, as each draw takes a program of its own to compile.
One = Key[Array, ""]

LOWEST = 0.0025  # of half the sample rate: coloured noise has nothing below, where nobody would hear its power
HARMONICS = 20  # of the mains
PERIOD = 2048  # places of one period of them, between which a line is drawn: off by less than -60 dB
RING = 256  # zeros behind a sound that is filtered by FFT: its end does not ring into its beginning
REFLECTIONS = 12  # that arrive one by one
EARLY = 0.05  # s: when they have arrived; by then the tail is dense
DECAY = 3 * np.log(10).item()  # 60 dB, as a power of e of the amplitude


def at_snr(wave: Sound, noise: Float[Array, "time #channels"], snr_db: Strength) -> Sound:
    """The sound with so much of the noise that the powers of both over the whole example are `snr_db` dB apart.

    Noise of one channel goes into all. Without noise, and to a silent sound, nothing is added.
    """
    wanted = jnp.mean(jnp.square(wave)) * 10 ** (-jnp.asarray(snr_db, jnp.float32) / 10)
    return wave + jnp.sqrt(wanted) * _unit(noise)


def coloured_noise(key: One, shape: tuple[int, int], exponent: Strength) -> Sound:
    """Noise [time, channels] of power 1, its samples as good as normally distributed, and its power density falling as
    1 / f^exponent.

    0: white, 1: pink, 2: brown, below 0: blue. There is none below `LOWEST` of half the sample rate.
    """
    time, channels = shape
    size = _fast(time)
    place = jnp.maximum(_places(size), LOWEST)
    density = jnp.where(_places(size) >= LOWEST, place ** (-jnp.asarray(exponent, jnp.float32) / 2), 0)
    drawn = jax.random.uniform(key, (2, channels, size // 2 + 1), minval=-1)  # their sums are normal in time
    noise = jnp.fft.irfft(jax.lax.complex(drawn[0], drawn[1]) * density[None], size)
    return _unit(jnp.moveaxis(noise[:, :time], 0, 1))


def gap(
    key: One, time: int, shortest: int, longest: int, edge: int = 0
) -> tuple[Float[Array, "{time}"], Int[Array, ""], Int[Array, ""]]:
    """(mask, start, length) of a gap: the mask is 1 where sound is lost, else 0.

    It has `shortest` to `longest` samples, and at least `edge` samples lie before it and behind it. Raises InputError
    where it does not fit.
    """
    if not 0 <= shortest <= longest or edge < 0 or longest + 2 * edge > time:
        raise InputError(
            f"a gap of {shortest} to {longest} samples, {edge} from the ends, does not fit into {time}: shorten it"
        )
    drawn = jax.random.uniform(key, (2,))
    length = shortest + _below(longest + 1 - shortest, drawn[0])
    start = edge + _below(time - 2 * edge - length + 1, drawn[1])
    at = jnp.arange(time)
    return ((at >= start) & (at < start + length)).astype(jnp.float32), start, length


def clipped(wave: Sound, level: Strength) -> Sound:
    """Cut off at `level` times the largest sample of the sound; the level of the rest stays."""
    most = level * jnp.max(jnp.abs(wave))
    return jnp.clip(wave, -most, most)


def low_passed(wave: Sound, cutoff: Strength, order: Strength = 8) -> Sound:
    """Without what lies above `cutoff`, a share of half the sample rate; no delay.

    The gain is that of a Butterworth filter, 1 / sqrt(1 + (f / cutoff)^(2 order)): -3 dB at the cutoff.
    """
    return _filtered(wave, lambda place: jax.lax.rsqrt(1 + (place / cutoff) ** (2 * jnp.asarray(order, jnp.float32))))


def resampled(wave: Sound, factor: Strength, images: Strength = 0.0) -> Sound:
    """As after a way through a sample rate that is `factor` (at least 1) times lower.

    The upper band is lost, from 95 % of half the lower rate on. `images` 1: each sample of the lower rate is held
    around its place instead of smoothed over, which mirrors the lower band into the upper; 0: not; between: mixed.
    """
    edge = 1 / jnp.asarray(factor, jnp.float32)
    smooth = _filtered(wave, lambda place: jnp.square(jnp.cos(jnp.pi / 2 * jnp.clip((place / edge - 0.9) / 0.1, 0, 1))))
    at = jnp.round(jnp.floor(jnp.arange(len(wave)) * edge + 0.5) / edge).astype(jnp.int32)
    held = jnp.take(smooth, jnp.clip(at, 0, len(wave) - 1), 0)
    return smooth + images * (held - smooth)


def equalised(key: One, wave: Sound, spread_db: Strength, points: int = 8) -> Sound:
    """Through a drawn filter: its gain in dB is normally distributed around 0 with deviation `spread_db` at `points`
    evenly spaced frequencies, and on the lines between them elsewhere."""
    gains = spread_db * jax.random.normal(key, (points,))
    return _filtered(wave, lambda place: 10 ** (jnp.interp(place, jnp.linspace(0, 1, points), gains) / 20))


def reverberated(
    key: One, wave: Sound, seconds: Strength, wet_db: Strength, sample_rate: int, longest: float = 1.0
) -> Sound:
    """As in a room that is drawn; the direct sound stays in its place and at its level.

    The room's response is the sound itself, `REFLECTIONS` echoes within `EARLY`, and a tail of noise, drawn for each
    channel, which grows dense meanwhile; all decay by 60 dB in `seconds` (RT60; Polack 1988). A drawn two-tap filter
    dulls the noise. The reflections have `wet_db` dB more energy than the direct impulse, which is minus the
    direct-to-reverberant ratio. The response ends after `longest` seconds.
    """
    time, channels = wave.shape
    response = room(key, (max(1, round(longest * sample_rate)), channels), seconds, wet_db, sample_rate)
    size = _fast(time + len(response))
    product = jnp.fft.rfft(wave.T, size) * jnp.fft.rfft(response.T, size)
    return wave + jnp.fft.irfft(product, size)[:, :time].T


def room(key: One, shape: tuple[int, int], seconds: Strength, wet_db: Strength, sample_rate: int) -> Sound:
    """What `reverberated` convolves with: the response [time, channels] of a room without its direct sound."""
    time, channels = shape
    drawn = jax.random.uniform(key, (1 + 2 * REFLECTIONS + time * channels,))
    noise = drawn[1 + 2 * REFLECTIONS :].reshape(shape) * 2 - 1
    tail = noise + 0.9 * drawn[0] * jnp.roll(noise, 1, 0)
    at = jnp.arange(time) / sample_rate
    # As much energy in the echoes as the tail lacks while it grows dense, so that the whole decays evenly.
    early = min(time, round(EARLY * sample_rate))
    places = _below(early, drawn[1 : 1 + REFLECTIONS])
    lacking = 2 / 3 * early * (1 + jnp.square(0.9 * drawn[0]))  # in units of a number from -1 to 1
    sizes = (drawn[1 + REFLECTIONS : 1 + 2 * REFLECTIONS] * 2 - 1) * jnp.sqrt(lacking / REFLECTIONS)
    echoes = jnp.zeros(time).at[places].add(sizes)[:, None]
    decay = jnp.where(at > 0, jnp.exp(-DECAY * at / jnp.maximum(seconds, 1e-3)), 0)[:, None]
    reflections = (echoes + jnp.minimum(at / EARLY, 1)[:, None] * tail) * decay
    energy = 10 ** (jnp.asarray(wet_db, jnp.float32) / 10)
    return _unit(reflections) * jnp.sqrt(energy / time)


def mu_law(wave: Sound, levels: Strength) -> Sound:
    """Rounded to `levels` values behind the mu-law curve, as mu_law_encode and mu_law_decode of dsp.companding are.

    Here the number of levels may be traced. An odd number has one at 0; with an even one silence becomes a constant.
    """
    mu = jnp.asarray(levels, jnp.float32) - 1
    curved = jnp.sign(wave) * jnp.log1p(mu * jnp.minimum(jnp.abs(wave), 1)) / jnp.log1p(mu)
    rounded = (2 * jnp.floor((curved + 1) / 2 * mu + 0.5) - mu) / mu
    return jnp.sign(rounded) * jnp.minimum(jnp.expm1(jnp.abs(rounded) * jnp.log1p(mu)) / mu, 1)


def crushed(wave: Sound, bits: Strength) -> Sound:
    """Rounded to multiples of 2^(1 - bits), as integers of so many bits hold it; `bits` may be a fraction."""
    step = 2 ** (1 - jnp.asarray(bits, jnp.float32))
    return jnp.clip(jnp.round(wave / step) * step, -1, 1 - step)


def hum(key: One, time: int, sample_rate: int) -> Float[Array, "{time} 1"]:
    """Hum of the mains, of power 1: 50 or 60 Hz and `HARMONICS` - 1 harmonics of drawn strengths and phases.

    The frequency sways by up to 0.1 %, once in 2 to 10 seconds.
    """
    count = min(HARMONICS, (sample_rate - 1) // 120)  # all below half the rate
    drawn = jax.random.uniform(key, (4 + 2 * count,))
    mains, sway, every = jnp.where(drawn[0] < 0.5, 50, 60), 0.001 * drawn[1], 2 + 8 * drawn[2]
    at = jnp.arange(time) / sample_rate
    swayed = at + sway * every / (2 * jnp.pi) * jnp.sin(2 * jnp.pi * (at / every + drawn[3]))
    strengths = -jnp.log1p(-drawn[4 : 4 + count]) / jnp.arange(1, count + 1)
    phases = 2 * jnp.pi * drawn[4 + count :]
    spectrum = jax.lax.complex(strengths * jnp.cos(phases), strengths * jnp.sin(phases))
    # One period, read at the phase: a sine of every harmonic would take ten times as long.
    period = jnp.fft.irfft(jnp.pad(spectrum, (1, 0)), PERIOD)
    place = (mains * swayed) % 1 * PERIOD
    below = place.astype(jnp.int32)
    rise = jnp.take(jnp.roll(period, -1) - period, below, mode="wrap")
    return _unit((jnp.take(period, below, mode="wrap") + (place - below) * rise)[:, None])


def clicks(key: One, time: int, rate: Strength, sample_rate: int) -> Float[Array, "{time} 1"]:
    """Clicks at drawn places, `rate` of them in a second, of power 1 over all; zeros if none falls into the sound.

    Their sizes are exponentially distributed, of either sign. They ring at a frequency and decay (by e) in a time,
    0.05 to 1 ms, that are drawn for the sound.
    """
    chance = jnp.asarray(rate, jnp.float32) / sample_rate
    drawn = jax.random.uniform(key, (time + 2,))
    # A number below the chance is, as a share of it, again uniform: it tells the sign and the size.
    share = drawn[2:] / jnp.maximum(chance, 1e-9)
    signed = 2 * share - 1
    impulses = jnp.where(share < 1, -jnp.sign(signed) * jnp.log(jnp.maximum(jnp.abs(signed), 1e-6)), 0)
    at = jnp.arange(max(1, round(0.005 * sample_rate))) / sample_rate
    decay, tone = 0.001 * 0.05 ** drawn[0], drawn[1] * sample_rate / 4
    ringing = jnp.exp(-at / decay) * jnp.cos(2 * jnp.pi * tone * at)
    size = _fast(time + len(at))
    return _unit(jnp.fft.irfft(jnp.fft.rfft(impulses, size) * jnp.fft.rfft(ringing, size), size)[:time, None])


def babble(keys: Key[Array, "rows"], voices: Wave, talkers: int = 6) -> Wave:
    """For each row of a batch a babble of power 1: its neighbour's sound `talkers` times, moved by drawn times, at
    drawn levels (half to all); the end goes on at the beginning.

    Neighbours are the rows (0, 1), (2, 3), ..., so that none comes from another device. Raises InputError for an odd
    number of rows.
    """
    rows, time, channels = voices.shape
    if rows % 2:
        raise InputError(f"babble pairs neighbours, but a device has {rows} rows: give it an even number")
    other = jnp.flip(voices.reshape(rows // 2, 2, time, channels), 1).reshape(voices.shape)

    def one(key: One, voice: Sound) -> Sound:
        drawn = jax.random.uniform(key, (2, talkers))
        places, levels = _below(time, drawn[0]), 0.5 + drawn[1] / 2
        # One product of spectra: a gather for each talker would take longer.
        moved = jnp.fft.rfft(jnp.zeros(time).at[places].add(levels))[None]
        return _unit(jnp.fft.irfft(jnp.fft.rfft(voice.T) * moved, time).T)

    return jax.vmap(one)(keys, other)


def _unit(x: Sound) -> Sound:
    """Scaled to power 1 over all; zeros stay zeros."""
    power = jnp.mean(jnp.square(x))
    return x * jnp.where(power > 0, jax.lax.rsqrt(jnp.where(power > 0, power, 1)), 0)


def _below(count: Int[Array, ""] | int, drawn: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Whole numbers from 0 to count - 1, of numbers drawn from [0, 1)."""
    return jnp.minimum((drawn * count).astype(jnp.int32), count - 1)


def _places(size: int) -> Float[Array, "bins"]:
    """The frequencies of an FFT, as shares of half the sample rate."""
    return jnp.arange(size // 2 + 1) / (size / 2)


def _filtered(wave: Sound, gain: Callable) -> Sound:
    """By the gain at shares of half the sample rate, without delay."""
    size = _fast(len(wave) + RING)
    return jnp.fft.irfft(jnp.fft.rfft(wave.T, size) * gain(_places(size))[None], size)[:, : len(wave)].T


def _fast(least: int) -> int:
    """At least so many samples, 8 to 16 times a power of two: lengths of few small factors are fast."""
    unit = 2 ** max(1, least.bit_length() - 4)
    return -(-least // unit) * unit
