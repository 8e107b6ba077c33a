"""New sounds from nothing."""

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Carry, Composes, Continues, Generates, InputError, Labels, Model, Params, Plays, Quantizes
from jaxaudio.data import audio
from jaxaudio.data.coder import Codec, known, why_no_codes
from jaxaudio.data.codes import CodePack, open_codes
from jaxaudio.data.notes import chosen
from jaxaudio.data.pack import Pack
from jaxaudio.data.parts import Head, finite, page
from jaxaudio.runtime import folder
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw
from jaxaudio.runtime.store import located

NEEDS = Generates | Composes

MOST_SOUNDS, MOST_SECONDS = 100_000, 3600.0  # of all sounds: they are made at once
MOST_CONTINUED = 36_000.0  # the same of models that go on for ever, which make them block by block
STREAMS = 128  # sounds that are made side by side, a file open for each
BLOCK_SECONDS = 1.0  # of each
USUAL_SOUNDS = 16
NOTES = 16  # that are made at once
USUAL_SECONDS = (1.0, 4.0)  # least and most of what such a model makes unless asked for more
PANELS = 64  # of a sheet
SEAM_SECONDS = 0.02  # over which what a codec loses of a sound's end fades out behind it
FROM_CODEC = ("sample_rate", "channels", "gain", "hop", "codebooks", "codebook_size")  # fields of a model of its codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb generate."""

    n: int | None = None  # how many sounds; with pitch: how many instruments; none: 16, or 1
    pitch: str | None = None  # of a model of notes: MIDI numbers, as 60,64,67 or 48-59, which every instrument plays
    label: str | None = None  # of a conditional model: a class by name or number; none: all in turn
    seconds: float | None = None  # length of each; none: the model's segment or, of one that goes on for ever, 1 to 4 s
    temperature: float | None = None  # of models that draw sample by sample, or codes; 0: always the most likely one
    top_p: float | None = None  # of the same: only the most likely levels, which together have this probability
    codec: Path | None = None  # of a model of codes: the codec's run; none: where it was when the model was trained


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes `n` WAV files and one sheet of their spectrograms; the same files for the same seed."""
    usual = USUAL_SOUNDS if options.pitch is None else 1
    options = dataclasses.replace(options, n=usual if options.n is None else options.n)
    trained = drawing(trained, options.temperature, options.top_p)
    model, sampler = trained.model, sampler_of(trained, options.codec, seed)
    if options.pitch is None:
        length = length_of(model, options)
        label = labels(trained.labels, options.label, options.n)
        titles, key = captions(trained.labels, label, options.n), jax.random.key(seed)
    try:
        if options.pitch is not None:
            scales(trained, options, seed, out)
        elif sampler:
            write_long(out, sampler, key, label, titles, length)
        else:
            sound = jax.jit(model.generate, static_argnums=(2, 3))
            waves = finite(np.asarray(sound(trained.params, key, options.n, length, label)))
            write(out, waves, model.sample_rate, titles)
    except audio.Unusable as reason:
        raise InputError(f"{trained.folder} at step {trained.step}: {reason}") from reason
    return out


def scales(trained: Trained, options: Options, seed: int, out: Path) -> None:
    """Every pitch asked for, played by each of `n` instruments; the sheet has a row for each of several."""
    model, asked = trained.model, chosen(options.pitch, pitches_in(trained))
    if options.label is not None:
        raise InputError(f"label is {options.label!r} and pitch {options.pitch!r}: give one of them")
    n, count = options.n, len(asked)
    length = length_of(model, dataclasses.replace(options, n=n * count))
    if length > model.segment:
        longest = f"{model.segment / model.sample_rate:g} s"
        raise InputError(f"seconds is {options.seconds:g}: this model makes notes of {longest} at most (its segment)")
    latent = np.repeat(np.asarray(model.latents(jax.random.key(seed), n)), count, 0)
    waves = np.stack([wave[:length] for wave in Player(trained)(latent, asked * n)])
    titles = [f"{i // count}-{pitch}" if n > 1 else str(pitch) for i, pitch in enumerate(asked * n)]
    write(out, waves, model.sample_rate, titles, columns=count if n > 1 else None)


def pitches_in(trained: Trained) -> tuple[int, ...]:
    """Those that the run has learned. Raises InputError where there are none."""
    if not isinstance(trained.model, Plays):
        raise InputError(f"{trained.folder} has learned no pitches: leave --pitch away")
    return trained.model.pitches


class Player:
    """A model of notes and its parameters: any number of notes, a few at once through one program."""

    def __init__(self, trained: Trained):
        self.model, self.params, self.render = trained.model, trained.params, jax.jit(trained.model.render)

    def __call__(self, latent: np.ndarray, pitches: Sequence[int]) -> Iterator[np.ndarray]:
        """A note [segment, channels] by each instrument [n, latent] at its pitch. Raises `audio.Unusable` where one is
        not finite."""
        label = np.array([self.model.pitches.index(pitch) for pitch in pitches], np.int32)
        for first in range(0, len(latent), NOTES):
            rows = np.resize(np.arange(first, min(first + NOTES, len(latent))), NOTES)
            waves = self.render(self.params, jnp.asarray(latent[rows]), jnp.asarray(label[rows]))
            yield from finite(np.asarray(waves))[: len(latent) - first]


def length_of(model: Model, options: Options) -> int:
    """Samples of each sound. Raises InputError where there can't be so many or such long ones."""
    if not 1 <= options.n <= MOST_SOUNDS:
        raise InputError(f"n is {options.n}: ask for 1 to {MOST_SOUNDS} sounds")
    most = MOST_CONTINUED if isinstance(model, Continues | Composes) else MOST_SECONDS
    seconds = usual_length(model) / model.sample_rate if options.seconds is None else options.seconds
    length = round(seconds * model.sample_rate) if 0 < seconds <= most else 0
    if not length or options.n * seconds > most:
        asked = f"a sound {seconds:g} s without --seconds" if options.seconds is None else f"seconds {seconds:g}"
        raise InputError(f"n is {options.n} and {asked}: each of a sample or more, {most:.0f} s at most in all")
    return length


