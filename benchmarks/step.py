"""Training steps per second: python -m benchmarks.step MODEL[:PRESET] [--against torch] [--json FILE] [--model.FIELD V]

Windows of the JAX step, of a matrix product (the machine's limit) and of the same model in PyTorch alternate in one
process. A model whose training has stages gets a row for each of them. Operations are counted in the textbook form,
whatever form computes them.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded: spinning threads would slow the others

import dataclasses
import importlib
import importlib.util
import math
import resource
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.rows import named, publish
from benchmarks.timing import OtherLoad, alternate, matmul, quartiles
from jaxaudio import zoo
from jaxaudio.core import Batch, Model, Shard, State
from jaxaudio.nn import conv
from jaxaudio.runtime.command import guarded, keep_freed_memory
from jaxaudio.runtime.parallel import Devices, Step

MATMUL, LARGE_MATMUL = 2048, 8192  # rows of a matrix product that takes all of a CPU, and of an accelerator
CLASSES = 10  # of a model that needs labels, as the built-in recordings have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    model: Model  # the hyper-parameters, as train.py takes them
    parallel: Literal["jit", "pmap"] = "jit"  # how the step is spread over the devices
    against: Literal["none", "torch", "eager"] = "none"  # the same model in PyTorch, in the same run; eager: that alone
    windows: int = 9  # of each contestant
    seconds: float = 2.0  # length of a window
    input_seconds: float = 5.0  # of training, to see how long it waits for input; 0: not measured
    json: Path | None = None  # a line is added per model and stage


def measure(options: Options, stage: Hashable) -> dict[str, object]:
    """One row: what was measured of this stage of the model."""
    model = labelled(options.model)
    devices = Devices(options.parallel)
    state = jax.jit(lambda: model.init(jax.random.key(0), model.measure(())), out_shardings=devices.replicated)()
    parameters = {name: sum(leaf.size for leaf in jax.tree.leaves(params)) for name, params in state.params.items()}
    devices.rows(model.batch_size)
    batch = devices.shard(noise(model))
    key = jax.random.key(1)
    program = devices.compile(model)
    began = time.perf_counter()
    state, _ = jax.block_until_ready(program(state, batch, key, stage))
    compile_s = time.perf_counter() - began
    state, waited = input_wait(model, stage, devices, program, state, options.input_seconds)
    memory = peak_memory(devices)

    def step() -> None:
        nonlocal state
        state, metrics = program(state, batch, key, stage)
        jax.block_until_ready(metrics)

    size = product_size()
    contestants, failures = {"jax": step, "matmul": matmul(model.dtype, size)}, {}
    exists = has_peer(model)
    if options.against != "none" and exists:
        for name in ("torch", "torch.compile")[: 1 if options.against == "eager" else 2]:
            try:
                contestants[name] = beside(model, stage, name == "torch.compile")
            except Exception as problem:
                failures[name] = " ".join(str(problem).split())[:120]
    with OtherLoad() as other:
        times = alternate(contestants, options.windows, options.seconds)

    low, middle, high = quartiles(times["jax"])
    rate = 2 * size**3 / quartiles(times["matmul"])[1]
    flops = operations(model, stage)
    row = {
        "model": zoo.name_of(model),
        "stage": stage,
        "dtype": model.dtype,
        "parameters": parameters,
        "parallel": str(devices),
        "compile_s": compile_s,
        "steps_per_second": [1 / high, 1 / middle, 1 / low],
        "audio_per_second": model.batch_size * model.segment / model.sample_rate / middle,
        "operations_per_step": flops,
        "share_of_matmul": flops / middle / rate / devices.count,
        "matmul_gflops": rate / 1e9,
        "peak_memory_mib": memory / 2**20,
        "input_wait": waited,
        "other_load_cores": other.cores,
        **({"peer": exists} if options.against != "none" else {}),
        **{f"{name}_steps_per_second": 1 / quartiles(times[name])[1] for name in times if name.startswith("torch")},
        **{f"{name}_ratio": float(np.median(times[name] / times["jax"])) for name in times if name.startswith("torch")},
        **{f"{name}_failed": reason for name, reason in failures.items()},
    }
    return row


def labelled(model: Model) -> Model:
    """With classes, where it wants some."""
    return dataclasses.replace(model, classes=CLASSES) if model.needs_labels and not model.classes else model


def product_size() -> int:
    """Rows of the matrix product whose rate is the machine's limit: on an accelerator a small one would measure what a
    call costs."""
    return MATMUL if jax.default_backend() == "cpu" else LARGE_MATMUL


def has_peer(model: Model) -> bool:
    """Whether there is the same model in PyTorch."""
    return importlib.util.find_spec(f"benchmarks.peers.{zoo.name_of(model)}") is not None


def beside(model: Model, stage: Hashable, compiled: bool) -> Callable[[], object]:
    """A step of this stage in PyTorch, called once, on the same kind of device. Raises what keeps it from running."""
    import torch

    if jax.default_backend() != "cpu":
        if not torch.cuda.is_available():
            raise ValueError(f"PyTorch finds no {jax.default_backend()} here")
        torch.set_default_device("cuda")
    trainer = importlib.import_module(f"benchmarks.peers.{zoo.name_of(model)}").trainer
    peer = trainer(model, compiled, *([stage] if len(model.variants) > 1 else []))

    def step() -> None:
        peer()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    step()
    return step


def noise(model: Model) -> Batch:
    """A batch of quiet noise with labels in turn, and what else the model learns from."""
    rng, rows = np.random.default_rng(0), model.batch_size
    wave = lambda: (0.1 * rng.standard_normal((rows, model.segment, model.channels))).astype(np.float32)
    label = (np.arange(rows) % max(1, model.classes)).astype(np.int32)
    if model.needs_codes:
        shape = rows, model.segment // model.hop, model.codebooks
        given = rng.integers(0, model.codebook_size, shape).astype(np.int32)
        return Batch(np.zeros((rows, 0, model.channels), np.float32), label, given=given)
    return Batch(wave(), label, noise=wave() if model.needs_noise else None)


def operations(model: Model, stage: Hashable) -> float:
    """Floating-point operations of one step of this stage, as the textbook form of every layer has them: of its
    unoptimised program, which counts a loop's turn once, and of the products in the other turns."""
    forms, conv.FORMS = conv.FORMS, {}
    try:
        step = lambda state, batch, key: model.train_step(state, batch, key, Shard(), stage)
        state = jax.eval_shape(lambda: model.init(jax.random.key(0), model.measure(())))
        traced = jax.jit(step).trace(state, noise(model), jax.random.key(0))
        return traced.lower().cost_analysis()["flops"] + repeated(traced.jaxpr.jaxpr)
    finally:
        conv.FORMS = forms


