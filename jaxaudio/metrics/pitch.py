"""The pitch of notes, by a tracker of the fundamental frequency: pYIN (Mauch and Dixon 2014), librosa's."""

import numpy as np
from jaxtyping import Float

from jaxaudio.core import InputError

# Semitones beyond the pitches that are expected, which it may also hear. Of a note above its range it hears one that
# lies octaves below, which may be the very one that was asked for.
BELOW, ABOVE = 14, 30
SHORTEST = 1 / 8  # seconds of its window
PERIODS = 2.1  # of the lowest tone in its window: it wants two
FAINT = 1e-4  # peak below which nothing is heard
LEAST = 16_000  # Hz: at a lower rate the period of a high note is too few samples, and it hears an octave or two below


def heard_pitch(
    waves: Float[np.ndarray, "n time channels"], sample_rate: int, low: int, high: int
) -> Float[np.ndarray, "n"]:
    """The pitch of each sound as a MIDI number, which may lie between two: the median over the frames that have one;
    NaN where none has.

    It is looked for from BELOW `low` to ABOVE `high`, MIDI numbers, and below half the sample rate.
    """
    import librosa

    lowest, highest = (440 * 2 ** ((pitch - 69) / 12) for pitch in (low - BELOW, high + ABOVE))
    highest = min(highest, 0.45 * sample_rate)
    if not 0 < lowest < highest:
        raise InputError(f"pitches {low} to {high}: the lowest is above {highest:.0f} Hz, the most at this rate")
    times = -(-LEAST // sample_rate)
    sample_rate *= times
    frame = 2 ** int(np.ceil(np.log2(max(SHORTEST * sample_rate, PERIODS * sample_rate / lowest))))
    found = np.full(len(waves), np.nan)
    for i, wave in enumerate(waves.mean(-1)):
        if np.abs(wave).max() < FAINT:
            continue
        wave = wave if times == 1 else librosa.resample(wave, orig_sr=1, target_sr=times, res_type="soxr_hq")
        hertz, _, _ = librosa.pyin(wave, fmin=lowest, fmax=highest, sr=sample_rate, frame_length=frame)
        if np.isfinite(hertz).any():
            found[i] = 69 + 12 * np.log2(np.nanmedian(hertz) / 440)
    return found