def usual_length(model: Model) -> int:
    """Samples of a sound where no length is asked for."""
    if not isinstance(model, Continues | Composes):
        return model.segment
    # Its segment is as long as training wants it, not as long as one would listen.
    return int(np.clip(model.segment, *(round(each * model.sample_rate) for each in USUAL_SECONDS)))


def frame_of(model: Continues | Composes) -> int:
    """Samples that come at once, and the fewest that can be gone on from."""
    return model.hop if isinstance(model, Composes) else model.frame


def drawing(trained: Trained, temperature: float | None, top_p: float | None) -> Trained:
    """The run with another way of drawing samples. Raises InputError where it does not draw them one by one."""
    asked = {"temperature": temperature, "top_p": top_p}
    asked = {name: value for name, value in asked.items() if value is not None}
    for name, value in asked.items():
        if not hasattr(trained.model, name):
            remedy = f"does not draw sample by sample: leave --{name.replace('_', '-')} away"
            raise InputError(f"{name} is {value:g}, but {trained.folder} {remedy}")
    return trained._replace(model=dataclasses.replace(trained.model, **asked))


def sampler_of(trained: Trained, codec: Path | None, seed: int) -> "Sampler | Composer | None":
    """What makes sound of any length; None of a model that makes it at once. Raises InputError where a codec is named
    and none is wanted, or is not the one that is."""
    if isinstance(trained.model, Composes):
        return Composer(trained, codec_of(trained, codec), seed)
    if codec is not None:
        raise InputError(f"codec is {audio.shown(codec)}, but {trained.folder} makes no codes: leave --codec away")
    return Sampler(trained.model, trained.params) if isinstance(trained.model, Continues) else None


class Sampler:
    """A model that continues and its parameters: sounds of any length, block by block through one program."""

    def __init__(self, model: Continues | Composes, params: Params):
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

    def behind(
        self, wave: np.ndarray, n: int, label: Labels | None, key: jax.Array, length: int
    ) -> Iterator[np.ndarray]:
        """`n` times how a sound [whole frames, channels] goes on: the next `length` samples [n, some, channels]."""
        return self.on(self.hear(self.params, np.repeat(wave[None], n, 0), label), key, length)


