"""Sound through the model while it comes: raw 16-bit PCM from standard input to standard output."""

import array
import dataclasses
import fcntl
import os
import stat
import sys
import termios
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import numpy as np

from jaxaudio.core import Carry, InputError, Streams
from jaxaudio.data.audio import to_int16
from jaxaudio.runtime.folder import Trained

NEEDS = Streams
SPEAKS_ON = "stderr"  # standard output is the sound's

LITTLE = "<i2"  # 16 bit, little-endian; channels interleaved
MOST_SECONDS = 10.0  # of a chunk
CONTAINERS = {b"RIFF": "a WAV", b"RF64": "a WAV", b"fLaC": "a FLAC", b"OggS": "an Ogg"}  # how such files begin
LOOK, LOOKS = 0.05, 100  # seconds between two looks at what waits, and how many at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb stream."""

    chunk: int = 1  # latent frames that are processed at once
    live: bool = False  # throw away what a microphone sent before all was ready: it would come late for ever


class Told(NamedTuple):
    """What a stream came to."""

    chunks: int = 0
    late: int = 0  # of these, those that took longer than they last
    broken: int = 0  # those with NaN or infinity in them
    cut: int = 0  # bytes of the last, incomplete chunk


def perform(trained: Trained, options: Options, seed: int, out: Path) -> None:
    """Reads until the input ends or Ctrl-C; what comes out lags behind by the model's delay, and ends as much later."""
    del out
    model = trained.model
    refuse(model, options)
    through, size = Through(trained, options.chunk, seed), options.chunk * model.hop
    latency = 1000 * (size + model.delay) / model.sample_rate
    shape = "mono" if model.channels == 1 else f"{model.channels} channels interleaved"
    say(f"{model.sample_rate} Hz, {shape}, 16 bit little-endian, chunks of {size} samples")
    say(f"latency {latency:.1f} ms: a chunk, and {model.delay} samples that the model is late")
    if model.gain == "peak":
        say("the model learned sound with a peak of 1, and a stream is not scaled: make the input about as loud")
    if options.live:
        sample = 2 * model.channels
        dropped = discard(sys.stdin.buffer, sample, sample * model.sample_rate)
        say(f"{dropped / sample / model.sample_rate:.2f} s that waited were thrown away")
    try:
        pump(through)
    except KeyboardInterrupt:  # the way to end what comes from a microphone
        say(f"interrupted: the chunk that had begun and the last {model.delay} samples are left out")
    conclude(through.told, model)


def say(words: str) -> None:
    """A line on standard error."""
    print(f"stream: {words}", file=sys.stderr, flush=True)


def refuse(model: Streams, options: Options) -> None:
    """Raises InputError for a chunk that can't be, and where there is no pipe or file at one of the ends."""
    refuse_chunk(model, options.chunk)
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("standard input is no sound: pipe raw 16-bit PCM into it, as ffmpeg -f s16le - writes it")
    if sys.stdout is None:
        raise InputError("standard output is closed: the sound goes there, into a file or a pipe")
    if options.live and not (stat.S_ISFIFO(mode := os.fstat(sys.stdin.fileno()).st_mode) or stat.S_ISSOCK(mode)):
        raise InputError("standard input is no pipe, so nothing waits in it: leave --live away")


def refuse_chunk(model: Streams, chunk: int) -> None:
    """Raises InputError for a chunk of no or of too many latent frames."""
    most = max(1, int(MOST_SECONDS * model.sample_rate / model.hop))
    if not 1 <= chunk <= most:
        seconds = f"{MOST_SECONDS:.0f} seconds"
        raise InputError(f"chunk is {chunk}: it is 1 to {most} latent frames of {model.hop} samples ({seconds})")


def conclude(told: Told, model: Streams) -> None:
    """Says what a stream came to."""
    if told.broken:
        say(f"{told.broken} chunks were not finite, silence where they were not: name an earlier --checkpoint")
    if told.cut:
        where = "a sample" if told.cut % (2 * model.channels) else "a chunk"
        say(f"the input ended within {where}, {told.cut} bytes into the last chunk: filled up with zeros")
    say(f"{told.chunks} chunks" + (f", {told.late} of them slower than real time" if told.late else ""))


class Through:
    """A model and where it is in a stream, compiled: bytes of a chunk in and out."""

    def __init__(self, trained: Trained, chunk: int, seed: int):
        self.model, self.key, self.told = trained.model, jax.random.key(seed), Told()
        self.params = jax.device_put(trained.params, jax.devices()[0])
        self.program = jax.jit(self.model.push, donate_argnums=1)
        self.shape = (1, chunk * self.model.hop, self.model.channels)
        silence = np.zeros(self.shape, np.float32)
        jax.block_until_ready(self.program(self.params, self.open(), silence, self.key))  # compiles, and is forgotten
        self.carry = self.open()

    def open(self) -> Carry:
        """The carry before the first chunk: committed to the device as those that follow are, else the second chunk
        would wait for another compilation; copied, because a donated buffer may not occur twice."""
        return jax.device_put(self.model.open(self.params, 1), jax.devices()[0], may_alias=False)

    def __call__(self, chunk: bytes) -> bytes:
        begin = time.perf_counter()
        wave = np.frombuffer(chunk, LITTLE).reshape(self.shape) * np.float32(1 / 32768)
        self.carry, result = self.program(self.params, self.carry, wave, self.key)
        sound = np.asarray(result)[0]
        broken = not np.isfinite(sound).all()
        if broken:  # and would stay so: what comes after it depends on it
            sound, self.carry = np.nan_to_num(sound, posinf=0, neginf=0), self.open()
        samples = to_int16(sound).astype(LITTLE).tobytes()
        late = (time.perf_counter() - begin) * self.model.sample_rate > self.shape[1]
        chunks, all_late, all_broken, cut = self.told
        self.told = Told(chunks + 1, all_late + late, all_broken + broken, cut)
        return samples


def discard(source: BinaryIO, sample: int, rate: int) -> int:
    """How many bytes of what waits were read and thrown away: whole samples, until no more come than in real time.

    sample, rate: bytes of a sample of all channels, and per second. A recorder that had to wait sends what it holds as
    soon as there is room, so one look is not enough.
    """
    waiting, dropped = array.array("i", [0]), 0
    for _ in range(LOOKS):
        fcntl.ioctl(source, termios.FIONREAD, waiting)
        dropped += len(os.read(source.fileno(), waiting[0]))
        if waiting[0] <= rate * LOOK:
            break
        time.sleep(LOOK)
    return dropped + len(source.read(-dropped % sample))


def pump(through: Through) -> None:
    """All that comes on standard input, to standard output, each chunk as soon as it is there."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sample = 2 * through.model.channels
    whole, due, more = sample * through.shape[1], 0, True  # bytes of a chunk; of what is still to come out
    while more or due:
        chunk = source.read(whole) if more else b""
        if not through.told.chunks and chunk[:4] in CONTAINERS:
            raw = f"-f s16le -ar {through.model.sample_rate} -ac {through.model.channels}"
            raise InputError(
                f"standard input is {CONTAINERS[chunk[:4]]} file: pipe raw PCM, as ffmpeg {raw} - writes it"
            )
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
