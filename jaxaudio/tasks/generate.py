"""New sounds from nothing."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Carry, Continues, Generates, InputError, Labels, Model, Params
from jaxaudio.data import audio
from jaxaudio.data.parts import Head, finite, page
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw

NEEDS = Generates

MOST_SOUNDS, MOST_SECONDS = 100_000, 3600.0  # of all sounds: they are made at once
MOST_CONTINUED = 36_000.0  # the same of models that go on for ever, which make them block by block
STREAMS = 128  # sounds that are made side by side, a file open for each
BLOCK_SECONDS = 1.0  # of each
USUAL_SECONDS = (1.0, 4.0)  # least and most of what such a model makes unless asked for more
PANELS = 64  # of a sheet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb generate."""

    n: int = 16  # how many sounds
    label: str | None = None  # of a conditional model: a class by name or number; none: all in turn
    seconds: float | None = None  # length of each; none: the model's segment or, of one that goes on for ever, 1 to 4 s
    temperature: float | None = None  # of models that draw sample by sample; 0: always the most likely one
    top_p: float | None = None  # of the same: only the most likely levels, which together have this probability


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes `n` WAV files and one sheet of their spectrograms; the same files for the same seed."""
    trained = drawing(trained, options.temperature, options.top_p)
    model = trained.model
    length = length_of(model, options)
    label = labels(trained.labels, options.label, options.n)
    titles, key = captions(trained.labels, label, options.n), jax.random.key(seed)
    try:
        if isinstance(model, Continues):
            write_long(out, Sampler(model, trained.params), key, label, titles, length)
        else:
            sound = jax.jit(model.generate, static_argnums=(2, 3))
            waves = finite(np.asarray(sound(trained.params, key, options.n, length, label)))
            write(out, waves, model.sample_rate, titles)
    except audio.Unusable as reason:
        raise InputError(f"{trained.folder} at step {trained.step}: {reason}") from reason
    return out


def length_of(model: Model, options: Options) -> int:
    """Samples of each sound. Raises InputError where there can't be so many or such long ones."""
    if not 1 <= options.n <= MOST_SOUNDS:
        raise InputError(f"n is {options.n}: ask for 1 to {MOST_SOUNDS} sounds")
    most = MOST_CONTINUED if isinstance(model, Continues) else MOST_SECONDS
    seconds = usual_length(model) / model.sample_rate if options.seconds is None else options.seconds
    length = round(seconds * model.sample_rate) if 0 < seconds <= most else 0
    if not length or options.n * seconds > most:
        asked = f"a sound {seconds:g} s without --seconds" if options.seconds is None else f"seconds {seconds:g}"
        raise InputError(f"n is {options.n} and {asked}: each of a sample or more, {most:.0f} s at most in all")
    return length


def usual_length(model: Model) -> int:
    """Samples of a sound where no length is asked for."""
    if not isinstance(model, Continues):
        return model.segment
    # Its segment is as long as training wants it, not as long as one would listen.
    return int(np.clip(model.segment, *(round(each * model.sample_rate) for each in USUAL_SECONDS)))


def drawing(trained: Trained, temperature: float | None, top_p: float | None) -> Trained:
    """The run with another way of drawing samples. Raises InputError where it does not draw them one by one."""
    asked = {"temperature": temperature, "top_p": top_p}
    asked = {name: value for name, value in asked.items() if value is not None}
    for name, value in asked.items():
        if not hasattr(trained.model, name):
            remedy = f"does not draw sample by sample: leave --{name.replace('_', '-')} away"
            raise InputError(f"{name} is {value:g}, but {trained.folder} {remedy}")
    return trained._replace(model=dataclasses.replace(trained.model, **asked))


