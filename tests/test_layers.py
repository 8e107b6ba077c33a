"""Of a step's convolutions: which there are, that all forms compute the same, and what the table says."""

import collections
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import layers
from benchmarks.conv import MAPS, in_each_form
from jaxaudio import zoo
from jaxaudio.core import InputError
from jaxaudio.nn import conv
from tests.single import Single


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filtered(Single):
    """Two layers, the second of the first's output, both as loud as the number."""

    sample_rate: int = 8000
    segment: int = 64
    batch_size: int = 3
    presets: ClassVar = {"tiny": {}}

    def error(self, params, batch, key, shard):
        first = conv.conv(batch.wave, params["loud"] * jnp.ones((5, 1, 8)), (4,), "SAME", (1,))
        second = conv.conv(first, params["loud"] * jnp.ones((3, 8, 2)), (1,), "SAME", (1,))
        return jnp.mean(second**2, (1, 2))


def test_every_map_of_every_layer_is_found_with_its_operations():
    found = layers.maps(Filtered(), None)
    assert set(found.values()) == {1}
    each = collections.Counter((one.name, one.operations) for one in found)
    operations = 2 * 3 * 16 * 5 * 8, 2 * 3 * 16 * 3 * 8 * 2  # batch, frames, taps, channels
    assert each == {(name, of): 1 for name in MAPS for of in operations}
    assert "kernel   narrow  3 x 64, 1 to 8, 5 taps / 4" in map(str, found)


PICTURE = {"forward": {"planes"}, "backward": {"planes"}, "kernel": {"planes", "crossed"}}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        (conv.Geometry((12,), 6, 4, (5,), (2,), ((2, 1),), (1,), 1), {"forward": {"matmul"}, "backward": {"matmul"}}),
        (conv.Geometry((9, 8), 8, 2, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1), PICTURE),
        (conv.Geometry((9,), 4, 4, (3,), (1,), ((1, 1),), (2,), 2), {}),
    ],
)
def test_a_map_is_the_same_in_all_forms(shape, more, name):
    calls = in_each_form(shape, name, 2)
    assert set(calls) == {"direct", "phase"} | more.get(name, set())
    direct = np.asarray(calls["direct"]())
    for form, call in calls.items():
        np.testing.assert_allclose(call(), direct, atol=1e-4, err_msg=form)


def test_the_table_has_what_takes_longest_first_and_says_what_would_be_faster():
    maps = [
        {"map": "good", "count": 2, "operations": 1e9, "chosen": "phase", "ms": {"direct": 20.0, "phase": 10.0}},
        {"map": "bad", "count": 1, "operations": 1e9, "chosen": "direct", "ms": {"direct": 30.0, "phase": 20.0}},
        {"map": "short", "count": 1, "operations": 0.0, "chosen": "direct", "ms": {"direct": 0.1}},
    ]
    text = layers.table({"stage": None, "matmul_gflops": 120.0, "maps": maps}, 2)
    _, first, second, chosen, least = text.splitlines()
    assert "bad" in first
    assert "d 30.00 p 20.00" in first
    assert first.endswith("d: 33 GFLOP/s, 1.5 times the least")
    assert second.endswith("p: 100 GFLOP/s")
    assert chosen == "all 3, as chosen: 50.1 ms, 60 GFLOP/s, 50% of a matrix product's"
    assert least == "all 3, each in its fastest form: 40.1 ms, 75 GFLOP/s, 62% of a matrix product's"


def test_a_model_without_a_convolution_is_told_in_one_line():
    with pytest.raises(InputError, match="tokengru has no convolution"):
        layers.measure(layers.Options(model=zoo.load("tokengru:tiny")), None)
