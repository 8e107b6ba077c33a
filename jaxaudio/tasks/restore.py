"""Damaged sound restored: without its noise, or whole again where a part of it is lost."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, tee
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import tyro

from jaxaudio.core import Batch, InputError, Params, Restores, Shard
from jaxaudio.data import audio
from jaxaudio.data.files import RECORDINGS, distinct, found, one_by_one, said
from jaxaudio.data.parts import FADE, Head, Recorder, finite, level, page, through
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks import generate

NEEDS = Restores

PART_SECONDS = 20.0  # of a recording that are restored at once
SHOWN = 4  # recordings on a sheet
GAP = re.compile(r"([0-9]{0,9}\.?[0-9]{1,9}):([0-9]{0,9}\.?[0-9]{1,9})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb restore."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # recordings, or folders of them
    gap: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()  # START:END in seconds, lost; all else stays
    wet: float = 1.0  # share of what is restored, 0 to 1; the rest is the sound as it was
    force: bool = False  # overwrite what is there already


class Stretch(NamedTuple):
    """Where sound is lost, in samples."""

    start: int
    end: int
    words: str  # as it was asked for


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per recording, as long as it is and in time with it, and a sheet of the first few."""
    paths = distinct(found(options.files, RECORDINGS, "recording"))
    if not 0 <= options.wet <= 1:
        raise InputError(f"wet is {options.wet:g}: it is a share, 0 (the sound as it was) to 1 (restored)")
    gaps = stretches(trained, options.gap, len(paths))
    restorer, shown = Restorer(trained.model, trained.params, seed), []

    def restore(path: Path, target: Path) -> str:
        sound = restorer.survey(path)
        refuse_outside(gaps, sound)
        before, after, skipped = Head(sound.sample_rate), Head(sound.sample_rate), 0
        if gaps:
            before.room = after.room = restorer.size
            skipped = restorer.first(gaps[0], sound.frames)
        heard, given = tee(audio.blocks(sound))
        loud = level(restorer.model, sound.peak)
        made = restorer.filled(heard, gaps, sound.frames, loud) if gaps else restorer.whole(heard, sound.frames, loud)
        pairs = mixed(made, given, np.float32(options.wet))
        restorer.write(target, seen(pairs, before, after, skipped), sound.frames)
        if len(shown) < 2 * SHOWN:
            shown.extend([(f"{path.stem}, as it was", before), (f"{path.stem}, {target.name}", after)])
        return f"{said(sound)} -> {target.name}"

    one_by_one(paths, out, ".wav", restore, force=options.force)
    page(out / "sheet.png", shown)
    return out


def stretches(trained: Trained, asked: Iterable[Sequence[str]], files: int) -> list[Stretch]:
    """The gaps that are asked for, the first one first. Raises InputError where the model can't fill them."""
    asked = list(asked)
    given = [words for several in asked for words in several]
    model, rule = trained.model, "START:END in seconds, as 1.20:1.28"
    if len(given) < len(asked):
        raise InputError(f"--gap names no gap: it is {rule}")
    if given and not model.longest:
        raise InputError(f"gap is {given[0]}, but {trained.folder} fills no gaps: leave --gap away or name another run")
    if given and files > 1:
        raise InputError(f"gap is {given[0]}, but {files} recordings are given: name the one that it is in")
    gaps = []
    for words in given:
        match = GAP.fullmatch(words)
        if match is None:
            raise InputError(f"gap is {words!r}: it is {rule}; recordings are named before --gap")
        start, end = (round(float(seconds) * model.sample_rate) for seconds in match.groups())
        if start >= end:
            raise InputError(f"gap is {words}: it ends a sample or more behind its start; it is {rule}")
        if end - start > model.longest:
            longest = f"{model.longest / model.sample_rate:.4g} s"
            raise InputError(f"gap is {words}: this run fills {longest} at most; name a shorter one, or another run")
        gaps.append(Stretch(start, end, words))
    gaps.sort()
    for one, other in pairwise(gaps):
        if other.start < one.end:
            raise InputError(f"gaps {one.words} and {other.words} overlap: name the lost stretch once")
    return gaps


def refuse_outside(gaps: Sequence[Stretch], sound: audio.Recording) -> None:
    """Raises InputError where a gap is not within the recording."""
    for gap in gaps:
        if gap.end > sound.frames:
            ends = f"{audio.shown(sound.path)} ends at {sound.frames / sound.sample_rate:.4f} s"
            raise InputError(f"gap is {gap.words}, but {ends}: name a gap within it")


