"""A song from a MIDI file, by instruments that change into one another."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxaudio.core import InputError, Plays
from jaxaudio.data import audio, notes
from jaxaudio.data.files import found, one_by_one
from jaxaudio.data.notes import Note
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import Player

NEEDS = Plays

ATTACK, RELEASE = 0.01, 0.3  # seconds, over which a note comes and, once it is let go, goes
PEAK = 0.5  # of a song
LEAST, MOST = 0.1, 3600.0  # seconds from one instrument to the next


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb play."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # MIDI files, or folders of them
    instrument: float = 2.0  # seconds from one instrument, which is drawn, to the next; in between it is on the way
    force: bool = False  # overwrite files that are there already


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per song; `out` may be the file of the only one. As GANSynth has it, every note has a peak of its
    own, here by its velocity, and the song one of 0.5. Pitches that the model has not learned move by octaves."""
    if not LEAST <= options.instrument <= MOST:
        raise InputError(f"instrument is {options.instrument:g}: it is {LEAST:g} to {MOST:.0f} s")

    player = Player(trained)

    def play(path: Path, target: Path) -> str:
        song = notes.read(path)
        tune, words = learned(song, trained.model.pitches)
        wave = performed(player, tune, options.instrument, seed)
        audio.write(target, wave, trained.model.sample_rate)
        return f"{', '.join([f'{len(wave) / trained.model.sample_rate:.2f} s', *words])} -> {target.name}"

    files = found(options.files, notes.SUFFIXES, "MIDI file")
    one_by_one(files, out, ".wav", play, audio.WRITTEN.keys(), options.force)
    return out


def learned(song: notes.Song, pitches: Sequence[int]) -> tuple[list[Note], list[str]]:
    """The notes as a model of these pitches can play them, and what is said of that. Raises `audio.Unusable` where it
    can play none."""
    tune = [note._replace(pitch=notes.moved(note.pitch, pitches)) for note in song.notes]
    lost = sorted({note.pitch for note, new in zip(song.notes, tune, strict=True) if new.pitch is None})
    moved = sum(note.pitch != new.pitch is not None for note, new in zip(song.notes, tune, strict=True))
    tune = [note for note in tune if note.pitch is not None]
    own = f"the {notes.ranges(pitches)} of this run"
    if not tune:
        raise audio.Unusable(f"no octave of its pitches {notes.ranges(lost)} is among {own}")
    words = [f"{len(tune)} notes"]
    if moved:
        words.append(f"{moved} of them moved by octaves to {own}")
    if lost:
        words.append(f"{len(song.notes) - len(tune)} left out, no octave of {notes.ranges(lost)} is among {own}")
    if song.drums:
        words.append(f"{song.drums} of percussion left out")
    return tune, words


def performed(player: Player, tune: Sequence[Note], seconds: float, seed: int) -> np.ndarray:
    """The song [time, channels]. Raises `audio.Unusable` where the model makes what is not finite."""
    model, rate = player.model, player.model.sample_rate
    wave = np.zeros((round(max(note.end for note in tune) * rate) + model.segment, model.channels), np.float32)
    latent = instruments(model, [note.start / seconds for note in tune], seed)
    last = 0
    for note, sound in zip(tune, player(latent, [note.pitch for note in tune]), strict=True):
        shaped = enveloped(sound, note, rate)
        start = round(note.start * rate)
        wave[start : start + len(shaped)] += shaped
        last = max(last, start + len(shaped))
    return wave[:last] * np.float32(PEAK / max(float(np.abs(wave).max()), 1e-9))


def instruments(model: Plays, places: Sequence[float], seed: int) -> np.ndarray:
    """The latent vectors [n, latent] at places along a path that visits draw i at place i. On the way from one to the
    next they turn and change their length evenly, as draws of many dimensions are all about equally long."""
    drawn = np.asarray(model.latents(jax.random.key(seed), math.floor(max(places)) + 2), np.float64)
    before = np.floor(places).astype(int)
    share = (np.asarray(places) - before)[:, None]
    a, b = drawn[before], drawn[before + 1]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    angle = np.arccos(np.clip((a * b).sum(1) / np.maximum(lengths, 1e-30), -1, 1))[:, None]
    turn = lambda part: np.where(np.sin(angle) < 1e-6, part, np.sin(part * angle) / np.maximum(np.sin(angle), 1e-6))
    return (turn(1 - share) * a + turn(share) * b).astype(np.float32)


def enveloped(sound: np.ndarray, note: Note, rate: int) -> np.ndarray:
    """As long as the note is held, and the time in which it goes; within the sound [time, channels] that there is."""
    release = min(round(RELEASE * rate), len(sound) // 2)
    held = min(round((note.end - note.start) * rate), len(sound) - release)
    attack = max(1, min(round(ATTACK * rate), held + release))
    shape = np.ones(held + release, np.float32)
    shape[held:] = np.linspace(1, 0, release)
    shape[:attack] *= np.linspace(0, 1, attack)
    shaped = sound[: held + release] * shape[:, None]
    return shaped * np.float32(note.velocity / notes.HIGHEST / max(float(np.abs(shaped).max()), 1e-9))
