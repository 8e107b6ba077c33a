"""What devices send each other in a step, read from the compiled program."""

import re
from collections import Counter
from unittest import mock

import flax.linen as nn
import jax

from jaxaudio.core import Shard
from jaxaudio.runtime.parallel import shapes

KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|ragged-all-to-all"


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


def only_sums(program: str, allowed: int) -> None:
    """Of data-parallel training: sums alone, and as few as may be.

    But for Fourier transforms before jax 0.12: XLA's partitioner did not split them, every device gathers the frames.
    """
    found = sent(program)
    others = [(kind, origin) for kind, origin in found if kind != "all-reduce"]
    gathers = jax.__version_info__ < (0, 12)
    assert all(gathers and kind == "all-gather" and origin.endswith("/fft") for kind, origin in others), others
    assert 1 <= len(found) - len(others) <= allowed
