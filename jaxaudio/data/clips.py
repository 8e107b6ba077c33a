"""Which stretch of which recording makes each training example, and fetching it.

A batch is a *plan* (a few integers per example, from the seed and the step alone) and a *gather* (from the pack's
memory map on the host, or from an array on the device; the same batch, bit for bit). The examples of a run are numbered
n = step * batch_size + row. A recording has max(1, length // segment) units, U in all; example n is unit pi(n mod U) of
epoch n // U, pi a bijection keyed by (seed, epoch). A longer recording is cut at an offset hashed from (seed, n); a
shorter one is followed by zeros; one shorter than 1/16 of the segment is left out and named. Of a model whose examples
are the beginnings of recordings each is one unit. Where classes are balanced, C in all, example n is of class
pi(n mod C) in round n // C, and the units of that class follow one another as those of all would.

Noise, for a model that needs it, comes from a second pack by the same rules under another seed, but for a shorter
recording: that one is repeated to the end of the segment, from an offset on that is hashed too.
"""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Batch, InputError, Model
from jaxaudio.data.layouts import SPLITS
from jaxaudio.data.pack import Pack
from jaxaudio.runtime.parallel import Devices

Made = TypeVar("Made")

SHORTEST = 16  # a recording shorter than segment / SHORTEST is left out
KINDS = 0x6B696E6473  # mixed into the seed of the order of classes
APART = 0x6E6F697365  # mixed into the seed of noise, so that it follows other draws than the recordings
PAUSE = 3e-4  # seconds that Ahead leaves the interpreter to the thread that is to start the step: its dispatch
LEVEL = np.float32(1 / 32768)  # of noise, as it was recorded


class Crop(NamedTuple):
    """Where the noises of a batch are, one row each."""

    start: np.ndarray  # int64, first sample in the pack
    length: np.ndarray  # int32, samples from there, again and again; the segment's where there are as many
    turn: np.ndarray  # int32, which of these the noise begins with


class Plan(NamedTuple):
    """Where the examples of a batch are, one row each."""

    start: np.ndarray  # int64, first sample in the pack
    length: np.ndarray  # int32, samples from there; the rest of the segment is zeros
    scale: np.ndarray  # float32, what an int16 sample is multiplied by
    label: np.ndarray  # int32
    noise: Crop | None = None


