"""The verb play, and pitches of the verbs generate and morph: every note where, as high and as loud as it was asked."""

import numpy as np
import pytest
import soundfile

from jaxaudio.core import InputError
from jaxaudio.runtime import sheet
from jaxaudio.tasks import generate, morph, play
from tests.data.test_notes import off, on, song
from tests.toy import toy
from tests.tuned import Tuned, tuned

RATE = 8000


def made(verb, given, out, seed=3, **options):
    """The sounds by file name."""
    verb.perform(given, verb.Options(**options), seed, out)
    files = [out] if out.suffix else sorted(out.glob("*.wav"))
    return {path.stem: soundfile.read(path, dtype="float32", always_2d=True)[0] for path in files}


def pitch(wave):
    """Of a sine and its octave, as a MIDI number: where most of its power is."""
    power = np.abs(np.fft.rfft(wave[:, 0] * np.hanning(len(wave)), 2**17))
    return 69 + 12 * np.log2(power.argmax() * RATE / 2**17 / 440)


def test_a_song_has_every_note_at_its_time_at_its_pitch_and_as_loud_as_it_was_struck(tmp_path):
    file = song(tmp_path / "a.mid", [on(0, 60, 127), off(240, 60), on(960, 64, 32), off(240, 64)])
    wave = made(play, tuned(tmp_path), tmp_path / "a.wav", files=(file,))["a"]
    assert len(wave) == 8000 * 1.25 + 8000 * 0.25 + 2000, "the release is at most half of what the model makes"
    first, second = wave[:4000], wave[10000:14000]
    assert (pitch(first), pitch(second)) == (pytest.approx(60, abs=0.05), pytest.approx(64, abs=0.05))
    assert not wave[4000:10000].any()
    assert np.abs(first).max() == pytest.approx(0.5, abs=1e-3)
    assert np.abs(second).max() == pytest.approx(0.5 * 32 / 127, abs=1e-3)
    assert np.abs(first[-20:]).max() < 0.01


def test_a_note_comes_and_goes_and_lasts_as_long_as_it_is_held_or_as_the_model_has_sound():
    flat = np.ones((4000, 1), np.float32)
    held = play.enveloped(flat, play.Note(0, 0.1, 60, 127), RATE)
    assert len(held) == 800 + 2000
    np.testing.assert_allclose(held[:80, 0], np.linspace(0, 1, 80), atol=1e-6)
    np.testing.assert_array_equal(held[80:800], 1)
    np.testing.assert_allclose(held[800:, 0], np.linspace(1, 0, 2000), atol=1e-6)
    assert len(play.enveloped(flat, play.Note(0, 9.0, 60, 127), RATE)) == 4000
    assert len(play.enveloped(np.ones((16000, 1), np.float32), play.Note(0, 0.0, 60, 127), RATE)) == 0.3 * RATE
    assert np.abs(play.enveloped(flat * 0.01, play.Note(0, 0.1, 60, 64), RATE)).max() == pytest.approx(64 / 127)
    assert not play.enveloped(flat * 0, play.Note(0, 0.1, 60, 64), RATE).any()


def test_the_instrument_moves_from_draw_to_draw_in_time_and_keeps_its_length_on_the_way():
    model = tuned(None).model
    drawn = np.asarray(model.latents(play.jax.random.key(5), 4))
    found = play.instruments(model, [0.0, 0.5, 1.0, 2.0, 2.0], 5)
    np.testing.assert_allclose(found[[0, 2, 3]], drawn[:3], atol=1e-6)
    np.testing.assert_array_equal(found[3], found[4])
    a, b = drawn[:2]
    half = np.sin(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 2)
    whole = np.sin(2 * np.arcsin(half))
    np.testing.assert_allclose(found[1], half / whole * (a + b), atol=1e-5)
    longer = play.instruments(model, [0.0, 0.5, 30.0], 5)
    np.testing.assert_array_equal(longer[:2], found[:2], err_msg="what comes later has no say")


