"""Pruning in blocks: the schedule's equation, which blocks are kept, how many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.nn import sparse


def kernel(inputs=6, outputs=8):
    return jnp.asarray(np.random.default_rng(0).standard_normal((inputs, outputs)), jnp.float32)


def test_the_schedule_is_the_papers_cubic_between_its_ends():
    steps = np.array([0, 10, 15, 30, 50, 51, 1000])
    found = [float(sparse.schedule(int(step), 0.9, 10, 50)) for step in steps]
    part = np.clip((steps - 10) / 40, 0, 1)
    np.testing.assert_allclose(found, 0.9 + (0 - 0.9) * (1 - part) ** 3, rtol=1e-5, atol=1e-7)
    assert found[0] == found[1] == 0


@pytest.mark.parametrize(("sparsity", "count"), [(0.0, 6), (0.5, 3), (0.7, 2), (0.999, 1)])
def test_every_group_of_outputs_keeps_its_strongest_blocks_and_as_many_as_the_others(sparsity, count):
    given = kernel()
    mask = np.asarray(sparse.strongest(given, sparsity, 4))
    assert mask.shape == (6, 2)
    np.testing.assert_array_equal(mask.sum(0), count)
    strength = (np.asarray(given).reshape(6, 2, 4) ** 2).sum(-1)
    for group in range(2):
        kept, gone = strength[mask[:, group], group], strength[~mask[:, group], group]
        assert not len(gone) or kept.min() > gone.max()


def test_blocks_that_are_equal_do_not_change_the_count():
    mask = sparse.strongest(jnp.zeros((6, 8)), 0.5, 4)
    np.testing.assert_array_equal(mask.sum(0), 3)


def test_a_masked_kernel_has_zeros_there_and_its_numbers_elsewhere():
    given, mask = kernel(), sparse.strongest(kernel(), 0.5, 4)
    blocks = np.asarray(sparse.masked(given, mask)).reshape(6, 2, 4)
    np.testing.assert_array_equal(blocks, np.where(np.asarray(mask)[..., None], np.asarray(given).reshape(6, 2, 4), 0))
    np.testing.assert_array_equal(sparse.masked(given, sparse.everything(given, 4)), given)


def test_masks_are_renewed_when_they_are_due_and_never_grow_back_from_zeros():
    given = {"a": kernel(), "b": kernel(12, 4)}
    masks = jax.tree.map(lambda x: sparse.everything(x, 4), given)
    renewed = jax.jit(lambda due, kernels, masks, sparsity: sparse.renewed(due, kernels, masks, sparsity, 4))
    for name, mask in renewed(jnp.bool_(False), given, masks, 0.5).items():
        np.testing.assert_array_equal(mask, masks[name])
    half = renewed(jnp.bool_(True), given, masks, 0.5)
    assert float(jnp.mean(half["a"])) == float(jnp.mean(half["b"])) == 0.5
    pruned = jax.tree.map(sparse.masked, given, half)
    quarter = renewed(jnp.bool_(True), pruned, half, 0.75)
    assert all(bool(jnp.all(half[name] | ~mask)) for name, mask in quarter.items())


@pytest.mark.parametrize("most", [3, 5])
def test_packed_blocks_give_the_masked_kernels_product(most):
    given, bias, x = (
        kernel(),
        jnp.arange(8.0),
        jnp.asarray(np.random.default_rng(1).standard_normal((2, 6)), jnp.float32),
    )
    mask = sparse.strongest(given, 0.5, 4)
    packed = jax.jit(sparse.packed, static_argnums=3)(given, bias, mask, most)
    assert packed.blocks.shape == (2, most, 4)
    np.testing.assert_allclose(packed(x), x @ sparse.masked(given, mask) + bias[None], atol=1e-5)
