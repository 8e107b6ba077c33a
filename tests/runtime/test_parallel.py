"""The same step under jit and under pmap, compared in gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Model, Shard, State, descend, split, unless_skipped
from jaxaudio.runtime import parallel
from jaxaudio.runtime.parallel import Devices, shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Model):
    """One matrix, noise per example, plain SGD: a factor on the gradient shows in the parameters."""

    sample_rate: int = 1
    segment: int = 3
    batch_size: int = 8
    tx = optax.sgd(0.1)

    def init(self, key=None, measured=None):
        params = {"net": {"w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)}}
        return State(jnp.zeros((), jnp.int32), params, {"net": self.tx.init(params["net"])}, {"sum": jnp.zeros(())})

    def evaluate(self, state, batch, key):
        raise AssertionError("not asked for")

    def weights(self, state):
        return state.params

    def train_step(self, state, batch, key, shard, stage):
        del stage

        def loss(params):
            noise = jax.vmap(lambda k: jax.random.normal(k, (2,)))(shard.keys(key, batch.wave.shape[0]))
            error = batch.wave[:, :, 0] @ params["w"] + noise - batch.label[:, None]
            return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}

        params, opt, metrics = descend(self.tx, loss, state.params["net"], state.opt["net"], shard)
        extra = unless_skipped(metrics, {"sum": state.extra["sum"] + metrics["loss"]}, state.extra)
        return State(state.step + 1, {"net": params}, {"net": opt}, extra), metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(Toy):
    """Outputs that divide by four devices, and Adam's moments of them and their average; the bias is small."""

    tx = optax.adam(0.1)

    def init(self, key=None, measured=None):
        params = {"w": jnp.linspace(-1.0, 1.0, 24).reshape(3, 8), "b": jnp.zeros(8)}
        extra = {"average": jax.tree.map(jnp.copy, params), "odd": jnp.zeros(17), "batches": jnp.zeros((1, 8))}
        return State(jnp.zeros((), jnp.int32), {"net": params}, {"net": self.tx.init(params)}, extra)

    def train_step(self, state, batch, key, shard, stage):
        del key, stage

        def loss(params):
            made = batch.wave[:, :, 0] @ params["w"] + params["b"][None]
            return jnp.mean((made - batch.label[:, None]) ** 2), {}

        net, opt = state.params["net"], state.opt["net"]
        for _ in range(2):  # the second update takes the first one's networks
            net, opt, metrics = descend(self.tx, loss, net, opt, shard)
        extra = {**state.extra, "average": jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.extra["average"], net)}
        return State(state.step + 1, {"net": net}, {"net": opt}, extra), metrics


BATCH = Batch(
    np.random.default_rng(0).standard_normal((8, 3, 1)).astype(np.float32), np.arange(8, dtype=np.int32)
)  # fmt: skip


def after_a_step(how, count, batch=BATCH, toy=None):
    toy, devices = toy or Toy(), Devices(how, count)
    state, metrics = devices.compile(toy)(devices.replicate(toy.init()), devices.shard(batch), jax.random.key(0), None)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(("how", "count"), [("jit", 4), ("pmap", 4), ("pmap", 2)])
def test_gradients_are_those_of_one_device(how, count):
    (alone, metrics), (several, their_metrics) = after_a_step("jit", 1), after_a_step(how, count)
    gradient = (np.asarray(Toy().init().params["net"]["w"]) - alone.params["net"]["w"]) / 0.1
    theirs = (np.asarray(Toy().init().params["net"]["w"]) - several.params["net"]["w"]) / 0.1
    np.testing.assert_allclose(theirs, gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(their_metrics["loss"], metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(their_metrics["error"], metrics["error"], rtol=1e-6)
    finite = jax.grad(lambda w: float_loss(w))(Toy().init().params["net"]["w"])
    np.testing.assert_allclose(gradient, finite, rtol=1e-4, atol=1e-5)


def float_loss(w):
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (2,)))(jnp.arange(8))
    return jnp.mean((BATCH.wave[:, :, 0] @ w + noise - BATCH.label[:, None]) ** 2)


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_an_update_that_is_not_finite_leaves_the_state_bitwise_as_it_was(how):
    wave = BATCH.wave.copy()
    wave[5, 0] = np.nan
    state, metrics = after_a_step(how, 4, BATCH._replace(wave=wave))
    before = Toy().init()
    np.testing.assert_array_equal(state.params["net"]["w"], before.params["net"]["w"])
    assert state.extra["sum"] == 0
    assert metrics["skipped"] == 1
    assert state.step == 1


