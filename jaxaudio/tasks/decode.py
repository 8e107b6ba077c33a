"""The sound of codes or latent frames that encode wrote."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxaudio.core import Encodes
from jaxaudio.data import audio, bitstream
from jaxaudio.data.coder import Codec, has_codes
from jaxaudio.data.files import found, one_by_one
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.encode import fingerprint, identity, load

NEEDS = Encodes

SUFFIXES = frozenset((".jaz", ".npz"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb decode."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # .jaz files of codes, .npz of latents, or folders of them
    force: bool = False  # overwrite files that are there already


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per file: with the same seed what reconstruct makes of the recording. `out` may be the file of
    the only one."""
    codec, cut = Codec(trained.model, trained.params, seed), []
    of_latents, of_codes = latent(trained, codec, identity(trained)), coded(trained, codec, cut)

    def decode(path: Path, target: Path) -> str:
        if path.suffix.lower() not in SUFFIXES:
            raise audio.Unusable("decode takes .jaz and .npz, which encode writes")
        return (of_codes if path.suffix.lower() == ".jaz" else of_latents)(path, target)

    paths = found(options.files, SUFFIXES, "file of codes or latents")
    one_by_one(paths, out, ".wav", decode, audio.WRITTEN.keys(), options.force)
    for path, damage in cut:
        print(f"{audio.shown(path)}: {damage}; what comes before is decoded", file=sys.stderr)
    return out


def latent(trained: Trained, codec: Codec, own: dict[str, str]) -> Callable[[Path, Path], str]:
    """What decodes latents."""
    components = len(trained.model.spread(trained.params))

    def decode(path: Path, target: Path) -> str:
        given = load(path, codec, own, components)
        codec.write(target, codec.sound([given.latent], given.length, given.level), given.length)
        kept = given.latent.shape[1]
        return f"{given.length / given.sample_rate:.2f} s, {kept} of {components} components -> {target.name}"

    return decode


def coded(trained: Trained, codec: Codec, cut: list[tuple[Path, str]]) -> Callable[[Path, Path], str]:
    """What decodes codes; files that end too early are added to `cut`."""
    model, able = trained.model, has_codes(trained)
    tables = bitstream.tabled(np.asarray(trained.params["usage"])) if able else None
    of = f"{model.codebooks} codebook{'s' * (model.codebooks > 1)}" if able else ""

    def decode(path: Path, target: Path) -> str:
        stream = bitstream.look(path)
        if not able:
            raise audio.Unusable("holds codes, but this model has none: decode it with its own run")
        header, length = stream.header, checked(stream, trained, codec)
        codec.write(target, codec.sound_of(bitstream.codes_of(path, stream, tables), length, header.level), length)
        words = f"{length / header.sample_rate:.2f} s, {header.codebooks} of {of}"
        if stream.damage:
            cut.append((path, stream.damage))
            words += f" (of {header.length / header.sample_rate:.2f} s: {stream.damage})"
        return f"{words} -> {target.name}"

    return decode


def checked(stream: bitstream.Stream, trained: Trained, codec: Codec) -> int:
    """Samples that a stream's blocks tell. Raises `audio.Unusable` where another codec wrote them, or too few."""
    header, model = stream.header, codec.model
    names = ("sample_rate", "channels", "hop", "codebook_size")
    there, here = ([getattr(x, name) for name in names] for x in (header, model))
    each = "; ".join(f"{n} is {a} there and {b} here" for n, a, b in zip(names, there, here, strict=True) if a != b)
    if header.codebooks > model.codebooks:
        each = f"it has {header.codebooks} codebooks, this one {model.codebooks}"
    if each:
        raise audio.Unusable(f"of another model: {each}; decode it with its own run")
    if header.fingerprint != fingerprint(trained):
        steps = f"step {header.step} there, step {trained.step} here"
        raise audio.Unusable(f"of another run or checkpoint: its fingerprint differs ({steps}); see --checkpoint")
    if not stream.damage and stream.frames != codec.frames(header.length):
        wanted = f"{codec.frames(header.length)} as {header.length} samples want"
        raise audio.Unusable(f"damaged: it has {stream.frames} frames, not {wanted}; encode the recording again")
    length = min(header.length, stream.frames * model.hop - model.delay)
    if length < 1:
        raise audio.Unusable(f"{stream.damage}: nothing can be decoded")
    return length