def test_two_instruments_that_are_alike_stay_as_they_are():
    class Alike(Tuned):
        def latents(self, key, n):
            return np.tile(np.float32([3, 4]), (n, 1)) * np.float32([[1], [2], [2]])[:n]

    np.testing.assert_allclose(play.instruments(Alike(), [0.25, 1.5], 0), [[3.75, 5.0], [6, 8]], rtol=1e-6)


def test_notes_that_overlap_are_added_and_more_than_go_through_the_program_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "NOTES", 2)
    chord = [on(0, each) for each in (60, 61, 62)] + [off(480, 60), off(0, 61), off(0, 62)]
    given = tuned(tmp_path)
    tune = play.notes.read(song(tmp_path / "a.mid", chord)).notes
    player = generate.Player(given)
    together = play.performed(player, tune, 2.0, 1)
    alone = [play.performed(player, [note], 2.0, 1) for note in tune]
    total = sum(alone)
    np.testing.assert_allclose(together, total * 0.5 / np.abs(total).max(), atol=1e-6)
    assert player.render._cache_size() == 1


def test_pitches_outside_move_by_octaves_and_what_is_left_out_is_said(tmp_path, capsys):
    track = [on(0, 36), off(240, 36), on(0, 60), off(240, 60), on(0, 65), off(1, 65), on(0, 40, channel=9)]
    file = song(tmp_path / "a.mid", track)
    wave = made(play, tuned(tmp_path), tmp_path / "a.wav", files=(file,))["a"]
    assert pitch(wave[:2000]) == pytest.approx(60, abs=0.3)
    said = capsys.readouterr().out
    for words in (
        "0.75 s, 2 notes, 1 of them moved by octaves to the 60-62, 64 of this run",
        "1 left out, no octave of 65 is among the 60-62, 64 of this run, 1 of percussion left out -> a.wav",
    ):
        assert words in said
    with pytest.raises(InputError, match="no octave of its pitches 65, 67 is among the 60-62, 64 of this run"):
        made(play, tuned(tmp_path), tmp_path / "b.wav", files=(song(tmp_path / "b.mid", [on(0, 65), on(0, 67)]),))


def test_songs_are_played_one_by_one_and_never_over_what_is_there(tmp_path, capsys):
    given, track = tuned(tmp_path), [on(0, 60), off(240, 60)]
    (tmp_path / "in").mkdir()
    for name in ("a.mid", "b.MIDI"):
        song(tmp_path / "in" / name, track)
    (tmp_path / "in" / "c.mid").write_bytes(b"MThd")
    found = made(play, given, tmp_path / "out", files=(tmp_path / "in",))
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], found["b"])
    said = capsys.readouterr()
    assert "c.mid" in said.out
    assert "left out: damaged, empty, or no MIDI file" in said.out
    assert "1 of 3 files were left out" in said.err
    with pytest.raises(InputError, match="a.wav .* is there already: give another --out, or --force"):
        made(play, given, tmp_path / "out", files=(tmp_path / "in",))
    again = made(play, given, tmp_path / "out", seed=4, files=(tmp_path / "in",), force=True)
    assert not np.array_equal(again["a"], found["a"]), "another seed plays another instrument"
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"instrument is {seconds:g}: it is 0.1 to 3600 s"):
            made(play, given, tmp_path / "new", files=(tmp_path / "in",), instrument=seconds)
    with pytest.raises(InputError, match="no MIDI file given"):
        made(play, given, tmp_path / "new", files=(tmp_path / "out",))
    assert not (tmp_path / "new").exists()


def test_a_model_whose_sound_is_not_finite_is_told_of_its_remedy(tmp_path):
    file, given = song(tmp_path / "a.mid", [on(0, 60), off(9, 60)]), tuned(tmp_path, loud=float("nan"))
    for verb, options in ((play, {"files": (file,)}), (generate, {"pitch": "60"})):
        with pytest.raises(InputError, match="is not finite: name an earlier --checkpoint"):
            made(verb, given, tmp_path / "out", **options)


