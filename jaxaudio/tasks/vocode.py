"""The sound of features, such as mels: files that encode wrote, or another program."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxaudio.core import InputError, Params, Vocodes
from jaxaudio.data import audio
from jaxaudio.data.files import found, one_by_one
from jaxaudio.data.frames import opened, pieces, wanted_by
from jaxaudio.data.parts import FADE, Head, Recorder, finite, page, surrounded, through
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import drawing

NEEDS = Vocodes

PART_SECONDS = 20.0  # of a recording whose features are taken at once
AROUND_SECONDS = 0.25  # of what lies around them: half of the longest window that a spectrogram may have
BLOCK_SECONDS = 0.25  # of sound that is made at once: what a sound ends within is made in vain
OVERLAP_SECONDS = 0.025  # of two stretches; in its first half the network that starts afresh is not heard
MOST_FOLD = 60.0  # seconds
AROUND_FEW = 8  # times as long as what a model sees around it a block is at least: the work for that is done again
ROWS, ROWS_SECONDS = 64, 600.0  # stretches that are made side by side, and how much sound they are at most
SHOWN = 16  # sounds on a sheet
UNITS = {"ln": 1.0, "log10": np.log(10), "db": np.log(10) / 20}  # of magnitudes, in natural logarithms
UNDER = 0.1  # of the range below 0 that features may go below the faintest: what a network predicts may overshoot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb vocode."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # .npy files of float [frames, bands], or folders of them
    transposed: bool = False  # files hold [bands, frames] or [1, bands, frames], as of HiFi-GAN and others
    log: Literal["own", "ln", "log10", "db"] = "own"  # of which the mels are; own: as encode writes them
    power: bool = False  # of ln and log10: they are those of powers, not of magnitudes
    temperature: float | None = None  # of models that draw sample by sample; 0: always the most likely one
    top_p: float | None = None  # of the same: only the most likely levels, which together have this probability
    fold: float | None = None  # seconds: an approximation, stretches of that are made side by side and cross-faded


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per file of features, and a sheet of the first few."""
    model = drawing(trained, options.temperature, options.top_p).model
    if options.power and options.log not in ("ln", "log10"):
        raise InputError(f"power is of mels whose log is ln or log10, and log is {options.log}: leave --power away")
    vocoder, shown = Vocoder(model, model.prepared(trained.params), seed, options.fold), []
    wanted, unit = wanted_by(model), Unit(model, options)

    def vocode(path: Path, target: Path) -> str:
        frames = opened(path, wanted, options.transposed)
        unit.check(frames)
        length, head = len(frames) * model.hop, Head(model.sample_rate)
        vocoder.write(target, head.seen(vocoder.sound(map(unit.own, pieces(frames)), length, 1.0)), length)
        if len(shown) < SHOWN:
            shown.append((target.name, head))
        return f"{len(frames)} frames, {length / model.sample_rate:.2f} s -> {target.name}"

    one_by_one(found(options.files, {".npy"}, "file of features"), out, ".wav", vocode)
    page(out / "sheet.png", shown)
    return out


class Unit:
    """In which numbers the features of files are, and what the model's own are for these."""

    def __init__(self, model: Vocodes, options: Options):
        self.model, self.log = model, options.log
        self.scale = None if self.log == "own" else UNITS[self.log] / (2 if options.power else 1)

    def own(self, frames: np.ndarray) -> np.ndarray:
        """The model's own [some, bands]."""
        if self.scale is None:
            return frames
        frames = np.asarray(self.model.from_log(jnp.asarray(np.float32(self.scale) * frames)[None]))[0]
        return np.maximum(frames, np.float32(self.model.faintest))

    def check(self, frames: np.ndarray) -> None:
        """Raises `audio.Unusable` where these can't be the model's own, and are said to be."""
        least, most = self.model.faintest, max(abs(self.model.faintest), 1.0)
        if self.scale is not None or np.isinf(least):
            return
        found = min(float(piece.min()) for piece in pieces(frames))
        if found < least - UNDER * most:
            raise audio.Unusable(
                f"its numbers go down to {found:.4g}, this run's features to {least:.4g}: tell what they are with --log"
            )


