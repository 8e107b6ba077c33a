"""How a model keeps up with sound: python -m benchmarks.realtime MODEL[:PRESET] [--json FILE] [--model.causal]

Of a model that encodes or vocodes: seconds of sound per second of work for a whole recording, in, out and both. Of a
causal one also a stream, as `sample.py stream` does it and before all else: chunks pushed back to back, without the
pauses of a live input, each timed by itself from bytes to bytes, and what the process holds meanwhile. The weights are
drawn anew, as after the last training step: speed does not depend on what they say.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import named, publish
from benchmarks.step import peak_memory, product_size
from benchmarks.timing import OtherLoad, alternate, matmul, quartiles
from jaxaudio import zoo
from jaxaudio.core import Encodes, Frames, InputError, Model, Params, Streams, Vocodes, Wave
from jaxaudio.runtime.command import guarded, keep_freed_memory
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.parallel import Devices

BATCHES = (1, 8)  # recordings at once
MOST_SECONDS = 600.0  # of a recording
WARM = 16  # chunks before those that are timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    model: Model  # the hyper-parameters, as train.py takes them
    seconds: float = 10.0  # of a recording
    chunk_hops: int = 1  # latent frames per chunk of the stream
    chunks: int = 1000  # of the stream
    windows: int = 5  # of each measurement on whole recordings
    json: Path | None = None  # a line is added per model


def measure(options: Options) -> dict[str, object]:
    """One row: what was measured of this model. Raises InputError for one that neither encodes nor vocodes."""
    model = options.model
    if not isinstance(model, Encodes | Vocodes):
        raise InputError(f"{zoo.name_of(model)} neither encodes nor vocodes: choose a model that does, such as rave")
    hops = round(options.seconds * model.sample_rate) // model.hop if 0 < options.seconds <= MOST_SECONDS else 0
    if min(hops, options.chunk_hops, options.windows) < 1 or options.chunks < 10:
        raise InputError(
            f"{options.seconds} seconds, chunks of {options.chunk_hops} hops, {options.chunks} chunks and "
            f"{options.windows} windows: at least a hop of {model.hop} samples and at most {MOST_SECONDS:.0f} s, "
            f"at least 1, 10 and 1"
        )
    params = fresh(model)
    with OtherLoad() as other:
        row = {"model": zoo.name_of(model), "chunk_hops": options.chunk_hops}
        if isinstance(model, Streams):
            try:
                row["stream"] = streaming(options, params)
            except InputError as reason:
                row["stream_refused"] = str(reason)
        row["offline"] = offline(options, params, hops)
    return {
        **row,
        "weights_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20,
        "peak_memory_mib": peak_memory(Devices(count=1)) / 2**20,
        "other_load_cores": other.cores,
    }


def fresh(model: Model) -> Params:
    """The weights to sample from, of a state as old as training makes it; committed to a device, as restored ones."""

    def make() -> Params:
        state = model.init(jax.random.key(0), model.measure(()))
        return model.weights(state._replace(step=state.step + model.steps))

    return jax.device_put(jax.jit(make)(), jax.devices()[0])


def offline(options: Options, params: Params, hops: int) -> list[dict[str, object]]:
    """A row for each batch: quartiles of the seconds of sound per second, in, out and both, and the rate of a matrix
    product meanwhile."""
    model, key, rows, size = options.model, jax.random.key(1), [], product_size()
    (first, into), (second, out) = halves(model)
    programs = {
        first: jax.jit(into),
        second: jax.jit(out),
        "both": jax.jit(lambda params, wave, key: out(params, into(params, wave), key)),
    }
    for batch in BATCHES:
        wave = jax.device_put(noise(batch, hops * model.hop, model.channels))
        seen = programs[first](params, wave)
        given = {first: (wave,), second: (seen, key), "both": (wave, key)}
        calls = {
            name: lambda name=name, given=given: jax.block_until_ready(programs[name](params, *given[name]))
            for name in programs
        }
        times = alternate({**calls, "matmul": matmul("float32", size)}, options.windows, 0.5)
        length = batch * wave.shape[1] / model.sample_rate
        factors = {name: [length / value for value in reversed(quartiles(times[name]))] for name in programs}
        rate = 2 * size**3 / quartiles(times["matmul"])[1] / 1e9
        seconds = wave.shape[1] / model.sample_rate
        rows.append({"batch": batch, "seconds": seconds, "factors": factors, "matmul_gflops": rate})
    return rows


def halves(model: Encodes | Vocodes) -> tuple[tuple[str, Callable], tuple[str, Callable]]:
    """The names of the ways in and out, and they themselves."""
    if isinstance(model, Encodes):
        return ("encode", model.encode), ("decode", model.decode)

    def seen(params: Params, wave: Wave) -> Frames:
        del params
        return jnp.pad(model.features(wave), ((0, 0), (model.reach, model.reach), (0, 0)), "edge")

    def vocode(params: Params, frames: Frames, key: jax.Array) -> Wave:
        return model.vocode(params, model.open(params, len(frames)), frames, key)[1]

    return ("features", seen), ("vocode", vocode)


def streaming(options: Options, params: Params) -> dict[str, float]:
    """What a stream of chunks takes, back to back; see `latencies` and `growth`. Raises InputError where the model
    looks ahead."""
    from jaxaudio.tasks.stream import LITTLE, Through, refuse_chunk  # what reads audio files comes with it

    model, size = options.model, options.chunk_hops * options.model.hop
    refuse_chunk(model, options.chunk_hops)
    through = Through(Trained(Path(), model, params, 0, ()), options.chunk_hops, 1)
    wave = np.rint(32768 * noise(WARM, size, model.channels))
    chunks = [part.astype(LITTLE).tobytes() for part in wave.clip(-32768, 32767)]
    for chunk in chunks:
        through(chunk)
    times, held = np.empty(options.chunks), np.empty(options.chunks)
    for i in range(options.chunks):
        begin = time.perf_counter()
        through(chunks[i % WARM])
        times[i] = time.perf_counter() - begin
        held[i] = resident()
    if through.told.broken:
        raise FloatingPointError("the stream is not finite")
    length = size / model.sample_rate
    return {
        "chunks": options.chunks,
        "chunk_samples": size,
        "chunk_ms": 1000 * length,
        "delay_samples": model.delay,
        "latency_ms": 1000 * (size + model.delay) / model.sample_rate,
        **latencies(times),
        "factor": length / float(np.mean(times)),
        "late_chunks": int(np.sum(times > length)),
        "compilations_while_it_ran": through.program._cache_size() - 1,
        "resident_mib": float(np.median(held)) / 2**20,
        "growth_kib_per_1000_chunks": growth(held),
    }


def latencies(times: np.ndarray) -> dict[str, float]:
    """Of seconds per chunk, in ms: mean, median, what 99 of 100 chunks stay within, and the worst."""
    in_ms = 1000 * times
    p99 = np.quantile(in_ms, 0.99, method="higher")
    found = {"mean_ms": in_ms.mean(), "median_ms": np.median(in_ms), "p99_ms": p99, "worst_ms": in_ms.max()}
    return {name: float(value) for name, value in found.items()}


def growth(held: np.ndarray) -> float:
    """KiB per 1000 chunks by which what is held, in bytes after each chunk, has grown from the second tenth of them to
    the last: between the medians of both."""
    tenth = len(held) // 10
    grown = np.median(held[-tenth:]) - np.median(held[tenth : 2 * tenth])
    return float(grown / 1024 / (len(held) - 2 * tenth) * 1000)


def resident() -> float:
    """Bytes of memory that this process holds; nan where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return float("nan")


