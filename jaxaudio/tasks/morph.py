"""A path from one sound to another, through the latent space."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import InputError, Morphs
from jaxaudio.runtime.command import check_seed
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import labels, write

NEEDS = Morphs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb morph."""

    seeds: str = "0,1"  # two or more: the sounds that the path visits, in this order
    steps: int = 9  # sounds from one to the next, both counted
    label: str | None = None  # of a conditional model: a class by name or number; none: the first


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path:
    """Writes the sounds along the straight line between each two latents, and their sheet."""
    del seed
    seeds = options.seeds.split(",")
    if len(seeds) < 2 or not all(each.strip().isdecimal() for each in seeds) or options.steps < 2:
        raise InputError(f"seeds is {options.seeds!r} and steps {options.steps}: give two seeds as 3,4 and two steps")
    for each in seeds:
        check_seed(int(each))
    model = trained.model
    ends = [model.latents(jax.random.key(int(each)), 1) for each in seeds]
    fractions = jnp.linspace(0.0, 1.0, options.steps)[:, None]
    path = jnp.concatenate([(1 - fractions) * a + fractions * b for a, b in pairwise(ends)])
    label = labels(trained.labels, options.label or ("0" if trained.labels else None), len(path))
    waves = np.asarray(jax.jit(model.render)(trained.params, path, label))
    titles = [f"{i % options.steps / (options.steps - 1):.2f}" for i in range(len(waves))]
    write(out, waves, model.sample_rate, titles)
    return out
