"""Several seeds of a model, trained side by side in one program."""

from collections.abc import Hashable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxaudio.core import Batch, Metrics, Model, Shard, State


class Population:
    """One training step of a model for each of some seeds, one behind the other in one program.

    Not by `jax.vmap`: that makes grouped convolutions of all, which XLA's CPU backend computes 1.6 times as slowly.
    """

    def __init__(self, model: Model, seeds: Sequence[int]):
        self.model, self.seeds = model, tuple(seeds)

    def train_step(
        self,
        state: tuple[State, ...],
        batch: tuple[Batch, ...],
        key: tuple[Key[Array, ""], ...],
        shard: Shard,
        stage: Hashable,
    ) -> tuple[tuple[State, ...], Metrics]:
        """The same of each; their metrics as `spread` has them."""
        stepped = [self.model.train_step(*own, shard, stage) for own in zip(state, batch, key, strict=True)]
        states, metrics = zip(*stepped, strict=True)
        return states, spread(metrics, self.seeds)


def spread(metrics: Sequence[Mapping], seeds: Sequence[int]) -> Metrics:
    """The mean of what several seeds have in common, with the standard deviation of a single one and every value beside
    it; what one seed has, as it is."""
    if len(seeds) == 1:
        return metrics[0]
    found = {}
    for name in metrics[0]:
        values = jnp.stack([jnp.asarray(own[name]) for own in metrics])
        found[name] = jnp.mean(values)
        found[f"{name}/deviation"] = jnp.std(values, ddof=1)
        found |= {f"{name}/seed-{seed}": value for seed, value in zip(seeds, values, strict=True)}
    return found
