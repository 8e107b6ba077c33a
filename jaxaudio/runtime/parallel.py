"""One pure step on all devices: `jit` with the batch sharded over them, or `pmap`. States and batches look the same."""

from collections.abc import Callable, Hashable
from typing import Any, Literal

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxaudio.core import Batch, InputError, Metrics, Model, Shard, State

AXIS = "data"
Step = Callable[[State, Batch, jax.Array, Hashable], tuple[State, Metrics]]


class Devices:
    """All devices of the run in one row: the state is on each of them, a batch is spread over them."""

    def __init__(self, how: Literal["jit", "pmap"] = "jit", count: int | None = None):
        devices = jax.devices()[:count]
        self.how, self.count = how, len(devices)
        mesh = jax.make_mesh((self.count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.sharded = NamedSharding(mesh, PartitionSpec(AXIS))
        self.devices = devices

    def __str__(self) -> str:
        return f"{self.count} {self.devices[0].device_kind} ({self.how})"

    def replicate(self, tree: Any) -> Any:
        """The tree on every device. It may share buffers with its argument, so that is dead once this is donated."""
        return jax.device_put(tree, self.replicated)

    def shard(self, tree: Any) -> Any:
        """This host's rows of a batch, spread over its devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.sharded, x), tree)

    def rows(self, batch_size: int) -> slice:
        """Which rows of every batch this host provides."""
        if batch_size % self.count:
            raise InputError(f"batch_size {batch_size} does not split over {self.count} devices: make it a multiple")
        share = batch_size // jax.process_count()
        return slice(share * jax.process_index(), share * (jax.process_index() + 1))

    def compile(self, model: Model) -> Step:
        """`train_step` as (state, batch, key, stage) -> (state, metrics). It donates the state; a program per stage."""
        if self.how == "jit":
            return jax.jit(
                lambda state, batch, key, stage: model.train_step(state, batch, key, Shard(), stage),
                static_argnums=3,
                donate_argnums=0,
                in_shardings=(self.replicated, self.sharded, self.replicated),
                out_shardings=self.replicated,
            )
        mapped = jax.pmap(
            lambda state, batch, key, stage: model.train_step(state, batch, key, Shard(AXIS), stage),
            AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            static_broadcasted_argnums=3,
            donate_argnums=0,
            devices=self.devices,
        )
        fold = jax.jit(
            lambda tree: jax.tree.map(lambda x: x.reshape(self.count, len(x) // self.count, *x.shape[1:]), tree),
            out_shardings=self.sharded,
        )
        return lambda state, batch, key, stage: mapped(state, fold(batch), key, stage)
