"""One seed of a run: its examples, its folder, its checkpoints, its state."""

import contextlib
import csv
import math
from pathlib import Path

import jax

from jaxaudio.core import State
from jaxaudio.data import audio
from jaxaudio.runtime import folder, hosts
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.store import url_of
from jaxaudio.training.examination import Examination
from jaxaudio.training.material import Material


class Member:
    """Of one seed, what the loop needs."""

    def __init__(self, material: Material, seed: int, out: Path, devices: Devices):
        run = material.run
        self.run, self.model, self.seed, self.out, self.devices = run, run.model, seed, out, devices
        self.clips, self.held_out = (material.clips(seed, split) for split in ("train", "valid"))
        self.like = abstract(self.model, devices)
        self.about = {"seed": seed, "steps": run.steps, "parallel": run.parallel, "parameters": sizes(self.like)}
        self.about |= material.about
        self.networks = folder.networks(material.other, self.like, run.begin) if run.begin else {}
        self.init_key, self.step_key, self.eval_key = jax.random.split(jax.random.key(seed), 3)
        self.codec = material.codec
        self.direct = bool(run.store) and jax.process_count() > 1  # all hosts write their part of checkpoints there

    def claim(self, held: contextlib.ExitStack) -> None:
        """Makes the folder this run's, for as long as `held` is open; names what was left out in rejected.csv."""
        held.enter_context(folder.claim(self.out, self.model, self.about))
        with open(self.out / "rejected.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([("path", "reason"), *self.left_out()])

    def begin(self) -> None:
        """What wants the folder to be there, and the devices."""
        run, below = self.run, "" if self.out == self.run.out else f"{self.out.name}/"
        where = f"{url_of(run.store)}{below}checkpoints" if self.direct else self.out / "checkpoints"
        self.saved = Checkpoints(where, run.keep, self.model.criterion)
        self.examine = Examination(run, self.out, self.held_out, self.devices, self.codec, self.eval_key)

    def state(self, step: int) -> State:
        """The state behind this step: that of the checkpoint or, at 0, the one to begin with. Later checkpoints go."""
        self.saved.rewind(step)
        networks, self.networks = self.networks, {}  # of a run that continues: a second copy on the devices
        if step:
            return self.saved.restore(step, self.like)
        measured = hosts.broadcast(self.model.measure(self.clips.batches()))
        make = lambda: self.model.init(self.init_key, measured)
        return jax.jit(make, out_shardings=self.devices.placed(self.like))()._replace(**networks)

    def left_out(self) -> list[tuple[str, str]]:
        """What is not learned from, and why."""
        clips, held_out = self.clips, self.held_out
        found = [*clips.pack.rejected, *clips.left_out, *held_out.left_out]
        if noise := clips.noise:
            unused = (*noise.pack.rejected, *noise.left_out, *held_out.noise.left_out)
            found += [(name, f"as noise: {reason}") for name, reason in dict.fromkeys(unused)]
        return found

    def introduce(self) -> None:
        """Says what the data is."""
        clips, held_out, pack = self.clips, self.held_out, self.clips.pack
        minutes = clips.length.sum() * (self.model.hop if self.codec else 1) / pack.sample_rate / 60
        classes = f", {len(pack.classes)} classes" if pack.classes else ""
        print(f"data: {pack.layout}, {len(clips.chosen)} recordings to train on ({minutes:.1f} minutes){classes}, "
              f"{len(held_out.chosen)} held out")  # fmt: skip
        if noise := clips.noise:
            minutes = noise.length.sum() / pack.sample_rate / 60
            alone = held_out.noise.split != "train"
            others = f"{len(held_out.noise.chosen)} held out" if alone else "none held out: evaluated with the same"
            print(f"noise: {noise.pack.layout}, {len(noise.chosen)} recordings ({minutes:.1f} minutes), {others}")
        if left_out := self.left_out():
            (name, reason), table = left_out[0], self.out / "rejected.csv"
            print(f"left out: {len(left_out)}, named in {table}; the first: {audio.shown(name)}: {reason}")
        if not held_out.units:
            print("no held-out recordings: no evaluation (a valid folder, or 20 recordings, would give some)")


def latest(members: list[Member]) -> int:
    """The last step of which all have a checkpoint; 0 where there is none."""
    return max(set.intersection(*(member.saved.steps() for member in members)), default=0)


def sizes(state: State) -> dict[str, int]:
    """Parameters per network."""
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    return {name: count(params) for name, params in state.params.items()}
