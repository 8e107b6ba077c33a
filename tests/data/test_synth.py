"""The synthesiser: deterministic by index, labelled, and with the spectrum that each sound states."""

from collections import Counter

import numpy as np
import pytest
from scipy import linalg

from jaxaudio.core import InputError
from jaxaudio.data import synth

RATES = (8000, 16000, 22050, 48000)


def indices(name: str, count: int) -> list[int]:
    """The first `count` sounds of a class."""
    return [synth.CLASSES.index(name) + len(synth.CLASSES) * i for i in range(count)]


def spectrum(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz, at least four per Hertz and second of sound, and power through a Hann window."""
    size = 4 * len(wave)
    return np.fft.rfftfreq(size, 1 / rate), np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size)) ** 2


def strongest(wave: np.ndarray, rate: int, low: float, high: float) -> float:
    """The frequency in Hz with the most power between `low` and `high`."""
    frequency, power = spectrum(wave, rate)
    within = (frequency >= low) & (frequency <= high)
    return float(frequency[within][power[within].argmax()])


def share_above(wave: np.ndarray, rate: int, limit_hz: float) -> float:
    """The part of the energy above a frequency."""
    frequency, power = spectrum(wave, rate)
    return float(power[frequency > limit_hz].sum() / power.sum())


def resonances(wave: np.ndarray, rate: int, order: int) -> np.ndarray:
    """The sharp resonances of a linear prediction of `wave`, in Hz, ascending: formants measured from outside."""
    risen = np.diff(wave) * np.hamming(len(wave) - 1)
    lags = np.array([risen[: len(risen) - k] @ risen[k:] for k in range(order + 1)])
    roots = np.roots([1, *-linalg.solve_toeplitz(lags[:-1], lags[1:])])
    sharp = roots[(roots.imag > 0) & (-np.log(np.abs(roots)) * rate / np.pi < 500)]
    return np.sort(np.angle(sharp) * rate / (2 * np.pi))


def test_a_sound_depends_on_its_index_alone():
    forwards = [synth.render(i, 16000, 4000)[0] for i in range(20)]
    np.random.default_rng(0).random(100)
    backwards = [synth.render(i, 16000, 4000)[0] for i in reversed(range(20))][::-1]
    np.testing.assert_array_equal(forwards, backwards)


def test_no_two_sounds_are_alike():
    waves = np.stack([synth.render(i, 16000, 4000)[0] for i in range(200)])
    assert len(np.unique(waves, axis=0)) == 200


def test_labels_go_round_the_ten_classes():
    assert len(synth.CLASSES) == 10
    assert sorted(synth.CLASSES) == list(synth.CLASSES)  # a data set sorts its classes: the labels are the same there
    assert [synth.render(i, 8000, 100)[1] for i in range(25)] == [i % 10 for i in range(25)]


@pytest.mark.parametrize("length", [16, 17, 1000, 12345])
@pytest.mark.parametrize("rate", RATES)
def test_sounds_are_float32_of_the_length_with_a_peak_of_a_half_to_nine_tenths(rate, length):
    for i in range(40):
        wave, _ = synth.render(i, rate, length)
        assert (wave.shape, wave.dtype) == ((length,), np.float32)
        assert np.isfinite(wave).all()
        assert 0.499 < np.abs(wave).max() < 0.901


@pytest.mark.parametrize("rate", RATES)
def test_sounds_have_no_dc_and_end_in_silence(rate):
    for i in range(60):
        wave, _ = synth.render(i, rate, rate // 2)
        assert abs(wave.mean(dtype=np.float64)) < 1e-6
        assert np.abs(wave[-4:]).max() < 0.01


def test_notes_keep_their_energy_below_the_top_at_every_rate():
    for rate in (8000, 48000):
        for i in range(60):
            if synth.CLASSES[i % 10] not in ("pluck", "rain", "wind"):
                wave, _ = synth.render(i, rate, rate)
                assert share_above(wave, rate, 0.47 * rate) < 1e-5, (rate, i)


@pytest.mark.parametrize("name", ["additive", "fm", "pluck", "vowel_a", "vowel_u"])
def test_notes_sound_at_the_stated_pitch(name):
    for i in indices(name, 30):
        wave, _ = synth.render(i, 16000, 16000)
        pitch = synth.pitch(i)
        late = wave[8000:] if name == "fm" else wave  # the carrier is the strongest once the modulation is gone
        assert strongest(late, 16000, 0.75 * pitch, 1.25 * pitch) == pytest.approx(pitch, rel=0.01, abs=1), i


def test_an_fm_note_settles_on_its_carrier():
    for i in indices("fm", 30):
        wave, _ = synth.render(i, 16000, 16000)
        assert strongest(wave[12000:], 16000, 20, 8000) == pytest.approx(synth.pitch(i), rel=0.01, abs=2)


def test_a_note_is_the_same_at_every_rate():
    for i in indices("additive", 10):
        low, high = synth.render(i, 16000, 16000)[0], synth.render(i, 48000, 48000)[0]
        partials = synth.pitch(i) * np.arange(1, 4)
        levels = [
            [spectrum(wave, rate)[1][round(4 * f)] / len(wave) ** 2 for f in partials]
            for wave, rate in ((low, 16000), (high, 48000))
        ]
        # Levels differ by the peak that they are normalised to, the partials among each other do not.
        np.testing.assert_allclose(*(np.divide(level, level[0]) for level in levels), rtol=0.05)


@pytest.mark.parametrize("name", synth.VOWELS)
def test_vowels_have_the_stated_formants(name):
    for i in indices(f"vowel_{name}", 40):
        if synth.pitch(i) < 150:  # a higher voice has too few harmonics to show where the formants are
            measured = resonances(synth.render(i, 8000, 8000)[0], 8000, 10)
            for formant in synth.formants(i)[:2]:
                assert np.abs(measured - formant).min() < max(0.06 * formant, 0.4 * synth.pitch(i)), (i, measured)


def test_the_formants_tell_the_vowels_apart():
    table = np.log([formants[:2] for formants in synth.VOWELS.values()])
    for i in [i for name in synth.VOWELS for i in indices(f"vowel_{name}", 50)]:
        nearest = ((table - np.log(synth.formants(i)[:2])) ** 2).sum(1).argmin()
        assert list(synth.VOWELS)[nearest] == synth.CLASSES[i % 10].removeprefix("vowel_")


def test_wind_is_low_and_rain_is_high():
    for wind, rain in zip(indices("wind", 20), indices("rain", 20), strict=True):
        assert share_above(synth.render(wind, 16000, 16000)[0], 16000, 1500) < 0.05
        assert share_above(synth.render(rain, 16000, 16000)[0], 16000, 1500) > 0.5


def test_rain_and_wind_have_no_pitch():
    assert synth.pitch(indices("rain", 1)[0]) is None
    assert synth.pitch(indices("wind", 1)[0]) is None


def test_a_tenth_of_the_recordings_is_held_out_with_every_class_in_every_split():
    counts = Counter((e.label, e.split) for e in synth.Recordings(16000, 1, 1000).layout.entries)
    assert counts == {(name, s): n for name in synth.CLASSES for s, n in (("train", 90), ("valid", 5), ("test", 5))}


def test_recordings_are_named_by_class_and_index():
    layout = synth.Recordings(16000, 1, 1000, count=30).layout
    assert layout.kind == "synthesised"
    assert [e.name for e in layout.entries[:2]] == ["additive/000000", "fm/000001"]
    assert {e.split for e in layout.entries} == {"train", "valid", "test"}


def test_recordings_read_the_rendered_sound():
    np.testing.assert_array_equal(synth.Recordings(16000, 1, 1000).read(7)[:, 0], synth.render(7, 16000, 1000)[0])


def test_channels_hold_one_sound_at_different_gains():
    stereo = synth.Recordings(16000, 2, 1000).read(7)
    assert stereo.shape == (1000, 2)
    assert stereo.dtype == np.float32
    loudest = np.abs(stereo).max(0)
    assert loudest[0] != loudest[1]
    assert (loudest <= 0.9).all()
    np.testing.assert_allclose(stereo[:, 0] * loudest[1], stereo[:, 1] * loudest[0], atol=1e-6)


def test_the_key_changes_with_whatever_changes_a_sample():
    given = [(16000, 1, 1000, 30), (8000, 1, 1000, 30), (16000, 2, 1000, 30), (16000, 1, 999, 30), (16000, 1, 1000, 31)]
    assert len({synth.Recordings(*arguments).key for arguments in given}) == len(given)


def test_textures_are_rain_and_wind_that_no_recording_is():
    textures, others = synth.Textures(16000, 1, 500), synth.Recordings(16000, 1, 500)
    counts = Counter((e.label, e.split) for e in textures.layout.entries)
    assert counts == {
        (name, s): n for name in ("rain", "wind") for s, n in (("train", 180), ("valid", 10), ("test", 10))
    }
    assert {e.name for e in textures.layout.entries}.isdisjoint(e.name for e in others.layout.entries)
    np.testing.assert_array_equal(textures.read(1)[:, 0], synth.render(1_000_009, 16000, 500)[0])
    assert textures.key != others.key


def test_notes_are_those_of_instruments_within_two_octaves_labelled_by_their_pitch():
    made = synth.Notes(16000, 1, 800)
    assert len(made.layout.entries) == 1000
    assert {entry.label for entry in made.layout.entries if entry.split == "train"} == set(map(str, range(48, 72)))
    for index, entry in list(zip(made.indices, made.layout.entries, strict=True))[:50]:
        assert entry.name == f"{synth.CLASSES[index % 10]}/{index:06d}"
        assert entry.name.split("/")[0] in synth.INSTRUMENTS
        assert synth.pitch(index) == pytest.approx(440 * 2 ** ((int(entry.label) - 69) / 12))
    np.testing.assert_array_equal(made.read(7)[:, 0], synth.render(made.indices[7], 16000, 800)[0])
    assert made.key != synth.Recordings(16000, 1, 800).key


def test_what_sounds_are_labelled_by_is_known_or_refused():
    assert (synth.labelled("label"), synth.labelled("pitch")) == (synth.Recordings, synth.Notes)
    with pytest.raises(InputError, match="label is 'octave', but the synthesiser's sounds have label and pitch"):
        synth.labelled("octave")
