"""What happens to a model now and then while it learns: numbers on held-out recordings, sounds to listen to."""

from pathlib import Path

import jax
import numpy as np

from jaxaudio.core import Encodes, Generates, Restores, State, Vocodes
from jaxaudio.data.clips import Clips
from jaxaudio.runtime import hosts
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks import generate, reconstruct, restore
from jaxaudio.training.run import Run

Heard = tuple[np.ndarray, np.ndarray]  # sounds [n, time, channels] and the picture of their spectrograms


class Examination:
    """What happens every `eval_every` steps: metrics on held-out recordings, samples to listen to and to look at."""

    def __init__(self, run: Run, out: Path, held_out: Clips, devices: Devices, codec: Trained | None, key: jax.Array):
        model = run.model
        self.run, self.model, self.held_out, self.devices, self.key = run, model, held_out, devices, key
        self.labels, self.samples, self.codec = held_out.pack.classes, out / "samples", codec
        shardings = None, devices.sharded, devices.replicated  # the state as it lies
        self.evaluate = jax.jit(model.evaluate, in_shardings=shardings, out_shardings=devices.replicated)
        self.weights = jax.jit(model.weights, out_shardings=devices.replicated)
        self.listen = self.showcase() if hosts.first() else None

    def __call__(self, step: int, state: State) -> tuple[dict[str, float], Heard | None]:
        """The held-out metrics, averaged over examples, empty where there are no held-out recordings; and what there is
        to listen to, on the host that writes it."""
        scores: dict[str, list[np.ndarray]] = {}
        rows = self.devices.rows(self.model.batch_size)
        for i, (plan, count) in enumerate(self.held_out.survey(self.run.eval_clips)):
            batch = self.devices.shard(self.held_out.gather(jax.tree.map(lambda field: field[rows], plan)))
            for name, value in self.evaluate(state, batch, jax.random.fold_in(self.key, i)).items():
                scores.setdefault(name, []).append(np.asarray(value)[:count])
        means = {name: float(np.mean(np.concatenate(values))) for name, values in scores.items()}
        weights = self.weights(state)
        if not self.listen:
            return means, None
        own = jax.tree.map(lambda x: x.addressable_data(0), weights)  # no other host takes part
        heard = self.listen(own, self.key, self.samples, f"{step:07d}")
        if self.real and not (self.samples / "real.png").exists():
            draw(self.real.wave, self.model.sample_rate, self.titles, self.samples / "real.png")
        return means, heard

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
