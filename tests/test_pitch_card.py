"""The card of notes: a model whose pitches are known, in tune and out of it; and the tracker it is measured with."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import pitch as card
from benchmarks import quality
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data.pack import Folder, open_pack
from jaxaudio.metrics.pitch import heard_pitch
from tests.tuned import tuned

HOW = {"resamples": 200, "seed": 0}
RATE = 8000


def tones(pitches, length=4000, rate=RATE):
    hertz = 440 * 2 ** ((np.asarray(pitches) - 69) / 12)
    turns = hertz[:, None] * np.arange(length)[None] / rate
    return (0.3 * np.sin(2 * np.pi * turns) + 0.2 * np.sin(6 * np.pi * turns))[..., None].astype(np.float32)


@pytest.fixture
def notes(tmp_path):
    """Recordings of the pitches 60 to 64, in tune."""
    for i in range(10):
        audio.write(tmp_path / "data" / "valid" / str(60 + i % 5) / f"{i}.wav", tones([60 + i % 5])[0], RATE)
    return open_pack(Folder(tmp_path / "data", RATE, 1, "pitch"), tmp_path / "cache")


def scored(given, pack, judge=None, n=8):
    made = card.of_pitches(given, pack, "valid", n, HOW, judge, 0)
    return {row.metric: row for row in made.rows}, made.left_out


def test_the_tracker_hears_tones_where_they_are_and_nothing_in_silence():
    pitches = [36, 48.3, 60, 71.7, 84]
    waves = np.concatenate([tones(pitches), np.zeros((1, 4000, 1), np.float32)])
    found = heard_pitch(waves, RATE, 36, 84)
    np.testing.assert_allclose(found[:5], pitches, atol=0.1)
    assert np.isnan(found[5])
    np.testing.assert_allclose(heard_pitch(tones([50], rate=44100, length=22050), 44100, 50, 50), [50], atol=0.1)
    stereo = np.repeat(tones([60]), 2, -1) * np.float32([1, 0.5])
    np.testing.assert_allclose(heard_pitch(stereo, RATE, 60, 60), [60], atol=0.1)
    with pytest.raises(InputError, match="pitches 127 to 127: the lowest is above 3600 Hz, the most at this rate"):
        heard_pitch(tones([60]), RATE, 127, 127)


@pytest.mark.parametrize(
    ("off", "accuracy", "octaves"), [(0.0, 1, 0), (0.4, 1, 0), (0.7, 0, 0), (12.0, 0, 1), (24.0, 0, 1), (-12.0, 0, 1)]
)
def test_notes_are_right_within_half_a_semitone_of_what_was_asked(tmp_path, notes, off, accuracy, octaves):
    rows, left_out = scored(tuned(tmp_path, off=off), notes)
    assert (rows["pitch accuracy, pYIN"].value, rows["octave errors"].value) == (accuracy, octaves)
    assert rows["without pitch"].value == 0
    assert rows["pitch accuracy, pYIN"].n == 8
    assert "recordings 100.0%" in rows["pitch accuracy, pYIN"].note
    if accuracy:
        assert rows["out of tune"].value == pytest.approx(100 * off, abs=6)
    else:
        assert "out of tune" not in rows
    assert left_out == [
        "pitch accuracy, classifier: name a run with --classifier, as train.py classifier --label pitch gives"
    ]


def test_silence_has_no_pitch_and_recordings_of_other_labels_are_left_out(tmp_path, notes):
    pack = dataclasses.replace(notes, classes=tuple("abcde"))
    rows, left_out = scored(tuned(tmp_path, loud=0.0), pack)
    assert (rows["without pitch"].value, rows["pitch accuracy, pYIN"].value) == (1, 0)
    assert "recordings" not in rows["pitch accuracy, pYIN"].note
    assert left_out[0].startswith("recordings beside the notes: a recording's pitch is 'a'")


def test_a_classifier_judges_the_pitches_that_it_knows(tmp_path, notes, monkeypatch):
    """One that hears the octave of the loudest frequency, rounded: right for all but what is out of tune."""

    def hear(judged, waves, model):
        power = np.abs(np.fft.rfft(waves[..., 0] * np.hanning(4000), 2**16))
        found = np.round(69 + 12 * np.log2(power.argmax(1) * RATE / 2**16 / 440)).astype(int)
        return (np.array([60, 62, 64, 65])[None] == found[:, None]).astype(float), None

    monkeypatch.setattr(card, "judge_of", lambda model, params: None)
    monkeypatch.setattr(card, "hear", hear)
    name, judge = "pitch accuracy, classifier", tuned(tmp_path, pitches=(60, 62, 64, 65))
    row = scored(tuned(tmp_path), notes, judge)[0][name]
    assert (row.value, row.n) == (1, 6)
    assert row.note == "heard as the pitch that was asked for, of the 6 notes whose pitch it knows; recordings 100.0%"
    row = scored(tuned(tmp_path, off=1.0), notes, judge)[0][name]
    assert row.value < 0.4, "60 is the first class, and what a silent row of logits is taken for"
    for labels, words in (
        (("a", "b"), "knows no pitches: train one with --label pitch"),
        (("9", "8"), "other pitches"),
    ):
        rows, left_out = scored(tuned(tmp_path), notes, judge._replace(labels=labels))
        assert name not in rows
        assert words in left_out[0]


def test_the_scorecard_of_a_run_of_notes_has_the_card(tmp_path, notes, monkeypatch):
    given, cards = tuned(tmp_path), []
    monkeypatch.setattr(quality, "opened", lambda options: quality.Given(options, given, notes, None, None))
    monkeypatch.setattr(quality, "of_generator", lambda given: card.Card("generated", "", [], []))
    monkeypatch.setattr(quality.report, "write", lambda folder: folder)
    quality.main([str(tmp_path), "--n", "4", "--json", str(tmp_path / "a.json")])
    cards = [json.loads(line) for line in (tmp_path / "a.json").read_text().splitlines()]
    assert [each["title"] for each in cards] == ["", "4 notes of 4 pitches"]
    assert cards[1]["rows"][0]["metric"] == "pitch accuracy, pYIN"
