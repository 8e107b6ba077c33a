"""A model beside the one of `transformers`: python -m benchmarks.originals [MODEL[:PRESET] ...] [--json FILE]

dac (sound to codes and back) and hifigan (mels to sound); dac:16khz and hifigan:v1 where none is named. Both sides
carry the same weights, drawn anew: speed does not depend on what they say. Windows of the two alternate in one process.
Beside the speeds the row tells how far apart they come out.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.realtime import MOST_SECONDS, fresh, noise
from benchmarks.rows import named, publish
from benchmarks.timing import OtherLoad, alternate, quartiles
from jaxaudio import zoo
from jaxaudio.core import InputError, Model
from jaxaudio.runtime.command import guarded, keep_freed_memory

KNOWN = ("dac", "hifigan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    model: Model  # the hyper-parameters, as train.py takes them
    seconds: float = 10.0  # of a recording
    batch: int = 1  # recordings at once
    windows: int = 7  # of each contestant
    window_seconds: float = 2.0  # length of a window
    json: Path | None = None  # a line is added per model


class Beside(NamedTuple):
    """Two models that carry the same weights."""

    calls: dict[str, Callable[[], object]]  # "jax PART" and "torch PART", of the same sound
    parts: tuple[str, ...]
    found: dict[str, float]  # how far apart they come out


def measure(options: Options) -> dict[str, object]:
    """One row: what was measured of this model. Raises InputError for one that `transformers` has no likes of."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    model, name = options.model, zoo.name_of(options.model)
    if name not in KNOWN:
        raise InputError(f"transformers has no {name}: choose {' or '.join(KNOWN)}")
    hops = round(options.seconds * model.sample_rate) // model.hop if 0 < options.seconds <= MOST_SECONDS else 0
    if min(hops, options.batch, options.windows) < 1:
        raise InputError(
            f"{options.seconds} seconds, batch {options.batch} and {options.windows} windows: at least a hop of "
            f"{model.hop} samples and at most {MOST_SECONDS:.0f} s, at least 1 and 1"
        )
    wave = noise(options.batch, hops * model.hop, 1)
    with torch.inference_mode(), OtherLoad() as other:
        calls, parts, found = importlib.import_module(f"benchmarks.peers.transformers_{name}").beside(
            model, fresh(model), wave
        )
        times = alternate(calls, options.windows, options.window_seconds)
    if len(parts) > 1:
        times |= {f"{side} both": sum(times[f"{side} {part}"] for part in parts) for side in ("jax", "torch")}
        parts = (*parts, "both")
    length = options.batch * hops * model.hop / model.sample_rate
    factors = {name: [length / value for value in reversed(quartiles(values))] for name, values in times.items()}
    return {
        "model": name,
        "batch": options.batch,
        "seconds": hops * model.hop / model.sample_rate,
        "times_real_time": factors,
        "ratio": {part: float(np.median(times[f"torch {part}"] / times[f"jax {part}"])) for part in parts},
        **found,
        "other_load_cores": other.cores,
    }


def refuse_others(model: Model, plain: Mapping[str, Any]) -> None:
    """Raises InputError for a model that differs from the one of `transformers`."""
    for name, value in plain.items():
        if getattr(model, name) != value:
            raise InputError(f"{name} is {getattr(model, name)}: that of transformers has {value} with the others")


def table(row: Mapping) -> str:
    """The row for people."""
    lines = [f"{row['model']}: {row['batch']} x {row['seconds']:.1f} s"]
    for part, ratio in row["ratio"].items():
        ours, theirs = (row["times_real_time"][f"{side} {part}"] for side in ("jax", "torch"))
        lines.append(
            f"  {part:17} {ours[1]:.2f} times real time (quartiles {ours[0]:.2f} to {ours[2]:.2f}), transformers "
            f"{theirs[1]:.2f}: jaxaudio is {ratio:.2f} times as fast"
        )
    if "codes_alike" in row:
        lines.append(f"  codes alike       {row['codes_alike']:.2%}")
    lines.append(f"  peak difference   {row['peak_difference']:.1e}, of the sounds of the same input")
    return "\n".join([*lines, f"  other load        {row['other_load_cores']:.2f} cores"])


def main(arguments: list[str]) -> None:
    """One row per model."""
    keep_freed_memory()
    if not arguments or arguments[0].startswith("-"):
        arguments = ["dac:16khz", "hifigan:v1", *arguments]
    for spec, options in named(Options, "originals", arguments, "dac:16khz"):
        publish(measure(options), table, spec, options)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