class Vocoder(Recorder):
    """A model that vocodes and its parameters, for recordings and features of any length in bounded memory.

    Sound is made in short blocks, each beginning with what the model knew at the end of the one before.
    Beyond the ends of features are their first and their last frame. With `fold` it is an approximation: stretches of
    so many seconds are made side by side, each without knowing what was before.
    """

    def __init__(self, model: Vocodes, params: Params, seed: int, fold: float | None = None):
        super().__init__(model)
        self.take, self.program = jax.jit(model.features), jax.jit(model.vocode)
        self.around = self.frames_in(AROUND_SECONDS)
        self.block = max(self.frames_in(BLOCK_SECONDS), AROUND_FEW * model.reach)
        self.most = max(self.frames_in(PART_SECONDS), 4 * (2 * self.around + FADE))
        self.overlap = self.frames_in(OVERLAP_SECONDS)
        self.step = None if fold is None else self.folded(fold)
        self.device = jax.devices()[0]
        self.params, self.key = jax.device_put(params, self.device), jax.random.key(seed)

    def of(self, params: Params, key: jax.Array) -> "Vocoder":
        """The same compiled programs with other parameters."""
        other = copy.copy(self)
        other.params, other.key = jax.device_put((params, key), self.device)
        return other

    def frames_in(self, seconds: float) -> int:
        """About so long, one frame at least."""
        return max(1, round(seconds * self.model.sample_rate / self.model.hop))

    def folded(self, fold: float) -> int:
        """Frames from one stretch to the next. Raises InputError."""
        least = self.overlap * self.model.hop / self.model.sample_rate
        if not 0 < fold <= MOST_FOLD or self.frames_in(fold) < self.overlap:
            rule = f"{least:.4g} s, by which stretches overlap, to {MOST_FOLD:.0f} s"
            raise InputError(f"fold is {fold:g}: it is {rule}; without --fold nothing is cut")
        return self.frames_in(fold)

    def features(self, blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
        """The frames [some, bands] of sound that comes in blocks [some, channels], `length` samples in all; behind it
        is silence."""
        hop = self.model.hop
        take = lambda start, part: self.take(part)
        return through(take, blocks, -(-length // hop), (hop, 1), self.most, self.around, "constant")

    def sound(self, frames: Iterable[np.ndarray], length: int, loud: float) -> Iterator[np.ndarray]:
        """The sound of frames [some, bands], `length` samples in all, times `loud`. Raises `audio.Unusable`
        where it is not finite."""
        count, left = -(-length // self.model.hop), length
        cut = self.step is not None and count > self.step + self.overlap
        for block in self.stretches(frames, count) if cut else self.whole(frames, count):
            wave = finite(block[:left])
            left -= len(wave)
            if len(wave):
                yield wave * np.float32(loud)

    def whole(self, frames: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
        """From the beginning to the end."""
        parts = surrounded(frames, count, self.block, self.block, self.model.reach)
        return (wave[0] for wave in self.run((part[None] for part in parts), 1, 0))

    def stretches(self, frames: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
        """The same from stretches that overlap."""
        size, rows, tail = self.step + self.overlap, self.rows(count), None
        parts = surrounded(frames, count, size, self.step, self.model.reach)
        for group, batch in enumerate(iter(lambda: list(islice(parts, rows)), [])):
            even = np.stack(batch + batch[-1:] * (rows - len(batch)))
            for wave in self.side_by_side(even, group)[: len(batch)]:
                wave = wave if tail is None else crossed(tail, wave)
                tail = wave[self.step * self.model.hop :]
                yield wave[: self.step * self.model.hop]
        yield tail

    def rows(self, count: int) -> int:
        """How many stretches of `count` frames are made at once: all or, where there is no room for so many, groups
        that are as even as can be."""
        wanted = max(1, -(-(count - self.overlap) // self.step))
        most = min(ROWS, max(1, self.frames_in(ROWS_SECONDS) // self.step))
        groups = -(-wanted // most)
        return -(-wanted // groups)

    def side_by_side(self, frames: np.ndarray, group: int = 0) -> np.ndarray:
        """Sounds [rows, time, channels] of frames [rows, frames, bands], of which the first and the last `reach` are
        what lies around; several of them in smaller blocks."""
        rows, around = len(frames), 2 * self.model.reach
        size, count = max(1, min(self.block, 8 * self.block // rows)), frames.shape[1] - around
        even = np.pad(frames, ((0, 0), (0, -count % size), (0, 0)), "edge")
        parts = (even[:, first : first + size + around] for first in range(0, count, size))
        return np.concatenate(list(self.run(parts, rows, group)), 1)[:, : count * self.model.hop]

    def run(self, parts: Iterable[np.ndarray], rows: int, group: int) -> Iterator[np.ndarray]:
        """What the model makes of parts [rows, frames, bands] that follow one another, from a fresh carry on; groups
        differ in what is random."""
        key, carry = jax.random.fold_in(self.key, group), self.model.open(self.params, rows)
        carry = jax.device_put(carry, self.device)  # where those that follow are: else the second block recompiles
        for part in parts:
            carry, wave = self.program(self.params, carry, part, key)
            yield np.asarray(wave)


def crossed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`after` [time, channels], whose beginning overlaps with `before`, the end of the stretch in front.

    In the first half of the overlap `before` alone is heard, in the second half the one passes into the other.
    """
    warm = len(before) // 2
    share = ((np.arange(len(before) - warm, dtype=np.float32) + 0.5) / (len(before) - warm)).reshape(-1, 1)
    # Of equal power: features do not tell the phase, so that two draws of the same sound are as good as uncorrelated,
    # and a linear cross-fade would lose 3 dB in its middle.
    mixed = np.sqrt(1 - share) * before[warm:] + np.sqrt(share) * after[warm : len(before)]
    return np.concatenate([before[:warm], mixed, after[len(before) :]])
