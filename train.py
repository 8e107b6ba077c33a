"""Trains a model: python train.py MODEL[:PRESET] [--data FOLDER ...] [--out FOLDER] [--steps N] [--model.FIELD VALUE]

The same command again continues the run. `python train.py MODEL --help` lists every option.
"""

import contextlib
import csv
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from jaxaudio import zoo
from jaxaudio.core import Composes, Encodes, Generates, InputError, Model, Plays, Restores, State, Vocodes
from jaxaudio.data import audio, synth
from jaxaudio.data.clips import Clips, Noise, fetcher
from jaxaudio.data.codes import CodeClips
from jaxaudio.data.frames import FramedClips, FramedPack, framed
from jaxaudio.data.notes import pitches_of
from jaxaudio.data.pack import Pack, Source, cache_folder, open_pack, recordings
from jaxaudio.runtime import command, folder, report
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.log import Diverged, Log
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks import generate, reconstruct, restore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is about this run and this machine; what the paper states is a field of the model."""

    model: Model  # the paper's hyper-parameters
    data: tuple[Path, ...] = ()  # folders of recordings of any kind; none: the built-in synthesiser
    label: str | None = None  # what a class is: a column of metadata.csv; none: label or, of a model of notes, pitch
    noise: tuple[Path, ...] = ()  # of a model that learns from noise: folders of it; none: the built-in synthesiser
    mels: Path | None = None  # of a vocoder: a folder of features to learn from, a/b.npy of a recording a/b.wav
    codec: Path | None = None  # of a model that learns codes: the run of the codec that makes them
    codec_checkpoint: str = "latest"  # of that run: latest, best, or a step's number
    begin: Path | None = None  # a run whose networks this one begins with, to fine-tune them; optimisers start anew
    begin_checkpoint: str = "latest"  # of that run: latest, best, or a step's number
    out: Path  # the run's folder
    steps: int | None = None  # training steps in all; none: as many as the model says
    seed: int = 0  # of the weights, the noise and the order of the data
    parallel: Literal["jit", "pmap"] = "jit"  # how the step is spread over the devices
    gather: Literal["auto", "host", "device"] = "auto"  # where crops are cut; auto: on an accelerator that has room
    log_every: int = 20  # steps
    eval_every: int = 1000  # steps; evaluates on held-out recordings, writes samples, saves
    save_every: int = 500  # steps
    keep: int = 2  # latest checkpoints kept, beside the best one
    samples: int = 16  # sounds written at each evaluation
    eval_clips: int = 512  # held-out clips per evaluation, at most
    patience: int = 25  # updates of a network in a row without a finite gradient that stop the run
    deterministic: bool = False  # bit-for-bit repeatable on a GPU too, slower

    def __post_init__(self):
        for name in ("steps", "log_every", "eval_every", "eval_clips", "save_every", "keep", "samples", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it is at least 1")
        command.check_seed(self.seed)


def train(run: Run) -> int:
    """Trains to the end, a signal or divergence; the exit code. The run's folder is its own for as long."""
    with contextlib.ExitStack() as held:
        return train_on(run, held)


