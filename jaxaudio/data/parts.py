"""Sound of any length through a model: read as loud as the model wants it, cut into parts, joined, written, shown."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxaudio.core import Model
from jaxaudio.data import audio
from jaxaudio.data.files import why
from jaxaudio.runtime.sheet import draw

FADE = 1  # frames over which one part passes into the next
SHOWN_SECONDS = 10.0  # of a sound on a sheet


def level(model: Model, peak: float) -> float:
    """How loud a recording of this peak is, where the model wants all of them at a peak of 1; else 1."""
    return max(peak, 1e-9) if model.gain == "peak" else 1.0


class Recorder:
    """Recordings as a model wants them, and files of what it makes."""

    def __init__(self, model: Model):
        self.model = model

    def survey(self, path: Path) -> audio.Recording:
        """One pass over the file. Raises `audio.Unusable`."""
        try:
            return audio.survey(path, self.model.sample_rate, self.model.channels)
        except audio.Unusable as reason:
            raise audio.Unusable(why(path, reason)) from reason

    def blocks(self, sound: audio.Recording) -> Iterator[np.ndarray]:
        """The recording [some, channels], block by block, as loud as the model wants it."""
        gain = np.float32(1 / level(self.model, sound.peak))
        return (block if gain == 1 else block * gain for block in audio.blocks(sound))

    def write(self, path: Path, blocks: Iterable[np.ndarray], length: int) -> None:
        with audio.writing(path, self.model.sample_rate, self.model.channels, length) as add:
            for block in blocks:
                add(block)


def through(
    program: Callable[[int, np.ndarray], np.ndarray],
    blocks: Iterable[np.ndarray],
    frames: int,
    rows: tuple[int, int],
    most: int,
    reach: int,
    beyond: str,
    fade: int = FADE,
) -> Iterator[np.ndarray]:
    """What `program` makes of `frames` frames: the whole, in pieces.

    program: (first frame, [1, frames, ...]) -> [1, frames, ...]. rows: of a frame, in `blocks` and in the result. It
    sees windows of `most` frames or, where all are fewer, the next power of two: few compilations, bounded memory.
    Neighbouring windows overlap by `reach` on either side, where a window is not what the whole would be, and by `fade`
    frames over which the one passes into the other: alike in both where the model is exact. beyond: how numpy pads what
    follows the last frame. Of that there are `reach` frames more at least, so that no frame feels where a window ends:
    the result is the same whatever `most` is. Raises `audio.Unusable` where it is not finite.
    """
    whole = frames + reach
    size = min(most, 1 << (whole - 1).bit_length())
    step = size - 2 * reach - fade
    results = (
        (start, finite(np.asarray(program(start, part[None]))[0]))
        for start, part in windows(blocks, whole, rows[0], size, step, beyond)
    )
    return joined(results, frames, rows[1], size, reach, fade)


def finite(result: np.ndarray) -> np.ndarray:
    """The same. Raises `audio.Unusable` where it is not finite."""
    if not np.isfinite(result).all():
        raise audio.Unusable("what the model makes is not finite: name an earlier --checkpoint")
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
    results: Iterable[tuple[int, np.ndarray]], frames: int, rows: int, size: int, reach: int, fade: int
) -> Iterator[np.ndarray]:
    """What came of `windows` of `frames + reach` frames, joined: of each its inner part, the `fade` last frames mixed
    with those of the next."""
    share = ((np.arange(fade * rows, dtype=np.float32) + 0.5) / max(1, fade * rows)).reshape(-1, 1)
    tail, done = None, 0
    for start, result in results:
        end = min(frames, start + size - reach)
        piece = result[(done - start) * rows : (end - start) * rows]
        if tail is not None and fade:
            fading = (1 - share) * tail + share * piece[: len(share)]
            piece = np.concatenate([fading, piece[len(share) :]])
        if end < frames:
            kept = len(piece) - len(share)
            piece, tail, done = piece[:kept], piece[kept:], end - fade
        yield piece


def surrounded(blocks: Iterable[np.ndarray], frames: int, size: int, step: int, reach: int) -> Iterator[np.ndarray]:
    """`size` frames every `step`, as many as hold all `frames`, each with `reach` more on either side.

    blocks: [some, ...]. What is missing at both ends is the frame nearest to it, again and again.
    """
    count = max(1, -(-(frames - size + step) // step))
    missing, held, wide = (count - 1) * step + size - frames, None, size + 2 * reach

    def extended() -> Iterator[np.ndarray]:
        last = None
        for block in blocks:
            if last is None:
                yield np.repeat(block[:1], reach, 0)
            yield block
            last = block[-1:]
        yield np.repeat(last, reach + missing, 0)

    for block in extended():
        held = block if held is None else np.concatenate([held, block])
        while len(held) >= wide and count:
            yield held[:wide]
            held, count = held[step:], count - 1


class Head:
    """Keeps the beginning of what passes by, for a sheet."""

    def __init__(self, sample_rate: int):
        self.sample_rate, self.kept, self.room = sample_rate, [], round(SHOWN_SECONDS * sample_rate)

    def add(self, block: np.ndarray) -> None:
        """Of a block [some, channels] what there is room for."""
        if self.room:
            self.kept.append(block[: self.room].copy())
            self.room -= len(self.kept[-1])

    def seen(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks."""
        for block in blocks:
            self.add(block)
            yield block


def page(path: Path, shown: Sequence[tuple[str, Head]]) -> None:
    """A sheet of these sounds, the shorter ones followed by silence."""
    waves = [np.concatenate(head.kept) for _, head in shown]
    length = max(1024, *map(len, waves))
    even = np.stack([np.pad(wave, ((0, length - len(wave)), (0, 0))) for wave in waves])
    draw(even, shown[0][1].sample_rate, [audio.shown(title)[-48:] for title, _ in shown], path)
