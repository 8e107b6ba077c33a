"""A recording through the model and back; a model of other sound gives it that timbre."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxaudio.core import Encodes, InputError, Params
from jaxaudio.data import audio
from jaxaudio.data.files import RECORDINGS, found, one_by_one, said, why
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks import generate

NEEDS = Encodes

PART_SECONDS = 20.0  # of a recording that are processed at once
MOST_STEPS = 1000  # of a path through the latent space
FADE = 1  # latent frames over which one part passes into the next
SHOWN, SHOWN_SECONDS = 4, 10.0  # recordings on a sheet, and how much of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb reconstruct."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # recordings, or folders of them
    fidelity: float = 1.0  # share of the latent variance that is kept, by as few leading components as hold it


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per recording, as long as it is and in time with it, and a sheet of the first few."""
    codec, kept, shown = Codec(trained.model, trained.params, seed), components(trained, options.fidelity), []

    def reconstruct(path: Path, target: Path) -> str:
        sound = codec.survey(path)
        before, after = Head(codec.model.sample_rate), Head(codec.model.sample_rate)
        latents = (each[:, :kept] for each in codec.latents(before.seen(codec.blocks(sound)), sound.frames))
        codec.write(target, after.seen(codec.sound(latents, sound.frames, level(codec.model, sound))), sound.frames)
        if len(shown) < 2 * SHOWN:
            shown.extend([(f"{path.stem}, original", before), (f"{path.stem}, {target.name}", after)])
        return f"{said(sound)} -> {target.name}"

    one_by_one(found(options.files, RECORDINGS, "recording"), out, ".wav", reconstruct)
    page(out / "sheet.png", shown)
    return out


