"""How well a model restores damaged sound, beside what does so without a network: cards of benchmarks.quality.

What is scored follows from the model's field `damages`; where it has none: noise if it learns from noise, gaps
(benchmarks/gaps.py) if it fills them. Other damages are scored one by one.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import classical
from benchmarks.gaps import filled
from benchmarks.recordings import SECONDS
from benchmarks.scorecard import Card, Row
from benchmarks.stretches import Drawer, Table, Waves, by_channel, distance, each, heard, page, scored, source_of
from jaxaudio.core import InputError, Restores
from jaxaudio.data.audio import shown
from jaxaudio.data.layouts import SPLITS
from jaxaudio.data.pack import Pack
from jaxaudio.data.parts import level
from jaxaudio.dsp import degrade
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.restore import Restorer

MIXED, MENDED = 480, 96  # mixtures, and stretches of every other damage, at most
SNRS_DB = (0, 5, 10)
CLIPPED, CUTOFFS_HZ, RT60_S, BITS = (0.3, 0.5), (2000, 4000), 0.4, 6  # clipped: shares of the peak
LISTED = 64  # noise recordings up to which each has a row
IMPROVEMENT = "SI-SDR improvement"
WIENER, SUBTRACTION = "Wiener filter", "spectral subtraction"
QUALITY = ("pesq_wide", "stoi", "log_spectral_distance")
SINGLY = ("clip", "band", "reverb", "crush")


def of_restorer(
    run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int], noise: Pack | None
) -> Iterator[Card]:
    """A card of noise, if there is some, one of gaps, one of other damages; `n` draws at most; how: `resamples` and
    `seed` of the intervals, and of what is drawn."""
    damages = damages_of(run.model)
    if noise:
        yield denoised(run, pack, noise, split, n, how)
    if "gap" in damages:
        yield filled(run, pack, split, n, how)
    if set(damages) & set(SINGLY):
        yield mended(run, pack, split, n, how)
    if not noise and not set(damages) & {"gap", *SINGLY}:
        told = ", ".join(damages) or "nothing"
        raise InputError(f"{shown(run.folder)} restores {told}: that is not scored; name noise with --noise")


def damages_of(model: Restores) -> tuple[str, ...]:
    """What the model is there to undo."""
    told = getattr(model, "damages", None)
    return ("noise",) * model.needs_noise + ("gap",) * (model.longest > 0) if told is None else tuple(told)


def restored(run: Trained, waves: Waves, seed: int) -> Waves:
    """What `sample.py restore` makes of these sounds."""
    restorer = Restorer(run.model, run.params, seed)
    return [heard(run, restorer.whole([x], len(x), level(run.model, np.abs(x).max().item()))) for x in waves]


# ------------------------------------------------------------------------------------------------------------- noise


class Mixtures(NamedTuple):
    """Recordings with noise: a list or array with an entry for each."""

    clean: Waves
    noisy: Waves
    snr_db: np.ndarray
    speech: np.ndarray  # names of the folders
    noise: np.ndarray
    source: np.ndarray  # of the noise: its group


def mixtures(run: Trained, pack: Pack, noise: Pack, split: str, n: int, seed: int) -> Mixtures:
    """`n` recordings with noise, at every SNR and of every two folders as many; the power of both counts over the
    stretch. Noise is that of the split or, where there is none, of training."""
    others = split if (noise.split == SPLITS.index(split)).any() else "train"
    first, second = Drawer(run, pack, split, seed), Drawer(run, noise, others, seed + 1, by_group=True)
    found = []
    for i in range(n):
        snr = SNRS_DB[i % len(SNRS_DB)]
        here = i // len(SNRS_DB) % len(first.folders)
        there = i // len(SNRS_DB) // len(first.folders) % len(second.folders)
        clean, _ = first.draw(here)
        sound, which = second.draw(there, len(clean))
        scale = np.sqrt(np.mean(clean**2) / np.mean(sound**2) * 10 ** (-snr / 10))
        about = snr, first.folders[here], second.folders[there], source_of(noise, which)
        found.append((clean, clean + np.float32(scale) * sound, *about))
    clean, noisy, *rest = zip(*found, strict=True)
    return Mixtures(list(clean), list(noisy), *map(np.array, rest))


def denoised(run: Trained, pack: Pack, noise: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Mixtures restored by the model, a Wiener filter and spectral subtraction."""
    rate, table = run.model.sample_rate, Table(how)
    mixed = mixtures(run, pack, noise, split, min(n, MIXED), how["seed"])
    systems = {
        "model": restored(run, mixed.noisy, how["seed"]),
        WIENER: each(partial(by_channel, partial(classical.wiener, sample_rate=rate)), mixed.noisy),
        SUBTRACTION: each(partial(by_channel, partial(classical.spectral_subtraction, sample_rate=rate)), mixed.noisy),
        "noisy": mixed.noisy,
    }
    ratio = {name: scored("si_sdr", mixed.clean, made, rate) for name, made in systems.items()}
    gain = {name: ratio[name] - ratio["noisy"] for name in systems if name != "noisy"}
    snrs = ", ".join(map(str, SNRS_DB))
    table.compare(IMPROVEMENT, gain, WIENER, "dB", "higher", f"over the noisy input; mean over SNRs of {snrs} dB")
    parts = [(f"at {snr} dB", mixed.snr_db == snr) for snr in SNRS_DB]
    for kind, of in ((mixed.speech, "of"), (mixed.noise, "in noise of")):
        names = dict.fromkeys(kind) if len(set(kind)) > 1 else ()
        parts += [(f"{of} {shown(name)}", kind == name) for name in names]
    for name, rows in parts:
        table.add(f"{IMPROVEMENT} {name}", gain["model"][rows], "dB", "higher", beside(gain, rows))
    for metric in QUALITY:
        table.quality(metric, mixed.clean, systems, WIENER, rate)
    add_sources(table, gain, mixed.source)
    title = (
        f"{len(mixed.clean)} recordings ({split}) in noise of {len(set(mixed.source))} recordings, denoised; stretches "
        f"of {SECONDS:.3g} s at most"
    )
    sheet = {"clean": mixed.clean, "noisy": mixed.noisy, WIENER: systems[WIENER], "model": systems["model"]}
    return Card("denoised", title, table.rows, table.left_out, {"denoised.png": partial(page, run, sheet)})