def test_a_batch_that_does_not_split_over_the_devices_is_refused():
    devices = Devices("jit", 4)
    assert devices.rows(8) == slice(0, 8)
    with pytest.raises(InputError, match="batch_size 6 does not split over 4 devices"):
        devices.rows(6)


def test_the_interleaved_split_takes_every_nth_example_and_moves_nothing():
    parts = split(jnp.arange(12), 3)
    assert [part.tolist() for part in parts] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    devices = Devices("jit", 4)
    program = jax.jit(lambda x: split(x, 2)[1] * 2, in_shardings=devices.sharded, out_shardings=devices.sharded)
    compiled = program.lower(jnp.zeros((16, 5))).compile().as_text()
    assert not any(word in compiled for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    with pytest.raises(InputError, match="12 examples do not split into 5"):
        split(jnp.arange(12), 5)


def test_keys_follow_from_the_index_in_the_whole_batch():
    whole = jax.random.key_data(Shard().keys(jax.random.key(3), 8))
    local = jax.pmap(lambda k, _: jax.random.key_data(Shard("data").keys(k, 2)), "data", in_axes=(None, 0))
    parts = local(jax.random.key(3), np.zeros(4))
    np.testing.assert_array_equal(np.asarray(parts).reshape(whole.shape), whole)
    assert len({tuple(row) for row in np.asarray(whole)}) == 8


@pytest.fixture
def small_leaves(monkeypatch):
    """Arrays of 16 elements are split already."""
    monkeypatch.setattr(parallel, "LEAST", 16)


@pytest.mark.parametrize("count", [2, 4])
def test_in_parts_a_step_comes_to_the_state_of_one_device(small_leaves, count):
    def after_two(devices):
        step, state = devices.compile(Wide()), jax.device_put(Wide().init(), devices.placed(Wide().init()))
        for i in range(2):
            state, metrics = step(state, devices.shard(BATCH), jax.random.key(i), None)
        return state, metrics

    (alone, metrics), (several, their_metrics) = after_two(Devices(count=1)), after_two(Devices(count=count, fsdp=True))
    for mine, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(np.asarray(theirs), np.asarray(mine), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(their_metrics["loss"], metrics["loss"], rtol=1e-5)
    local = lambda x: {shard.data.shape for shard in x.addressable_shards}
    adam = several.opt["net"][0]
    for part in (several.params["net"]["w"], adam.mu["w"], adam.nu["w"], several.extra["average"]["w"]):
        assert local(part) == {(3, 8 // count)}
    for whole in (several.params["net"]["b"], adam.mu["b"], several.extra["odd"], several.extra["batches"]):
        assert local(whole) == {whole.shape}


def test_what_is_large_is_split_and_what_does_not_divide_is_not(small_leaves):
    sizes = {"net": {"even": (2, 8), "odd": (8, 3), "small": (3, 4), "line": (32,), "none": ()}}
    networks = jax.tree.map(lambda x: jnp.zeros(x), sizes, is_leaf=lambda x: isinstance(x, tuple))
    placed = Devices(count=4, fsdp=True).placed(networks)["net"]
    split = {name for name, place in placed.items() if not place.is_fully_replicated}
    assert split == {"even", "line"}
    assert all(place.is_fully_replicated for place in Devices(count=4).placed(networks)["net"].values())
    assert shapes(Wide()).params["net"]["w"].shape == (3, 8)


def test_parts_and_pmap_together_are_refused():
    with pytest.raises(InputError, match="fsdp is on and parallel is pmap.*take --parallel jit"):
        Devices("pmap", 4, fsdp=True)
    assert str(Devices("jit", 4, fsdp=True)) == "4 cpu (jit, fsdp)"


def test_memory_that_does_not_do_is_told_with_what_takes_it_and_what_to_reduce():
    model, devices = dataclasses.replace(zoo.load("wavegan:digits"), classes=10), Devices("jit", 4)
    like = shapes(model)
    told = devices.out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), model, like)
    elements = sum(leaf.size for leaf in jax.tree.leaves(like))
    assert elements > 2**20
    assert f"wavegan takes {4 * elements / 2**20:.0f} MiB" in str(told)
    assert f"--model.batch-size {model.batch_size // 2}" in str(told)
    assert "--model.dtype bfloat16" in str(told)
    assert "--fsdp" in str(told)
    assert "--fsdp" not in str(Devices("jit", 1).out_of_memory(RuntimeError("RESOURCE_EXHAUSTED"), model, like))
    assert devices.out_of_memory(RuntimeError("INTERNAL"), model, like) is None