def mixed(
    made: Iterable[np.ndarray], given: Iterable[np.ndarray], wet: np.float32
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(`wet` parts of what was made and the rest of what was given, what was given), block by block."""
    given, held = iter(given), None
    for wave in made:
        while held is None or len(held) < len(wave):
            held = next(given) if held is None else np.concatenate([held, next(given)])
        dry, held = held[: len(wave)], held[len(wave) :]
        yield wave if wet == 1 else dry + wet * (wave - dry), dry  # where both are alike: bit for bit the same


def seen(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], before: Head, after: Head, skipped: int
) -> Iterator[np.ndarray]:
    """The first of each pair; both heads keep what follows the `skipped` first samples."""
    for wave, dry in pairs:
        before.add(dry[skipped:])
        after.add(wave[skipped:])
        skipped = max(0, skipped - len(wave))
        yield wave


def silenced(blocks: Iterable[np.ndarray], gaps: Sequence[Stretch]) -> Iterator[np.ndarray]:
    """A recording with zeros in its gaps."""
    at = 0
    for block in blocks:
        for gap in gaps:
            if gap.start < at + len(block) and gap.end > at:
                block = block.copy()
                block[max(0, gap.start - at) : gap.end - at] = 0
        yield block
        at += len(block)


class Restorer(Recorder):
    """A model that restores and its parameters, for recordings of any length, in parts. A recording goes on behind its
    end as its mirror image: silence there would be a lower noise floor than it has. A gap is filled within a window
    that has it in its middle, but at the ends of the recording."""

    def __init__(self, model: Restores, params: Params, seed: int):
        super().__init__(model)
        self.params, self.key, self.program = params, jax.random.key(seed), jax.jit(model.restore)
        self.most = max(-(-round(PART_SECONDS * model.sample_rate) // model.hop), 4 * (2 * model.reach + FADE))
        needed = max(model.segment, model.longest + 2 * (model.reach + 1) * model.hop)
        self.size = -(-needed // model.hop) * model.hop  # samples of a window around a gap

    def restored(self, part: np.ndarray, gap: np.ndarray | None, hop: int, loud: float) -> np.ndarray:
        """What the model makes of [1, time, channels], from this hop of a recording so loud."""
        loud = np.float32(loud)
        return np.asarray(self.program(self.params, part / loud, gap, self.key, hop)) * loud

    def whole(self, blocks: Iterable[np.ndarray], length: int, loud: float) -> Iterator[np.ndarray]:
        """All of a recording so loud that comes in blocks [some, channels], `length` samples. Raises `audio.Unusable`
        where it is not finite."""
        hop, left = self.model.hop, length
        program = lambda start, part: self.restored(part, None, start, loud)
        for block in through(program, blocks, -(-left // hop), (hop, hop), self.most, self.model.reach, "reflect"):
            wave = block[:left]
            left -= len(wave)
            if len(wave):
                yield wave

    def first(self, gap: Stretch, length: int) -> int:
        """Where the window around a gap begins, a whole number of hops: all of it is within the recording if that is
        long enough, but for a hop."""
        hop = self.model.hop
        centred, last = (gap.start + gap.end - self.size) // 2, max(0, length - self.size)
        return max(0, min(centred // hop, -(-last // hop))) * hop

    def filled(
        self, blocks: Iterable[np.ndarray], gaps: Sequence[Stretch], length: int, loud: float
    ) -> Iterator[np.ndarray]:
        """The same of its gaps alone, one after the other, so that the later ones hear the earlier ones filled, and
        none what is in the others; all else is as it comes."""
        blocks = silenced(blocks, gaps)
        held, at = next(blocks), 0  # what begins at sample `at`
        for gap in gaps:
            first = self.first(gap, length)
            while at + len(held) < min(first + self.size, length):
                if at + len(held) <= first:
                    yield held
                    held, at = next(blocks), at + len(held)
                else:
                    held = np.concatenate([held, next(blocks)])
            yield held[: first - at]
            held, at = held[first - at :].copy(), first
            held[gap.start - at : gap.end - at] = self.patch(held[: self.size], gap, first, loud)
        yield held
        yield from blocks

    def patch(self, window: np.ndarray, gap: Stretch, first: int, loud: float) -> np.ndarray:
        """What fills a gap in a window that begins at sample `first`."""
        inside = slice(gap.start - first, gap.end - first)
        padded = np.pad(window, ((0, self.size - len(window)), (0, 0)))[None]
        lost = np.zeros((1, self.size), np.float32)
        lost[:, inside] = 1
        return finite(self.restored(padded, lost, first // self.model.hop, loud)[0, inside])


class Showcase:
    """The same recordings, damaged as in training, restored again and again while a model learns."""

    def __init__(self, model: Restores, real: Batch, titles: Sequence[str]):
        self.model, self.titles = model, list(titles)
        # An even number of them: babble is made of pairs.
        even = jax.tree.map(lambda x: np.concatenate([x, x[-1:]]) if len(titles) % 2 else x, real)
        made = jax.jit(model.damaged, static_argnums=2)(even, jax.random.key(0), Shard())
        damaged, gap = (x[: len(titles)] for x in made)
        self.damaged, missing = np.asarray(damaged), -damaged.shape[1] % model.hop
        self.padded = np.pad(self.damaged, ((0, 0), (0, missing), (0, 0)))
        self.gap = np.pad(gap, ((0, 0), (0, missing))) if model.longest else None
        self.program = jax.jit(model.restore)

    def __call__(self, params: Params, key: jax.Array, out: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes out/PREFIX-*.wav and their sheet out/PREFIX.png, and once out/damaged.png of what they are made of;
        the sounds [n, time, channels] and the picture."""
        if not (out / "damaged.png").exists():
            draw(self.damaged, self.model.sample_rate, self.titles, out / "damaged.png")
        made = np.nan_to_num(self.program(params, self.padded, self.gap, key))  # diverging is no reason to stop
        waves = made[:, : self.damaged.shape[1]]
        return waves, generate.write(out, waves, self.model.sample_rate, self.titles, prefix)
