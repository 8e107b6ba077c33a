"""Rule-based sound: an endless labelled data set in numpy and scipy, and the source of exact tests.

Sound `index` is of class `CLASSES[index % 10]`: notes (additive, FM, plucked string), rain, sung vowels and wind.
Everything drawn follows from the index alone. A note's pitch, a vowel's formants and a sound's level are the same at
every sample rate; envelopes stretch with the length, so that a long recording isn't silent in its second half.
"""

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy import signal

from jaxaudio.core import InputError
from jaxaudio.data.layouts import Entry, Layout

VERSION = 1  # to be raised whenever a sample changes: it is part of the key under which recordings are cached
TOP = 0.45  # of the sample rate: no partial lies above, so that nothing aliases
PARTIALS = 24  # of an additive note, at most
VOWELS = {  # the first three formants of a man's voice in Hz, after Peterson and Barney (1952)
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
FOURTH_HZ = 3500.0  # the fourth formant, of all vowels
BANDWIDTHS_HZ = (70.0, 100.0, 140.0, 200.0)  # of the three formants, and of the fourth


def additive(rng: np.random.Generator, pitch_hz: float, rate: int, length: int) -> np.ndarray:
    """A note of harmonics whose amplitudes fall with their number; the high ones die first."""
    amplitudes = rng.uniform(0.3, 1, PARTIALS) * np.arange(1, PARTIALS + 1) ** -rng.uniform(0.7, 1.8)
    attack_s, decay, damping = 10 ** rng.uniform(-2.5, -1.2), rng.uniform(1, 4), rng.uniform(0, 1)
    below = amplitudes[: max(1, int(TOP * rate / pitch_hz))]
    # The partial k dies as exp(-k damping n / length), so the sum is a polynomial in one complex number per sample.
    turn = powers(2j * np.pi * pitch_hz / rate - damping / length, length)
    return np.polyval([*below[::-1], 0], turn).imag * envelope(attack_s * rate, length / decay, length)


def fm(rng: np.random.Generator, pitch_hz: float, rate: int, length: int) -> np.ndarray:
    """Chowning's two operators: a carrier at the pitch; the modulation, and with it the brightness, dies first."""
    ratio = rng.choice([1, 2, 3, np.sqrt(2), 3.5])
    index, index_decay, decay = rng.uniform(1.5, 8), rng.uniform(4, 9), rng.uniform(1, 4)
    attack_s = 10 ** rng.uniform(-2.7, -1.5)
    # Side bands lie at pitch +- n * ratio * pitch; from n = index + 4 on they are below -50 dB.
    index = np.clip((TOP * rate / pitch_hz - 1) / ratio - 4, 0, index)
    step = 2 * np.pi * pitch_hz / rate
    modulation = index * powers(1j * step * ratio - index_decay / length, length).imag
    return np.sin(step * np.arange(length) + modulation) * envelope(attack_s * rate, length / decay, length)


def pluck(rng: np.random.Generator, pitch_hz: float, rate: int, length: int) -> np.ndarray:
    """Karplus and Strong's string: a burst of noise goes round a delay line through a two-point mean."""
    sustain_s = rng.uniform(0.5, 2) * max(length / rate, 1)  # until -60 dB, at low frequencies
    period = rate / pitch_hz
    delay = int(period - 0.5)  # the mean delays by half a sample; linear interpolation makes up the rest
    rest = period - 0.5 - delay
    taps = np.convolve([0.5, 0.5], [1 - rest, rest]) * 10 ** (-3 / (pitch_hz * sustain_s))

    burst = rng.uniform(-1, 1, delay)
    wave = np.zeros(2 + delay + length)  # two zeros in front are the filter's past
    wave[2 : 2 + delay] = burst - burst.mean()
    for start in range(2 + delay, len(wave), delay):  # a whole period at once: it depends on the one before alone
        block = np.convolve(wave[start - delay - 2 : start], taps, "valid")
        wave[start : start + delay] = block[: len(wave) - start]
    return wave[2 : 2 + length]


def rain(rng: np.random.Generator, pitch_hz: None, rate: int, length: int) -> np.ndarray:
    """Drops at random moments, each a short ring at one of four pitches, over a hiss."""
    drops = rng.poisson(10 ** rng.uniform(2, 3.3) * length / rate)
    moments, sizes = rng.integers(0, length, drops), rng.exponential(size=drops)
    kinds = rng.integers(0, 4, drops)
    wave = np.zeros(length)
    for kind, ring_hz in enumerate(np.geomspace(900, min(6500, 0.4 * rate), 4) * rng.uniform(0.85, 1.1, 4)):
        impulses = np.bincount(moments[kinds == kind], sizes[kinds == kind], length)
        wave += signal.lfilter([1, 0, -1], poles(ring_hz, rng.uniform(250, 1000), rate), impulses)
    hiss = signal.lfilter([0.25, 0, -0.25], poles(0.2 * rate, 0.25 * rate, rate), rng.standard_normal(length))
    return wave + rng.uniform(0.2, 0.6) * hiss


def wind(rng: np.random.Generator, pitch_hz: None, rate: int, length: int) -> np.ndarray:
    """Noise in a band that wanders slowly between about 200 and 900 Hz and swells as it rises, over a rumble."""
    sway = sum(rng.uniform(0.3, 1) * sine(n / length, rng.random(), length) for n in rng.uniform(0.3, 2.5, 3))
    swell = np.exp(0.3 * sway)
    # Two slow noises, one times the cosine of the running phase, one its sine: noise in a band at that frequency.
    noise = rng.standard_normal((2, length))
    slow = low_pass(noise, rng.uniform(30, 90), rate)
    phase = np.cumsum(2 * np.pi * rng.uniform(280, 480) / rate * swell)
    howl = (slow[0] * np.cos(phase) + slow[1] * np.sin(phase)) * swell**2
    rumble = low_pass(noise[0], 200.0, rate)
    return howl / slow.std() + rng.uniform(0.1, 0.4) * rumble / rumble.std()


def vowel(name: str, rng: np.random.Generator, pitch_hz: float, rate: int, length: int) -> np.ndarray:
    """A band-limited pulse train with vibrato, and some breath, through the formants of a vocal tract."""
    formants_hz = tract(rng, name)
    depth, vibrato_hz = rng.uniform(0.003, 0.015), rng.uniform(4.5, 6.5)
    lag = depth * rate / (2 * np.pi * vibrato_hz)  # samples
    turns = pitch_hz / rate * (np.arange(length) + lag * sine(vibrato_hz / rate, rng.random(), length))
    # The harmonics q^k sin(k phase) up to the top, summed in closed form; q lets them fall by 9 dB up to 3 kHz.
    count = int(min(TOP * rate, 8000) / (pitch_hz * (1 + depth)))
    turn = np.exp(2j * np.pi * turns - pitch_hz / 3000)
    pulses = (turn * (1 - turn**count) / (1 - turn)).imag
    breath = rng.uniform(0.02, 0.08) * np.sqrt(rate / 16000) * rng.uniform(-1, 1, length)

    glottis = np.exp(-2 * np.pi * 150 / rate)  # one pole at 150 Hz: 6 dB per octave
    source = signal.lfilter([1 - glottis], [1, -glottis], pulses + breath)
    peaks = zip((*formants_hz, FOURTH_HZ), BANDWIDTHS_HZ, strict=True)
    filters = [poles(f, width, rate) for f, width in peaks if f < TOP * rate]
    sound = signal.sosfilt([[a.sum(), 0, 0, *a] for a in filters], source)
    return sound * envelope(0.03 * rate, 4.0 * length, length) * np.minimum(np.linspace(8, 0, length), 1)


VOICES = {
    "additive": additive,
    "fm": fm,
    "pluck": pluck,
    "rain": rain,
    **{f"vowel_{name}": partial(vowel, name) for name in VOWELS},
    "wind": wind,
}
CLASSES = tuple(VOICES)  # sorted, as a data set's classes are
NOTES = {  # the range of pitches, in MIDI notes: 36 is 65 Hz, 84 is 1047 Hz
    "additive": (36, 84),
    "fm": (36, 84),
    "pluck": (40, 76),
    **{f"vowel_{name}": (43, 62) for name in VOWELS},
}
FIRST_TEXTURE = 1_000_000  # of `Textures`: far behind the sounds of `Recordings`
INSTRUMENTS = ("additive", "fm", "pluck")
OCTAVES = (48, 71)  # of `Notes`, in MIDI notes: the two that all instruments have


def render(index: int, sample_rate: int, length: int) -> tuple[np.ndarray, int]:
    """Sound `index` as float32 [length] with a peak of 0.5 to 0.9, and its label; 8000 to 48000 Hz, 16 samples up."""
    rng, label, level, pitch_hz = _draw(index)
    wave = VOICES[CLASSES[label]](rng, pitch_hz, sample_rate, length)
    fade = np.ones(length)
    ramp = min(length // 4, sample_rate // 100)
    fade[-ramp:] = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, ramp + 1) / ramp)
    wave = fade * (wave - fade @ wave / fade.sum())  # a mean of zero after the fade
    return (level / np.abs(wave).max() * wave).astype(np.float32), label


