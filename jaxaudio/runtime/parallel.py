"""One pure step on all devices: `jit` with the batch sharded over them, or `pmap`. States and batches look the same."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError, Metrics, Model, Shard, State
from jaxaudio.runtime.population import Population

AXIS = "data"
Step = Callable[[State, Batch, jax.Array, Hashable], tuple[State, Metrics]]


class Devices:
    """All devices of the run in one row: the state is on each of them, a batch is spread over them."""

    def __init__(self, how: Literal["jit", "pmap"] = "jit", count: int | None = None):
        devices = sorted(jax.local_devices()[:count] if count else jax.devices(), key=lambda x: (x.process_index, x.id))
        self.how, self.count = how, len(devices)
        mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))  # a host's devices, and rows, in a row
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.sharded = NamedSharding(mesh, PartitionSpec(AXIS))
        self.devices = devices

    def __str__(self) -> str:
        return f"{self.count} {self.devices[0].device_kind} ({self.how})"

    def replicate(self, tree: Any) -> Any:
        """The tree, the same on all hosts, on every device. It may share buffers with its argument, so that is dead
        once this is donated."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)
        place = lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x))
        return jax.tree.map(place, tree)

    def shard(self, tree: Any) -> Any:
        """This host's rows of a batch, spread over its devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.sharded, x), tree)

    def rows(self, batch_size: int) -> slice:
        """Which rows of every batch this host provides."""
        if batch_size % self.count:
            raise InputError(f"batch_size {batch_size} does not split over {self.count} devices: make it a multiple")
        share = batch_size // jax.process_count()
        return slice(share * jax.process_index(), share * (jax.process_index() + 1))

    def compile(self, model: Model | Population) -> Step:
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
        if jax.process_count() > 1:
            return self._of_hosts(mapped)
        fold = jax.jit(partial(_fold, self.count), out_shardings=self.sharded)
        return lambda state, batch, key, stage: mapped(state, fold(batch), key, stage)

    def _of_hosts(self, mapped: Step) -> Step:
        """What pmap made takes and gives each host's part; this takes and gives arrays of all hosts."""
        mesh, local = self.replicated.mesh, len(jax.local_devices())
        here = partial(multihost_utils.global_array_to_host_local_array, global_mesh=mesh)

        def step(state: State, batch: Batch, key: jax.Array, stage: Hashable) -> tuple[State, Metrics]:
            parts = _fold(local, here(batch, pspecs=PartitionSpec(AXIS)))
            stepped = mapped(here(state, pspecs=PartitionSpec()), parts, key, stage)
            return multihost_utils.host_local_array_to_global_array(stepped, mesh, PartitionSpec())

        return step

    def out_of_memory(self, problem: Exception, model: Model, like: State) -> InputError | None:
        """What to do where `problem` says that a device's memory does not do for a step; None where it is another.

        like: the shapes of the model's state."""
        if "RESOURCE_EXHAUSTED" not in str(problem):
            return None
        size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20
        rows, words = model.batch_size // self.count, " ".join(str(problem).split())[:200]
        smaller = f"--model.batch-size {model.batch_size // 2}" if rows > 1 else "more devices"
        narrow = ", --model.dtype bfloat16 half of that" if model.dtype == "float32" else ""
        return InputError(
            f"a device's memory does not do ({words}): of {zoo.name_of(model)} {size(like):.0f} MiB are the state and "
            f"{size(like.params):.0f} MiB gradients on each of {self.count} devices, all else goes with the {rows} "
            f"examples on each: {smaller} halves that{narrow}; the same command continues"
        )


def _fold(parts: int, tree: Any) -> Any:
    """The rows of every array in so many parts, one behind the other: [parts, rows / parts, ...]."""
    return jax.tree.map(lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), tree)
