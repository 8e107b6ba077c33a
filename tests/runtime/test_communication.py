"""What devices send each other in a step, read from the compiled program: sums alone, and no more than it must be."""

import re
from collections import Counter
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxaudio.core import Shard
from jaxaudio.runtime import parallel
from jaxaudio.runtime.parallel import Devices, shapes
from tests.test_models import Subject

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|ragged-all-to-all"
TESTED = ("wavegan", "specvae", "samplernn", "classifier")  # one per family: upsampling, matrices, loops, averages


def sent(program: str) -> list[tuple[str, str]]:
    """Of a compiled program's text: each collective operation, and what of the model it comes from."""
    lines = re.findall(rf" ({KINDS})(?:-start)?\((.*)", program)
    return [(kind, "".join(re.findall(r'op_name="([^"]*)"', rest))) for kind, rest in lines]


def sums_allowed(model, batch, stage) -> int:
    """How many sums over devices a step may have: one per optimiser update and one for the metrics; two per
    BatchNorm and pass, as many as for any other mean within a network (minibatch deviation, statistics of a latent)."""
    seen, (mean, norm) = Counter(), (Shard.mean, nn.BatchNorm.__call__)

    def counted_mean(shard, tree):
        update = isinstance(tree, tuple) and len(tree) == 3  # `descend` gives gradients, loss and metrics
        seen["update" if update else "mean"] += 1
        return mean(shard, tree)

    def counted_norm(layer, *args, **kwargs):
        seen["mean"] += 1
        return norm(layer, *args, **kwargs)

    with mock.patch.object(Shard, "mean", counted_mean), mock.patch.object(nn.BatchNorm, "__call__", counted_norm):
        step = lambda state, batch, key: model.train_step(state, batch, key, Shard(), stage)
        jax.eval_shape(step, shapes(model), batch, jax.random.key(0))
    assert seen["update"], "the step does not go through descend"
    return seen["update"] + 1 + 2 * 2 * seen["mean"]


def program_of(subject: Subject, step, stage) -> str:
    return step.lower(shapes(subject.model), subject.batch(0), jax.random.key(0), stage).compile().as_text()


def only_sums(subject: Subject, stage) -> None:
    """Of data-parallel training: sums alone, and as few as may be.

    But for Fourier transforms: XLA's partitioner does not split them (jax 0.10), every device gathers the frames.
    """
    found = sent(program_of(subject, subject.step, stage))
    others = [(kind, origin) for kind, origin in found if kind != "all-reduce"]
    assert all(kind == "all-gather" and origin.endswith("/fft") for kind, origin in others), others
    assert 1 <= len(found) - len(others) <= sums_allowed(subject.model, subject.batch(0), stage)


@pytest.fixture(scope="module", params=TESTED)
def subject(request) -> Subject:
    return Subject(request.param)


def test_devices_send_each_other_sums_alone(subject):
    for stage in subject.stages:
        only_sums(subject, stage)


def test_of_a_state_in_parts_devices_send_parts_and_sums_and_no_activations(subject, monkeypatch):
    monkeypatch.setattr(parallel, "LEAST", 16)  # a tiny model has no large parameter
    devices, state = Devices("jit", 4, fsdp=True), shapes(subject.model)
    split = [place for place in jax.tree.leaves(devices.placed(state)) if not place.is_fully_replicated]
    assert len(split) >= 6
    found = sent(program_of(subject, devices.compile(subject.model), subject.stages[0]))
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
