"""What the scorecard compares: recordings of a split, sounds that a run makes, embeddings from elsewhere."""

import copy
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import InputError
from jaxaudio.data import synth
from jaxaudio.data.audio import shown
from jaxaudio.data.clips import Clips
from jaxaudio.data.pack import Pack, open_pack, recordings
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.store import located

BATCH = 50  # sounds made at once
SECONDS = 3.0  # of a stretch at most, unless its unit is longer


def data_of(run: Trained, folder: Path | None) -> Pack:
    """The recordings in a folder; None: those of the run."""
    return pack_of(run, folder, "data")


def noise_of(run: Trained, folder: Path | None) -> Pack:
    """The noise in a folder; None: that of the run. Raises InputError where it learned from none."""
    return pack_of(run, folder, "noise")


def pack_of(run: Trained, folder: Path | None, part: str) -> Pack:
    """The recordings in a folder; None: those that run.json names under `part`, or the synthesiser's. Labels are what
    they were when it was trained."""
    model, folders = run.model, [folder]
    about = json.loads((located(run.folder) / "run.json").read_text())
    column = about.get(part, {}).get("column", "label")
    if folder is None:
        if part not in about:
            raise InputError(f"{run.folder} was trained without {part}: name a folder of it")
        stated = about[part].get("folder", "None")
        if stated == "None":
            made = synth.labelled(column) if part == "data" else synth.Textures
            return open_pack(made(model.sample_rate, model.channels, model.segment))
        folders = [Path(each) for each in (stated if isinstance(stated, list) else [stated])]
    return open_pack(recordings(folders, model.sample_rate, model.channels, column))


def trained_on(run: Trained, pack: Pack) -> Pack:
    """The recordings that the run was trained on, `pack` if it is these; InputError where they are not there."""
    fingerprint = json.loads((located(run.folder) / "run.json").read_text())["data"]["fingerprint"]
    own = pack if pack.fingerprint == fingerprint else data_of(run, None)
    if own.fingerprint != fingerprint:
        raise InputError("the run's recordings are not those any more that it was trained on")
    return own


class Taken(NamedTuple):
    """Recordings as the model hears them: wave [n, segment, channels], label [n], group [n] by name."""

    wave: np.ndarray
    label: np.ndarray
    group: np.ndarray


def clips_of(run: Trained, pack: Pack, split: str) -> Clips:
    """A split, as the run's model takes it."""
    clips = Clips(pack, run.model, 0, split)
    if clips.units < 2:
        raise InputError(
            f"{clips.units} recordings in the split {split}: scores need 2 at least; choose another --split"
        )
    return clips


def stretch(run: Trained, pack: Pack, split: str, unit: int) -> int:
    """Samples of the stretches of recordings that are compared: a multiple of `unit`, one at least, of 3 seconds and
    the median recording at most."""
    lengths = clips_of(cut_into(run, unit), pack, split).length
    most = min(SECONDS * run.model.sample_rate, float(np.median(lengths)))
    return max(1, int(most) // unit) * unit


def cut_into(run: Trained, length: int) -> Trained:
    """The run, for recordings in stretches of this length. Its model may refuse to train on these, and is not asked."""
    model = copy.copy(run.model)
    object.__setattr__(model, "segment", length)
    return run._replace(model=model)


def in_turn(clips: Clips, most: int) -> Iterator[Taken]:
    """At most so many recordings of a split, evenly spread over it, a batch at a time."""
    names = np.array([*clips.pack.groups, ""], object)
    for plan, count in clips.survey(most):
        plan = jax.tree.map(lambda field, count=count: field[:count], plan)
        which = np.searchsorted(clips.start, plan.start, side="right") - 1
        batch = clips.gather(plan)
        yield Taken(batch.wave, batch.label, names[clips.pack.group[clips.chosen[which]]])


def together(batches: Iterator[Taken]) -> Taken:
    """All of them at once."""
    return Taken(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def sounds_of(run: Trained, n: int, asked: np.ndarray | None, seed: int) -> np.ndarray:
    """[n, segment, channels], made from the seed alone; with labels if the model is conditional."""
    make, made = jax.jit(run.model.generate, static_argnums=(2, 3)), []
    for i in range(-(-n // BATCH)):
        label = None if asked is None else jnp.asarray(np.resize(asked[i * BATCH : (i + 1) * BATCH], BATCH))
        key = jax.random.fold_in(jax.random.key(seed), i)
        made.append(np.asarray(make(run.params, key, BATCH, run.model.segment, label)))
    return np.concatenate(made)[:n]


def load_embeddings(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays `real` and `fake` of an .npz file, [clips, features] of one width."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file):
            file.seek(0)
            arrays = np.load(file)
            given = {name: np.asarray(arrays[name], np.float64) for name in ("real", "fake")}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise InputError(f"{shown(path)} is no .npz file with the arrays real and fake ({problem})") from problem
    shapes = [x.shape for x in given.values()]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise InputError(f"{shown(path)} holds arrays of {shapes}: they are [clips, features], of as many features")
    return given


def in_batches(function: Callable, *arrays: np.ndarray, most: int = 2 * BATCH) -> np.ndarray:
    """function(*rows) over blocks of one size, the last one filled up from its own beginning; what it gave, joined."""
    n, outputs = len(arrays[0]), []
    size = min(n, most)
    for first in range(0, n, size):
        rows = np.resize(np.arange(first, min(first + size, n)), size)
        outputs.append(np.asarray(function(*(jnp.asarray(x[rows]) for x in arrays)))[: min(size, n - first)])
    return np.concatenate(outputs)
