"""Pitches in words, and notes of MIDI files: as they are written, and whatever is broken in them."""

import itertools
import random

import mido
import pytest

from jaxaudio.core import InputError
from jaxaudio.data import notes
from jaxaudio.data.audio import Unusable


def song(path, *tracks, kind=1, ticks=480):
    """A MIDI file of tracks of (message, ticks behind the one before, fields)."""
    file = mido.MidiFile(type=kind, ticks_per_beat=ticks)
    for track in tracks:
        made = ((mido.MetaMessage if name == "set_tempo" else mido.Message, name, *rest) for name, *rest in track)
        file.tracks.append(mido.MidiTrack(make(name, time=time, **fields) for make, name, time, fields in made))
    file.save(path)
    return path


def on(time, pitch, velocity=100, channel=0):
    return ("note_on", time, {"note": pitch, "velocity": velocity, "channel": channel})


def off(time, pitch, channel=0):
    return ("note_off", time, {"note": pitch, "channel": channel})


def test_notes_of_all_tracks_come_in_seconds_by_the_tempo_of_their_time(tmp_path):
    tempo = [("set_tempo", 0, {"tempo": 1_000_000}), ("set_tempo", 480, {"tempo": 250_000})]
    melody = [on(0, 60, 90), off(240, 60), on(240, 64), on(480, 64, 0)]
    read = notes.read(song(tmp_path / "a.mid", tempo, melody, [on(480, 48, channel=3), off(960, 48, channel=3)]))
    played = (notes.Note(0.0, 0.5, 60, 90), notes.Note(1.0, 1.25, 64, 100), notes.Note(1.0, 1.5, 48, 100))
    assert read == notes.Song(played, 0)


def test_a_pitch_struck_again_ends_first_come_first_and_channels_are_apart(tmp_path):
    again = [on(0, 60, 50), on(480, 60, 70), off(480, 60), off(480, 60), off(480, 60)]
    other = [on(240, 60, 90, channel=1), off(1680, 60, channel=1)]
    read = notes.read(song(tmp_path / "a.mid", again, other))
    assert read.notes == (notes.Note(0, 1, 60, 50), notes.Note(0.25, 2, 60, 90), notes.Note(0.5, 1.5, 60, 70))


def test_a_note_that_nothing_ends_is_held_and_percussion_is_counted(tmp_path):
    track = [on(0, 60), on(0, 36, channel=9), off(480, 36, channel=9), on(0, 38, channel=9), on(480, 62), off(480, 62)]
    read = notes.read(song(tmp_path / "a.mid", track))
    assert read == notes.Song((notes.Note(0, 1.5, 60, 100), notes.Note(1, 1.5, 62, 100)), 2)


BAD = {
    "nothing": (b"", "damaged, empty, or no MIDI file"),
    "another format": (b"RIFF\x24\x00\x00\x00WAVEfmt ", "damaged, or no MIDI file"),
    "text": (b"MThd, a text that goes on for a while", "damaged, empty, or no MIDI file"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_midi_file_is_told(tmp_path, fault):
    content, words = BAD[fault]
    (tmp_path / "a.mid").write_bytes(content)
    with pytest.raises(Unusable, match=words):
        notes.read(tmp_path / "a.mid")


def test_what_can_not_be_played_is_told_with_its_remedy(tmp_path):
    faults = [
        ([on(0, 60, channel=9)], {}, "it has no notes but 1 of percussion, which have no pitch"),
        ([], {}, "it has no notes$"),
        ([off(10, 60)], {}, "it has no notes$"),
        ([on(0, 60)], {"kind": 2}, r"songs of their own \(a MIDI file of type 2\): save each"),
        ([on(0, 60)], {"ticks": -7208}, "frames of film: save it with ticks"),
        ([on(0, 60), off(2**27, 60)], {}, "it is longer than 3600 s: cut it"),
    ]
    for i, (track, fields, words) in enumerate(faults):
        with pytest.raises(Unusable, match=words):
            notes.read(song(tmp_path / f"{i}.mid", track, **fields))
    with pytest.raises(Unusable, match="No such file"):
        notes.read(tmp_path / "none.mid")
    with pytest.raises(Unusable, match="not a regular file"):
        notes.read(tmp_path)


def test_more_notes_than_anyone_plays_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(notes, "MOST_NOTES", 3)
    track = list(itertools.chain.from_iterable((on(0, 60), off(10, 60)) for _ in range(4)))
    assert len(notes.read(song(tmp_path / "a.mid", track[:6])).notes) == 3
    with pytest.raises(Unusable, match="more than 3 notes: cut it"):
        notes.read(song(tmp_path / "b.mid", track))


def test_a_file_that_is_cut_off_or_damaged_anywhere_is_read_or_refused_and_nothing_else(tmp_path):
    tempo = [("set_tempo", 0, {"tempo": 1_000_000})]
    whole = song(tmp_path / "a.mid", tempo, [on(0, 60), off(240, 60), on(10, 64), off(480, 64)]).read_bytes()
    whole += b"MTrk\x00\x00\x00\x0f\x00\xff\x59\x02\x00\x00\x00\xf0\x03\x01\x02\xf7\x00\xff\x2f\x00"
    draw, path = random.Random(0), tmp_path / "b.mid"
    cut = [whole[:i] for i in range(len(whole))]
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        cut.append(bytes(damaged))
    refused = 0
    for content in cut:
        path.write_bytes(content)
        try:
            notes.read(path)
        except Unusable:
            refused += 1
    assert len(whole) < refused < len(cut)


def test_a_pitch_that_is_not_known_moves_by_octaves_to_the_nearest_that_is():
    known = (48, 49, 60, 61, 72)
    cases = {60: 60, 36: 48, 24: 48, 96: 72, 85: 61, 73: 61, 13: 49, 84: 72, 0: 48, 55: None}
    assert {pitch: notes.moved(pitch, known) for pitch in cases} == cases


def test_pitches_are_asked_for_by_number_and_range():
    known = (48, 49, 50, 52)
    assert notes.chosen("52,48", known) == (52, 48)
    assert notes.chosen(" 48 - 50 , 52, 52 ", known) == (48, 49, 50, 52, 52)
    for words, reason in {
        "48,x": "pitch is '48,x': give MIDI numbers, as 60,64,67 or 48-59",
        "": "give MIDI numbers",
        "48,": "give MIDI numbers",
        "-3": "give MIDI numbers",
        "50-48": "the lower end of a range comes first",
        "48-300": "pitches are 0 to 127",
        "9" * 5000: "give MIDI numbers",
        "48-52": "this run has learned 48-50, 52, without 51",
        "60": "this run has learned 48-50, 52, without 60",
    }.items():
        with pytest.raises(InputError, match=reason):
            notes.chosen(words, known)


def test_classes_are_pitches_or_the_first_that_is_none_is_named():
    assert notes.pitches_of(("9", "60", "127")) == (9, 60, 127)
    for classes, reason in {
        ("60", "bass"): "a recording's pitch is 'bass': it is a MIDI number, 0 to 127; give a column pitch",
        ("128",): "'128'",
        ("60.5",): "'60.5'",
        ("-3",): "'-3'",
        ("²",): "'²'",
        ("060", "60"): "the pitch 60 is written in two ways",
    }.items():
        with pytest.raises(InputError, match=reason):
            notes.pitches_of(classes)
