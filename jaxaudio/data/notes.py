"""Notes and their pitches, which are MIDI numbers: 60 is middle C, 69 is A at 440 Hz. And what a MIDI file plays."""

import re
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import mido

from jaxaudio.core import InputError
from jaxaudio.data.audio import Unusable, shown
from jaxaudio.data.files import regular

HIGHEST = 127  # pitch
DRUMS = 9  # the channel whose numbers are no pitches
RANGE = re.compile(r" *(?P<first>[0-9]{1,3}) *(- *(?P<last>[0-9]{1,3}) *)?")  # of pitches, or one
MOST_SECONDS, MOST_NOTES = 3600.0, 100_000  # of a song
SUFFIXES = frozenset((".mid", ".midi", ".kar", ".smf"))
# What mido raises for damaged files; its KeySignatureError is none of the usual ones.
DAMAGED = (
    *(EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError, struct.error),
    mido.KeySignatureError,
)


class Note(NamedTuple):
    """A note of a song."""

    start: float  # seconds
    end: float  # seconds, when it is let go
    pitch: int
    velocity: int  # 1 to 127: how hard it is struck


class Song(NamedTuple):
    """What a MIDI file plays, in the order of starts."""

    notes: tuple[Note, ...]
    drums: int  # notes of percussion that were left out


def read(path: Path) -> Song:
    """The notes of all tracks and channels together; pedals and what else changes a sound are not heard.

    A note that no event ends is held until the end of the file; where a pitch is struck again before it is let go, the
    first stroke ends first. Raises `Unusable`.
    """
    regular(path)
    try:
        file = mido.MidiFile(path, clip=True)
        if file.type == 2:
            raise Unusable("its tracks are songs of their own (a MIDI file of type 2): save each as a file")
        if file.ticks_per_beat <= 0:
            raise Unusable("it counts time in frames of film: save it with ticks per quarter note")
        song = heard(file)
    except OSError as problem:
        raise Unusable(problem.strerror or "damaged, or no MIDI file") from problem
    except DAMAGED as problem:
        raise Unusable("damaged, empty, or no MIDI file") from problem
    if not song.notes:
        only = f" but {song.drums} of percussion, which have no pitch" if song.drums else ""
        raise Unusable(f"it has no notes{only}")
    return song


def heard(messages: Iterable[mido.Message]) -> Song:
    """Of the events of a song, each so many seconds behind the one before."""
    now, drums, notes, held = 0.0, 0, [], {}

    def let_go(stroke: tuple[float, int], pitch: int) -> None:
        notes.append(Note(stroke[0], now, pitch, stroke[1]))

    for message in messages:
        now += message.time
        if now > MOST_SECONDS:
            raise Unusable(f"it is longer than {MOST_SECONDS:.0f} s: cut it")
        if message.type not in ("note_on", "note_off"):
            continue
        strikes = message.type == "note_on" and message.velocity > 0
        if message.channel == DRUMS:
            drums += strikes
            continue
        strokes = held.setdefault((message.channel, message.note), deque())
        if strikes:
            strokes.append((now, message.velocity))
        elif strokes:
            let_go(strokes.popleft(), message.note)
        if len(notes) > MOST_NOTES:
            raise Unusable(f"it has more than {MOST_NOTES} notes: cut it")
    for (_, pitch), strokes in held.items():
        for stroke in strokes:
            let_go(stroke, pitch)
    return Song(tuple(sorted(notes)), drums)


def moved(pitch: int, pitches: Sequence[int]) -> int | None:
    """The pitch or, where it is not among `pitches`, the nearest of these that lies octaves from it; None: there is
    none."""
    octaves = [each for each in pitches if (each - pitch) % 12 == 0]
    return min(octaves, key=lambda each: (abs(each - pitch), each), default=None)


def pitches_of(classes: Sequence[str]) -> tuple[int, ...]:
    """The MIDI numbers that classes are. Raises `InputError` where one is none."""
    for name in classes:
        if not re.fullmatch("[0-9]{1,3}", name) or int(name) > HIGHEST:
            remedy = "give a column pitch in metadata.csv, or name the column that holds it with --label"
            raise InputError(f"a recording's pitch is {shown(name)!r}: it is a MIDI number, 0 to {HIGHEST}; {remedy}")
    found = tuple(map(int, classes))
    if len(set(found)) < len(found):
        twice = next(each for each in found if found.count(each) > 1)
        raise InputError(f"the pitch {twice} is written in two ways: write it without leading zeros everywhere")
    return found


def chosen(words: str, pitches: Sequence[int]) -> tuple[int, ...]:
    """The pitches asked for, as in 60,64,67 or 48-59. Raises `InputError` where one is none of `pitches`."""
    asked = []
    for word in words.split(","):
        found = RANGE.fullmatch(word)
        if not found:
            raise InputError(f"pitch is {words!r}: give MIDI numbers, as 60,64,67 or 48-59")
        first, last = int(found["first"]), int(found["last"] or found["first"])
        if not 0 <= first <= last <= HIGHEST:
            raise InputError(f"pitch is {words!r}: pitches are 0 to {HIGHEST}, the lower end of a range comes first")
        asked += range(first, last + 1)
    if unknown := [each for each in asked if each not in pitches]:
        raise InputError(f"pitch is {words!r}: this run has learned {ranges(pitches)}, without {unknown[0]}")
    return tuple(asked)


def ranges(pitches: Iterable[int]) -> str:
    """In words, as in 48-59, 61."""
    runs: list[list[int]] = []
    for pitch in sorted(set(pitches)):
        if runs and pitch == runs[-1][1] + 1:
            runs[-1][1] = pitch
        else:
            runs.append([pitch, pitch])
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in runs)
