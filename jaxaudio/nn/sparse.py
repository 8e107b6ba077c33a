"""Pruning of a kernel in blocks while it is trained, by a schedule, so that few products are left when it is applied.

Zhu, Gupta: To prune, or not to prune, 2017 (arXiv 1710.01878), in the blocks of Narang et al. 2017 (arXiv 1711.02782)
and WaveRNN. A block is `block` neighbouring outputs of one input: what a vector unit multiplies at once. Departs: every
group of outputs keeps the same number of blocks, so that a pruned kernel is an array of indices and one of numbers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Kernel = Float[Array, "inputs outputs"]
Mask = Bool[Array, "inputs groups"]  # which blocks are kept


def schedule(step: Int[Array, ""] | int, sparsity: float, first: int, last: int) -> Float[Array, ""]:
    """The share of blocks that are zero after so many steps: 0 up to step `first`, `sparsity` from step `last` on, and
    a cubic curve between them that is steep at first, when much can be spared (eq. 1)."""
    part = jnp.clip((jnp.asarray(step, jnp.float32) - first) / (last - first), 0, 1)
    return sparsity * (1 - (1 - part) ** 3)


def kept(inputs: int, sparsity: Float[Array, ""] | float) -> Int[Array, ""]:
    """How many blocks each group of outputs keeps; one at least."""
    return jnp.maximum(jnp.round(inputs * (1 - jnp.asarray(sparsity, jnp.float32))), 1).astype(jnp.int32)


def strongest(kernel: Kernel, sparsity: Float[Array, ""] | float, block: int) -> Mask:
    """In every group of outputs, the blocks of the largest sum of squares; the earlier one where two are equal."""
    strength = jnp.sum(kernel.reshape(len(kernel), -1, block) ** 2, -1)
    rank = jnp.argsort(jnp.argsort(-strength, 0, stable=True), 0)
    return rank < kept(len(kernel), sparsity)


def masked(kernel: Kernel, mask: Mask) -> Kernel:
    """The kernel with zeros where no block is kept."""
    return jnp.where(jnp.repeat(mask, kernel.shape[1] // mask.shape[1], 1), kernel, 0)


def everything(kernel: Kernel, block: int) -> Mask:
    """The mask of a kernel that is not pruned yet."""
    return jnp.ones((len(kernel), kernel.shape[1] // block), bool)


def renewed(due: Bool[Array, ""], kernels: Any, masks: Any, sparsity: Float[Array, ""], block: int) -> Any:
    """The masks of a tree of kernels: the strongest blocks of each if it is due, else as they are."""
    anew = lambda: jax.tree.map(lambda kernel: strongest(kernel, sparsity, block), kernels)
    return jax.lax.cond(due, anew, lambda: masks)


class Packed(NamedTuple):
    """A linear map of the kept blocks alone."""

    index: Int[Array, "groups kept"]  # the inputs of each group of outputs
    blocks: Float[Array, "groups kept block"]
    bias: Float[Array, "outputs"]

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        y = jnp.einsum("bgk,gko->bgo", x[:, self.index], self.blocks)
        return y.reshape(len(x), -1) + self.bias.reshape(1, -1)


def packed(kernel: Kernel, bias: Float[Array, "outputs"], mask: Mask, most: int) -> Packed:
    """The kernel's kept blocks, `most` for each group of outputs: at least as many as any group keeps."""
    inputs, groups = mask.shape
    index = jnp.argsort(~mask, 0, stable=True)[:most].T
    parted = masked(kernel, mask).reshape(inputs, groups, -1)
    return Packed(index, jnp.stack([parted[index[g], g] for g in range(groups)]), bias)
