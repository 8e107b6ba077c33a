"""Gaps in sounding recordings, filled by a model and without a network: a card of benchmarks.quality."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks import classical
from benchmarks.scorecard import Card
from benchmarks.stretches import SHOWN, Drawer, Table, Waves, by_channel, distance, heard, page
from jaxaudio.core import InputError
from jaxaudio.data.pack import Pack
from jaxaudio.data.parts import level
from jaxaudio.metrics import pairs as P
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.restore import Restorer, Stretch

GAPS = 200  # of each length, at most
GAPS_MS = (20, 50)
ACTIVE_DB, AROUND_MS = -40.0, 20  # the least level in and beside a gap, below the loudest so many ms
FRAME_MS, HOP_MS = 16, 4  # of the spectra inside a gap
SHOWN_S = 0.5  # of sound around a gap on a sheet, at most
PREDICTION = "linear prediction"


class Holes(NamedTuple):
    """Recordings with a gap in each."""

    waves: Waves
    start: list[int]
    length: int  # samples of every gap
    side: int  # samples next to a gap that what fills it may know, there in every recording

    def around(self, side: int) -> np.ndarray:
        """[n, side + length + side, channels]."""
        return np.stack([x[s - side : s + self.length + side] for x, s in zip(self.waves, self.start, strict=True)])


def holes(run: Trained, pack: Pack, split: str, n: int, seed: int, length: int) -> Holes:
    """`n` gaps in sounding recordings: the level in and beside each is above ACTIVE_DB, of the loudest of its stretch.
    Raises InputError where there is no place for so many."""
    drawer, rng = Drawer(run, pack, split, seed), np.random.default_rng(seed + 1)
    rate, found = run.model.sample_rate, []
    side = round(classical.CONTEXT_MS / 1000 * rate)
    for i in range(20 * n):
        wave, _ = drawer.draw(i % len(drawer.folders))
        places = active(wave, length, side, round(AROUND_MS / 1000 * rate))
        if len(places):
            found.append((wave, int(rng.choice(places))))
        if len(found) == n:
            break
    if len(found) < 2:
        raise InputError(
            f"{len(found)} recordings have sound with {classical.CONTEXT_MS:.0f} ms on both sides of a gap"
        )
    waves, start = zip(*found, strict=True)
    return Holes(list(waves), list(start), length, side)


def active(wave: np.ndarray, length: int, side: int, around: int) -> np.ndarray:
    """Where a gap may begin: at least `side` samples from the ends, and as loud in as beside it."""
    total = np.concatenate([[0], np.cumsum(np.mean(wave.astype(np.float64) ** 2, 1))])
    power = lambda first, count: (total[first + count] - total[first]) / count
    if len(wave) < length + 2 * side or len(wave) < around:
        return np.zeros(0, np.int64)
    least = 10 ** (ACTIVE_DB / 10) * power(np.arange(len(wave) - around + 1), around).max()
    starts = np.arange(side, len(wave) - side - length + 1)
    parts = power(starts, length), power(starts - around, around), power(starts + length, around)
    return starts[np.minimum.reduce(parts) > least]


def filled(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Gaps in sounding recordings filled by the model, by linear prediction, and by what is simpler."""
    table, rate, pictures, counts = Table(how), run.model.sample_rate, {}, []
    lengths = {ms: round(ms / 1000 * rate) for ms in GAPS_MS}
    for ms, length in lengths.items():
        if length > run.model.longest:
            table.left_out.append(f"gaps of {ms} ms: the model fills {run.model.longest / rate * 1000:.3g} ms at most")
            continue
        try:
            gaps = holes(run, pack, split, min(n, GAPS), how["seed"], length)
        except InputError as reason:
            table.left_out.append(f"gaps of {ms} ms: {reason}")
            continue
        made = {"model": inpainted(run, gaps, how["seed"]), **simply_filled(gaps, rate)}
        add_gaps(table, gaps, made, rate, f"{ms} ms")
        counts.append(f"{len(gaps.waves)} gaps of {ms} ms")
        pictures[f"filled-{ms}ms.png"] = partial(page, run, gap_sheet(gaps, made, rate))
    title = f"{' and '.join(counts) or 'no gaps'} in sounding recordings ({split}), filled"
    return Card("filled", title, table.rows, table.left_out, pictures)


