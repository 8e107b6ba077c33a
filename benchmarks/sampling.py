"""Samples drawn per second: python -m benchmarks.sampling MODEL[:PRESET] [--streams 1 16] [--against torch]

Of a model that draws sound sample by sample. A step is one sample of each stream. Windows alternate in one process: of
the model's compiled program for each number of streams; of the reading of as many weights as a step takes (a
matrix-vector product of NumPy's BLAS); of a large matrix product, the rate of the arithmetic; and of the same network
in an eager PyTorch loop. No step can be shorter than its bound, the longer of two: the weights of all its products read
once, and their arithmetic for all streams, each as fast as in its best window. Bounds are those of a CPU.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import named, publish
from benchmarks.timing import OtherLoad, alternate, matmul, quartiles
from jaxaudio import zoo
from jaxaudio.core import Continues, InputError, Model, Params, Vocodes
from jaxaudio.nn import sparse
from jaxaudio.runtime.command import guarded, keep_freed_memory

MATMUL = 2048
MOST_STREAMS, LEAST_SECONDS, MOST_SECONDS = 4096, 1e-3, 60.0
CLASSES = 10  # of a model that needs labels, as the built-in recordings have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    model: Model  # the hyper-parameters, as train.py takes them
    streams: tuple[int, ...] = (1, 16)  # sounds at once, a row for each
    seconds: float = 0.25  # of sound per call
    against: Literal["none", "torch"] = "none"  # the same network in another framework, with as many streams as first
    torch_samples: int = 500  # about so many of each stream, that PyTorch draws per call
    windows: int = 9  # of each contestant
    window_seconds: float = 1.0  # length of a window
    json: Path | None = None  # a line is added per model


def measure(options: Options) -> dict[str, object]:
    """One row. Raises InputError for a model that does not draw sample by sample."""
    model, work = options.model, WORK.get(zoo.name_of(options.model))
    if work is None:
        raise InputError(f"{zoo.name_of(model)} does not draw sample by sample: choose from {', '.join(WORK)}")
    check(options)
    if model.needs_labels and not model.classes:
        model = dataclasses.replace(model, classes=CLASSES)
    params = as_trained(model)
    weights = round(work(model))
    contestants, samples, compile_s = {}, {}, {}
    for n in options.streams:
        name = f"{n} streams"
        call, samples[name] = drawing(model, params, n, options.seconds)
        began = time.perf_counter()
        call()
        compile_s[name] = time.perf_counter() - began
        contestants[name] = call
    contestants |= {"reading": reading(weights), "matmul": matmul("float32", MATMUL)}
    failed = None
    if options.against == "torch":
        try:
            peer = importlib.import_module(f"benchmarks.peers.{zoo.name_of(model)}")
            call = peer.sampler(model, options.streams[0], max(1, round(options.torch_samples / frame_of(model))))
            samples["torch"] = call().shape[1]
            contestants["torch"] = call
        except Exception as problem:
            failed = " ".join(str(problem).split())[:200]
    with OtherLoad() as other:
        times = alternate(contestants, options.windows, options.window_seconds)

    read_s, rate = float(np.min(times["reading"])), 2 * MATMUL**3 / float(np.min(times["matmul"]))
    rows = []
    for n in options.streams:
        name = f"{n} streams"
        low, middle, high = (value / samples[name] for value in quartiles(times[name]))
        bound = max(read_s, 2 * weights * n / rate)
        rows.append({
            "streams": n, "samples_per_second": [n / high, n / middle, n / low], "us_per_step": middle * 1e6,
            "real_time": n / middle / model.sample_rate, "bound_us": bound * 1e6, "share_of_bound": bound / middle,
            "compile_s": compile_s[name],
        })  # fmt: skip
    row = {
        "model": zoo.name_of(model),
        "weights_per_sample": weights,
        "reading_gb_per_second": 4 * weights / read_s / 1e9,
        "matmul_gflops": rate / 1e9,
        "rows": rows,
        "other_load_cores": other.cores,
    }
    if "torch" in times:
        step, first = times["torch"] / samples["torch"], f"{options.streams[0]} streams"
        row["torch_samples_per_second"] = options.streams[0] / quartiles(step)[1]
        row["torch_ratio"] = float(np.median(step * samples[first] / times[first]))
    return row | ({"torch_failed": failed} if failed else {})


def check(options: Options) -> None:
    """Raises InputError for what can't be measured."""
    if not options.streams or not all(1 <= n <= MOST_STREAMS for n in options.streams):
        raise InputError(f"streams is {options.streams}: numbers of 1 to {MOST_STREAMS}, as in --streams 1 16")
    for name in ("windows", "torch_samples"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} is {getattr(options, name)}: it is at least 1")
    for name in ("seconds", "window_seconds"):
        if not LEAST_SECONDS <= getattr(options, name) <= MOST_SECONDS:
            raise InputError(f"{name} is {getattr(options, name)}: it is {LEAST_SECONDS} to {MOST_SECONDS:.0f}")
    if options.model.dtype != "float32":
        raise InputError(
            f"dtype is {options.model.dtype}: the bound is that of float32 weights, leave --model.dtype away"
        )