def train_on(run: Run, held: contextlib.ExitStack) -> int:
    """The same; `held` keeps the folder's lock."""
    devices = Devices(run.parallel)
    devices.rows(run.model.batch_size)
    if jax.process_count() > 1:
        raise InputError(f"this is process {jax.process_index()} of {jax.process_count()}: train.py runs on one host")
    run, codec = with_codec(run)
    sources = source(run), noise_source(run)
    pack, noise = (each and open_pack(each) for each in sources)
    pack = generate.coded(pack, codec, run.model) if codec else with_mels(run, pack)
    model, cut = with_classes(run.model, pack.classes), CodeClips if codec else FramedClips if run.mels else Clips
    clips, held_out = (
        cut(pack, model, run.seed, split, noise and noise_of(noise, model, run.seed, split))
        for split in ("train", "valid")
    )
    like = abstract(model, devices.replicated)
    data = {**told(run.data, pack), "classes": pack.classes, "column": column_of(run)}
    about = {"seed": run.seed, "steps": run.steps, "parallel": run.parallel, "data": data, "parameters": sizes(like)}
    about |= {"noise": told(run.noise, noise)} if noise else {}
    about |= {"codec": generate.told(codec)} if codec else {}
    begin, networks = begun(run, like)
    about |= {"begin": begin} if begin else {}
    about |= {"mels": {"folder": str(run.mels), "fingerprint": pack.framed}} if run.mels else {}
    held.enter_context(folder.claim(run.out, model, about))
    introduce(run, pack, clips, held_out)

    init_key, step_key, eval_key = jax.random.split(jax.random.key(run.seed), 3)
    saved = Checkpoints(run.out / "checkpoints", run.keep, model.criterion)
    state = saved.latest(like)
    if state is None:
        measured = model.measure(clips.batches())
        state = jax.jit(lambda: model.init(init_key, measured), out_shardings=devices.replicated)()
        state = state._replace(**networks)
    del networks  # of a run that continues: a second copy on the devices
    start = int(state.step)
    counts = ", ".join(f"{name} {count:,}" for name, count in about["parameters"].items())
    anew = f"starts with the networks of step {begin['step']} of {run.begin}" if begin else "starts"
    begins = f"continues at step {start}" if start else anew
    print(f"{zoo.name_of(model)}: parameters: {counts}; {begins} on {devices}", flush=True)
    if start >= run.steps:
        print(f"{run.out} is finished ({start} steps): give a larger --steps to train on")
        return command.DONE

    step, examine = devices.compile(model), Examination(run, model, held_out, devices, codec, eval_key)
    fetch = fetcher(clips, devices, "host" if codec or run.mels else run.gather)
    log = Log(run.out, start, run.steps, run.log_every, run.patience)
    ending, kept = "", start
    with command.Signals() as signals:
        try:
            for i in range(start, run.steps):
                began = time.perf_counter()
                batch = fetch(i)
                waited = 0.0 if log.busy() else time.perf_counter() - began
                state, metrics = step(state, batch, jax.random.fold_in(step_key, i), model.stage(i))
                log.add(i + 1, metrics, model.batch_size * model.segment / model.sample_rate, waited)
                due = (i + 1) % run.eval_every == 0 or i + 1 == run.steps
                if due or (i + 1) % run.save_every == 0:
                    with log.paused():
                        saved.save(i + 1, state, examine(i + 1, state, log) if due else None)
                        if due and i + 1 < run.steps:
                            report.write(run.out)
                    kept = i + 1
                if signals.caught and i + 1 < run.steps:
                    ending = f"stopped by {signals.caught}"
                    break
            log.drain()
        except Diverged as reason:
            ending = str(reason)
        except OSError as problem:
            raise InputError(
                f"{run.out} can't be written ({problem.strerror}): make room; the same command continues"
            ) from problem
        finally:
            saved.wait()  # a save that is under way comes to its end, whatever ended the loop
        if ending and kept < int(state.step):
            saved.save(int(state.step), state, None)
            saved.wait()
    log.close()
    report.write(run.out)
    if ending:
        print(f"train.py: {ending}; saved at step {int(state.step)}: the same command continues from {run.out}")
        return command.STOPPED
    print(f"done: {run.steps} steps -> {run.out}")
    return command.DONE


class Examination:
    """What happens every `eval_every` steps: metrics on held-out recordings, samples to listen to and to look at."""

    def __init__(self, run: Run, model: Model, held_out: Clips, devices: Devices, codec: Trained | None, key):
        self.run, self.model, self.held_out, self.devices, self.key = run, model, held_out, devices, key
        self.labels, self.samples, self.codec = held_out.pack.classes, run.out / "samples", codec
        shardings = (devices.replicated, devices.sharded, devices.replicated)
        self.evaluate = jax.jit(model.evaluate, in_shardings=shardings, out_shardings=devices.replicated)
        self.weights = jax.jit(model.weights, out_shardings=devices.replicated)
        self.listen = self.showcase()

    def __call__(self, step: int, state: State, log: Log) -> dict[str, float] | None:
        """The held-out metrics, averaged over examples; None where there are no held-out recordings."""
        scores: dict[str, list[np.ndarray]] = {}
        rows = self.devices.rows(self.model.batch_size)
        for i, (plan, count) in enumerate(self.held_out.survey(self.run.eval_clips)):
            batch = self.devices.shard(self.held_out.gather(jax.tree.map(lambda field: field[rows], plan)))
            for name, value in self.evaluate(state, batch, jax.random.fold_in(self.key, i)).items():
                scores.setdefault(name, []).append(np.asarray(value)[:count])
        means = {name: float(np.mean(np.concatenate(values))) for name, values in scores.items()}
        if means:
            log.write(step, {f"valid/{name}": value for name, value in means.items()})
            log.say(f"step {step}: " + "  ".join(f"valid/{name} {value:.4g}" for name, value in means.items()))
        if self.listen:
            waves, sheet = self.listen(self.weights(state), self.key, self.samples, f"{step:07d}")
            log.media(step, waves, self.model.sample_rate, sheet)
            if self.real and not (self.samples / "real.png").exists():
                draw(self.real.wave, self.model.sample_rate, self.titles, self.samples / "real.png")
        return means or None

    def showcase(self) -> generate.Showcase | reconstruct.Showcase | restore.Showcase | None:
        """What writes sounds to listen to: held-out recordings through the model and back, or damaged and restored, or
        sounds from nothing."""
        self.real, self.titles = None, []
        held_out = self.held_out
        if isinstance(self.model, Vocodes):  # training wants less than can be listened to
            longer = reconstruct.audible(self.model, int(held_out.length.max(initial=0)))
            held_out = Clips(held_out.pack, longer, self.run.seed, "valid")
        for plan, count in held_out.survey(self.run.samples):
            self.real = jax.tree.map(lambda x, count=count: x[:count], held_out.gather(plan))
            self.titles = generate.captions(self.labels, self.real.label if self.labels else None, count)
            break
        if isinstance(self.model, Encodes | Vocodes) and self.real:
            return reconstruct.Showcase(self.model, self.real.wave, self.titles)
        if isinstance(self.model, Restores) and self.real:
            return restore.Showcase(self.model, self.real, self.titles)
        if self.codec:
            if self.real:
                self.real = self.real._replace(wave=generate.sound_of_codes(self.codec)(self.real.given))
            return generate.Showcase(self.model, self.labels, self.run.samples, self.codec)
        return (
            generate.Showcase(self.model, self.labels, self.run.samples) if isinstance(self.model, Generates) else None
        )


