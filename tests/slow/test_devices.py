"""What four devices train is what one trains, for every model and longer than the fast tests look."""

import jax
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.runtime.parallel import Devices
from tests.test_models import Subject, same_moments

pytestmark = pytest.mark.slow

LIMITS = {5: 1e-5, 50: 1e-2}  # of steps, how far losses may be from each other


@pytest.mark.parametrize("name", zoo.names())
def test_four_devices_train_what_one_trains(name):
    """Moments after a step to 1e-5 of their norm; losses to 1e-5 over 5 steps and to 1e-2 over 50, on the scale that
    they have in these. Some adversaries part faster: then no more than three times as far as one of three runs on one
    device whose first weights are off by a millionth, since Adam divides noise by noise."""
    subject, one = Subject(name), Devices("jit", 1)
    start, alone = jax.device_get(subject.init()), one.compile(subject.model)
    rng = np.random.default_rng(0)
    off = lambda x: (x * (1 + 1e-6 * rng.choice([-1, 1], x.shape))).astype(x.dtype)
    rounded = [start._replace(params=jax.tree.map(off, start.params)) for _ in range(3)]
    four = trained(subject, subject.devices, subject.step, start)
    single, *others = (trained(subject, one, alone, begin) for begin in (start, *rounded))
    same_moments(four[0], single[0])
    for loss in four[1]:
        found, *chances = (apart(losses[loss], single[1][loss]) for _, losses in (four, *others))
        for steps, most in LIMITS.items():
            largest, chance = found[:steps].max(), max(each[:steps].max() for each in chances)
            said = f"{loss} over {steps} steps: {largest:.1e}; by a millionth {chance:.1e}"
            print(said)
            assert largest <= max(most, 3 * chance), said


def trained(subject, devices, step, start):
    """The state after one step, and every loss at each that has it."""
    state, losses = devices.replicate(jax.tree.map(np.copy, start)), {}
    for i in range(max(LIMITS)):
        state, metrics = subject.run(step, devices, state, i, i + 1)
        for name in (name for name in metrics if name.endswith("/loss")):
            losses.setdefault(name, []).append(float(metrics[name]))
        if i == 0:
            first = jax.device_get(state)
    return first, {name: np.array(values) for name, values in losses.items()}


def apart(a, b):
    """How far two series are from each other, as a share of the second's size."""
    return np.abs(a - b) / np.maximum(np.abs(b), np.mean(np.abs(b)))
