"""What devices send each other where each keeps a part of the state; what is told of a program at all."""

import jax
import numpy as np
import pytest

from jaxaudio.runtime import parallel
from jaxaudio.runtime.parallel import Devices, shapes
from tests.communication import sent
from tests.test_models import Subject

TESTED = ("wavegan", "specvae", "samplernn", "classifier")  # one per family: upsampling, matrices, loops, averages


@pytest.fixture(scope="module", params=TESTED)
def subject(request) -> Subject:
    return Subject(request.param)


def test_of_a_state_in_parts_devices_send_parts_and_sums_and_no_activations(subject, monkeypatch):
    monkeypatch.setattr(parallel, "LEAST", 16)  # a tiny model has no large parameter
    devices, state = Devices("jit", 4, fsdp=True), shapes(subject.model)
    split = [place for place in jax.tree.leaves(devices.placed(state)) if not place.is_fully_replicated]
    assert len(split) >= 6
    step = devices.compile(subject.model)
    program = step.lower(shapes(subject.model), subject.batch(0), jax.random.key(0), subject.stages[0]).compile()
    found = sent(program.as_text())
    assert {kind for kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert sum(kind == "all-gather" for kind, _ in found) >= len({x.shape for x in jax.tree.leaves(state.params)}) / 2


def test_what_a_program_sends_is_seen():
    devices = Devices("jit", 4)
    x = jax.ShapeDtypeStruct((8, 8), np.float32)
    for program, places, kind in (
        (lambda x: x.sum(0), (devices.sharded, devices.replicated), "all-reduce"),
        (lambda x: x * 2, (devices.sharded, devices.replicated), "all-gather"),
        (lambda x: x.T * 2, (devices.sharded, devices.sharded), "all-to-all"),
        (lambda x: x[::-1] * 2, (devices.sharded, devices.sharded), "collective-permute"),
        (lambda x: x * 2, (devices.sharded, devices.sharded), None),
    ):
        text = jax.jit(program, in_shardings=places[0], out_shardings=places[1]).lower(x).compile().as_text()
        assert {kind for kind, _ in sent(text)} == ({kind} if kind else set())