def begun(run: Run, like: State) -> tuple[dict, dict]:
    """What run.json tells of the run that this one begins with, and that one's networks; both empty without."""
    if not run.begin:
        return {}, {}
    other = folder.saved(run.begin, run.begin_checkpoint)
    told = {"folder": str(run.begin), "step": int(other.state.step), "fingerprint": other.fingerprint}
    return told, folder.networks(other, like, run.begin)


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


def noise_of(pack: Pack, model: Model, seed: int, split: str) -> Noise:
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


def introduce(run: Run, pack: Pack, clips: Clips, held_out: Clips) -> None:
    """Says what the data is; names what was left out in rejected.csv."""
    left_out = [*pack.rejected, *clips.left_out, *held_out.left_out]
    if noise := clips.noise:
        unused = (*noise.pack.rejected, *noise.left_out, *held_out.noise.left_out)
        left_out += [(name, f"as noise: {reason}") for name, reason in dict.fromkeys(unused)]
    with open(run.out / "rejected.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *left_out])
    minutes = clips.length.sum() * (run.model.hop if run.codec else 1) / pack.sample_rate / 60
    classes = f", {len(pack.classes)} classes" if pack.classes else ""
    print(f"data: {pack.layout}, {len(clips.chosen)} recordings to train on ({minutes:.1f} minutes){classes}, "
          f"{len(held_out.chosen)} held out")  # fmt: skip
    if noise:
        minutes = noise.length.sum() / pack.sample_rate / 60
        alone = held_out.noise.split != "train"
        others = f"{len(held_out.noise.chosen)} held out" if alone else "none held out: evaluated with the same"
        print(f"noise: {noise.pack.layout}, {len(noise.chosen)} recordings ({minutes:.1f} minutes), {others}")
    if left_out:
        name, reason = left_out[0]
        print(
            f"left out: {len(left_out)}, named in {run.out / 'rejected.csv'}; the first: {audio.shown(name)}: {reason}"
        )
    if not held_out.units:
        print("no held-out recordings: no evaluation (a valid folder, or 20 recordings, would give some)")


def sizes(state: State) -> dict[str, int]:
    """Parameters per network."""
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return {name: count(params) for name, params in state.params.items()}


def refuse_ambiguous(name: str, arguments: list[str]) -> None:
    """Raises InputError where an option that takes folders has none, or comes twice: only the last would count."""
    places = [i for i, word in enumerate(arguments) if word == name or word.startswith(f"{name}=")]
    if len(places) > 1:
        raise InputError(f"{name} is there {len(places)} times: give it once, and all folders behind it")
    behind = [*arguments, "--"]
    if any(behind[i] == name and behind[i + 1].startswith("--") for i in places):
        raise InputError(f"{name} is followed by no folder: name one or more, or leave it away")


def refuse_filled_in(model: Model, default: Model) -> None:
    """Raises InputError where a field is given that the codec fills in."""
    for name in generate.FROM_CODEC if model.needs_codes else ():
        if getattr(model, name) != getattr(default, name):
            option = f"--model.{name.replace('_', '-')}"
            raise InputError(f"{name} is {getattr(model, name)}, but it is the codec's to say: leave {option} away")


def main(arguments: list[str]) -> int:
    """Reads the command line; the first word is the model."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        for name in zoo.names():
            print(f"  {name}: {', '.join(zoo.model_class(name).presets)}")
        return command.DONE if arguments and arguments[0] in ("-h", "--help") else command.WRONG_INPUT
    spec = arguments[0]
    for name in ("--data", "--noise"):
        refuse_ambiguous(name, arguments)
    default = Run(model=zoo.load(spec), out=Path("runs") / spec.replace(":", "-"))
    run = tyro.cli(Run, default=default, args=arguments[1:], prog=f"train.py {spec}", description=__doc__)
    refuse_filled_in(run.model, default.model)
    command.prepare(cache_folder(), run.deterministic)
    return train(dataclasses.replace(run, steps=run.steps or run.model.steps))


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