def frame_of(model: Model) -> int:
    """Samples that the model's program draws at least."""
    return model.hop if isinstance(model, Vocodes) else model.frame


def drawing(model: Model, params: Params, n: int, seconds: float) -> tuple[Callable[[], object], int]:
    """A call that draws about so many seconds of n streams from a cold start, and how many samples of each it draws."""
    key, frames = jax.random.key(1), max(1, round(seconds * model.sample_rate / frame_of(model)))
    if isinstance(model, Continues):
        label = jnp.arange(n) % model.classes if model.classes else None
        carry, program = model.begin(params, n, label), jax.jit(model.extend, static_argnums=3)
        call = lambda: jax.block_until_ready(program(params, carry, key, frames))
    else:
        given = jax.random.uniform(jax.random.key(2), (n, frames + 2 * model.reach, model.mels))
        params = model.prepared(params)
        carry, program = model.open(params, n), jax.jit(model.vocode)
        call = lambda: jax.block_until_ready(program(params, carry, given, key))
    return call, frames * frame_of(model)


def as_trained(model: Model) -> Params:
    """The weights to sample from, drawn anew and pruned as training would in the end."""
    state = jax.jit(lambda: model.init(jax.random.key(0), model.measure(())))()
    if getattr(model, "sparsity", 0):
        kernels = model.pruned(state.params["network"])
        masks = {name: sparse.strongest(kernel, model.sparsity, model.block) for name, kernel in kernels.items()}
        state = state._replace(extra={**state.extra, "masks": masks})
    return jax.jit(model.weights)(state)


def reading(weights: int) -> Callable[[], object]:
    """Reads about so many float32 weights, as the matrix of a matrix-vector product."""
    width = max(1, min(512, math.isqrt(weights)))
    matrix, vector = np.ones((weights // width, width), np.float32), np.ones(width, np.float32)
    return lambda: matrix @ vector


def of_samplernn(model: Model) -> float:
    """Weights of the products that a sample takes: those of a tier, which steps once in `frame` samples, in part. The
    embeddings of codes are rows of tables, and no products."""
    width, total = model.width, 0.0
    gates = {"lstm": 4, "rnn": 1}.get(model.cell, 3)
    for number, frame in enumerate(model.frames):
        ratio = frame // (*model.frames, 1)[number + 1]
        expand, first = (frame * width, width) if number else (0, frame)
        of_inputs = (first + (model.layers - 1) * width) * gates * width
        total += (expand + of_inputs + model.layers * gates * width * width + ratio * width * width) / frame
    return total + width * width * (1 + model.softmaxes) + model.softmaxes * width * model.symbols


def of_wavernn(model: Model) -> float:
    """The same. What is linear in the sample before and the frame is folded: of that no product is left at every
    sample. What is done once per frame is left out."""
    units, hidden = model.units, model.hidden
    if model.output == "dual":
        return 3 * units * units + 2 * (units // 2 * hidden + hidden * 256)
    last = 30 if model.output == "mol" else model.levels
    recurrent = ((1 - model.sparsity) * model.layers + model.layers - 1) * 3 * units * units
    return recurrent + units * hidden + (model.dense - 1) * hidden * hidden + hidden * last


WORK: dict[str, Callable[[Model], float]] = {"samplernn": of_samplernn, "wavernn": of_wavernn}


def table(row: Mapping) -> str:
    """The row for people."""
    lines = [
        f"{row['model']}: {row['weights_per_sample'] / 1e6:.3f}M weights per step, read at "
        f"{row['reading_gb_per_second']:.0f} GB/s; arithmetic {row['matmul_gflops']:.0f} GFLOP/s"
    ]
    for each in row["rows"]:
        low, middle, high = each["samples_per_second"]
        lines.append(
            f"  {each['streams']:4} streams  {middle:9.0f} samples/s (quartiles {low:.0f} to {high:.0f}), "
            f"{each['real_time']:.2f} times real time in all; a step takes {each['us_per_step']:.1f} us and at least "
            f"{each['bound_us']:.1f} us: {each['share_of_bound']:.0%} of what is possible"
        )
    if "torch_ratio" in row:
        rate, ratio = row["torch_samples_per_second"], row["torch_ratio"]
        streams = row["rows"][0]["streams"]
        lines.append(f"  torch, eager  {rate:9.0f} samples/s, {streams} streams: jaxaudio is {ratio:.2f} times as fast")
    elif "torch_failed" in row:
        lines.append(f"  torch, eager  does not run: {row['torch_failed']}")
    return "\n".join([*lines, f"  other load    {row['other_load_cores']:.2f} cores"])


def main(arguments: list[str]) -> None:
    """One table per model."""
    keep_freed_memory()
    for spec, options in named(Options, "sampling", arguments, "wavernn:small"):
        publish(measure(options), table, spec, options)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
