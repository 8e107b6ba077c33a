"""What cards of models that restore share: stretches drawn from recordings, many sounds at once, tables of means.

Recordings count in stretches of 3 seconds or, where they are shorter, whole but for what is beyond a multiple of
0.25 s; where the data is several folders, as many come from each. All draws follow from the seed. Where the same
recordings come again and again, intervals tell of the draws from them, not of other speakers.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.reconstruction import averaged, flat
from benchmarks.recordings import SECONDS
from jaxaudio.core import InputError
from jaxaudio.data.audio import Unusable, shown
from jaxaudio.data.layouts import SPLITS
from jaxaudio.data.pack import Pack
from jaxaudio.metrics import pairs as P
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw

GRID_S = 0.25  # stretches are multiples of it: few lengths, few programs
TRIES = 10  # at a noise recording that is silent where it is cut
ROWS = 32  # sounds that go through anything at once
LEAST_DB = -100.0  # of SI-SDR
SHOWN = 4  # sounds on a sheet

Waves = list[np.ndarray]  # float32 [time, channels] each


class Drawer:
    """Draws stretches of a pack's recordings: folder by folder in turn, and in each a recording as often as it is long
    or, with `by_group`, every group as often."""

    def __init__(self, run: Trained, pack: Pack, split: str, seed: int, by_group: bool = False):
        self.pack, self.rate, self.rng = pack, run.model.sample_rate, np.random.default_rng(seed)
        self.peak = run.model.gain == "peak" and not by_group
        mine = pack.split == SPLITS.index(split)
        if not mine.any():
            raise InputError(f"0 recordings in the split {split}: choose another --split")
        folder, self.folders = folders_of(pack)
        pools = [np.flatnonzero(mine & (folder == i)) for i in range(len(self.folders))]
        self.folders = [name for name, pool in zip(self.folders, pools, strict=True) if len(pool)]
        order = self.by_group if by_group else self.by_length
        self.pools, self.taken = [order(pool) for pool in pools if len(pool)], [0] * len(self.folders)

    def by_length(self, pool: np.ndarray) -> np.ndarray:
        """Recordings, each as often as it has stretches."""
        return self.rng.permutation(
            np.repeat(pool, np.maximum(1, self.pack.length[pool] // round(SECONDS * self.rate)))
        )

    def by_group(self, pool: np.ndarray) -> np.ndarray:
        """As many recordings of every group: the first of each, the second of each, and so on."""
        pool = self.rng.permutation(pool)
        groups = np.array([source_of(self.pack, i) for i in pool])
        members = [pool[groups == group] for group in dict.fromkeys(groups)]
        return np.concatenate([[m[i % len(m)] for m in members] for i in range(max(map(len, members)))])

    def draw(self, folder: int, length: int | None = None) -> tuple[np.ndarray, int]:
        """The next stretch of a folder that is not silent, [time, channels], and its recording. length: repeated
        until there are so many samples; None: the usual one."""
        pool = self.pools[folder]
        for _ in range(max(TRIES, len(pool))):
            which = int(pool[self.taken[folder] % len(pool)])
            self.taken[folder] += 1
            for _ in range(TRIES if length else 1):
                wave = self.cut(which, length)
                if wave.std(0).max() >= 10 ** (P.SILENCE_DB / 20):
                    return wave, which
        raise InputError(f"no sound in {shown(self.folders[folder])}: all is below {P.SILENCE_DB:.0f} dB")

    def cut(self, which: int, length: int | None) -> np.ndarray:
        """A stretch of a recording, from anywhere in it."""
        start, whole = int(self.pack.start[which]), int(self.pack.length[which])
        grid = round(GRID_S * self.rate)
        usual = min(round(SECONDS * self.rate), whole)
        count = min(length, whole) if length else usual // grid * grid if usual >= grid else usual
        start += self.rng.integers(whole - count + 1)
        wave = self.pack.samples[start : start + count] / np.float32(self.pack.peak[which] if self.peak else 32768)
        return np.resize(wave, (length or count, wave.shape[1]))


def folders_of(pack: Pack) -> tuple[np.ndarray, list[str]]:
    """Of every recording the number of its folder, and these folders' names; one without a name if there is but one."""
    first = [name.split("/")[0] for name in pack.names]
    names = list(dict.fromkeys(first))
    if len(names) < 2 or not all(f"{shown(name)} (" in pack.layout for name in names):
        return np.zeros(len(first), np.int64), [""]
    return np.array([names.index(name) for name in first]), names


def source_of(pack: Pack, which: int) -> str:
    """Whose a recording is: its group or, if it has none, itself."""
    return pack.groups[pack.group[which]] if pack.group[which] >= 0 else pack.names[which]


def each(function: Callable[[np.ndarray], np.ndarray], waves: Waves, most: int = ROWS) -> Waves:
    """function([rows, time, channels]) of sounds, those of one length together, so many at once at most."""
    made: dict[int, np.ndarray] = {}
    for rows in alike(waves):
        for block in (rows[i : i + most] for i in range(0, len(rows), most)):
            made |= zip(block, function(np.stack([waves[i] for i in block])), strict=True)
    return [made[i] for i in range(len(waves))]