class Showcase:
    """The same recordings through a model again and again while it learns."""

    def __init__(self, model: Encodes, wave: np.ndarray, titles: Sequence[str]):
        self.model, self.wave, self.titles = model, wave, list(titles)
        late = -(-model.delay // model.hop) * model.hop
        self.padded = np.pad(wave, ((0, 0), (0, late), (0, 0)))
        self.program = jax.jit(lambda params, wave, key: model.decode(params, model.encode(params, wave), key))

    def __call__(self, params: Params, key: jax.Array, out: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes out/PREFIX-*.wav and their sheet out/PREFIX.png; the sounds [n, time, channels] and the picture."""
        late, length = self.model.delay, self.wave.shape[1]
        made = np.nan_to_num(self.program(params, self.padded, key))  # diverging is no reason to stop
        waves = made[:, late : late + length]
        return waves, generate.write(out, waves, self.model.sample_rate, self.titles, prefix)


def components(trained: Trained, fidelity: float) -> int | None:
    """How many leading components are kept, which is printed; None: all of them."""
    if fidelity == 1:
        return None
    spread = np.asarray(trained.model.spread(trained.params))
    kept = leading(spread, fidelity)
    print(f"fidelity {fidelity}: {kept} of {len(spread)} components")
    return kept


def leading(spread: np.ndarray, fidelity: float) -> int:
    """How many leading components hold this share of the variance."""
    if not 0 < fidelity <= 1:
        raise InputError(f"fidelity is {fidelity}: it is a share of the variance, above 0 and at most 1")
    held = np.cumsum(spread, dtype=np.float64)
    return min(int(np.searchsorted(held, fidelity * held[-1])) + 1, len(spread))


class Codec:
    """A model and its parameters, for recordings of any length.

    Encoding and decoding go through windows of `most` frames or, for recordings that are shorter, the next power of
    two: few compilations, bounded memory. Neighbouring windows overlap by the model's reach on either side, where a
    window is not what the whole would be, and by FADE frames over which the one passes into the other: alike in both
    where the model is exact. Beyond the end of a recording are zeros, beyond the end of latents their last frame.
    """

    def __init__(self, model: Encodes, params: Params, seed: int):
        self.model, self.params, self.key = model, params, jax.random.key(seed)
        self.encode, self.decode = jax.jit(model.encode), jax.jit(model.decode)
        self.most = max(-(-round(PART_SECONDS * model.sample_rate) // model.hop), 4 * (2 * model.reach + FADE))

    def survey(self, path: Path) -> audio.Recording:
        """One pass over the file. Raises `audio.Unusable`."""
        try:
            return audio.survey(path, self.model.sample_rate, self.model.channels)
        except audio.Unusable as reason:
            raise audio.Unusable(why(path, reason)) from reason

    def blocks(self, sound: audio.Recording) -> Iterator[np.ndarray]:
        """The recording [some, channels], block by block, as loud as the model wants it."""
        gain = np.float32(1 / level(self.model, sound))
        return (block if gain == 1 else block * gain for block in audio.blocks(sound))

    def frames(self, length: int) -> int:
        """Latent frames of so many samples: the last ones are for what comes out late."""
        return -(-(length + self.model.delay) // self.model.hop)

    def latents(self, blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
        """The latent frames [some, n] of sound that comes in blocks [some, channels], `length` samples in all."""
        frames, encode = self.frames(length), lambda start, part: self.encode(self.params, part)
        return self._through(blocks, frames, self.model.hop, 1, encode, "constant")

    def sound(self, latents: Iterable[np.ndarray], length: int, loud: float) -> Iterator[np.ndarray]:
        """The sound of latent frames [some, n], in time with what was encoded, times `loud`."""
        decode = lambda start, part: self.decode(self.params, part, self.key, start)
        late, left = self.model.delay, length
        for block in self._through(latents, self.frames(length), 1, self.model.hop, decode, "edge"):
            wave = block[min(late, len(block)) :][:left]
            late, left = max(0, late - len(block)), left - len(wave)
            if len(wave):
                yield wave * np.float32(loud)

    def write(self, path: Path, blocks: Iterable[np.ndarray], length: int) -> None:
        with audio.writing(path, self.model.sample_rate, self.model.channels, length) as add:
            for block in blocks:
                add(block)

    def _through(
        self, blocks: Iterable[np.ndarray], frames: int, rows: int, out_rows: int, program: Callable, beyond: str
    ) -> Iterator[np.ndarray]:
        """What `program` makes of `frames` frames, which are `rows` rows of `blocks` each and `out_rows` rows of the
        result: the whole, in pieces. Raises `audio.Unusable` where it is not finite."""
        size = min(self.most, 1 << (frames - 1).bit_length())
        step = size - 2 * self.model.reach - FADE
        results = (
            (start, _finite(np.asarray(program(start, part[None]))[0]))
            for start, part in windows(blocks, frames, rows, size, step, beyond)
        )
        return joined(results, frames, out_rows, size, self.model.reach)


def _finite(result: np.ndarray) -> np.ndarray:
    if not np.isfinite(result).all():
        raise audio.Unusable("what the model makes of it is not finite: name an earlier --checkpoint")
    return result


def windows(
    blocks: Iterable[np.ndarray], frames: int, rows: int, size: int, step: int, beyond: str
) -> Iterator[tuple[int, np.ndarray]]:
    """(first frame, `size` frames), every `step` frames; the last one ends where all ends, if that is far enough.

    blocks: [some, ...], a frame being `rows` of their rows. beyond: how numpy pads what is missing at the end.
    """
    blocks, held, start = iter(blocks), [], 0
    while True:
        missing = min(size, frames - start) * rows - sum(map(len, held))
        while missing > 0 and (block := next(blocks, None)) is not None:
            held.append(block)
            missing -= len(block)
        held = [np.concatenate(held)]
        part = held[0][: min(size, frames - start) * rows]
        yield start, np.pad(part, ((0, size * rows - len(part)), (0, 0)), beyond)
        if start + size >= frames:
            return
        following = min(start + step, frames - size)
        held, start = [held[0][(following - start) * rows :]], following


def joined(
    results: Iterable[tuple[int, np.ndarray]], frames: int, rows: int, size: int, reach: int
) -> Iterator[np.ndarray]:
    """What came of `windows`, joined: of each its inner part, the FADE last frames mixed with those of the next."""
    share = ((np.arange(FADE * rows, dtype=np.float32) + 0.5) / (FADE * rows)).reshape(-1, 1)
    tail, done = None, 0
    for start, result in results:
        last = start + size >= frames
        end = frames if last else start + size - reach
        piece = result[(done - start) * rows : (end - start) * rows]
        if tail is not None:
            fading = (1 - share) * tail + share * piece[: len(share)]
            piece = np.concatenate([fading, piece[len(share) :]])
        if not last:
            piece, tail, done = piece[: -len(share)], piece[-len(share) :], end - FADE
        yield piece


def level(model: Encodes, sound: audio.Recording) -> float:
    """How loud a recording is, where the model wants all of them at a peak of 1; else 1."""
    return max(sound.peak, 1e-9) if model.gain == "peak" else 1.0


class Head:
    """Keeps the beginning of what passes by, for a sheet."""

    def __init__(self, sample_rate: int):
        self.sample_rate, self.kept, self.room = sample_rate, [], round(SHOWN_SECONDS * sample_rate)

    def seen(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks."""
        for block in blocks:
            if self.room:
                self.kept.append(block[: self.room].copy())
                self.room -= len(self.kept[-1])
            yield block


def page(path: Path, shown: Sequence[tuple[str, Head]]) -> None:
    """A sheet of these sounds, the shorter ones followed by silence."""
    waves = [np.concatenate(head.kept) for _, head in shown]
    length = max(1024, *map(len, waves))
    even = np.stack([np.pad(wave, ((0, length - len(wave)), (0, 0))) for wave in waves])
    draw(even, shown[0][1].sample_rate, [audio.shown(title)[-48:] for title, _ in shown], path)


def variations(codec: Codec, path: Sequence[tuple[str, np.ndarray, float]], length: int, out: Path) -> None:
    """A WAV file for each (title, latent frames, how loud) and one sheet of them, evenly chosen where they are many."""
    shown, every = [], generate.sparse(len(path))
    for i, (title, latent, loud) in enumerate(path):
        sound = codec.sound([latent], length, loud)
        if i % every == 0:
            shown.append((title, Head(codec.model.sample_rate)))
            sound = shown[-1][1].seen(sound)
        try:
            codec.write(out / f"{i:03d}-{title}.wav", sound, length)
        except audio.Unusable as reason:
            raise InputError(f"{i:03d}-{title}.wav: {reason}") from reason
    page(out / "sheet.png", shown)


def steps_within(steps: int) -> None:
    """Raises InputError where a path can't have so many steps."""
    if not 2 <= steps <= MOST_STEPS:
        raise InputError(f"steps is {steps}: a path has 2 to {MOST_STEPS} steps")
