"""Data-parallel training on more chips, on paper: python -m benchmarks.scaling [MODEL[:PRESET] ...] [--results FILE]

From a step's time on one chip, the gradients' bytes and the published speeds of links: the expected efficiency, the
share of a step in which a chip computes, where every chip keeps the batch size of the model (weak scaling). The step's
time is measured (rows of benchmarks.step of the chip, with --results), given (--step-seconds), or assumed.

`--weak` compiles the step for 1, 2, 4 and 8 forced CPU devices and compares the bytes that are summed over devices,
read from the program, with the formula's. It measures no time.
"""

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.step import CLASSES, noise, operations
from jaxaudio import zoo
from jaxaudio.core import InputError, Model, Shard
from jaxaudio.runtime.command import guarded
from jaxaudio.runtime.parallel import Devices, shapes

COUNTS = (1, 8, 16, 64, 256, 1024, 4096)
WEAK = (1, 2, 4, 8)
BACKWARD = 2 / 3  # of a step: the gradient of a layer is two products, where the layer is one
SHARE = 0.35  # of the peak, where nothing was measured: this project's aim for convolutional models
HOP_US = {"NVLink": 2.0, "InfiniBand": 5.0, "ICI": 1.0, "DCN": 20.0}  # assumed: makers publish none


class Link(NamedTuple):
    """A network between chips."""

    name: str
    gigabytes: float  # per second, chip and direction
    most: int  # chips that it joins


class Chip(NamedTuple):
    """An accelerator, and the networks that it is in, from the inside to the outside."""

    tera: float  # peak bfloat16 operations per second, dense, / 10^12
    links: tuple[Link, ...]


# NVIDIA H100 and H200 (SXM) data sheets: 989 TFLOP/s dense bfloat16, NVLink 900 GB/s, both directions together; DGX
# H100/H200 user guide: eight GPUs, a ConnectX-7 port of 400 Gb/s for each.
HOPPER = Chip(989, (Link("NVLink", 450, 8), Link("InfiniBand", 50, 4096)))
# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: "bidirectional inter-chip interconnect bandwidth per chip" 400, 1200
# and 800 GB/s, of which half is one direction's; v4's page has "all-reduce bandwidth" 1.1 PB/s for 4096 chips. DCN:
# v5p's page has 50 Gb/s per chip, v5e's 6.4 Tb/s for 256 chips; v4's and v6e's have none: v5p's is taken.
CHIPS = {
    "h100": HOPPER,
    "h200": HOPPER,
    "v4": Chip(275, (Link("ICI", 268, 4096), Link("DCN", 6.25, 1 << 20))),
    "v5e": Chip(197, (Link("ICI", 200, 256), Link("DCN", 3.125, 1 << 20))),
    "v5p": Chip(459, (Link("ICI", 600, 6144), Link("DCN", 6.25, 1 << 20))),
    "v6e": Chip(918, (Link("ICI", 400, 256), Link("DCN", 6.25, 1 << 20))),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    chip: str = "h200"  # one of CHIPS
    step_seconds: float | None = None  # of a step on one chip; none: from --results, or assumed
    results: Path | None = None  # what benchmarks.step wrote on this chip: lines of JSON, or a list of rows
    share: float = SHARE  # of the chip's peak that is assumed where nothing was measured
    weak: bool = False  # bytes of the compiled program on forced CPU devices, against the formula
    json: Path | None = None  # a line is added per model and stage

    def __post_init__(self):
        zoo.choose("chip", self.chip, CHIPS)
        for name, wrong in (("step_seconds", self.step_seconds), ("share", self.share)):
            if wrong is not None and not 0 < wrong < math.inf:
                raise InputError(f"{name} is {wrong}: it is more than 0")


def all_reduce(chips: int, size: float, updates: int, links: Sequence[Link]) -> float:
    """Seconds in which `size` bytes, sent in `updates` sums, are summed over so many chips.

    Network by network, from the inside to the outside: 2 (n - 1) / n of the bytes over each chip's link and the `hops`
    of each sum, where n is how many chips, or groups of them, that network joins. Inside a group each chip then has a
    share of the sum, so that all of them carry the next network's bytes together.
    """
    seconds, inside = 0.0, 1
    for link in links:
        ring = min(math.ceil(chips / inside), max(1, link.most // inside))
        if ring > 1:
            bytes_ = 2 * (ring - 1) / ring * size / inside
            seconds += bytes_ / (link.gigabytes * 1e9) + updates * hops(ring, link) * HOP_US[link.name] * 1e-6
        inside *= ring
    return seconds


def hops(ring: int, link: Link) -> int:
    """One after the other, there and back: along the longest side of a torus (ICI), about the square root of the chips;
    elsewhere through a tree, which is what NCCL takes for short messages."""
    depth = math.sqrt(ring) if link.name == "ICI" else math.log2(ring)
    return 2 * math.ceil(depth)


def efficiency(step: float, sums: float, overlap: bool) -> float:
    """The share of a step in which a chip computes. overlap: the backward pass hides what is sent while it runs."""
    return step / (step + max(0.0, sums - BACKWARD * step if overlap else sums))


class Sums(NamedTuple):
    """What a step sums over devices: gradients of each update."""

    updates: int
    size: int  # bytes


def gradients(model: Model, stage: Any) -> Sums:
    """Counted by tracing the step: `descend` alone gives `Shard.mean` three things, gradients, loss and metrics."""
    found: list[int] = []

    class Counting(Shard):
        def mean(self, tree: Any) -> Any:
            if isinstance(tree, tuple) and len(tree) == 3:
                found.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree[0])))
            return tree

    step = lambda state, batch, key: model.train_step(state, batch, key, Counting(), stage)
    jax.eval_shape(step, shapes(model), noise(model), jax.random.key(0))
    return Sums(len(found), sum(found))


