"""A recording through the model and back; a model of other sound gives it that timbre."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxaudio.core import Encodes, InputError, Params, Quantizes, Vocodes
from jaxaudio.data import audio
from jaxaudio.data.bitstream import width
from jaxaudio.data.coder import Codec, has_codes
from jaxaudio.data.files import RECORDINGS, found, one_by_one, said
from jaxaudio.data.parts import Head, level, page
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks import generate
from jaxaudio.tasks.vocode import Vocoder

NEEDS = Encodes | Vocodes

Back = Callable[[Iterable[np.ndarray], int, float], Iterator[np.ndarray]]  # blocks, length, how loud -> sound

MOST_STEPS = 1000  # of a path through the latent space
SHOWN = 4  # recordings on a sheet
SHOWCASE_SECONDS = 2.0  # of each recording that a vocoder shows while it learns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb reconstruct."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # recordings, or folders of them
    fidelity: float = 1.0  # share of the latent variance that is kept, by as few leading components as hold it
    kbps: float | None = None  # of codecs: as many codebooks as fit into so many kbit/s before entropy coding
    codebooks: int | None = None  # of codecs: so many leading codebooks; neither: all
    temperature: float | None = None  # of models that draw sample by sample; 0: always the most likely one
    top_p: float | None = None  # of the same: only the most likely levels, which together have this probability
    fold: float | None = None  # seconds, of vocoders: an approximation, stretches of that are made side by side


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per recording, as long as it is and in time with it, and a sheet of the first few."""
    given, shown = generate.drawing(trained, options.temperature, options.top_p), []
    machine, back = (vocoding if isinstance(given.model, Vocodes) else coding)(given, options, seed)

    def reconstruct(path: Path, target: Path) -> str:
        sound = machine.survey(path)
        before, after = Head(machine.model.sample_rate), Head(machine.model.sample_rate)
        made = back(before.seen(machine.blocks(sound)), sound.frames, level(machine.model, sound.peak))
        machine.write(target, after.seen(made), sound.frames)
        if len(shown) < 2 * SHOWN:
            shown.extend([(f"{path.stem}, original", before), (f"{path.stem}, {target.name}", after)])
        return f"{said(sound)} -> {target.name}"

    one_by_one(found(options.files, RECORDINGS, "recording"), out, ".wav", reconstruct)
    page(out / "sheet.png", shown)
    return out


def coding(trained: Trained, options: Options, seed: int) -> tuple[Codec, Back]:
    """An autoencoder, and what takes sound through it."""
    if options.fold is not None:
        raise InputError(f"fold is {options.fold:g}, but {trained.folder} is no vocoder: leave --fold away")
    codec = Codec(trained.model, trained.params, seed)
    used = kept_codebooks(trained, options.fidelity, options.kbps, options.codebooks)
    kept = components(trained, options.fidelity)

    def back(blocks: Iterable[np.ndarray], length: int, loud: float) -> Iterator[np.ndarray]:
        if used is not None:
            return codec.sound_of(codec.codes(blocks, length, used), length, loud)
        return codec.sound((each[:, :kept] for each in codec.latents(blocks, length)), length, loud)

    return codec, back


def vocoding(trained: Trained, options: Options, seed: int) -> tuple[Vocoder, Back]:
    """The same of a vocoder."""
    refuse_fidelity(trained, options.fidelity)
    refuse_rate(trained, kbps=options.kbps, codebooks=options.codebooks)
    vocoder = Vocoder(trained.model, trained.model.prepared(trained.params), seed, options.fold)
    return vocoder, lambda blocks, length, loud: vocoder.sound(vocoder.features(blocks, length), length, loud)


def refuse_fidelity(trained: Trained, fidelity: float) -> None:
    """Raises InputError where a vocoder is asked for it."""
    if fidelity != 1:
        raise InputError(f"fidelity is {fidelity}, but {trained.folder} has no latent space: leave --fidelity away")


def refuse_rate(trained: Trained, **options: float | int | str | None) -> None:
    """Raises InputError where a model without codes is asked for what is about them: one of these is not None."""
    for name, asked in options.items():
        if asked is not None:
            said = asked if isinstance(asked, str) else f"{asked:g}"
            raise InputError(f"{name} is {said}, but {trained.folder} has no codes: leave --{name} away")


def kept_codebooks(trained: Trained, fidelity: float, kbps: float | None, codebooks: int | None) -> int | None:
    """How many leading codebooks of a codec are used; None where the model has no codes. Raises InputError."""
    if not has_codes(trained):
        refuse_rate(trained, kbps=kbps, codebooks=codebooks)
        return None
    model, where = trained.model, trained.folder
    if fidelity != 1:
        raise InputError(f"fidelity is {fidelity}, but {where} has codes: choose by --codebooks or --kbps")
    if kbps is not None and codebooks is not None:
        raise InputError(f"kbps is {kbps:g} and codebooks {codebooks}: give one of them")
    if kbps is not None:
        each = raw_kbps(model, 1)
        if not kbps >= each:
            raise InputError(f"kbps is {kbps:g}: a codebook of {where} takes {each:.4g}; ask for that at least")
        return min(model.codebooks, int(min(kbps / each, model.codebooks) + 1e-9))
    used = model.codebooks if codebooks is None else codebooks
    if not 1 <= used <= model.codebooks:
        raise InputError(f"codebooks is {used}: {where} has 1 to {model.codebooks}")
    return used


def raw_kbps(model: Quantizes, codebooks: int) -> float:
    """What the codes of so many codebooks take as they are, in kbit/s."""
    return model.sample_rate / model.hop * width(model.codebook_size) * codebooks / 1000


class Showcase:
    """The same recordings through a model again and again while it learns."""

    def __init__(self, model: Encodes | Vocodes, wave: np.ndarray, titles: Sequence[str]):
        self.model, self.wave, self.titles = model, wave, list(titles)
        self.late = 0 if isinstance(model, Vocodes) else model.delay
        missing = self.late + -(self.late + wave.shape[1]) % model.hop
        self.padded = np.pad(wave, ((0, 0), (0, missing), (0, 0)))
        self.back = self.vocoded() if isinstance(model, Vocodes) else self.coded()

    def coded(self) -> Callable[[Params, jax.Array], np.ndarray]:
        """(params, key) -> what an autoencoder makes of the recordings."""
        model = self.model
        program = jax.jit(lambda params, wave, key: model.decode(params, model.encode(params, wave), key))
        return lambda params, key: np.asarray(program(params, self.padded, key))

    def vocoded(self) -> Callable[[Params, jax.Array], np.ndarray]:
        """The same of a vocoder."""
        model, vocoder = self.model, Vocoder(self.model, {}, 0)
        around = ((0, 0), (model.reach, model.reach), (0, 0))
        frames = np.pad(np.asarray(vocoder.take(self.padded)), around, "edge")
        return lambda params, key: vocoder.of(params, key).side_by_side(frames)

    def __call__(self, params: Params, key: jax.Array, out: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes out/PREFIX-*.wav and their sheet out/PREFIX.png; the sounds [n, time, channels] and the picture."""
        made = np.nan_to_num(self.back(params, key))  # diverging is no reason to stop
        waves = made[:, self.late : self.late + self.wave.shape[1]]
        return waves, generate.write(out, waves, self.model.sample_rate, self.titles, prefix)


def audible(model: Vocodes, longest: int) -> Vocodes:
    """The same with a segment that can be listened to, if the longest recording has so many samples."""
    wanted = min(round(SHOWCASE_SECONDS * model.sample_rate), longest)
    return dataclasses.replace(model, segment=max(model.segment, -(-wanted // model.hop) * model.hop))


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