def test_stereo_songs_keep_their_channels(tmp_path):
    file = song(tmp_path / "a.mid", [on(0, 60), off(240, 60)])
    assert made(play, tuned(tmp_path, channels=2), tmp_path / "a.wav", files=(file,))["a"].shape == (4000, 2)


def test_pitches_that_are_asked_for_are_played_by_one_instrument_or_by_each_of_several(tmp_path, monkeypatch):
    pages = []

    def draw(waves, rate, titles, path, columns):
        pages.append((titles, columns))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(generate, "draw", draw)
    one = made(generate, tuned(tmp_path), tmp_path / "one", pitch="64,60-61")
    assert list(one) == ["000-64", "001-60", "002-61"]
    for name, wave in one.items():
        assert wave.shape == (4000, 1)
        assert pitch(wave) == pytest.approx(int(name[-2:]), abs=0.05)
    two = made(generate, tuned(tmp_path), tmp_path / "two", pitch="64,60-61", n=2, seconds=0.25)
    assert list(two) == [f"{i:03d}-{i // 3}-{p}" for i, p in enumerate((64, 60, 61) * 2)]
    for (name, wave), short in zip(one.items(), list(two.values())[:3], strict=True):
        np.testing.assert_array_equal(wave[:2000], short, err_msg=f"{name}: the first instrument is the same")

    assert not np.array_equal(two["001-0-60"], two["004-1-60"]), "the second is another"
    assert pages == [(["64", "60", "61"], None), (["0-64", "0-60", "0-61", "1-64", "1-60", "1-61"], 3)]


def test_a_sheet_has_as_many_columns_as_are_asked_for(tmp_path):
    waves = np.random.default_rng(0).uniform(-1, 1, (6, 2000, 1)).astype(np.float32)
    square, wide = (sheet.draw(waves, RATE, [""] * 6, columns=columns).shape for columns in (None, 6))
    assert wide[1] / wide[0] > 2 * square[1] / square[0]


def test_a_path_between_two_instruments_has_the_pitch_asked_for(tmp_path):
    path = made(morph, tuned(tmp_path), tmp_path / "out", pitch="62", steps=3)
    assert [pitch(wave) for wave in path.values()] == pytest.approx([62] * 3, abs=0.05)
    first = made(morph, tuned(tmp_path), tmp_path / "first", steps=2)
    assert [pitch(wave) for wave in first.values()] == pytest.approx([60] * 2, abs=0.05)


def test_a_pitch_that_can_not_be_played_is_refused(tmp_path):
    given = tuned(tmp_path)
    for verb, options, words in (
        (generate, {"pitch": "60,63"}, "pitch is '60,63': this run has learned 60-62, 64, without 63"),
        (generate, {"pitch": "high"}, "give MIDI numbers, as 60,64,67 or 48-59"),
        (generate, {"pitch": "60", "label": "60"}, "label is '60' and pitch '60': give one of them"),
        (generate, {"pitch": "60", "seconds": 0.6}, "seconds is 0.6: this model makes notes of 0.5 s at most"),
        (generate, {"pitch": "60-62", "n": 0}, "n is 0"),
        (generate, {"pitch": "60", "temperature": 0.5}, "temperature is 0.5"),
        (morph, {"pitch": "60,61"}, "pitch is '60,61': all sounds of a path have one"),
        (morph, {"pitch": "59"}, "without 59"),
        (morph, {"pitch": "60", "label": "60"}, "give one of them"),
        (morph, {"pitch": "60", "files": (tmp_path, tmp_path)}, "can't encode recordings"),
    ):
        with pytest.raises(InputError, match=words):
            made(verb, given, tmp_path / "out", **options)
    with pytest.raises(InputError, match="has learned no pitches: leave --pitch away"):
        made(generate, toy(tmp_path), tmp_path / "out", pitch="60")
    assert not (tmp_path / "out").exists()
