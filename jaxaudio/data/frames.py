"""Features that other programs made of recordings, such as the mels of a text-to-speech model, and batches of both.

A file is .npy, float [frames, bands]. Of a recording a/b.wav it is a/b.npy in the folder of features, a frame for every
hop of the recording at the model's rate, one more or less; frame i is centred on the middle of hop i. Examples are cut
where a hop begins; behind a shorter recording are the features of silence.
"""

import dataclasses
import hashlib
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Batch, InputError, Vocodes
from jaxaudio.data import audio
from jaxaudio.data.clips import Clips, Plan
from jaxaudio.data.pack import Pack

CHUNK = 1000  # frames that are read at once
DAMAGED = (ValueError, EOFError, OverflowError, TypeError, MemoryError, SyntaxError, TokenError)  # what numpy raises


class Wanted(NamedTuple):
    """What a model takes."""

    bands: int
    hop: int
    sample_rate: int  # Hz

    def __str__(self) -> str:
        each = f"a frame per {self.hop} samples at {self.sample_rate} Hz"
        return f"this run wants float [frames, {self.bands}], {each}"


def wanted_by(model: Vocodes) -> Wanted:
    """What this model takes."""
    hops = max(1, model.segment // model.hop)
    wave = jax.ShapeDtypeStruct((1, hops * model.hop, model.channels), jnp.float32)
    return Wanted(jax.eval_shape(model.features, wave).shape[-1], model.hop, model.sample_rate)


def opened(path: Path, wanted: Wanted, transposed: bool = False) -> np.ndarray:
    """The frames of a .npy file, which stay in the file. transposed: it holds [bands, frames], or one such sound in a
    batch. Raises `audio.Unusable` for what is not wanted."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # one that waits for a writer would never be opened
            raise audio.Unusable("not a regular file")
        with warnings.catch_warnings(action="ignore"):  # of files that Python 2 wrote
            held = np.lib.format.open_memmap(path, mode="r")
    except OSError as problem:
        raise audio.Unusable(problem.strerror or "damaged, or no .npy file") from problem
    except DAMAGED as problem:
        raise audio.Unusable(f"damaged, empty, or no .npy file of numbers: {wanted}") from problem
    frames = held
    if transposed:
        frames = (held[0] if held.ndim == 3 and len(held) == 1 else held).T
    if frames.ndim != 2 or frames.shape[1] != wanted.bands or not len(frames):
        remedy = "leave --transposed away" if transposed else "transpose it, which vocode does with --transposed"
        turned = frames.ndim == 2 and frames.shape[0] == wanted.bands
        raise audio.Unusable(f"its shape is {held.shape}, {wanted}{f': {remedy}' if turned else ''}")
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


@dataclass(frozen=True, eq=False)
class FramedPack(Pack):
    """Recordings that have features; those without are rejected. The fingerprint is that of all the recordings."""

    frames: tuple[Path, ...]  # of each recording
    framed: str  # 16 hex digits: the fingerprint of the features


def framed(pack: Pack, model: Vocodes, folder: Path) -> FramedPack:
    """The recordings of `pack` whose features lie in `folder`. Raises `InputError` where there are none, and where the
    model's segment is no whole number of hops."""
    if model.segment % model.hop:
        raise InputError(f"segment is {model.segment}: with mels given it is a whole number of hops of {model.hop}")
    if not folder.is_dir():
        raise InputError(f"mels is {audio.shown(folder)}: no such folder; name one with a .npy for each recording")
    wanted, digest = wanted_by(model), hashlib.blake2b(digest_size=8)
    kept, paths, rejected = [], [], []
    for i, name in enumerate(pack.names):
        path = folder / PurePosixPath(name).with_suffix(".npy")
        try:
            frames = opened(path, wanted)
            if abs(len(frames) - pack.length[i] / model.hop) > 1:
                due = f"{pack.length[i]} samples have {pack.length[i] / model.hop:.1f} hops of {model.hop}"
                raise audio.Unusable(f"it has {len(frames)} frames, but the recording's {due}")
        except audio.Unusable as reason:
            rejected.append((name, f"mels: {audio.shown(path)}: {reason}"))
            continue
        digest.update(repr((name, frames.shape)).encode())
        for piece in pieces(frames):
            digest.update(piece)
        kept.append(i)
        paths.append(path)
    if not kept:
        raise InputError(f"none of {len(pack.names)} recordings has mels that can be used; the first: {rejected[0][1]}")
    fields = {field.name: getattr(pack, field.name) for field in dataclasses.fields(Pack)}
    fields |= {name: getattr(pack, name)[kept] for name in ("start", "length", "peak", "label", "group", "split")}
    fields |= {"names": tuple(pack.names[i] for i in kept), "rejected": (*pack.rejected, *rejected)}
    return FramedPack(**fields, frames=tuple(paths), framed=digest.hexdigest())


class FramedClips(Clips):
    """The examples that one split gives a model, with their features: given float32 [rows, frames, bands]."""

    def __init__(self, pack: FramedPack, model: Vocodes, seed: int, split: str = "train", noise: None = None):
        super().__init__(pack, model, seed, split, noise)
        self.hop = model.hop
        silence = model.features(jnp.zeros((1, model.segment, model.channels)))
        self.silence = np.asarray(silence, np.float32)[0, silence.shape[1] // 2]

    def drawn(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut where a hop begins."""
        which, offset = super().drawn(n)
        return which, offset // self.hop * self.hop

    def gather(self, plan: Plan) -> Batch:
        """The planned examples, on the host."""
        given = np.tile(self.silence, (len(plan.start), self.segment // self.hop, 1))
        which = np.searchsorted(self.start, plan.start, side="right") - 1
        first = (plan.start - self.start[which]) // self.hop
        for out, recording, begin, length in zip(given, self.chosen[which], first, plan.length, strict=True):
            frames = np.load(self.pack.frames[recording], mmap_mode="r")
            held = -(-length // self.hop)
            out[:held] = frames[np.minimum(begin + np.arange(held), len(frames) - 1)]
        return super().gather(plan)._replace(given=given)