def pitch(index: int) -> float | None:
    """The fundamental of sound `index` in Hz (the carrier of FM, the mean under vibrato); None for rain and wind."""
    return _draw(index)[3]


def note(index: int) -> int | None:
    """The same as a MIDI number."""
    hertz = pitch(index)
    return None if hertz is None else round(69 + 12 * np.log2(hertz / 440))


def formants(index: int) -> tuple[float, ...]:
    """The first three formants of the vowel `index`, in Hz."""
    rng, label, _, _ = _draw(index)
    return tract(rng, CLASSES[label].removeprefix("vowel_"))


def tract(rng: np.random.Generator, name: str) -> tuple[float, ...]:
    """Three formants in Hz: the vowel's, scaled by the length of a singer's vocal tract, each a little off."""
    scale = rng.uniform(0.95, 1.08) * rng.uniform(0.97, 1.03, 3)
    return tuple(float(f) for f in scale * VOWELS[name])


def powers(exponent: float | complex, length: int, start: float | complex = 0.0) -> np.ndarray:
    """exp(start + exponent * n) for n = 0 .. length - 1, from two short sequences: 20 times as fast as `exp`."""
    short = int(np.sqrt(length)) + 1
    steps = np.arange(short)
    return np.outer(np.exp(start + exponent * short * steps), np.exp(exponent * steps)).ravel()[:length]


