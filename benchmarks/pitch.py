"""The card of models of notes: whether each has the pitch that was asked for, as a tracker and a classifier hear it."""

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.recordings import BATCH, clips_of, in_turn, sounds_of, together
from benchmarks.scorecard import Card, Row
from jaxaudio.core import InputError
from jaxaudio.data.audio import shown
from jaxaudio.data.notes import pitches_of
from jaxaudio.data.pack import Pack
from jaxaudio.metrics.bootstrap import mean_interval
from jaxaudio.metrics.pitch import heard_pitch
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.classify import hear, judge_of

MOST = 200  # notes that are listened to: the tracker takes about as long as they sound
NEAR = 0.5  # semitones, within which a pitch is right

Hearing = Callable[[np.ndarray], np.ndarray]  # sounds -> their pitches, NaN where none is heard


def of_pitches(
    run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int], judge: Trained | None, seed: int
) -> Card:
    """Notes of all pitches in turn; recordings beside them tell how far the listeners are to be believed."""
    n, pitches = min(n, MOST), np.array(run.model.pitches)
    classes = np.arange(n) % len(pitches)
    made, asked = sounds_of(run, n, classes, seed), pitches[classes]
    rows, left_out, real, played = [], [], None, None
    try:
        taken = together(in_turn(clips_of(run, pack, split), n))
        real, played = taken.wave, np.array(pitches_of(pack.classes), np.int64)[taken.label]
    except (InputError, IndexError) as reason:
        left_out.append(f"recordings beside the notes: {reason}")
    follow = lambda waves: heard_pitch(waves, run.model.sample_rate, int(pitches.min()), int(pitches.max()))
    rows += tracked_rows(follow, made, asked, real, played, how)
    if judge is None:
        left_out.append(
            "pitch accuracy, classifier: name a run with --classifier, as train.py classifier --label pitch gives"
        )
    else:
        rows += judged_rows(judge, made, asked, real, played, how, left_out)
    return Card("pitched", f"{n} notes of {len(pitches)} pitches", rows, left_out)


def tracked_rows(
    follow: Hearing, made: np.ndarray, asked: np.ndarray, real: np.ndarray | None, played: np.ndarray | None, how
) -> list[Row]:
    """What pYIN hears."""
    off = follow(made) - asked
    right, octaves = near(off), near((off + 6) % 12 - 6) & ~near(off)
    note = "heard within half a semitone of what was asked for, by pYIN"
    if real is not None:
        note += f"; recordings {near(follow(real) - played).mean():.1%}"
    rows = [Row("pitch accuracy, pYIN", right.mean(), *bounds(right, how), len(off), "", "higher", note)]
    rows.append(
        Row("octave errors", octaves.mean(), *bounds(octaves, how), len(off), "", "lower", "right but for octaves")
    )
    mute = np.isnan(off)
    rows.append(Row("without pitch", mute.mean(), *bounds(mute, how), len(off), "", "lower", "pYIN hears none"))
    if right.sum() > 1:
        cents = 100 * np.abs(off[right])
        note = "mean distance of those that are right"
        rows.append(Row("out of tune", cents.mean(), *mean_interval(cents, **how), len(cents), "cents", "lower", note))
    return rows


def near(off: np.ndarray) -> np.ndarray:
    """Whether a pitch is right that is so far off, in semitones; none is wrong."""
    return np.abs(np.nan_to_num(off, nan=np.inf)) <= NEAR


def bounds(right: np.ndarray, how: Mapping[str, int]) -> tuple[float, float]:
    """Of a share."""
    return mean_interval(right.astype(np.float64), **how)


def judged_rows(
    judge: Trained,
    made: np.ndarray,
    asked: np.ndarray,
    real: np.ndarray | None,
    played: np.ndarray | None,
    how,
    left_out,
) -> list[Row]:
    """What a classifier of pitches hears, of those that it knows."""
    name, judged = "pitch accuracy, classifier", judge_of(judge.model, judge.params)
    try:
        known = np.array(pitches_of(judge.labels))
    except InputError:
        left_out.append(f"{name}: {shown(judge.folder)} knows no pitches: train one with --label pitch")
        return []

    def right(waves: np.ndarray, pitches: np.ndarray) -> np.ndarray:
        own = np.isin(pitches, known)
        waves, pitches = waves[own], pitches[own]
        parts = [hear(judged, waves[i : i + BATCH], judge.model)[0] for i in range(0, len(waves), BATCH)]
        return known[np.concatenate(parts).argmax(1)] == pitches if parts else np.zeros(0, bool)

    found = right(made, asked)
    if len(found) < 2:
        left_out.append(f"{name}: {shown(judge.folder)} knows other pitches")
        return []
    note = "heard as the pitch that was asked for"
    if len(found) < len(made):
        note += f", of the {len(found)} notes whose pitch it knows"
    if real is not None and len(others := right(real, played)):
        note += f"; recordings {others.mean():.1%}"
    return [Row(name, found.mean(), *bounds(found, how), len(found), "", "higher", note)]
