"""What a model learns in bfloat16 is what it learns in float32, as closely as another seed does.

Minutes for each model: `python -m pytest -m slow`. The table is printed with `-s`.
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import Model, State
from jaxaudio.runtime.parallel import Devices
from tests.test_models import CLASSES, Subject

pytestmark = pytest.mark.slow

STEPS = 200
LAST = 20  # steps over which a loss is averaged
SEEDS = (0, 1, 2)  # of float32; the first is that of bfloat16 too
HELD_OUT = range(10_000, 10_004)  # numbers of batches
SHARE = 0.1  # of a measure by which bfloat16 may differ from float32 where seeds differ less


class Single(Subject):
    """A tiny model on one device in one of the two precisions."""

    def __init__(self, name: str, dtype: str):
        model = dataclasses.replace(zoo.load(f"{name}:tiny"), dtype=dtype)
        self.model: Model = dataclasses.replace(model, classes=CLASSES) if model.needs_labels else model
        self.devices = Devices("jit", 1)
        self.step = self.devices.compile(self.model)
        measured = self.model.measure([self.batch(0)])
        self.start = jax.jit(lambda key: self.model.init(key, measured), out_shardings=self.devices.replicated)
        self.examine = jax.jit(self.model.evaluate)

    def learned(self, seed: int) -> tuple[State, dict[str, float], set[str]]:
        """After `STEPS`: the state, the losses' means over the last steps and the criterion, and what was not finite or
        was skipped on the way."""
        state, seen, wrong = self.start(jax.random.key(seed)), [], set()
        for i in range(STEPS):
            batch = self.devices.shard(self.batch(STEPS * seed + i))
            key = jax.random.fold_in(jax.random.key(100 + seed), i)
            state, metrics = self.step(state, batch, key, self.model.stage(i))
            seen.append({name: float(np.mean(value)) for name, value in metrics.items()})
            wrong |= {name for name, value in seen[-1].items() if not np.isfinite(value)}
            wrong |= {name for name, value in seen[-1].items() if name.endswith("skipped") and value}
        names = {name for line in seen[-LAST:] for name in line if name.endswith("loss")}
        measures = {name: float(np.mean([line[name] for line in seen[-LAST:] if name in line])) for name in names}
        found = [self.examine(state, self.batch(i), jax.random.key(7))[self.model.criterion] for i in HELD_OUT]
        return state, measures | {f"valid/{self.model.criterion}": float(np.mean(np.concatenate(found)))}, wrong


@pytest.mark.parametrize("name", zoo.names())
def test_bfloat16_learns_what_float32_learns(name):
    wide = Single(name, "float32")
    runs = [wide.learned(seed)[1] for seed in SEEDS]
    narrow = Single(name, "bfloat16")
    state, found, wrong = narrow.learned(SEEDS[0])
    assert not wrong
    like = jax.eval_shape(wide.start, jax.random.key(0))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, like), "what is kept is as it was"
    outside = []
    for measure, value in sorted(found.items()):
        of_seeds = [run[measure] for run in runs]
        low, high = min(of_seeds), max(of_seeds)
        band = max(high - low, SHARE * float(np.mean(np.abs(of_seeds))))
        print(f"{name:11} {measure:24} float32 {low:9.4g} to {high:9.4g}  bfloat16 {value:9.4g}")
        if not low - band <= value <= high + band:
            outside.append(f"{measure} is {value:.4g}, of float32 {low:.4g} to {high:.4g}")
    assert not outside