def inpainted(run: Trained, gaps: Holes, seed: int) -> np.ndarray:
    """What `sample.py restore --gap` puts into the gaps: [n, length, channels]."""
    restorer, made = Restorer(run.model, run.params, seed), []
    for wave, start in zip(gaps.waves, gaps.start, strict=True):
        gap = Stretch(start, start + gaps.length, "")
        loud = level(run.model, np.abs(wave).max().item())
        made.append(heard(run, restorer.filled([wave], [gap], len(wave), loud))[gap.start : gap.end])
    return np.stack(made)


def simply_filled(gaps: Holes, rate: int) -> dict[str, np.ndarray]:
    """What every method of `classical.FILLINGS` puts into the gaps."""
    around = gaps.around(gaps.side)
    around[:, gaps.side : gaps.side + gaps.length] = 0
    fill = lambda method: by_channel(lambda x: method(x, gaps.side, gaps.length, rate), around)
    return {name: fill(method) for name, method in classical.FILLINGS.items()}


def add_gaps(table: Table, gaps: Holes, made: Mapping[str, np.ndarray], rate: int, name: str) -> None:
    """Signal-to-noise ratios and log-spectral distances inside the gaps."""
    real = gaps.around(0)
    far = {system: inside_distance(gaps, sound, rate) for system, sound in made.items()}
    near = {system: inside_ratio(real, sound) for system, sound in made.items()}
    note = (
        f"inside the gap: Hann windows of {FRAME_MS} ms whose centres lie in it; powers of at least {P.POWER_FLOOR:g}"
    )
    table.compare(f"{name}: log-spectral distance", far, PREDICTION, "dB", "lower", note)
    medians = ", ".join(f"{system} {np.median(values):.2f}" for system, values in near.items())
    note = f"inside the gap, the mean of each gap's own; medians: {medians}"
    table.compare(f"{name}: SNR", near, PREDICTION, "dB", "higher", note)


def inside_ratio(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The energy of each gap's sound over that of the error in it, in dB, within -100 to 100."""
    kept, lost = (np.sum(np.square(x, dtype=np.float64), (1, 2)) for x in (real, made.astype(np.float64) - real))
    return np.clip(10 * np.log10(np.maximum(kept, 1e-20) / np.maximum(lost, 1e-20)), -100, 100)


def inside_distance(gaps: Holes, made: np.ndarray, rate: int) -> np.ndarray:
    """The log-spectral distance of each gap: RMS over frequency, mean over the frames whose centres lie in it."""
    size, hop = (round(ms / 1000 * rate) for ms in (FRAME_MS, HOP_MS))
    real = gaps.around(size // 2)
    other = real.copy()
    other[:, size // 2 : size // 2 + gaps.length] = made
    return np.mean([distance(real[..., i], other[..., i], size, hop) for i in range(real.shape[2])], 0)


def gap_sheet(gaps: Holes, made: Mapping[str, np.ndarray], rate: int) -> dict[str, Waves]:
    """What is to be seen around the first gaps."""
    side = min(round(SHOWN_S / 2 * rate), gaps.side)
    real = gaps.around(side)[:SHOWN]
    rows = {"clean": real}
    for name, sound in {"damaged": made["zeros"], PREDICTION: made[PREDICTION], "model": made["model"]}.items():
        rows[name] = real.copy()
        rows[name][:, side : side + gaps.length] = sound[:SHOWN]
    return {name: list(sounds) for name, sounds in rows.items()}