class Sampler:
    """A model that continues and its parameters: sounds of any length, block by block through one program."""

    def __init__(self, model: Continues, params: Params):
        self.model, self.device = model, jax.devices()[0]
        self.params = jax.device_put(params, self.device)
        self.begin, self.hear = jax.jit(model.begin, static_argnums=1), jax.jit(model.hear)
        self.extend = jax.jit(model.extend, static_argnums=3)

    def on(self, carry: Carry, key: jax.Array, length: int) -> Iterator[np.ndarray]:
        """The next `length` samples [n, some, channels] behind what `begin` or `hear` gave. Raises `audio.Unusable`
        where they are not finite."""
        frames = max(1, round(BLOCK_SECONDS * self.model.sample_rate / self.model.frame))
        carry = jax.device_put(carry, self.device)  # where those that follow are: else the second block recompiles
        for done in range(0, length, frames * self.model.frame):
            carry, wave = self.extend(self.params, carry, key, frames)
            yield finite(np.asarray(wave)[:, : length - done])


class Showcase:
    """The same sounds again and again while a model learns: same latents, same labels."""

    def __init__(self, model: Model, names: tuple[str, ...], n: int):
        self.model, self.n, self.length = model, n, usual_length(model)
        names = names if model.classes else ()
        self.label = labels(names, None, n)
        self.titles = captions(names, self.label, n)
        self.sound = jax.jit(model.generate, static_argnums=(2, 3))

    def __call__(self, params: Params, key: jax.Array, out: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes out/PREFIX-*.wav and their sheet out/PREFIX.png; the sounds [n, time, channels] and the picture."""
        waves = np.nan_to_num(self.sound(params, key, self.n, self.length, self.label))  # diverging is no reason
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
        raise InputError(f"there is no label {asked!r}: choose from {listed(names)}")
    return jnp.full(n, index)


def listed(names: tuple[str, ...]) -> str:
    """The classes by number and name."""
    return ", ".join(f"{i} {name}" for i, name in enumerate(names))


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
        audio.write(out / f"{stem(prefix, i, title)}.wav", wave, sample_rate)
    every = sparse(len(waves))
    return draw(waves[::every], sample_rate, titles[::every], out / f"{prefix or 'sheet'}.png")


def write_long(
    out: Path, sampler: Sampler, key: jax.Array, label: Labels | None, titles: list[str], length: int
) -> None:
    """The same block by block, `length` samples each; the sheet is of their beginnings."""
    rate, every, shown = sampler.model.sample_rate, sparse(len(titles)), []
    for group, first in enumerate(range(0, len(titles), STREAMS)):
        rows = range(first, min(first + STREAMS, len(titles)))
        heads = {i: Head(rate) for i in rows if i % every == 0}
        carry = sampler.begin(sampler.params, len(rows), None if label is None else label[first : rows.stop])
        blocks = sampler.on(carry, jax.random.fold_in(key, group), length)
        paths = [out / f"{stem('', i, titles[i])}.wav" for i in rows]
        write_streams(paths, watched(blocks, rows, heads), rate, sampler.model.channels, length)
        shown += [(titles[i], head) for i, head in heads.items()]
    page(out / "sheet.png", shown)


def watched(blocks: Iterable[np.ndarray], rows: Iterable[int], heads: Mapping[int, Head]) -> Iterator[np.ndarray]:
    """The same blocks [rows, some, channels]; `heads`, by row, keep their beginnings."""
    for block in blocks:
        for row, wave in zip(rows, block, strict=True):
            if row in heads:
                heads[row].add(wave)
        yield block


def write_streams(
    paths: Sequence[Path], blocks: Iterable[np.ndarray], sample_rate: int, channels: int, length: int
) -> None:
    """A WAV file for each row of blocks [rows, some, channels], `length` samples in all."""
    with contextlib.ExitStack() as files:
        adds = [files.enter_context(audio.writing(path, sample_rate, channels, length)) for path in paths]
        for block in blocks:
            for add, wave in zip(adds, block, strict=True):
                add(wave)


def stem(prefix: str, i: int, title: str) -> str:
    """What a sound's file is called."""
    return "-".join(part for part in (prefix, f"{i:03d}", title) if part)


def sparse(count: int) -> int:
    """Every how many-th of `count` sounds has a panel on a sheet."""
    return -(-count // PANELS)
