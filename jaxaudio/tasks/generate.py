"""New sounds from nothing."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Generates, InputError, Model, Params
from jaxaudio.data import audio
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw

NEEDS = Generates

MOST_SOUNDS, MOST_SECONDS = 100_000, 3600.0  # of all sounds: they are made at once
PANELS = 64  # of a sheet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb generate."""

    n: int = 16  # how many sounds
    label: str | None = None  # of a conditional model: a class by name or number; none: all in turn
    seconds: float | None = None  # length of each; none: the model's segment


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes `n` WAV files and one sheet of their spectrograms; the same files for the same seed."""
    model = trained.model
    seconds = model.segment / model.sample_rate if options.seconds is None else options.seconds
    length = round(seconds * model.sample_rate) if 0 < seconds <= MOST_SECONDS else 0
    if not (1 <= options.n <= MOST_SOUNDS and length and options.n * seconds <= MOST_SECONDS):
        rule = f"ask for 1 to {MOST_SOUNDS} sounds, each of a sample or more, {MOST_SECONDS:.0f} s at most in all"
        raise InputError(f"n is {options.n} and seconds {seconds:g}: {rule}")
    label = labels(trained.labels, options.label, options.n)
    sound = jax.jit(model.generate, static_argnums=(2, 3))
    waves = np.asarray(sound(trained.params, jax.random.key(seed), options.n, length, label))
    write(out, waves, model.sample_rate, captions(trained.labels, label, options.n))
    return out


class Showcase:
    """The same sounds again and again while a model learns: same latents, same labels."""

    def __init__(self, model: Model, names: tuple[str, ...], n: int):
        self.model, self.n = model, n
        names = names if model.classes else ()
        self.label = labels(names, None, n)
        self.titles = captions(names, self.label, n)
        self.sound = jax.jit(model.generate, static_argnums=(2, 3))

    def __call__(self, params: Params, key: jax.Array, out: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes out/PREFIX-*.wav and their sheet out/PREFIX.png; the sounds [n, time, channels] and the picture."""
        waves = np.nan_to_num(self.sound(params, key, self.n, self.model.segment, self.label))  # diverging is no reason
        return waves, write(out, waves, self.model.sample_rate, self.titles, prefix)


def labels(names: tuple[str, ...], asked: str | None, n: int) -> jax.Array | None:
    """[n] class indices: the class asked for by name or number, or all in turn; None where there are none."""
    if not names:
        if asked is not None:
            raise InputError(f"label is {asked!r}, but this model is unconditional: leave --label away")
        return None
    if asked is None:
        return jnp.arange(n) % len(names)
    index = names.index(asked) if asked in names else int(asked) if asked.isdecimal() else -1
    if not 0 <= index < len(names):
        known = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        raise InputError(f"there is no label {asked!r}: choose from {known}")
    return jnp.full(n, index)


def captions(names: tuple[str, ...], label: jax.Array | np.ndarray | None, n: int) -> list[str]:
    """What each sound is called on a sheet and in file names: its class, if it has one, fit for both."""
    if label is None:
        return [""] * n
    clean = [name.encode("utf-8", "backslashreplace").decode().replace("/", "_")[:48] for name in names]
    return [clean[i] if clean[i].isprintable() else ascii(clean[i])[1:-1] for i in np.asarray(label)]


def write(out: Path, waves: np.ndarray, sample_rate: int, titles: list[str], prefix: str = "") -> np.ndarray:
    """One WAV file per sound, and one sheet of their spectrograms, which it returns [height, width, 3]; of PANELS
    sounds at most, evenly chosen."""
    for i, (title, wave) in enumerate(zip(titles, waves, strict=True)):
        stem = "-".join(part for part in (prefix, f"{i:03d}", title) if part)
        audio.write(out / f"{stem}.wav", wave, sample_rate)
    every = sparse(len(waves))
    return draw(waves[::every], sample_rate, titles[::every], out / f"{prefix or 'sheet'}.png")


def sparse(count: int) -> int:
    """Every how many-th of `count` sounds has a panel on a sheet."""
    return -(-count // PANELS)
