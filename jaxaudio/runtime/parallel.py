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
LEAST = 1 << 14  # elements of a parameter that fsdp splits: fewer (64 KiB) travel faster than a message sets off
Step = Callable[[State, Batch, jax.Array, Hashable], tuple[State, Metrics]]


class Devices:
    """All devices of the run in one row: the state is on each of them, a batch is spread over them.

    fsdp: of large parameters, their moments and averages, each device keeps an equal part, along the last axis (output
    channels); in a step they are brought together, and each device updates its part. Raises InputError with pmap.
    """

    def __init__(self, how: Literal["jit", "pmap"] = "jit", count: int | None = None, fsdp: bool = False):
        if fsdp and how == "pmap":
            raise InputError("fsdp is on and parallel is pmap, which has every state whole: take --parallel jit")
        devices = sorted(jax.local_devices()[:count] if count else jax.devices(), key=lambda x: (x.process_index, x.id))
        self.how, self.count, self.fsdp = how, len(devices), fsdp
        mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))  # a host's devices, and rows, in a row
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.sharded = NamedSharding(mesh, PartitionSpec(AXIS))
        self.mesh = mesh
        self.devices = devices

    def __str__(self) -> str:
        return f"{self.count} {self.devices[0].device_kind} ({self.how}{', fsdp' if self.fsdp else ''})"

    def replicate(self, tree: Any) -> Any:
        """The tree, the same on all hosts, on every device. It may share buffers with its argument, so that is dead
        once this is donated."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)
        place = lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x))
        return jax.tree.map(place, tree)

    def placed(self, tree: Any) -> Any:
        """How each array of a state, or of a part of one, lies on the devices; the arrays may be shapes.

        With fsdp a parameter of at least `LEAST` elements is split along its last axis where that divides by the
        devices, and so is what has the shape of one: a moment, an average. All else is on every device.
        """
        networks = tree.params if isinstance(tree, State) else tree
        split = {x.shape for x in jax.tree.leaves(networks) if self._splits(x)} if self.fsdp else set()
        return jax.tree.map(lambda x: self._part(x) if x.shape in split else self.replicated, tree)

    def _splits(self, x: Any) -> bool:
        return x.size >= LEAST and x.shape[-1] % self.count == 0

    def _part(self, x: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*[None] * (x.ndim - 1), AXIS))

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
            state = _of_states(self.placed, shapes(model)) if self.fsdp else self.replicated
            return jax.jit(
                self._split_step(model) if self.fsdp else partial(_step, model, Shard()),
                static_argnums=3,
                donate_argnums=0,
                in_shardings=(state, self.sharded, self.replicated),
                out_shardings=(state, self.replicated),
            )
        mapped = jax.pmap(
            partial(_step, model, Shard(AXIS)),
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

    def _split_step(self, model: Model | Population) -> Step:
        """The step of a state in parts: its networks are whole where losses are computed, in parts where updated.

        Left to itself XLA would compute some layers' output channels where their part of the weights lies, and send
        activations and their gradients from device to device.
        """
        held = jax.lax.with_sharding_constraint
        whole = lambda tree: held(tree, self.replicated)
        parts = lambda tree: held(whole(tree), self.placed(tree))
        return partial(_step, model, Shard(whole=whole, parts=parts))

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
        ways = [f"--model.batch-size {model.batch_size // 2} halves that"] if rows > 1 else []
        ways += ["--model.dtype bfloat16 too"] if model.dtype == "float32" else []
        ways += [f"--fsdp splits the state over {self.count} devices"] if self.count > 1 and not self.fsdp else []
        return InputError(
            f"a device's memory does not do ({words}): the state of {zoo.name_of(model)} takes {size(like):.0f} MiB, "
            f"gradients {size(like.params):.0f} MiB, all else goes with the {rows} examples on each of {self.count} "
            f"devices: {', '.join(ways) or 'take more devices'}"
        )


def shapes(model: Any) -> Any:
    """The shapes of a model's state; of a population those of each."""
    if isinstance(model, Population):
        return (shapes(model.model),) * len(model.seeds)
    measured = model.measure(())
    return jax.eval_shape(lambda: model.init(jax.random.key(0), measured))


def _fold(parts: int, tree: Any) -> Any:
    """The rows of every array in so many parts, one behind the other: [parts, rows / parts, ...]."""
    return jax.tree.map(lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), tree)


def _step(model: Model | Population, shard: Shard, state: Any, batch: Any, key: Any, stage: Hashable) -> Any:
    whole = lambda state: state._replace(params=shard.whole(state.params))
    return model.train_step(_of_states(whole, state), batch, key, shard, stage)


def _of_states(change: Callable[[State], Any], states: Any) -> Any:
    """The same of a state, or of each of a population's."""
    return jax.tree.map(change, states, is_leaf=lambda x: isinstance(x, State))
