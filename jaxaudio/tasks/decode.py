"""The sound of latent frames that encode wrote."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxaudio.core import Encodes
from jaxaudio.data.files import found, one_by_one
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.encode import identity, load
from jaxaudio.tasks.reconstruct import Codec

NEEDS = Encodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb decode."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # .npz files of latents, or folders of them


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes NAME.wav per file of latents: with the same seed what reconstruct makes of the recording."""
    codec, own = Codec(trained.model, trained.params, seed), identity(trained)
    components = len(trained.model.spread(trained.params))

    def decode(path: Path, target: Path) -> str:
        given = load(path, codec, own, components)
        codec.write(target, codec.sound([given.latent], given.length, given.level), given.length)
        kept = given.latent.shape[1]
        return f"{given.length / given.sample_rate:.2f} s, {kept} of {components} components -> {target.name}"

    one_by_one(found(options.files, {".npz"}, "file of latents"), out, ".wav", decode)
    return out
