"""A path from one sound to another, through the latent space."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxaudio.core import Encodes, InputError, Morphs
from jaxaudio.data import audio
from jaxaudio.data.files import RECORDINGS, found, said
from jaxaudio.data.notes import chosen
from jaxaudio.data.parts import level
from jaxaudio.runtime.command import check_seed
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import labels, pitches_in, write
from jaxaudio.tasks.reconstruct import Codec, steps_within, variations

NEEDS = Morphs | Encodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb morph."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()  # recordings to go between, of a model that encodes
    seeds: str | None = None  # two or more, as 3,4: what the path visits where there are no files; none: 0,1
    steps: int = 9  # sounds from one to the next, both counted
    label: str | None = None  # of a conditional model: a class by name or number; none: the first
    pitch: str | None = None  # of a model of notes: the MIDI number of all sounds; none: the first it has learned


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes the sounds along the straight line between each two latents, and their sheet."""
    steps_within(options.steps)
    if options.files:
        return between_files(trained, options, seed, out)
    if not isinstance(trained.model, Morphs):
        raise InputError(f"{trained.folder} morphs between recordings: name two or more")
    seeds = (options.seeds or "0,1").split(",")
    if len(seeds) < 2 or not all(each.strip().isdecimal() for each in seeds):
        raise InputError(f"seeds is {options.seeds!r}: give two seeds or more, as 3,4")
    for each in seeds:
        check_seed(int(each))
    model = trained.model
    ends = [model.latents(jax.random.key(int(each)), 1) for each in seeds]
    fractions = jnp.linspace(0.0, 1.0, options.steps)[:, None]
    path = jnp.concatenate([(1 - fractions) * a + fractions * b for a, b in pairwise(ends)])
    if options.pitch is None:
        label = labels(trained.labels, options.label or ("0" if trained.labels else None), len(path))
    else:
        label = jnp.full(len(path), pitch_of(trained, options))
    waves = np.asarray(jax.jit(model.render)(trained.params, path, label))
    titles = [f"{i % options.steps / (options.steps - 1):.2f}" for i in range(len(waves))]
    write(out, waves, model.sample_rate, titles)
    return out


def pitch_of(trained: Trained, options: Options) -> int:
    """The class of the pitch that is asked for."""
    known = pitches_in(trained)
    if options.label is not None:
        raise InputError(f"label is {options.label!r} and pitch {options.pitch!r}: give one of them")
    asked = chosen(options.pitch, known)
    if len(asked) > 1:
        raise InputError(f"pitch is {options.pitch!r}: all sounds of a path have one, give one")
    return known.index(asked[0])


def between_files(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """The same between the latent frames of recordings, all of them cut to the shortest."""
    if not isinstance(trained.model, Encodes):
        raise InputError(f"{trained.folder} can't encode recordings: leave the files away, and choose --seeds")
    if any(each is not None for each in (options.seeds, options.label, options.pitch)):
        words = "--seeds, --label and --pitch are of sounds from nothing"
        raise InputError(f"{words}: leave them away, or leave the files away")
    paths = found(options.files, RECORDINGS, "recording")
    if len(paths) < 2:
        raise InputError("one recording is given: a path goes between two or more")
    codec, sounds, ends = Codec(trained.model, trained.params, seed), [], []
    for path in paths:
        try:
            sounds.append(codec.survey(path))
            ends.append(np.concatenate(list(codec.latents(codec.blocks(sounds[-1]), sounds[-1].frames))))
        except audio.Unusable as reason:
            raise InputError(f"{audio.shown(path)} can't be used: {reason}; name another recording") from reason
        print(f"{audio.shown(path)}  {said(sounds[-1])}", flush=True)
    length = min(sound.frames for sound in sounds)
    if any(sound.frames > length for sound in sounds):
        print(f"all cut to the shortest: {length / trained.model.sample_rate:.2f} s")
    frames = codec.frames(length)
    points = [(end[:frames], level(codec.model, sound.peak)) for end, sound in zip(ends, sounds, strict=True)]
    path = [
        (f"{share:.2f}", np.float32(1 - share) * a + np.float32(share) * b, (1 - share) * loud_a + share * loud_b)
        for (a, loud_a), (b, loud_b) in pairwise(points)
        for share in np.linspace(0, 1, options.steps).tolist()
    ]
    variations(codec, path, length, out)
    return out
