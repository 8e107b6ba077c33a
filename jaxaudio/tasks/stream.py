"""Sound through the model while it comes: raw 16-bit PCM from standard input to standard output."""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxaudio.core import InputError, Streams
from jaxaudio.data.audio import to_int16
from jaxaudio.runtime.folder import Trained

NEEDS = Streams
SPEAKS_ON = "stderr"  # standard output is the sound's

LITTLE = "<i2"  # 16 bit, little-endian; channels interleaved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb stream."""

    chunk: int = 1  # latent frames that are processed at once


class Told(NamedTuple):
    """What a stream came to."""

    chunks: int = 0
    late: int = 0  # of these, those that took longer than they last
    cut: int = 0  # bytes of the last, incomplete chunk


def perform(trained: Trained, options: Options, seed: int, out: Path) -> None:
    """Reads until the input ends or Ctrl-C; what comes out lags behind by the model's delay, and ends as much later."""
    del out
    model, say = trained.model, lambda words: print(f"stream: {words}", file=sys.stderr, flush=True)
    if options.chunk < 1:
        raise InputError(f"chunk is {options.chunk}: it is at least one latent frame ({model.hop} samples)")
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("standard input is no sound: pipe raw 16-bit PCM into it, as ffmpeg -f s16le - writes it")
    through, size = Through(trained, options.chunk, seed), options.chunk * model.hop
    latency = 1000 * (size + model.delay) / model.sample_rate
    shape = "mono" if model.channels == 1 else f"{model.channels} channels interleaved"
    say(f"{model.sample_rate} Hz, {shape}, 16 bit little-endian, chunks of {size} samples")
    say(f"latency {latency:.1f} ms: a chunk, and {model.delay} samples that the model is late")
    with contextlib.suppress(KeyboardInterrupt):  # the way to end what comes from a microphone
        pump(through)
    told = through.told
    if told.cut:
        where = "a sample" if told.cut % (2 * model.channels) else "a chunk"
        say(f"the input ended within {where}, {told.cut} bytes into the last chunk: filled up with zeros")
    say(f"{told.chunks} chunks" + (f", {told.late} of them slower than real time" if told.late else ""))


class Through:
    """A model and where it is in a stream, compiled: bytes of a chunk in and out."""

    def __init__(self, trained: Trained, chunk: int, seed: int):
        self.model, self.params, self.key = trained.model, trained.params, jax.random.key(seed)
        self.program, self.shape = jax.jit(self.model.push), (1, chunk * self.model.hop, self.model.channels)
        self.carry, self.told = self.model.open(self.params, 1), Told()
        silence = np.zeros(self.shape, np.float32)
        jax.block_until_ready(self.program(self.params, self.carry, silence, self.key))  # compiles, and is forgotten

    def __call__(self, chunk: bytes) -> bytes:
        begin = time.perf_counter()
        wave = np.frombuffer(chunk, LITTLE).reshape(self.shape) * np.float32(1 / 32768)
        self.carry, result = self.program(self.params, self.carry, wave, self.key)
        samples = to_int16(np.nan_to_num(np.asarray(result)[0])).astype(LITTLE).tobytes()
        late = (time.perf_counter() - begin) * self.model.sample_rate > self.shape[1]
        self.told = self.told._replace(chunks=self.told.chunks + 1, late=self.told.late + late)
        return samples


def pump(through: Through) -> None:
    """All that comes on standard input, to standard output, each chunk as soon as it is there."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sample = 2 * through.model.channels
    whole, due, more = sample * through.shape[1], 0, True  # bytes of a chunk; of what is still to come out
    while more or due:
        chunk = source.read(whole) if more else b""
        due += -(-len(chunk) // sample) * sample
        if more and len(chunk) < whole:
            more = False
            through.told = through.told._replace(cut=len(chunk))
            due += sample * through.model.delay if through.told.chunks or chunk else 0
        if due:
            ready = through(chunk.ljust(whole, b"\0"))[:due]
            sink.write(ready)
            sink.flush()
            due -= len(ready)
