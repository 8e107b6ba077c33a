"""Which layers of every model compute in float32 whatever its dtype: the last ones, and all that is no layer."""

import dataclasses
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Literal

from jaxaudio import zoo
from jaxaudio.core import Shard
from tests.test_models import CLASSES, Subject

LAST = {  # of every network: what makes the sound, the picture, the latent or the logits
    "densegan": r"generator/picture|critic/(dense|classes)",
    "gansynth": r"generator/picture_\d|critic/(score|pitch)",
    "hifigan": r"generator/last|critic/.*_score",
    "restorer": r"generator/last|critic/.*_score",
    "segan": r"generator/up_2|critic/(last|dense)",
    "specgan": r"generator/up_1|critic/(dense|classes)",
    "wavegan": r"generator/up_1|critic/(dense|classes)",
    "dac": r"autoencoder/(en|de)coder/last|autoencoder/quantizer/.*|critic/.*_score",
    "rave": r"autoencoder/(encoder/last|decoder/(wave|loudness|noise_0))|critic/.*_score",
    "specvae": r"autoencoder/(en|de)coder/last",
    "samplernn": r"network/(out|independent)",
    "tokengru": r"network/head_\d",
    "wavernn": r"network/last",
    "classifier": r"network/(hidden|classes)",
}
PRODUCTS = {"dot_general", "conv_general_dilated"}
SUMS = {"reduce_sum", "cumsum", "log", "log1p", "exp", "rsqrt", "sqrt", "fft", "square", "integer_pow"}


class Reader:
    """Follows the kernels through a program up to the first product that takes them, and not into a single number, such
    as the norm of a gradient: which are rounded before it, and which sums and roots, outside of gradients, are taken of
    rounded numbers."""

    def __init__(self):
        self.rounded: set[str] = set()
        self.sums: Counter[str] = Counter()

    def read(self, jaxpr, given, backwards=False):
        """`given`: of each input, the kernels that it is made of; so of each output."""
        known = dict(zip(jaxpr.invars, given, strict=True))
        for line in jaxpr.eqns:
            of = [frozenset() if isinstance(x, Literal) else known.get(x, frozenset()) for x in line.invars]
            name, back = line.primitive.name, backwards or "transpose" in str(line.source_info.name_stack)
            made = [frozenset().union(*of)] * len(line.outvars)
            half = [getattr(x.aval, "dtype", None) == jnp.bfloat16 for x in line.invars]
            if name == "convert_element_type" and line.params["new_dtype"] == jnp.bfloat16:
                self.rounded |= made[0]
            if name in SUMS and half[0] and not back:
                self.sums[name] += 1
            inner = list(inside(line))
            if inner:
                fits = [each for each in inner if len(each.invars) == len(of)]
                results = [self.read(x, of if x in fits else [frozenset()] * len(x.invars), back) for x in inner]
                made = results[0] if fits and len(results[0]) == len(made) else [frozenset()] * len(made)
            elif name in PRODUCTS:
                made = [frozenset()]
            made = [each if x.aval.shape else frozenset() for each, x in zip(made, line.outvars, strict=True)]
            known |= dict(zip(line.outvars, made, strict=True))
        return [frozenset() if isinstance(x, Literal) else known.get(x, frozenset()) for x in jaxpr.outvars]


def inside(line):
    """The programs within a line of one."""
    for value in line.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns"):
                yield each
            elif hasattr(getattr(each, "jaxpr", None), "eqns"):
                yield each.jaxpr


@pytest.mark.parametrize("name", zoo.names())
def test_last_layers_and_sums_are_in_float32(name):
    model = dataclasses.replace(zoo.load(f"{name}:tiny"), dtype="bfloat16")
    subject = Subject.__new__(Subject)
    subject.model = model = dataclasses.replace(model, classes=CLASSES) if model.needs_labels else model
    batch, key, reader = subject.batch(0), jax.random.key(0), Reader()
    state = jax.eval_shape(lambda: model.init(key, model.measure(())))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(state)]
    kernels = [re.search(r"^params/(.*?)(/conv)?/kernel$", path) for path in paths]
    given = [frozenset({match[1]}) if match else frozenset() for match in kernels]
    for stage in model.variants:
        step = jax.make_jaxpr(lambda *of, stage=stage: model.train_step(*of, Shard(), stage))(state, batch, key)
        reader.read(step.jaxpr, given + [frozenset()] * (len(step.jaxpr.invars) - len(given)))
    every = set().union(*given)
    last = {kernel for kernel in every if re.fullmatch(LAST[name], kernel)}
    assert {kernel.split("/")[0] for kernel in last} == {kernel.split("/")[0] for kernel in every}, "a network has none"
    assert not reader.rounded & last
    assert reader.rounded, "bfloat16 is not used"
    assert not reader.sums
