"""Which stretch of which recording makes each training example, and fetching it.

A batch is a *plan* (a few integers per example, from the seed and the step alone) and a *gather* (from the pack's
memory map on the host, or from an array on the device; the same batch, bit for bit). The examples of a run are numbered
n = step * batch_size + row. A recording has max(1, length // segment) units, U in all; example n is unit pi(n mod U) of
epoch n // U, pi a bijection keyed by (seed, epoch). A longer recording is cut at an offset hashed from (seed, n); a
shorter one is followed by zeros; one shorter than 1/16 of the segment is left out and named.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Batch, InputError, Model
from jaxaudio.data.layouts import SPLITS
from jaxaudio.data.pack import Pack
from jaxaudio.runtime.parallel import Devices

SHORTEST = 16  # a recording shorter than segment / SHORTEST is left out


class Plan(NamedTuple):
    """Where the examples of a batch are, one row each."""

    start: np.ndarray  # int64, first sample in the pack
    length: np.ndarray  # int32, samples from there; the rest of the segment is zeros
    scale: np.ndarray  # float32, what an int16 sample is multiplied by
    label: np.ndarray  # int32


class Clips:
    """The examples that one split of a pack gives a model."""

    def __init__(self, pack: Pack, model: Model, seed: int, split: str = "train"):
        self.pack, self.segment, self.batch_size, self.seed = pack, model.segment, model.batch_size, seed
        self.samples = np.asarray(pack.samples)  # the same memory; slices of a memmap are slower to make
        mine = pack.split == SPLITS.index(split)
        short = pack.length * SHORTEST < model.segment
        self.chosen = np.flatnonzero(mine & ~short)
        self.left_out = tuple(
            (pack.names[i], f"{pack.length[i]} samples: shorter than 1/{SHORTEST} of a segment of {model.segment}")
            for i in np.flatnonzero(mine & short)
        )
        self.start, self.length = pack.start[self.chosen], pack.length[self.chosen]
        self.label = pack.label[self.chosen].astype(np.int32)
        full = pack.peak[self.chosen] if model.gain == "peak" else np.full(len(self.chosen), 32768)
        self.scale = (1 / full).astype(np.float32)
        self.ends = np.cumsum(np.maximum(1, self.length // model.segment))  # of each recording's units
        self.units = int(self.ends[-1]) if len(self.ends) else 0
        if split == "train" and not self.units:
            raise InputError(
                f"no recording of {len(pack.names)} can be trained on: {int(mine.sum())} are in the train split and "
                f"the longest has {pack.length[mine].max(initial=0)} of {model.segment} samples: add longer ones"
            )

    def plan(self, step: int, rows: slice = slice(None)) -> Plan:
        """The rows of training batch `step` that a host wants; together the hosts' are the whole batch's."""
        n = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        unit = permute(n % self.units, self.units, _mix(np.uint64(self.seed), n // self.units))
        which = np.searchsorted(self.ends, unit, side="right")
        spare = np.maximum(self.length[which] - self.segment, 0)
        offset = _mix(_mix(np.uint64(1), np.array([self.seed])), n) % (spare + 1).astype(np.uint64)
        return self._plan(which, offset.astype(np.int64))

    def survey(self, most: int) -> Iterator[tuple[Plan, int]]:
        """The split from end to end without overlap, at most `most` units evenly spread, as plans of a whole batch
        each with the number of rows that count (the last one is filled up from its own beginning). In a shuffled order
        that is always the same: neighbours in a folder are no independent draws."""
        count = min(most, self.units)
        units = np.arange(count) * self.units // max(1, count)
        units = units[permute(np.arange(count), count, np.zeros(count, np.uint64))]
        for first in range(0, len(units), self.batch_size):
            part = units[first : first + self.batch_size]
            which = np.searchsorted(self.ends, part, side="right")
            begin = self.ends[which] - np.maximum(1, self.length[which] // self.segment)
            plan = self._plan(which, (part - begin) * self.segment)
            yield Plan(*(np.resize(field, self.batch_size) for field in plan)), len(part)

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
        return Batch(wave, plan.label)

    def _plan(self, which: np.ndarray, offset: np.ndarray) -> Plan:
        length = np.minimum(self.length[which], self.segment).astype(np.int32)
        return Plan(self.start[which] + offset, length, self.scale[which], self.label[which])


def fetcher(clips: Clips, devices: Devices, where: str = "auto") -> Callable[[int], Batch]:
    """step -> its batch on the devices, cut on the "host" or on the "device"; "auto": there if it has room."""
    rows = devices.rows(clips.batch_size)
    limit = (devices.devices[0].memory_stats() or {}).get("bytes_limit", 0)
    if where == "device" or (where == "auto" and clips.pack.samples.nbytes < limit / 4):
        on_device = DeviceClips(clips, devices)
        return lambda i: on_device.gather(clips.plan(i, rows))
    return lambda i: devices.shard(clips.gather(clips.plan(i, rows)))


class DeviceClips:
    """The same gather from an array on the device, so that only the plan crosses the bus.

    The pack is int16 [rows, segment, channels] and a crop two neighbouring rows, addressed by (row, offset) in int32: a
    flat index would be silently wrong beyond 2^31 samples.
    """

    def __init__(self, clips: Clips, devices: Devices):
        samples, segment = clips.pack.samples, clips.segment
        rows = -(-len(samples) // segment) + 1
        table = np.zeros((rows * segment, samples.shape[1]), np.int16)
        table[: len(samples)] = samples
        self.segment, self.devices = segment, devices
        self.table = devices.replicate(table.reshape(rows, segment, -1))
        self.compiled = jax.jit(gather_rows, out_shardings=devices.sharded)

    def gather(self, plan: Plan) -> Batch:
        """The planned examples, on the devices."""
        row, offset = (part.astype(np.int32) for part in np.divmod(plan.start, self.segment))
        return self.compiled(self.table, *self.devices.shard((row, offset, plan.length, plan.scale, plan.label)))


def gather_rows(table, row, offset, length, scale, label) -> Batch:
    """One crop per row of the plan from `table` [rows, segment, channels] int16."""
    segment = table.shape[1]

    def crop(row, offset, length, scale):
        both = jax.lax.dynamic_slice_in_dim(table, row, 2).reshape(2 * segment, -1)
        wave = jax.lax.dynamic_slice_in_dim(both, offset, segment).astype(jnp.float32) * scale
        return jnp.where(jnp.arange(segment)[:, None] < length, wave, 0.0)

    return Batch(jax.vmap(crop)(row, offset, length, scale), label)


def permute(x: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """A bijection of 0..size-1, keyed per element, at O(1) each: a Feistel network over a near-square grid of at least
    `size` cells, walked on until it lands below `size`."""
    height = max(1, int(np.ceil(np.sqrt(size))))
    width = -(-size // height)
    out, todo = x.copy(), np.arange(len(x))
    while len(todo):
        top, low = np.divmod(out[todo], width)
        for turn in range(3):
            salt = key[todo] + np.uint64(turn)
            top = (top + (_mix(salt, low) % np.uint64(height)).astype(np.int64)) % height
            low = (low + (_mix(~salt, top) % np.uint64(width)).astype(np.int64)) % width
        out[todo] = top * width + low
        todo = todo[out[todo] >= size]
    return out


def _mix(key: np.ndarray | np.uint64, x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of (key, x): splitmix64's finaliser."""
    value = x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
