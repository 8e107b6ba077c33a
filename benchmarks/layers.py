"""The convolutions of a model's training step, one by one: python -m benchmarks.layers MODEL[:PRESET] [--model.FIELD V]

Each map (forward, backward, kernel: jaxaudio/nn/conv.py) of each layer, alone, in each form that it has: which one
`FORMS` chooses, which would be faster, and what share of a matrix product's rate the step's convolutions come to if all
else took no time. A loop's turn is counted once, and the gradient of a first layer's signal too, which XLA leaves out.
"""

import collections
import dataclasses
import math
import sys
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks.conv import FORMS, SHORT, in_each_form
from benchmarks.rows import named, publish
from benchmarks.step import labelled, noise, product_size
from benchmarks.timing import alternate, matmul
from jaxaudio import zoo
from jaxaudio.core import InputError, Model, Shard
from jaxaudio.nn import conv
from jaxaudio.runtime.command import guarded, keep_freed_memory
from jaxaudio.runtime.parallel import shapes

CLEAR = 2.0  # times as long as the fastest form by a single call: not measured further
NEAR = 1.1  # times as long as the fastest form, up to which a choice is not called slower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    model: Model  # the hyper-parameters, as train.py takes them
    most: int = 20  # maps that are printed, those that take longest
    windows: int = 5  # of each form
    seconds: float = 0.05  # length of a window
    json: Path | None = None  # a line is added per model


class Map(NamedTuple):
    """One map of a convolution, for a batch of so many signals."""

    shape: conv.Geometry
    name: str  # forward, backward or kernel
    batch: int

    @property
    def operations(self) -> float:
        """Of the textbook form."""
        each = math.prod(self.shape.taps) * self.shape.channels * self.shape.features / self.shape.groups
        return 2 * self.batch * math.prod(self.shape.frames) * each

    def __str__(self) -> str:
        shape, by = self.shape, lambda sizes: "x".join(map(str, sizes))
        words = f"{self.batch} x {by(shape.space)}, {shape.channels} to {shape.features}, {by(shape.taps)} taps"
        words += f" / {by(shape.stride)}" if max(shape.stride) > 1 else ""
        words += f", dilated {by(shape.dilation)}" if max(shape.dilation) > 1 else ""
        words += f", {shape.groups} groups" if shape.groups > 1 else ""
        return f"{self.name:8} {shape.kind:7} {words}"


def maps(model: Model, stage: Hashable) -> collections.Counter[Map]:
    """Those of a step of this stage, and how often each is computed."""
    found, form = collections.Counter(), conv.Geometry.form

    def noted(shape: conv.Geometry, name: str, batch: int) -> str:
        found[Map(shape, name, batch)] += 1
        return form(shape, name, batch)

    step = lambda state, batch, key: model.train_step(state, batch, key, Shard(), stage)
    with mock.patch.object(conv.Geometry, "form", noted):
        jax.eval_shape(step, shapes(model), noise(model), jax.random.key(0))
    return found


def measure(options: Options, stage: Hashable) -> dict[str, object]:
    """One row: the milliseconds of each map in each form."""
    model, size = labelled(options.model), product_size()
    if not (found := maps(model, stage)):
        raise InputError(f"{zoo.name_of(model)} has no convolution: name another model")
    (limit,) = alternate({"product": matmul(model.dtype, size)}, options.windows, 0.3).values()
    rows = []
    for each, count in found.items():
        chosen = each.shape.form(each.name, each.batch)
        ms = milliseconds(in_each_form(*each, model.dtype), options)
        rows.append({"map": str(each), "count": count, "operations": each.operations, "chosen": chosen, "ms": ms})
    return {
        "model": zoo.name_of(model),
        "stage": stage,
        "matmul_gflops": 2 * size**3 / float(np.median(limit)) / 1e9,
        "maps": rows,
    }


def milliseconds(calls: dict[str, Callable[[], object]], options: Options) -> dict[str, float]:
    """Of each form; of those that are clearly slower than another, by one call."""
    once = {form: float(values[0]) for form, values in alternate(calls, 1, 0.0).items()}
    close = {form: call for form, call in calls.items() if once[form] < CLEAR * min(once.values())}
    times = alternate(close, options.windows, options.seconds)
    return {form: 1e3 * (float(np.median(times[form])) if form in times else once[form]) for form in calls}


def table(row: dict, most: int) -> str:
    """For people: the maps that take longest, and all of them together."""
    rows, lines = row["maps"], [f"{row['stage'] or 'step'}; ms in the form: {FORMS}"]
    whole = lambda each: each["count"] * each["ms"][each["chosen"]]
    for each in sorted(rows, key=whole, reverse=True)[:most]:
        ms, chosen = each["ms"], each["chosen"]
        forms = " ".join(f"{SHORT[form]} {value:.2f}" for form, value in ms.items())
        rate, times = each["operations"] / ms[chosen] / 1e6, ms[chosen] / min(ms.values())
        note = f", {times:.1f} times the least" if times > NEAR else ""
        lines.append(f"{each['count']:3} {each['map']:62} {forms:28} {SHORT[chosen]}: {rate:.0f} GFLOP/s{note}")
    operations = sum(each["count"] * each["operations"] for each in rows)
    least = sum(each["count"] * min(each["ms"].values()) for each in rows)
    for name, ms in {"as chosen": sum(map(whole, rows)), "each in its fastest form": least}.items():
        rate = operations / ms / 1e6
        share = rate / row["matmul_gflops"]
        lines.append(f"all {len(rows)}, {name}: {ms:.1f} ms, {rate:.0f} GFLOP/s, {share:.0%} of a matrix product's")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """A table and a row for each model and stage."""
    keep_freed_memory()
    for spec, options in named(Options, "layers", arguments, "dac:small"):
        for stage in options.model.variants:
            publish(measure(options, stage), lambda row, most=options.most: table(row, most), spec, options)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