class Composer(Sampler):
    """A model of codes, its parameters and the codec: the same."""

    def __init__(self, trained: Trained, codec: Trained, seed: int):
        super().__init__(trained.model, trained.params)
        self.codec = Codec(codec.model, codec.params, seed)

    def codes(self, carry: Carry, key: jax.Array, frames: int) -> Iterator[np.ndarray]:
        """The next so many frames of codes [n, some, codebooks]. Raises `audio.Unusable` where they are none."""
        size = max(1, round(BLOCK_SECONDS * self.model.sample_rate / self.model.hop))
        carry = jax.device_put(carry, self.device)
        for done in range(0, frames, size):
            carry, codes = self.extend(self.params, carry, key, size)
            yield known(np.asarray(codes)[:, : frames - done])

    def on(self, carry: Carry, key: jax.Array, length: int, before: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The same; before: codes [n, frames, codebooks] of what was heard, whose sound comes first."""
        known = 0 if before is None else before.shape[1]
        length += known * self.model.hop
        blocks = self.codes(carry, key, self.codec.frames(length) - known)
        first = next(blocks) if before is None else before
        blocks, waiting = chain([first], blocks), [deque() for _ in first]

        def of(row: int) -> Iterator[np.ndarray]:
            """Its codes; those of the others wait until they are wanted, and none waits long: all go at one pace."""
            while waiting[row] or (block := next(blocks, None)) is not None:
                if not waiting[row]:
                    for queue, codes in zip(waiting, block, strict=True):
                        queue.append(codes)
                yield waiting[row].popleft()

        sounds = [self.codec.sound_of(of(row), length, 1.0) for row in range(len(first))]
        for pieces in zip(*sounds, strict=True):
            yield np.stack(pieces)

    def behind(
        self, wave: np.ndarray, n: int, label: Labels | None, key: jax.Array, length: int
    ) -> Iterator[np.ndarray]:
        """The same. The end of what is heard is decoded once more, so that what follows is joined to it."""
        hop, frames, reach = self.model.hop, len(wave) // self.model.hop, self.codec.model.reach
        # A codec looks ahead: before a silence that no one recorded, the last codes would say that the sound ends.
        mirrored = np.pad(wave, ((0, reach * hop), (0, 0)), "symmetric")
        codes = np.concatenate(list(self.codec.codes([mirrored], len(mirrored))))[:frames]
        fade = round(SEAM_SECONDS * self.model.sample_rate)
        codes = np.repeat(codes[None], n, 0)
        before = codes[:, max(0, frames - reach - -(-fade // hop)) :]
        blocks = self.on(self.hear(self.params, codes, label), key, length, before)
        return mended(wave[len(wave) - before.shape[1] * hop :], blocks, fade)


def mended(heard: np.ndarray, blocks: Iterable[np.ndarray], fade: int) -> Iterator[np.ndarray]:
    """Blocks [n, some, channels], which begin with `heard` [time, channels] as a codec gives it back, without that.

    What the codec lost of it is added to what follows, backwards and fading out over `fade` samples: the one passes
    into the other without a step.
    """
    known, held, blocks = len(heard), [], iter(blocks)
    while sum(each.shape[1] for each in held) < known + fade and (block := next(blocks, None)) is not None:
        held.append(block)
    whole = np.concatenate(held, 1)
    new, fade = whole[:, known:].copy(), min(fade, known, whole.shape[1] - known)
    share = 1 - (np.arange(fade, dtype=np.float32) + 0.5) / fade
    lost = heard[None, known - fade :] - whole[:, known - fade : known]
    new[:, :fade] = np.clip(new[:, :fade] + lost[:, ::-1] * share[None, :, None], -1, 1)
    return chain([new], blocks)


def codec_at(where: Path, checkpoint: str) -> Trained:
    """The codec in this folder. Raises InputError where the run there makes no codes."""
    if not isinstance(folder.described(where)[0], Quantizes):  # whatever checkpoints it has
        raise InputError(f"codec is {audio.shown(where)}, which makes no codes: name a codec's run, as of dac:small")
    codec = folder.trained(where, checkpoint)
    if reason := why_no_codes(codec):
        raise InputError(f"codec is {audio.shown(where)}: {reason}")
    return codec


def codec_of(trained: Trained, where: Path | None) -> Trained:
    """The codec whose codes a run has learned, in the folder `where` or, None, where it was then."""
    try:
        about = json.loads((located(trained.folder) / "run.json").read_text())["codec"]
        there, step, identity = Path(about["folder"]), str(about["step"]), about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"run.json in {trained.folder} names no codec ({problem!r}): train it anew") from problem
    remedy = f"name the run that was {audio.shown(there)} at step {step}, as --codec FOLDER"
    try:
        codec = codec_at(where or there, step)
    except InputError as reason:
        cause = str(reason).rpartition(": ")[0] or reason  # without its own remedy
        raise InputError(f"{trained.folder} wants its codec, but {cause}: {remedy}") from reason
    if identity_of(codec) != identity:
        raise InputError(f"{audio.shown(where or there)} is not the codec that {trained.folder} has learned: {remedy}")
    return codec


def told(codec: Trained) -> dict:
    """What run.json tells of the codec whose codes a run learns."""
    return {"folder": str(codec.folder), "step": codec.step, "fingerprint": identity_of(codec)}


def identity_of(codec: Trained) -> str:
    """What tells a codec from others, and is in the streams that it writes: 16 hex digits."""
    return codec.identity[:16]


def learning(model: Model, codec: Model) -> Model:
    """The model as it learns this codec's codes. Raises InputError where its segment is no whole number of frames."""
    if model.segment % codec.hop:
        near = max(1, round(model.segment / codec.hop)) * codec.hop
        rule = f"it is a whole number of the codec's frames of {codec.hop} samples, choose --model.segment {near}"
        raise InputError(f"segment is {model.segment}: {rule}")
    return dataclasses.replace(model, **{name: getattr(codec, name) for name in FROM_CODEC})


def coded(pack: Pack, codec: Trained, model: Composes) -> CodePack:
    """The codes of a pack's recordings."""
    coder = Codec(codec.model, codec.params, 0)
    code = lambda blocks, length: np.concatenate(list(coder.codes(blocks, length)))
    return open_codes(pack, model, identity_of(codec), code)


def through_codec(model: Composes, codec: Trained) -> Callable[..., np.ndarray]:
    """What `Generates.generate` is, of a model of codes."""
    draw = lambda params, key, n, frames, label: model.extend(params, model.begin(params, n, label), key, frames)[1]
    draw, sound = jax.jit(draw, static_argnums=(2, 3)), sound_of_codes(codec)

    def generate(params: Params, key: jax.Array, n: int, length: int, label: Labels | None) -> np.ndarray:
        frames = -(-(length + codec.model.delay) // model.hop)
        return sound(np.asarray(draw(params, key, n, frames, label)))[:, :length]

    return generate


def sound_of_codes(codec: Trained) -> Callable[[np.ndarray], np.ndarray]:
    """Codes [n, frames, codebooks] -> sound, at once; the first code in place of those that are none."""
    model, key = codec.model, jax.random.key(0)
    program = jax.jit(lambda params, codes: model.decode(params, model.frames_of(params, jnp.maximum(codes, 0)), key))
    return lambda codes: np.asarray(program(codec.params, codes))[:, model.delay :]


class Showcase:
    """The same sounds again and again while a model learns: same latents, same labels. codec: of a model of codes."""

    def __init__(self, model: Model, names: tuple[str, ...], n: int, codec: Trained | None = None):
        self.model, self.n, self.length = model, n, usual_length(model)
        names = names if model.classes else ()
        self.label = labels(names, None, n)
        self.titles = captions(names, self.label, n)
        self.sound = through_codec(model, codec) if codec else jax.jit(model.generate, static_argnums=(2, 3))

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


def write(
    out: Path, waves: np.ndarray, sample_rate: int, titles: list[str], prefix: str = "", columns: int | None = None
) -> np.ndarray:
    """One WAV file per sound, and one sheet of their spectrograms, which it returns [height, width, 3]; of PANELS
    sounds at most, evenly chosen. columns: of a sheet that has room for all."""
    for i, (title, wave) in enumerate(zip(titles, waves, strict=True)):
        audio.write(out / f"{stem(prefix, i, title)}.wav", wave, sample_rate)
    every = sparse(len(waves))
    sheet = out / f"{prefix or 'sheet'}.png"
    return draw(waves[::every], sample_rate, titles[::every], sheet, columns if every == 1 else None)


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