def noise(batch: int, length: int, channels: int) -> np.ndarray:
    """Quiet noise."""
    return (0.1 * np.random.default_rng(0).standard_normal((batch, length, channels))).astype(np.float32)


def table(row: Mapping) -> str:
    """The row for people."""
    lines = [f"{row['model']}: {row['weights_mib']:.1f} MiB of weights"]
    for whole in row["offline"]:
        factors = ", ".join(f"{name} {each[1]:.1f}" for name, each in whole["factors"].items())
        low, _, high = whole["factors"]["both"]
        count = f"{whole['batch']} x {whole['seconds']:.1f} s"
        lines.append(f"  {count:17} {factors} times real time (both: quartiles {low:.1f} to {high:.1f})")
    if "stream" in row:
        told = row["stream"]
        lines += [
            f"  {'stream':17} {told['chunks']} chunks of {told['chunk_samples']} samples ({told['chunk_ms']:.1f} ms), "
            f"back to back: {told['factor']:.1f} times real time, {told['late_chunks']} chunks late, "
            f"{told['compilations_while_it_ran']} compilations meanwhile",
            f"  {'a chunk takes':17} mean {told['mean_ms']:.2f} ms, median {told['median_ms']:.2f}, "
            f"p99 {told['p99_ms']:.2f}, worst {told['worst_ms']:.2f}",
            f"  {'latency':17} {told['latency_ms']:.1f} ms: a chunk, and {told['delay_samples']} samples of filters",
            f"  {'memory':17} {told['resident_mib']:.0f} MiB meanwhile, "
            f"grows by {told['growth_kib_per_1000_chunks']:.1f} KiB per 1000 chunks",
        ]
    elif "stream_refused" in row:
        lines.append(f"  {'stream':17} {row['stream_refused']}")
    lines.append(f"  {'peak of all':17} {row['peak_memory_mib']:.0f} MiB")
    return "\n".join([*lines, f"  {'other load':17} {row['other_load_cores']:.2f} cores"])


def main(arguments: list[str]) -> None:
    """One row per model."""
    keep_freed_memory()
    for spec, options in named(Options, "realtime", arguments, "rave:v1 --model.causal"):
        publish(measure(options), table, spec, options)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
