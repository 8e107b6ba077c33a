"""What four devices train is what one trains, for every model and longer than the fast tests look."""

import jax
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.runtime.parallel import Devices
from tests.test_models import Subject, same_moments

pytestmark = pytest.mark.slow

STEPS, FEW = 50, 5


@pytest.mark.parametrize("name", zoo.names())
def test_four_devices_train_what_one_trains(name):
    """Moments after a step to 1e-5 of their norm; losses to 1e-5 over 5 steps and to 1e-2 over 50, on the scale that
    the loss has in these."""
    subject, one = Subject(name), Devices("jit", 1)
    start = jax.device_get(subject.init())
    after, losses = [], []
    for devices, step in ((subject.devices, subject.step), (one, one.compile(subject.model))):
        state, found = devices.replicate(jax.tree.map(np.copy, start)), []
        for i in range(STEPS):
            state, metrics = subject.run(step, devices, state, i, i + 1)
            found.append({name: float(value) for name, value in metrics.items() if name.endswith("/loss")})
            if i == 0:
                after.append(jax.device_get(state))
        losses.append(found)
    same_moments(*after)
    names = {name for line in losses[0] for name in line}
    for name in names:
        four, alone = (np.array([line[name] for line in found if name in line]) for found in losses)
        scale = np.maximum(np.abs(alone), np.mean(np.abs(alone)))
        apart = np.abs(four - alone) / scale
        print(f"{name}: {apart[:FEW].max():.1e} over {FEW} steps, {apart.max():.1e} over {STEPS}")
        assert apart[:FEW].max() <= 1e-5
        assert apart.max() <= 1e-2