def repeated(program: Any, turns: int = 1) -> float:
    """Operations of the matrix products in all turns but the first of a program's loops (`jax.lax.scan`)."""
    total = 0.0
    for equation in program.eqns:
        inner = turns * equation.params["length"] if equation.primitive.name == "scan" else turns
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += (turns - 1) * 2 * shared * math.prod(equation.outvars[0].aval.shape)
        for part in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            part = getattr(part, "jaxpr", part)
            total += repeated(part, inner) if hasattr(part, "eqns") else 0
    return total


def peak_memory(devices: Devices) -> float:
    """Bytes: the first device's peak; on a CPU the process's."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def input_wait(
    model: Model, stage: Hashable, devices: Devices, program: Step, state: State, seconds: float
) -> tuple[State, float]:
    """The state, and the share of so many seconds in which the devices wait for batches of the built-in recordings; nan
    where the packages that read audio are missing, and of a model that learns codes, which are no recordings."""
    try:
        from jaxaudio.data import synth
        from jaxaudio.data.clips import Clips, Noise, fetcher
        from jaxaudio.data.pack import open_pack
    except ImportError:
        return state, float("nan")
    if model.needs_codes or seconds <= 0:
        return state, float("nan")
    given = model.sample_rate, model.channels, model.segment
    noise = Noise(open_pack(synth.Textures(*given)), model, 0) if model.needs_noise else None
    fetch = fetcher([Clips(open_pack(synth.Recordings(*given)), model, 0, "train", noise)], devices)
    flying, waited, i, began = [], 0.0, 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        (batch,) = fetch(i)
        if flying and flying[-1].is_ready():
            waited += time.perf_counter() - start
        state, metrics = program(state, batch, jax.random.key(i), stage)
        flying = [*flying, jax.tree.leaves(metrics)[0]][-2:]
        jax.block_until_ready(flying[0])
        i += 1
    return jax.block_until_ready(state), waited / (time.perf_counter() - began)


def table(row: dict) -> str:
    """The row for people."""
    low, middle, high = row["steps_per_second"]
    name = row["model"] + (f" ({row['stage']})" if row["stage"] else "")
    lines = [
        f"{name}: {', '.join(f'{k} {v / 1e6:.2f}M' for k, v in row['parameters'].items())}, {row['parallel']}, "
        f"{row['dtype']}",
        f"  compile           {row['compile_s']:.1f} s",
        f"  steps/s           {middle:.3f}  (quartiles {low:.3f} to {high:.3f})",
        f"  audio             {row['audio_per_second']:.1f} s per second",
        f"  operations        {row['operations_per_step'] / 1e9:.1f} G per step, {row['share_of_matmul']:.0%} of "
        f"the rate of a matrix product ({row['matmul_gflops']:.0f} GFLOP/s)",
        f"  peak memory       {row['peak_memory_mib']:.0f} MiB",
        f"  waiting for input {row['input_wait']:.2%}",
    ]
    for name in ("torch", "torch.compile"):
        if f"{name}_ratio" in row:
            ratio, rate = row[f"{name}_ratio"], row[f"{name}_steps_per_second"]
            lines.append(f"  {name:17} {rate:.3f} steps/s: jaxaudio is {ratio:.2f} times as fast")
        elif f"{name}_failed" in row:
            lines.append(f"  {name:17} does not run: {row[f'{name}_failed']}")
    if row.get("peer") is False:
        lines.append("  torch             is not there for this model")
    return "\n".join([*lines, f"  other load        {row['other_load_cores']:.2f} cores"])


def main(arguments: list[str]) -> None:
    """One row per model and stage."""
    keep_freed_memory()
    for spec, options in named(Options, "step", arguments, f"wavegan:digits; there are {list(zoo.names())}"):
        for stage in options.model.variants:
            publish(measure(options, stage), table, spec, options)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
