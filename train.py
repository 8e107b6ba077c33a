"""Trains a model: python train.py MODEL[:PRESET] [--data FOLDER] [--out FOLDER] [--steps N] [--model.FIELD VALUE ...]

The same command again continues the run. `python train.py MODEL --help` lists every option.
"""

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
from jaxaudio.core import Encodes, Generates, InputError, Model, State, Vocodes
from jaxaudio.data import audio, synth
from jaxaudio.data.clips import Clips, Plan, fetcher
from jaxaudio.data.pack import Folder, Pack, cache_folder, open_pack
from jaxaudio.runtime import command, report
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.folder import claim
from jaxaudio.runtime.log import Diverged, Log
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks import generate, reconstruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is about this run and this machine; what the paper states is a field of the model."""

    model: Model  # the paper's hyper-parameters
    data: Path | None = None  # folder of recordings of any kind; none: the built-in synthesiser
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
    """Trains to the end, a signal or divergence; the exit code."""
    devices = Devices(run.parallel)
    devices.rows(run.model.batch_size)
    if jax.process_count() > 1:
        raise InputError(f"this is process {jax.process_index()} of {jax.process_count()}: train.py runs on one host")
    pack = open_pack(source(run))
    model = with_classes(run.model, pack.classes)
    clips, held_out = Clips(pack, model, run.seed), Clips(pack, model, run.seed, "valid")
    like = abstract(model, devices.replicated)
    data = {"folder": str(run.data), "layout": pack.layout, "fingerprint": pack.fingerprint, "classes": pack.classes}
    about = {"seed": run.seed, "steps": run.steps, "parallel": run.parallel, "data": data, "parameters": sizes(like)}
    lock = claim(run.out, model, about)
    introduce(run, pack, clips, held_out)

    init_key, step_key, eval_key = jax.random.split(jax.random.key(run.seed), 3)
    saved = Checkpoints(run.out / "checkpoints", run.keep, model.criterion)
    state = saved.latest(like)
    if state is None:
        measured = model.measure(clips.batches())
        state = jax.jit(lambda: model.init(init_key, measured), out_shardings=devices.replicated)()
    start = int(state.step)
    counts = ", ".join(f"{name} {count:,}" for name, count in about["parameters"].items())
    begins = f"continues at step {start}" if start else "starts"
    print(f"{zoo.name_of(model)}: parameters: {counts}; {begins} on {devices}", flush=True)
    if start >= run.steps:
        print(f"{run.out} is finished ({start} steps): give a larger --steps to train on")
        return command.DONE

    step, examine = devices.compile(model), Examination(run, model, held_out, devices, pack.classes, eval_key)
    fetch = fetcher(clips, devices, run.gather)
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
    lock.close()
    if ending:
        print(f"train.py: {ending}; saved at step {int(state.step)}: the same command continues from {run.out}")
        return command.STOPPED
    print(f"done: {run.steps} steps -> {run.out}")
    return command.DONE


class Examination:
    """What happens every `eval_every` steps: metrics on held-out recordings, samples to listen to and to look at."""

    def __init__(self, run: Run, model: Model, held_out: Clips, devices: Devices, labels: tuple[str, ...], key):
        self.run, self.model, self.held_out, self.devices, self.key = run, model, held_out, devices, key
        self.labels, self.samples = labels, run.out / "samples"
        shardings = (devices.replicated, devices.sharded, devices.replicated)
        self.evaluate = jax.jit(model.evaluate, in_shardings=shardings, out_shardings=devices.replicated)
        self.weights = jax.jit(model.weights, out_shardings=devices.replicated)
        self.listen = self.showcase()

    def __call__(self, step: int, state: State, log: Log) -> dict[str, float] | None:
        """The held-out metrics, averaged over examples; None where there are no held-out recordings."""
        scores: dict[str, list[np.ndarray]] = {}
        rows = self.devices.rows(self.model.batch_size)
        for i, (plan, count) in enumerate(self.held_out.survey(self.run.eval_clips)):
            batch = self.devices.shard(self.held_out.gather(Plan(*(field[rows] for field in plan))))
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

    def showcase(self) -> generate.Showcase | reconstruct.Showcase | None:
        """What writes sounds to listen to: held-out recordings through the model and back, or sounds from nothing."""
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
        return (
            generate.Showcase(self.model, self.labels, self.run.samples) if isinstance(self.model, Generates) else None
        )


def source(run: Run):
    """The recordings: a folder's, or the synthesiser's."""
    model = run.model
    if run.data is None:
        return synth.Recordings(model.sample_rate, model.channels, model.segment)
    return Folder(run.data, model.sample_rate, model.channels)


def with_classes(model: Model, classes: tuple[str, ...]) -> Model:
    """The model with as many classes as the data has, if it looks at labels."""
    if not model.needs_labels:
        return model
    if not classes:
        other = ", or add --model.no-conditional" if hasattr(model, "conditional") else ""
        raise InputError(
            f"this model needs labels, but the data has none: give a folder per class or a metadata.csv{other}"
        )
    if model.classes not in (0, len(classes)):
        raise InputError(f"model.classes is {model.classes}, but the data has {len(classes)}: leave it away")
    return dataclasses.replace(model, classes=len(classes))


def introduce(run: Run, pack: Pack, clips: Clips, held_out: Clips) -> None:
    """Says what the data is; names what was left out in rejected.csv."""
    left_out = [*pack.rejected, *clips.left_out, *held_out.left_out]
    with open(run.out / "rejected.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([("path", "reason"), *left_out])
    minutes = clips.length.sum() / pack.sample_rate / 60
    classes = f", {len(pack.classes)} classes" if pack.classes else ""
    print(f"data: {pack.layout}, {len(clips.chosen)} recordings to train on ({minutes:.1f} minutes){classes}, "
          f"{len(held_out.chosen)} held out")  # fmt: skip
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


def main(arguments: list[str]) -> int:
    """Reads the command line; the first word is the model."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        for name in zoo.names():
            print(f"  {name}: {', '.join(zoo.model_class(name).presets)}")
        return command.DONE if arguments and arguments[0] in ("-h", "--help") else command.WRONG_INPUT
    spec = arguments[0]
    default = Run(model=zoo.load(spec), out=Path("runs") / spec.replace(":", "-"))
    run = tyro.cli(Run, default=default, args=arguments[1:], prog=f"train.py {spec}", description=__doc__)
    command.prepare(cache_folder(), run.deterministic)
    return train(dataclasses.replace(run, steps=run.steps or run.model.steps))


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