def beside(gain: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    """What the others reach there."""
    return ", ".join(f"{name} {mean(gain[name][rows]):.2f}" for name in gain if name != "model")


def add_sources(table: Table, gain: Mapping[str, np.ndarray], source: np.ndarray) -> None:
    """How the model does in each noise recording, the worst first."""
    means = {name: mean(gain["model"][source == name]) for name in dict.fromkeys(source)}
    order = sorted((name for name in means if np.isfinite(means[name])), key=means.__getitem__)
    if not order:
        return
    worse = sum(means[name] < 0 for name in order)
    note = f"of {len(order)} that the model makes worse; the worst, {shown(order[0])}: {means[order[0]]:.2f} dB"
    table.rows.append(Row("noise recordings below 0 dB", worse, None, None, len(order), "", "lower", note))
    for name in order[:LISTED]:
        rows = source == name
        label = f"{IMPROVEMENT}, noise {shown(name)}"
        table.rows.append(Row(label, means[name], None, None, int(rows.sum()), "dB", "higher", beside(gain, rows)))


def mean(values: np.ndarray) -> float:
    """Of those that are defined; NaN if none is."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


# ----------------------------------------------------------------------------------------------------- other damages


class Damage(NamedTuple):
    """What is done to sounds, and what undoes it without a network."""

    name: str
    act: Callable[[jax.Array, jax.Array], jax.Array]  # (key, sound [time, channels])
    undone: tuple[str, Callable[[np.ndarray], np.ndarray]] | None = None
    cutoff_hz: float = 0.0  # nothing is left above


def damages_by(kinds: tuple[str, ...], rate: int) -> list[Damage]:
    """Those of these kinds that are scored one by one."""
    found = []
    if "clip" in kinds:
        spline = ("cubic spline", classical.declipped)
        found += [Damage(f"clipped at {s:g}", lambda _, x, s=s: degrade.clipped(x, s), spline) for s in CLIPPED]
    if "band" in kinds:
        low = lambda hz: lambda _, x: degrade.low_passed(x, 2 * hz / rate)
        found += [Damage(f"up to {hz} Hz", low(hz), None, hz) for hz in CUTOFFS_HZ if 2 * hz < rate]
    if "reverb" in kinds:
        room = lambda key, x: degrade.reverberated(key, x, RT60_S, 0.0, rate)
        found.append(Damage(f"reverberation of {RT60_S:g} s", room))
    if "crush" in kinds:
        found.append(Damage(f"rounded to {BITS} bits", lambda _, x: degrade.crushed(x, BITS)))
    return found


def mended(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Each of the other damages alone, restored by the model and, where there is a way, without a network."""
    rate, table, pictures = run.model.sample_rate, Table(how), {}
    drawer = Drawer(run, pack, split, how["seed"])
    clean = [drawer.draw(i % len(drawer.folders))[0] for i in range(min(n, MENDED))]
    for number, damage in enumerate(damages_by(damages_of(run.model), rate)):
        act = jax.jit(jax.vmap(damage.act))
        keys = lambda x, number=number: jax.random.split(jax.random.key(number), len(x))
        damaged = each(lambda x, act=act, keys=keys: np.asarray(act(keys(x), jnp.asarray(x))), clean)
        systems = {"model": restored(run, damaged, how["seed"]), "damaged": damaged}
        if damage.undone:
            other, undo = damage.undone
            systems[other] = each(partial(by_channel, undo), damaged)
        for metric in ("si_sdr", "log_spectral_distance", "pesq_wide"):
            table.quality(metric, clean, systems, "damaged", rate, f"{damage.name}: ")
        if damage.cutoff_hz:
            above = {name: distance_above(clean, made, rate, damage.cutoff_hz) for name, made in systems.items()}
            note = f"above {damage.cutoff_hz:g} Hz alone, otherwise as the one of all frequencies"
            table.compare(f"{damage.name}: distance above", above, "damaged", "dB", "lower", note)
        sheet = {"clean": clean, **{name: systems[name] for name in (*list(systems)[1:], "model")}}
        pictures[f"mended-{number}.png"] = partial(page, run, sheet)
    title = f"{len(clean)} recordings ({split}), each damage alone, mended; stretches of {SECONDS:.3g} s at most"
    return Card("mended", title, table.rows, table.left_out, pictures)


def distance_above(real: Waves, made: Waves, rate: int, cutoff_hz: float) -> np.ndarray:
    """The log-spectral distance above a frequency, of each sound; NaN where it is shorter than a window."""
    size, hop = round(0.032 * rate), round(0.008 * rate)
    lowest = int(np.ceil(cutoff_hz * size / rate))
    pairs = zip(real, made, strict=True)
    return np.array([distance(r.T, e.T, size, hop, lowest).mean() if len(r) >= size else np.nan for r, e in pairs])
