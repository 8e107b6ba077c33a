"""The same step under jit and under pmap, compared in gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxaudio.core import Batch, InputError, Model, Shard, State, descend, split, unless_skipped
from jaxaudio.runtime.parallel import Devices


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
