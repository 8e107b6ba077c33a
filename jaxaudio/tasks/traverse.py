"""What one latent component does: the same sound with that component at values from low to high."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxaudio.core import Encodes, InputError
from jaxaudio.data import audio
from jaxaudio.data.files import said
from jaxaudio.data.parts import level
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.reconstruct import Codec, steps_within, variations

NEEDS = Encodes

FARTHEST = 100.0  # standard deviations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb traverse."""

    file: Annotated[Path | None, tyro.conf.Positional] = None  # a recording; none: all other components at their mean
    component: int = 0  # which one; 0 varies most over the training data
    low: float = -3.0  # its first value, in standard deviations over the training data
    high: float = 3.0  # its last value
    steps: int = 7  # values in equal distances


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes a sound per value, held over its whole length, and their sheet."""
    model, spread = trained.model, np.asarray(trained.model.spread(trained.params))
    if not 0 <= options.component < len(spread):
        raise InputError(f"component is {options.component}: this model has 0 to {len(spread) - 1}")
    steps_within(options.steps)
    if not all(abs(end) <= FARTHEST for end in (options.low, options.high)):
        ends = f"low is {options.low} and high {options.high}"
        raise InputError(f"{ends}: each is -{FARTHEST:.0f} to {FARTHEST:.0f} standard deviations")
    codec = Codec(model, trained.params, seed)
    latent, length, loud = base(codec, options.file, options.component)
    path = []
    for value in np.linspace(options.low, options.high, options.steps):
        changed = latent.copy()
        changed[:, options.component] = value * np.sqrt(spread[options.component])
        path.append((f"{value:+.4g}", changed, loud))
    variations(codec, path, length, out)
    return out


def base(codec: Codec, file: Path | None, component: int) -> tuple[np.ndarray, int, float]:
    """The latent frames that are changed, their samples, and how loud they become."""
    if file is None:  # components have a mean of zero, and those that are missing take it
        return np.zeros((codec.frames(codec.model.segment), component + 1), np.float32), codec.model.segment, 1.0
    try:
        sound = codec.survey(file)
        latent = np.concatenate(list(codec.latents(codec.blocks(sound), sound.frames)))
    except audio.Unusable as reason:
        raise InputError(f"{audio.shown(file)} can't be used: {reason}; name another recording") from reason
    print(f"{audio.shown(file)}  {said(sound)}", flush=True)
    return latent, sound.frames, level(codec.model, sound.peak)