def sine(frequency: float, turn: float, length: int) -> np.ndarray:
    """A sine of `frequency` cycles per sample that starts after `turn` cycles."""
    return powers(2j * np.pi * frequency, length, 2j * np.pi * turn).imag


def envelope(attack: float, decay: float, length: int) -> np.ndarray:
    """Exponential attack and decay, with their time constants in samples."""
    return (1 - powers(-1 / attack, length)) * powers(-1 / decay, length)


def poles(frequency_hz: float, bandwidth_hz: float, rate: int) -> np.ndarray:
    """The denominator [3] of a resonance."""
    radius = np.exp(-np.pi * bandwidth_hz / rate)
    return np.array([1, -2 * radius * np.cos(2 * np.pi * frequency_hz / rate), radius**2])


def low_pass(wave: np.ndarray, cutoff_hz: float, rate: int) -> np.ndarray:
    """Twice the same pole at the cutoff, with a gain of 1 below it."""
    denominator = poles(0.0, 2 * cutoff_hz, rate)
    return signal.lfilter([denominator.sum()], denominator, wave)


def _draw(index: int) -> tuple[np.random.Generator, int, float, float | None]:
    """The generator of sound `index`, advanced past what every sound has: label, level (peak) and pitch in Hz."""
    rng = np.random.default_rng(index)
    label = index % len(CLASSES)
    level = rng.uniform(0.5, 0.9)
    notes = NOTES.get(CLASSES[label])
    pitch_hz = None if notes is None else float(440 * 2 ** ((rng.integers(*notes, endpoint=True) - 69) / 12))
    return rng, label, level, pitch_hz


class Recordings:
    """The first `count` sounds as a data set of `length` samples each; 90 % train, 5 % valid, 5 % test per class."""

    def __init__(self, sample_rate: int, channels: int, length: int, count: int = 1000) -> None:
        self.sample_rate, self.channels, self.length = sample_rate, channels, length
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        self.key = f"{name} {VERSION}: {sample_rate} Hz, {channels} channels, {length} samples, {count} sounds"
        self.indices = self.chosen(count)
        self.layout = Layout("synthesised", tuple(self._entry(i) for i in self.indices))

    def __str__(self) -> str:
        return "the synthesised sounds"

    @staticmethod
    def chosen(count: int) -> Sequence[int]:
        """Which sounds these are."""
        return range(count)

    def read(self, i: int) -> np.ndarray:
        """Entry `i` as float32 [frames, channels], each channel at a gain of its own."""
        index = self.indices[i]
        wave, _ = render(index, self.sample_rate, self.length)
        if self.channels == 1:
            return wave[:, None]
        gains = np.random.default_rng([index, 1]).uniform(0.6, 1, self.channels)
        return wave[:, None] * gains.astype(np.float32)

    @staticmethod
    def _entry(i: int) -> Entry:
        name = CLASSES[i % len(CLASSES)]
        part = {1: "valid", 2: "test"}.get(i // len(CLASSES) % 20, "train")
        return Entry(f"{name}/{i:06d}", name, part, None)


class Textures(Recordings):
    """Rain and wind alone, to be heard as noise: `count` sounds, none of them among those of `Recordings`."""

    def __init__(self, sample_rate: int, channels: int, length: int, count: int = 400) -> None:
        super().__init__(sample_rate, channels, length, count)

    def __str__(self) -> str:
        return "the synthesised noises"

    @staticmethod
    def chosen(count: int) -> Sequence[int]:
        """The first of their classes from sound FIRST_TEXTURE on."""
        textures = (i for i in itertools.count(FIRST_TEXTURE) if CLASSES[i % len(CLASSES)] not in NOTES)
        return tuple(itertools.islice(textures, count))


class Notes(Recordings):
    """The first `count` notes of instruments within OCTAVES, labelled by their pitch, a MIDI number."""

    def __str__(self) -> str:
        return "the synthesised notes"

    @staticmethod
    def chosen(count: int) -> Sequence[int]:
        """Those of their classes whose pitch is within."""
        notes = (i for i in itertools.count() if CLASSES[i % len(CLASSES)] in INSTRUMENTS)
        low, high = OCTAVES
        return tuple(itertools.islice((i for i in notes if low <= note(i) <= high), count))

    @staticmethod
    def _entry(i: int) -> Entry:
        return Recordings._entry(i)._replace(label=str(note(i)))


def labelled(column: str) -> type[Recordings]:
    """The data set whose labels are what a column of this name would hold. Raises `InputError` where there is none."""
    if column not in (known := {"label": Recordings, "pitch": Notes}):
        raise InputError(f"label is {column!r}, but the synthesiser's sounds have {' and '.join(known)}: name --data")
    return known[column]