def heard(run: Trained, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """What a run makes in blocks, in one. Raises InputError where it is not finite."""
    try:
        return np.concatenate(list(blocks))
    except Unusable as reason:
        raise InputError(f"{shown(run.folder)}: {reason}") from reason


def alike(waves: Waves) -> list[np.ndarray]:
    """The numbers of the sounds of each length."""
    lengths = np.array([len(wave) for wave in waves])
    return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]


def by_channel(function: Callable[[np.ndarray], np.ndarray], waves: np.ndarray) -> np.ndarray:
    """function([rows, time]) of every channel of [rows, time, channels]."""
    rows, time, channels = waves.shape
    return function(np.moveaxis(waves, 2, 1).reshape(-1, time)).reshape(rows, channels, -1).swapaxes(1, 2)


def scored(metric: str, real: Waves, made: Waves, rate: int) -> np.ndarray:
    """A metric of `P.METRICS` of each sound, the mean over its channels; NaN where it is undefined. What came out
    silent has the least SI-SDR: undefined, it would be left out."""
    values, channels = np.full((len(real), real[0].shape[1]), np.nan), real[0].shape[1]
    refused, lengths = [], alike(real)
    for rows in lengths:
        r, e = (flat(np.stack([waves[i] for i in rows])) for waves in (real, made))
        try:
            found, where = P.measure(metric, r, e, rate)
        except InputError as reason:  # too short, or the package is not here
            refused.append(reason)
            continue
        if metric == "si_sdr":
            silent = np.flatnonzero(P.audible(r, r) & ~P.audible(e, e))
            values[rows[silent // channels], silent % channels] = LEAST_DB
        values[rows[where // channels], where % channels] = found
    if len(refused) == len(lengths):
        raise refused[0]
    count = np.sum(np.isfinite(values), 1)
    return np.where(count, np.nansum(values, 1) / np.maximum(count, 1), np.nan)


def distance(real: np.ndarray, made: np.ndarray, size: int, hop: int, lowest: int = 0) -> np.ndarray:
    """The log-spectral distance of sounds [rows, time], from bin `lowest` on."""

    def levels(x: np.ndarray) -> np.ndarray:
        cut = np.lib.stride_tricks.sliding_window_view(x, size, axis=1)[:, hop // 2 :: hop]
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        return 10 * np.log10(np.maximum(np.abs(np.fft.rfft(cut * taper)[..., lowest:]) ** 2, P.POWER_FLOOR))

    return np.mean(np.sqrt(np.mean((levels(real) - levels(made)) ** 2, 2)), 1)


class Table:
    """The rows of a card as they come, each a mean over draws; what is undefined is left out and said."""

    def __init__(self, how: Mapping[str, int]):
        self.how, self.rows, self.left_out = how, [], []

    def add(self, name: str, values: np.ndarray, unit: str = "dB", better: str = "", note: str = "") -> None:
        defined = values[np.isfinite(values)]
        try:
            self.rows.append(averaged(name, defined, self.how, unit, better, note))
        except InputError as reason:
            self.left_out.append(f"{name}: {reason}")
            return
        if len(defined) < len(values):
            self.left_out.append(f"{name}: undefined on {len(values) - len(defined)} of {len(values)}")

    def compare(
        self, name: str, systems: Mapping[str, np.ndarray], against: str, unit: str, better: str, note: str
    ) -> None:
        """A row for each of `systems`, the model's first, and one of the model's difference to `against`, paired."""
        model, *others = systems
        self.add(name, systems[model], unit, better, note)
        for other in others:
            self.add(f"{name}, {other}", systems[other], unit)
        less = systems[model] - systems[against]
        ahead = less > 0 if better == "higher" else less < 0
        share = np.mean(ahead[np.isfinite(less)]) if np.isfinite(less).any() else 0
        self.add(
            f"{name}, model minus {against}", less, unit, better, f"paired; the model is ahead in {share:.0%} of them"
        )

    def quality(
        self, metric: str, real: Waves, systems: Mapping[str, Waves], against: str, rate: int, of: str = ""
    ) -> None:
        """`compare` of a metric of `P.METRICS`; it is left out where its package is not here."""
        entry, name = P.METRICS[metric], of + metric.replace("_", " ")
        try:
            values = {system: scored(metric, real, made, rate) for system, made in systems.items()}
        except InputError as reason:
            self.left_out.append(f"{name}: {reason}")
            return
        self.compare(name, values, against, entry.unit, entry.better, entry.convention)


def page(run: Trained, sheet: Mapping[str, Waves], path: Path) -> None:
    """A row of spectrograms for each of `sheet`, sounds one below the other; shorter ones are followed by zeros."""
    which = np.resize(np.arange(len(next(iter(sheet.values())))), SHOWN)  # the sheet has that many columns
    sounds = [waves[i] for waves in sheet.values() for i in which]
    most = max(map(len, sounds))
    titles = [f"{name} {i + 1}" for name in sheet for i in which]
    draw(np.stack([np.pad(x, ((0, most - len(x)), (0, 0))) for x in sounds]), run.model.sample_rate, titles, path)