def measured(path: Path) -> list[dict]:
    """The rows of a file that benchmarks.step wrote."""
    try:
        text = path.read_text()
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        return [row for row in rows if "steps_per_second" in row]
    except (ValueError, TypeError) as problem:
        raise InputError(f"results is {path}, which is no rows of JSON: name what benchmarks.step wrote") from problem


def step_time(options: Options, spec: str, model: Model, stage: Any) -> tuple[float, str]:
    """Seconds of a step on one chip, and where they are from."""
    if options.step_seconds:
        return options.step_seconds, "given"
    for row in measured(options.results) if options.results else ():
        if row.get("preset") == spec and row.get("stage") == stage:
            return 1 / row["steps_per_second"][1], "measured"
    peak = CHIPS[options.chip].tera * 1e12
    return operations(model, stage) / peak / options.share, f"assumed: {options.share:.0%} of the peak"


def row_of(options: Options, spec: str, model: Model, stage: Any) -> dict[str, Any]:
    """The expected efficiency of a stage of a model, without and with overlap, for each number of chips."""
    seconds, origin = step_time(options, spec, model, stage)
    sums, links = gradients(model, stage), CHIPS[options.chip].links
    times = {chips: all_reduce(chips, sums.size, sums.updates, links) for chips in COUNTS}
    return {
        "preset": spec,
        "stage": stage,
        "chip": options.chip,
        "step_seconds": seconds,
        "step_from": origin,
        "updates": sums.updates,
        "gradient_bytes": sums.size,
        "sum_seconds": times,
        **{
            name: {chips: efficiency(seconds, time, overlap) for chips, time in times.items()}
            for name, overlap in (("efficiency", False), ("efficiency_overlapped", True))
        },
    }


def table(rows: Sequence[dict], options: Options) -> str:
    """The rows for people, and what they rest on."""
    title = lambda row: row["preset"] + (f" ({row['stage']})" if row["stage"] is not None else "")
    wide = max(len(title(row)) for row in rows)
    head = f"{'':{wide}}  step ms  gradients MB  " + "".join(f"{chips:>11}" for chips in COUNTS)
    lines = [f"expected efficiency of data-parallel training on {options.chip}, without / with overlap", head]
    for row in rows:
        pairs = zip(row["efficiency"].values(), row["efficiency_overlapped"].values(), strict=True)
        shares = "".join(f"{f'{100 * a:.0f} / {100 * b:.0f}':>11}" for a, b in pairs)
        size = f"{row['gradient_bytes'] / 1e6:.1f}"
        lines.append(f"{title(row):{wide}}  {row['step_seconds'] * 1e3:7.1f}  {size:>12}  {shares}")
    links = "; ".join(
        f"{link.name} {link.gigabytes:g} GB/s a direction, {HOP_US[link.name]:g} us a hop (assumed)"
        for link in CHIPS[options.chip].links
    )
    origins = ", ".join(f"{origin} ({n})" for origin, n in counted(row["step_from"] for row in rows))
    return "\n".join(
        [
            *lines,
            f"step: {origins}; every chip keeps the model's batch size",
            f"links: {links}",
            "sums: float32 gradients of every update, 2 (n - 1) / n of their bytes over each network's links",
            f"overlap: what is sent while the backward pass, {BACKWARD:.0%} of the step, runs costs nothing",
            "left out: input, stragglers, other traffic, statistics of batches (a few numbers), and the gathers of "
            "Fourier transforms, which XLA divides under jit from jax 0.12 on",
        ]
    )


