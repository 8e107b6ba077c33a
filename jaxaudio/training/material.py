"""What a run learns from: recordings, noise, a codec's codes, given mels, the networks of another run."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxaudio import zoo
from jaxaudio.core import Composes, InputError, Model, Plays, Vocodes
from jaxaudio.data import audio, synth
from jaxaudio.data.clips import Clips, Noise
from jaxaudio.data.codes import CodeClips
from jaxaudio.data.frames import FramedClips, FramedPack, framed
from jaxaudio.data.notes import pitches_of
from jaxaudio.data.pack import Pack, Source, open_pack, recordings
from jaxaudio.runtime import folder
from jaxaudio.runtime.folder import Saved, Trained
from jaxaudio.tasks import generate
from jaxaudio.training.run import Run


class Material(NamedTuple):
    """All that a run reads, opened."""

    run: Run  # with what the codec and the data fill in
    pack: Pack | FramedPack
    noise: Pack | None
    codec: Trained | None
    other: Saved | None  # what it begins with
    about: dict[str, Any]  # what run.json tells of it

    def clips(self, seed: int, split: str) -> Clips | CodeClips | FramedClips:
        """The examples that a split gives."""
        cut = CodeClips if self.codec else FramedClips if self.run.mels else Clips
        noise = self.noise and _noise_of(self.noise, self.run.model, seed, split)
        return cut(self.pack, self.run.model, seed, split, noise)


def opened(run: Run) -> Material:
    """Reads, and where it is the first time decodes, all that the run names."""
    run, codec = with_codec(run)
    pack, noise = (each and open_pack(each) for each in (source(run), noise_source(run)))
    pack = generate.coded(pack, codec, run.model) if codec else with_mels(run, pack)
    run = dataclasses.replace(run, model=with_classes(run.model, pack.classes))
    other = folder.saved(run.begin, run.begin_checkpoint) if run.begin else None
    about = {"data": {**told(run.data, pack), "classes": pack.classes, "column": column_of(run)}}
    about |= {"noise": told(run.noise, noise)} if noise else {}
    about |= {"codec": generate.told(codec)} if codec else {}
    about |= {"mels": {"folder": str(run.mels), "fingerprint": pack.framed}} if run.mels else {}
    if other:
        step = int(other.state.step)
        about["begin"] = {"folder": str(run.begin), "step": step, "fingerprint": other.fingerprint}
    return Material(run, pack, noise, codec, other, about)


def with_codec(run: Run) -> tuple[Run, Trained | None]:
    """The run of a model that learns a codec's codes with what it takes from that, and the codec."""
    model, name = run.model, zoo.name_of(run.model)
    if not isinstance(model, Composes):
        if run.codec:
            raise InputError(f"codec is {audio.shown(run.codec)}, but {name} learns no codes: leave --codec away")
        return run, None
    if not run.codec:
        raise InputError(f"{name} learns the codes of a codec: train one first, then name its run, as --codec FOLDER")
    if run.gather == "device":
        raise InputError("gather is device, but codes are cut on the host: leave --gather away")
    codec = generate.codec_at(run.codec, run.codec_checkpoint)
    own = codec.model
    print(f"codec: step {codec.step} of {run.codec}: {own.codebooks} codebooks of {own.codebook_size}, "
          f"{own.sample_rate / own.hop:.4g} frames per second")  # fmt: skip
    return dataclasses.replace(run, model=generate.learning(model, own)), codec


def with_mels(run: Run, pack: Pack) -> Pack | FramedPack:
    """The recordings, where mels are given those that have some."""
    if not run.mels:
        return pack
    for wrong, reason in (
        (not isinstance(run.model, Vocodes), f"but {zoo.name_of(run.model)} makes no sound of mels: leave --mels away"),
        (not run.data, "but the synthesiser's sounds have none: name the recordings, as --data FOLDER"),
        (run.model.gain != "none", f"of sound as it is, but gain is {run.model.gain}: add --model.gain none"),
        (run.gather == "device", "and gather device, but mels are cut on the host: leave --gather away"),
    ):
        if wrong:
            raise InputError(f"mels is {audio.shown(run.mels)}, {reason}")
    return framed(pack, run.model, run.mels)


def source(run: Run) -> Source:
    """The recordings: those of folders, or the synthesiser's."""
    model = run.model
    if not run.data:
        return synth.labelled(column_of(run))(model.sample_rate, model.channels, model.segment)
    return recordings(run.data, model.sample_rate, model.channels, column_of(run))


def column_of(run: Run) -> str:
    """What a recording's class is."""
    return run.label or run.model.label


def noise_source(run: Run) -> Source | None:
    """The noise, where the model learns from noise: that of folders or, beside the synthesiser's sounds, its own."""
    model = run.model
    if not model.needs_noise:
        if run.noise:
            raise InputError(f"noise is {run.noise[0]}, but {zoo.name_of(model)} learns without: leave --noise away")
        return None
    if both := {path.resolve() for path in run.data} & {path.resolve() for path in run.noise}:
        raise InputError(f"{min(both)} is --data and --noise: what is to stay can't be what is to go, name other noise")
    if run.noise:
        return recordings(run.noise, model.sample_rate, model.channels)
    if run.data:
        raise InputError(
            f"noise data missing: beside --data {zoo.name_of(model)} learns from recordings of noise: name a folder of "
            "them, as --noise FOLDER"
        )
    return synth.Textures(model.sample_rate, model.channels, model.segment)


def _noise_of(pack: Pack, model: Model, seed: int, split: str) -> Noise:
    """The noise of a split; that of training where none is held out."""
    noise = Noise(pack, model, seed, split)
    return noise if noise.units else Noise(pack, model, seed, "train")


def told(folders: tuple[Path, ...], pack: Pack) -> dict:
    """Of recordings, what run.json tells: "None" are the synthesiser's, several folders a list."""
    folder = [str(path) for path in folders] if len(folders) > 1 else str(folders[0] if folders else None)
    return {"folder": folder, "layout": pack.layout, "fingerprint": pack.fingerprint}


def with_classes(model: Model, classes: tuple[str, ...]) -> Model:
    """The model with as many classes as the data has, if it looks at labels, and the pitches that these are."""
    if not model.needs_labels:
        return model
    if not classes:
        other = ", or add --model.no-conditional" if hasattr(model, "conditional") else ""
        raise InputError(
            f"this model needs labels, but the data has none: give a folder per class or a metadata.csv{other}"
        )
    found = {"classes": len(classes)} | ({"pitches": pitches_of(classes)} if isinstance(model, Plays) else {})
    for name, value in found.items():
        if getattr(model, name) not in (0, (), value):
            raise InputError(f"model.{name} is {getattr(model, name)}, but the data has {value}: leave it away")
    return dataclasses.replace(model, **found)
