"""The codes or latent frames of recordings, as files that decode reads; of a vocoder its features, for vocode."""

import contextlib
import dataclasses
import json
import os
import struct
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
import tyro

from jaxaudio import zoo
from jaxaudio.core import Encodes, InputError, Model, Vocodes
from jaxaudio.data import audio, bitstream
from jaxaudio.data.coder import Codec
from jaxaudio.data.files import RECORDINGS, found, one_by_one, regular, said
from jaxaudio.data.parts import level
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.reconstruct import components, kept_codebooks, refuse_fidelity, refuse_rate
from jaxaudio.tasks.vocode import Vocoder

NEEDS = Encodes | Vocodes

MOST_SAMPLES = 1 << 48
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError, zlib.error)
DAMAGED += (zipfile.BadZipFile, struct.error)  # what numpy and zipfile raise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb encode."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # recordings, or folders of them
    fidelity: float = 1.0  # share of the latent variance that is kept, by as few leading components as hold it
    kbps: float | None = None  # of codecs: as many codebooks as fit into so many kbit/s before entropy coding
    codebooks: int | None = None  # of codecs: so many leading codebooks; neither: all
    method: Literal["context", "static", "raw"] | None = None  # of codecs: what writes codes; none: context
    force: bool = False  # overwrite files that are there already


class Encoded(NamedTuple):
    """A recording's latents and what decoding them needs; the fields of a .npz file."""

    latent: np.ndarray  # [frames, components] float32
    length: int  # samples
    sample_rate: int  # Hz
    level: float  # the peak, of models that hear all at a peak of 1; else 1
    model: str  # its fields, as JSON
    parameters: str  # digest of its checkpoint
    step: int  # of the checkpoint


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes per recording NAME.jaz (codes), NAME.npz (latents) or, of a vocoder, NAME.npy, float32 [frames, features];
    `out` may be the file of the only one."""
    paths = found(options.files, RECORDINGS, "recording")
    if isinstance(trained.model, Vocodes):
        refuse_fidelity(trained, options.fidelity)
        refuse_rate(trained, kbps=options.kbps, codebooks=options.codebooks, method=options.method)
        suffix, act = ".npy", featured(Vocoder(trained.model, trained.params, seed))
    else:
        codec = Codec(trained.model, trained.params, seed)
        used = kept_codebooks(trained, options.fidelity, options.kbps, options.codebooks)
        if used is None:
            refuse_rate(trained, method=options.method)
            suffix, act = ".npz", latent(codec, identity(trained), components(trained, options.fidelity))
        else:
            suffix, act = ".jaz", streamed(codec, trained, used, options.method or "context")
    one_by_one(paths, out, suffix, act, {suffix}, options.force)
    return out


def featured(vocoder: Vocoder) -> Callable[[Path, Path], str]:
    """What writes the features of a recording."""

    def encode(path: Path, target: Path) -> str:
        sound = vocoder.survey(path)
        frames = np.concatenate(list(vocoder.features(vocoder.blocks(sound), sound.frames)))
        whole(target, lambda file: np.save(file, frames))
        return f"{said(sound)}, {frames.shape[0]} frames of {frames.shape[1]} -> {target.name}"

    return encode


def latent(codec: Codec, about: dict[str, Any], kept: int | None) -> Callable[[Path, Path], str]:
    """What writes the latents of a recording."""

    def encode(path: Path, target: Path) -> str:
        sound = codec.survey(path)
        latent = np.concatenate([each[:, :kept] for each in codec.latents(codec.blocks(sound), sound.frames)])
        save(target, Encoded(latent, sound.frames, sound.sample_rate, level(codec.model, sound.peak), **about))
        return f"{said(sound)}, {latent.shape[0]} frames of {latent.shape[1]} -> {target.name}"

    return encode


def streamed(codec: Codec, trained: Trained, used: int, method: str) -> Callable[[Path, Path], str]:
    """What writes the codes of a recording, a block at a time."""
    model, tables = codec.model, bitstream.tabled(np.asarray(codec.params["usage"]))
    of = fingerprint(trained), trained.step

    def encode(path: Path, target: Path) -> str:
        sound, wrote = codec.survey(path), 0
        about = (sound.sample_rate, sound.channels, sound.frames, model.hop, used, model.codebook_size)
        header = bitstream.Header(method, *of, *about, level(model, sound.peak))

        def write(file: BinaryIO) -> None:
            nonlocal wrote
            wrote = bitstream.write(file, header, codec.codes(codec.blocks(sound), sound.frames, used), tables)

        whole(target, write)
        size, seconds = target.stat().st_size, sound.frames / sound.sample_rate
        saved = 1 - 8 * wrote / (codec.frames(sound.frames) * used * header.bits)
        rate = f"{size} bytes, {8 * size / seconds / 1000:.3g} kbps, {bitstream.saving(saved)} by entropy coding"
        return f"{said(sound)}, {used} codebook{'s' * (used > 1)}, {rate} -> {target.name}"

    return encode


def fingerprint(trained: Trained) -> bytes:
    """What tells a codec's checkpoint from others: 8 bytes."""
    return bytes.fromhex(trained.identity[:16])