def counted(names: Iterator[str]) -> list[tuple[str, int]]:
    return [(name, len(list(group))) for name, group in itertools.groupby(sorted(names))]


# ---------------------------------------------------------------------------------------------------- weak scaling

ITEM = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "s32": 4, "u32": 4, "s64": 8, "pred": 1}


def summed_bytes(program: str, least: int = 0) -> int:
    """Bytes of all arrays of at least so many elements that a compiled program sums over devices, of its text."""
    total = 0
    for results in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            count = math.prod(int(n) for n in shape.split(",") if n)
            total += ITEM[kind] * count if count >= least else 0
    return total


def compiled_bytes(spec: str, stage: Any, count: int) -> int:
    """Bytes that the data-parallel step sums over so many devices of this process."""
    model = with_labels(zoo.load(spec))
    model = dataclasses.replace(model, batch_size=model.batch_size * count)
    devices = Devices("jit", count)
    program = devices.compile(model).lower(shapes(model), noise(model), jax.random.key(0), stage)
    return summed_bytes(program.compile().as_text())


def weak(spec: str, stage_index: int) -> dict[int, int]:
    """Bytes per number of devices; a process each, as the number of devices is chosen at its start."""
    found = {}
    for count in WEAK:
        code = (
            "import jax; jax.config.update('jax_platforms', 'cpu'); "
            f"jax.config.update('jax_num_cpu_devices', {count}); "
            "from jaxaudio import zoo; from benchmarks.scaling import compiled_bytes; "
            f"stage = zoo.load({spec!r}).variants[{stage_index}]; "
            f"print('bytes', compiled_bytes({spec!r}, stage, {count}))"
        )
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags}
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found[count] = int(done.stdout.split("bytes ")[-1])
    return found


def with_labels(model: Model) -> Model:
    return dataclasses.replace(model, classes=CLASSES) if model.needs_labels and not model.classes else model


def weak_table(spec: str, model: Model) -> str:
    """Of each stage: the bytes on each number of devices, and the formula's."""
    lines = [f"{spec}: bytes summed over devices in a step, as compiled (no times)"]
    for i, stage in enumerate(model.variants):
        sums, found = gradients(model, stage), weak(spec, i)
        told = "  ".join(f"{count}: {size:,}" for count, size in found.items())
        beside = found[WEAK[-1]] - sums.size
        lines.append(f"  stage {stage}: {told}; gradients {sums.size:,}; beside them {beside:,}")
    lines.append(
        "  beside gradients: metrics, statistics of batches and, where a network is applied several times (a gradient"
    )
    lines.append("  penalty), parts of one gradient: XLA's CPU backend sums them over devices before it adds them")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """The table of all models that are named, or of the whole zoo at `paper`."""
    import tyro

    specs = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    options = tyro.cli(Options, args=arguments[len(specs) :], prog="benchmarks.scaling", description=__doc__)
    models = {spec: with_labels(zoo.load(spec)) for spec in specs or [f"{name}:paper" for name in zoo.names()]}
    if options.weak:
        for spec, model in models.items():
            print(weak_table(spec, model), flush=True)
        return
    rows = [row_of(options, spec, model, stage) for spec, model in models.items() for stage in model.variants]
    print(table(rows, options))
    if options.json:
        from benchmarks.rows import append

        for row in rows:
            append(options.json, row)
        print(f"{len(rows)} lines were added to {options.json}")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
