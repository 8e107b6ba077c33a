"""The sound of features, such as mels: files that encode wrote, or another program."""

import copy
import dataclasses
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxaudio.core import InputError, Params, Vocodes
from jaxaudio.data import audio
from jaxaudio.data.files import found, one_by_one
from jaxaudio.data.parts import FADE, Head, Recorder, finite, page, surrounded, through
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import drawing

NEEDS = Vocodes

PART_SECONDS = 20.0  # of a recording whose features are taken at once
AROUND_SECONDS = 0.25  # of what lies around them: half of the longest window that a spectrogram may have
BLOCK_SECONDS = 0.25  # of sound that is made at once: what a sound ends within is made in vain
OVERLAP_SECONDS = 0.025  # of two stretches; in its first half the network that starts afresh is not heard
MOST_FOLD = 60.0  # seconds
ROWS, ROWS_SECONDS = 64, 600.0  # stretches that are made side by side, and how much sound they are at most
SHOWN = 16  # sounds on a sheet
CHUNK = 1000  # frames that are read at once
DAMAGED = (ValueError, EOFError, OverflowError, TypeError, MemoryError, SyntaxError, TokenError)  # what numpy raises


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb vocode."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # .npy files of float [frames, bands], or folders of them
    temperature: float | None = None  # of models that draw sample by sample; 0: always the most likely one
    top_p: float | None = None  # of the same: only the most likely levels, which together have this probability
    fold: float | None = None  # seconds: an approximation, stretches of that are made side by side and cross-faded


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per file of features, and a sheet of the first few."""
    model = drawing(trained, options.temperature, options.top_p).model
    vocoder, shown = Vocoder(model, model.prepared(trained.params), seed, options.fold), []

    def vocode(path: Path, target: Path) -> str:
        frames = opened(path, vocoder)
        length, head = len(frames) * model.hop, Head(model.sample_rate)
        vocoder.write(target, head.seen(vocoder.sound(pieces(frames), length, 1.0)), length)
        if len(shown) < SHOWN:
            shown.append((target.name, head))
        return f"{len(frames)} frames, {length / model.sample_rate:.2f} s -> {target.name}"

    one_by_one(found(options.files, {".npy"}, "file of features"), out, ".wav", vocode)
    page(out / "sheet.png", shown)
    return out


class Vocoder(Recorder):
    """A model that vocodes and its parameters, for recordings and features of any length in bounded memory.

    Sound is made in short blocks, each beginning with what the model knew at the end of the one before.
    Beyond the ends of features are their first and their last frame. With `fold` it is an approximation: stretches of
    so many seconds are made side by side, each without knowing what was before.
    """

    def __init__(self, model: Vocodes, params: Params, seed: int, fold: float | None = None):
        super().__init__(model)
        self.take, self.program = jax.jit(model.features), jax.jit(model.vocode)
        self.around, self.block = self.frames_in(AROUND_SECONDS), self.frames_in(BLOCK_SECONDS)
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

    @property
    def bands(self) -> int:
        """Numbers in a frame."""
        hops = max(1, self.model.segment // self.model.hop)
        wave = jax.ShapeDtypeStruct((1, hops * self.model.hop, self.model.channels), jnp.float32)
        return jax.eval_shape(self.model.features, wave).shape[-1]

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


def opened(path: Path, vocoder: Vocoder) -> np.ndarray:
    """The frames of a .npy file, which stay in the file. Raises `audio.Unusable` for what this model can't vocode."""
    model, bands = vocoder.model, vocoder.bands
    wanted = f"this run wants float [frames, {bands}], a frame per {model.hop} samples at {model.sample_rate} Hz"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # one that waits for a writer would never be opened
            raise audio.Unusable("not a regular file")
        with warnings.catch_warnings(action="ignore"):  # of files that Python 2 wrote
            frames = np.lib.format.open_memmap(path, mode="r")
    except OSError as problem:
        raise audio.Unusable(problem.strerror or "damaged, or no .npy file") from problem
    except DAMAGED as problem:
        raise audio.Unusable(f"damaged, empty, or no .npy file of numbers: {wanted}") from problem
    if frames.ndim != 2 or frames.shape[1] != bands or not len(frames):
        remedy = ": transpose it" if frames.ndim == 2 and frames.shape[0] == bands else ""
        raise audio.Unusable(f"its shape is {frames.shape}, {wanted}{remedy}")
    if frames.dtype.kind != "f":
        raise audio.Unusable(f"it holds {frames.dtype}, {wanted}")
    if not all(np.isfinite(piece).all() for piece in pieces(frames)):
        raise audio.Unusable("its frames hold NaN, infinity or numbers beyond float32")
    return frames


def pieces(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Frames as float32, some at a time."""
    for first in range(0, len(frames), CHUNK):
        with np.errstate(over="ignore"):
            piece = np.array(frames[first : first + CHUNK], np.float32)
        yield piece