def identity(trained: Trained) -> dict[str, Any]:
    """What tells a model and its checkpoint from others: fields of `Encoded`."""
    fields = json.dumps(zoo.dump(trained.model), sort_keys=True)
    return {"model": fields, "parameters": trained.identity, "step": trained.step}


def completed(fields: dict[str, Any], model: Model) -> dict[str, Any]:
    """Fields of such a model that were written by an older version: those that it did not know have their defaults.
    Raises `audio.Unusable` where this version does not know one."""
    own = dataclasses.fields(model)
    unknown = sorted(fields.keys() - {"model", *(field.name for field in own)})
    if unknown:
        raise audio.Unusable(f"of another version, whose model has {', '.join(unknown)}: encode the recording again")
    defaults = {field.name: field.default for field in own if field.default is not dataclasses.MISSING}
    return json.loads(json.dumps(defaults)) | fields


def save(path: Path, encoded: Encoded) -> None:
    """Raises InputError."""
    whole(path, lambda file: np.savez(file, **encoded._asdict()))


def whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """The file appears whole or not at all. Raises InputError."""
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as e:
        raise InputError(f"{audio.shown(path)}: cannot be written ({e.strerror}); choose another place") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load(path: Path, codec: Codec, own: dict[str, Any], components: int) -> Encoded:
    """What `save` wrote. Raises `audio.Unusable` for a damaged file and for one of another model or checkpoint.

    own: `identity` of the run. components: how many the model has; a file may hold fewer.
    """
    encoded = _read(path)
    there, here = json.loads(encoded.model), json.loads(own["model"])
    there = completed(there, codec.model) if there.get("model") == here["model"] else there
    differing = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    if differing:
        differing = ["model"] if "model" in differing else differing
        each = "; ".join(f"{name} is {there.get(name)} there and {here.get(name)} here" for name in differing)
        raise audio.Unusable(f"of another model: {each}; decode it with its own run")
    if encoded.parameters != own["parameters"]:
        steps = f"step {encoded.step} there, step {own['step']} here"
        raise audio.Unusable(f"of another run or checkpoint: the parameters differ ({steps}); see --checkpoint")
    if encoded.sample_rate != codec.model.sample_rate:
        rates = f"its sample_rate is {encoded.sample_rate} Hz, the model's {codec.model.sample_rate} Hz"
        raise audio.Unusable(f"damaged: {rates}; encode the recording again")
    shape, kind, frames = encoded.latent.shape, encoded.latent.dtype, codec.frames(encoded.length)
    if len(shape) != 2 or shape[0] != frames or not 0 < shape[1] <= components or kind != np.float32:
        wanted = f"float32 ({frames}, 1 to {components}) as {encoded.length} samples want it"
        raise audio.Unusable(f"its latent is {kind} {shape}, not {wanted}")
    if not np.isfinite(encoded.latent).all():
        raise audio.Unusable("its latent holds NaN or infinity")
    return encoded


def _read(path: Path) -> Encoded:
    """The fields, each of its kind."""
    regular(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            encoded = Encoded(*[file[name] if name == "latent" else file[name].item() for name in Encoded._fields])
        kinds = [type(value) for value in encoded[1:]]
        if kinds != [int, int, float, str, str, int] or type(json.loads(encoded.model)) is not dict:
            raise ValueError(kinds)
        if not (0 < encoded.length < MOST_SAMPLES and 0 < encoded.level <= 1):
            raise ValueError(encoded.length, encoded.level)
    except OSError as problem:
        raise audio.Unusable(problem.strerror or "damaged, or not a file of latents") from problem
    except DAMAGED as problem:
        raise audio.Unusable("damaged, or not a file of latents: encode the recording again") from problem
    return encoded
