"""What is kept, and that a failed save is noticed."""

import contextlib
import resource
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.core import InputError, State
from jaxaudio.runtime import parallel
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.parallel import Devices


def state(step, size=4):
    devices = Devices("jit", 4)
    params = {"net": {"w": jnp.full(size, float(step))}}
    return devices.replicate(State(jnp.int32(step), params, {}, {"average": params["net"]}))


def like(size=4, devices=None):
    model = SimpleNamespace(measure=lambda batches: {}, init=lambda key, measured: state(0, size))
    return abstract(model, devices or Devices("jit", 1))


def test_the_latest_and_the_best_are_kept(tmp_path):
    saved = Checkpoints(tmp_path / "c", 2, "score")
    assert saved.latest(like()) is None
    for step, score in [(1, 3.0), (2, 1.0), (3, float("nan")), (4, None), (5, 2.0), (6, None)]:
        saved.save(step, state(step), None if score is None else {"score": score})
    saved.wait()
    assert sorted(saved.manager.all_steps()) == [2, 5, 6]
    assert saved.best() == 2
    again = Checkpoints(tmp_path / "c", 2, "score")
    restored = again.latest(like())
    assert int(restored.step) == 6
    assert restored.params["net"]["w"].tolist() == [6.0] * 4
    assert isinstance(restored, State)
    assert len(restored.params["net"]["w"].sharding.device_set) == 1, "saved on four devices, restored on one"


def test_a_state_in_parts_is_restored_whole_and_in_other_parts_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "LEAST", 8)
    four, two, whole = Devices(count=4, fsdp=True), Devices(count=2, fsdp=True), Devices(count=1)
    values = jnp.arange(8.0)
    first = state(1, 8)._replace(params={"net": {"w": values}}, extra={"average": {"w": 2 * values}})
    for i, (devices, parts) in enumerate([(four, 4), (two, 2), (whole, 1), (four, 4)]):
        saved = Checkpoints(tmp_path / "c", 2, "score")
        found = saved.latest(like(8, devices)) if i else jax.device_put(first, devices.placed(first))
        for leaf, expected in ((found.params["net"]["w"], values), (found.extra["average"]["w"], 2 * values)):
            np.testing.assert_array_equal(np.asarray(leaf), expected)
            assert [shard.data.shape for shard in leaf.addressable_shards] == [(8 // parts,)] * parts
        saved.save(i + 1, found._replace(step=jnp.int32(i + 1)), None)
        saved.wait()


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(tmp_path):
    saved = Checkpoints(tmp_path / "c", 2, "score")
    saved.save(1, state(1), None)
    saved.wait()
    with pytest.raises(InputError, match="is damaged or of another model") as error:
        Checkpoints(tmp_path / "c", 2, "score").latest(like(5))
    assert "\n" not in str(error.value)


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond a kilobyte."""

    @contextlib.contextmanager
    def limit():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


def test_a_save_that_fails_is_noticed_and_what_was_saved_before_is_whole(tmp_path, full_disk):
    saved = Checkpoints(tmp_path / "c", 2, "score")
    noise = {"net": {"w": jax.random.normal(jax.random.key(0), (10**6,))}}  # constants would be compressed away
    saved.save(1, state(1, 10**6)._replace(params=noise), None)
    saved.wait()
    with full_disk(), pytest.raises(InputError, match="saving to .* failed .*: make room or give another --out"):
        saved.save(2, state(2, 10**6)._replace(params=noise), None)
        saved.wait()
    assert int(Checkpoints(tmp_path / "c", 2, "score").latest(like(10**6)).step) == 1


def test_a_failure_in_the_background_is_raised_at_the_end(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path / "c", 2, "score")
    saved.save(1, state(1), None)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved.manager, "wait_until_finished", full)
    with pytest.raises(InputError, match="No space left on device.*make room"):
        saved.wait()
    monkeypatch.undo()
    saved.wait()
    assert jax.tree.leaves(saved.latest(like()))