class Split:
    """The recordings in one split of a pack that are long enough for a model, and which of them an example is."""

    purpose: ClassVar[str]  # what can't be done without any

    def __init__(self, pack: Pack, model: Model, seed: int, split: str, balanced: bool = False):
        self.pack, self.segment, self.seed, self.split = pack, model.segment, seed, split
        self.samples = np.asarray(pack.samples)  # the same memory; slices of a memmap are slower to make
        mine = pack.split == SPLITS.index(split)
        short = pack.length * SHORTEST < model.segment
        self.chosen = np.flatnonzero(mine & ~short)
        if balanced:  # a class's recordings, and so its units, are neighbours
            self.chosen = self.chosen[np.argsort(pack.label[self.chosen], kind="stable")]
        self.left_out = tuple(
            (pack.names[i], f"{pack.length[i]} samples: shorter than 1/{SHORTEST} of a segment of {model.segment}")
            for i in np.flatnonzero(mine & short)
        )
        self.start, self.length = pack.start[self.chosen], pack.length[self.chosen]
        self.offsets = np.maximum(self.length - model.segment, 0) + 1  # at which each recording may be cut
        if model.cut == "beginning":
            self.offsets = np.ones_like(self.offsets)
        own = np.where(self.offsets > 1, self.length // model.segment, 1)  # units of each recording
        self.ends = np.cumsum(own)
        self.firsts = self.ends - own
        self.units = int(self.ends[-1]) if len(self.ends) else 0
        bounds = np.flatnonzero(np.diff(pack.label[self.chosen])) + 1 if balanced else np.zeros(0, int)
        self.bounds = np.concatenate([[0], self.firsts[bounds], [self.units]])  # of the classes' units; or one for all
        if split == "train" and not self.units:
            raise InputError(
                f"no recording of {len(pack.names)} can be {self.purpose}: {int(mine.sum())} are in the train split "
                f"and the longest has {pack.length[mine].max(initial=0)} of {model.segment} samples: add longer ones"
            )

    def drawn(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the examples numbered `n` the recordings, as indices into `chosen`, and where in them to cut, int64."""
        seed, count = np.uint64(self.seed), len(self.bounds) - 1
        turn, place = np.divmod(n, count)
        kind = permute(place, count, _mix(seed ^ np.uint64(KINDS), turn)) if count > 1 else place
        size = np.diff(self.bounds)[kind]
        epoch, place = np.divmod(turn, size)
        unit = self.bounds[kind] + permute(place, size, _mix(seed + kind.astype(np.uint64), epoch))
        which = np.searchsorted(self.ends, unit, side="right")
        offset = _mix(_mix(np.uint64(1), np.array([self.seed])), n) % self.offsets[which].astype(np.uint64)
        return which, offset.astype(np.int64)


class Noise(Split):
    """The noise that one split of a pack gives the examples of a model that needs it, whatever these are."""

    purpose = "noise"

    def __init__(self, pack: Pack, model: Model, seed: int, split: str = "train"):
        super().__init__(pack, model, int(_mix(np.uint64(APART), np.array([seed]))[0]), split)
        self.offsets = np.where(self.length < self.segment, self.length, self.offsets)  # what is repeated has no end

    def crop(self, n: np.ndarray) -> Crop:
        """The noise of the examples numbered `n`."""
        which, offset = self.drawn(n)
        whole = self.length[which] >= self.segment
        length = np.minimum(self.length[which], self.segment).astype(np.int32)
        return Crop(self.start[which] + whole * offset, length, (~whole * offset).astype(np.int32))

    def gather(self, crop: Crop) -> np.ndarray:
        """float32 [rows, segment, channels]."""
        wave = np.empty((len(crop.start), self.segment, self.pack.channels), np.float32)
        for out, start, length, turn in zip(wave, *crop, strict=True):
            out[:] = self.samples[start : start + length][(turn + np.arange(self.segment)) % length]
        wave *= LEVEL
        return wave


class Clips(Split):
    """The examples that one split of a pack gives a model; with `noise` for those that need it."""

    purpose = "trained on"

    def __init__(self, pack: Pack, model: Model, seed: int, split: str = "train", noise: Noise | None = None):
        super().__init__(pack, model, seed, split, model.balanced and split == "train")
        self.batch_size, self.noise = model.batch_size, noise
        self.label = pack.label[self.chosen].astype(np.int32)
        full = pack.peak[self.chosen] if model.gain == "peak" else np.full(len(self.chosen), 32768)
        self.scale = (1 / full).astype(np.float32)

    def plan(self, step: int, rows: slice = slice(None)) -> Plan:
        """The rows of training batch `step` that a host wants; together the hosts' are the whole batch's."""
        n = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        return self._plan(n, *self.drawn(n))

    def survey(self, most: int) -> Iterator[tuple[Plan, int]]:
        """The split from end to end without overlap, at most `most` units evenly spread, as plans of a whole batch
        each with the number of rows that count (the last one is filled up from its own beginning). In a shuffled order
        that is always the same: neighbours in a folder are no independent draws. The unit that comes as number n has
        the noise of example n."""
        count = min(most, self.units)
        units = np.arange(count) * self.units // max(1, count)
        units = units[permute(np.arange(count), count, np.zeros(count, np.uint64))]
        for first in range(0, len(units), self.batch_size):
            part = units[first : first + self.batch_size]
            which = np.searchsorted(self.ends, part, side="right")
            plan = self._plan(first + np.arange(len(part)), which, (part - self.firsts[which]) * self.segment)
            yield jax.tree.map(lambda field: np.resize(field, self.batch_size), plan), len(part)

    def batches(self) -> Iterator[Batch]:
        """Every unit of the split once, for statistics of the data; the last batch is smaller."""
        for plan, count in self.survey(self.units):
            yield jax.tree.map(lambda x, count=count: x[:count], self.gather(plan))

    def gather(self, plan: Plan) -> Batch:
        """The planned examples, on the host: wave float32 [rows, segment, channels]."""
        wave = np.empty((len(plan.start), self.segment, self.pack.channels), np.float32)
        for out, start, length, scale in zip(wave, plan.start, plan.length, plan.scale, strict=True):
            out[:length] = self.samples[start : start + length]
            out[:length] *= scale
            out[length:] = 0
        return Batch(wave, plan.label, None if plan.noise is None else self.noise.gather(plan.noise))

    def _plan(self, n: np.ndarray, which: np.ndarray, offset: np.ndarray) -> Plan:
        length = np.minimum(self.length[which], self.segment).astype(np.int32)
        noise = None if self.noise is None else self.noise.crop(n)
        return Plan(self.start[which] + offset, length, self.scale[which], self.label[which], noise)


def fetcher(seeds: Sequence[Clips], devices: Devices, where: str = "auto") -> Callable[[int], tuple[Batch, ...]]:
    """step -> its batch of every seed on the devices. Cut on the "host", a step ahead, or on the "device" from one copy
    of what they have in common; "auto": there if it has room."""
    clips, rows = seeds[0], devices.rows(seeds[0].batch_size)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    size = sum(part.samples.nbytes for part in (clips, clips.noise) if part)
    fits = where == "device" or (where == "auto" and size < limit / 4)
    gather = DeviceClips(clips, devices).gather if fits else lambda plan: devices.shard(clips.gather(plan))
    fetch = lambda i: tuple(gather(own.plan(i, rows)) for own in seeds)
    return fetch if fits else Ahead(fetch)


class Ahead(Generic[Made]):
    """What a function of the step gives, made in a thread of its own while the step before is computed."""

    def __init__(self, make: Callable[[int], Made]):
        self.make, self.coming = make, None
        self.asked, self.made = queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=answer, args=(make, self.asked, self.made), name="input", daemon=True).start()
        weakref.finalize(self, self.asked.put, None)

    def __call__(self, step: int) -> Made:
        coming, self.coming = self.coming, None  # nothing is waited for after a failure
        made, problem = (None, None) if coming is None else self.made.get()
        if coming != step:
            made = self.make(step)
        elif problem:
            raise problem
        self.coming = step + 1
        self.asked.put(step + 1)
        return made


def answer(make: Callable[[int], Made], asked: queue.SimpleQueue, made: queue.SimpleQueue) -> None:
    """Puts (make(step), None), or None and what it raised, for every step that is asked for, until None is."""
    while (step := asked.get()) is not None:
        time.sleep(PAUSE)
        try:
            made.put((make(step), None))
        except Exception as problem:
            made.put((None, problem))


class DeviceClips:
    """The same gather from arrays on the device, so that only the plan crosses the bus.

    A pack is int16 [rows, segment, channels] and a crop two neighbouring rows, addressed by (row, offset) in int32: a
    flat index would be silently wrong beyond 2^31 samples.
    """

    def __init__(self, clips: Clips, devices: Devices):
        self.segment, self.devices = clips.segment, devices
        self.tables = tuple(part and self.table(part.samples) for part in (clips, clips.noise))
        self.compiled = jax.jit(gather_rows, out_shardings=devices.sharded)

    def table(self, samples: np.ndarray) -> jax.Array:
        """A pack's samples on every device, zeros behind them."""
        rows = -(-len(samples) // self.segment) + 1
        table = np.zeros((rows * self.segment, samples.shape[1]), np.int16)
        table[: len(samples)] = samples
        return self.devices.replicate(table.reshape(rows, self.segment, -1))

    def gather(self, plan: Plan) -> Batch:
        """The planned examples, on the devices."""
        noise = plan.noise and plan.noise._replace(start=self.address(plan.noise.start))
        plan = plan._replace(start=self.address(plan.start), noise=noise)
        return self.compiled(self.tables, self.devices.shard(plan))

    def address(self, start: np.ndarray) -> tuple[np.ndarray, ...]:
        """(row, offset in it) of samples of a pack."""
        return tuple(part.astype(np.int32) for part in np.divmod(start, self.segment))


def gather_rows(tables: tuple[jax.Array | None, ...], plan: Plan) -> Batch:
    """One crop per row of the plan, and one of noise, from tables [rows, segment, channels] int16. The plan's starts
    are addresses."""

    def around(table, row):
        return jax.lax.dynamic_slice_in_dim(table, row, 2).reshape(2 * table.shape[1], -1)

    def example(address, length, scale):
        row, offset = address
        segment = tables[0].shape[1]
        wave = jax.lax.dynamic_slice_in_dim(around(tables[0], row), offset, segment).astype(jnp.float32) * scale
        return jnp.where(jnp.arange(segment)[:, None] < length, wave, 0.0)

    def noise(address, length, turn):
        row, offset = address
        index = offset + (turn + jnp.arange(tables[1].shape[1])) % length
        return around(tables[1], row)[index].astype(jnp.float32) * LEVEL

    wave = jax.vmap(example)(plan.start, plan.length, plan.scale)
    return Batch(wave, plan.label, None if plan.noise is None else jax.vmap(noise)(*plan.noise))


def permute(x: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of 0..size-1, size and key per element, at O(1) each: a Feistel network over a near-square grid of at
    least `size` cells, walked on until it lands below `size`."""
    size = np.broadcast_to(size, x.shape)
    height = np.ceil(np.sqrt(size)).astype(np.int64)
    width = -(-size // height)
    out, todo = x.copy(), np.arange(len(x))
    while len(todo):
        top, low = np.divmod(out[todo], width[todo])
        for turn in range(3):
            salt = key[todo] + np.uint64(turn)
            top = (top + (_mix(salt, low) % height[todo].astype(np.uint64)).astype(np.int64)) % height[todo]
            low = (low + (_mix(~salt, top) % width[todo].astype(np.uint64)).astype(np.int64)) % width[todo]
        out[todo] = top * width[todo] + low
        todo = todo[out[todo] >= size[todo]]
    return out


def _mix(key: np.ndarray | np.uint64, x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of (key, x): splitmix64's finaliser."""
    value = x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
