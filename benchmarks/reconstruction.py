"""How well an autoencoder gives recordings back, beside two noise vocoders: a card of benchmarks.quality.

Scored are stretches of recordings: as many of the model's segments as fit into 3 seconds and into the median recording,
one at least; a shorter recording is followed by zeros. Silent ones are left out.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.recordings import clips_of, in_batches, in_turn, together
from benchmarks.scorecard import Card, Row
from jaxaudio.core import InputError
from jaxaudio.data.audio import shown
from jaxaudio.data.clips import Clips
from jaxaudio.data.pack import Pack
from jaxaudio.dsp.noise_vocoder import noise_vocoder
from jaxaudio.metrics import pairs as P
from jaxaudio.metrics.bootstrap import interval, mean_interval
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks.reconstruct import leading

SECONDS = 3.0  # of a stretch at most, unless the model's segment is longer
BANDS = (16, 64)  # of the noise vocoders
VOCODED = 200  # recordings at most that go through these, which take longer than most models
FIDELITIES = (0.95, 0.99)  # shares of the latent variance
SHOWN = 4  # recordings on the sheet
STFT = "multi-resolution STFT"


def of_autoencoder(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Recordings through the model and back, `n` at most; how: `resamples` and `seed` of intervals, and of noise."""
    clips = clips_of(run._replace(model=dataclasses.replace(run.model, segment=stretch(run, pack, split))), pack, split)
    real, left_out = heard(clips, n)
    made = through(run, real, how["seed"])
    vocoded = {bands: through_vocoder(real[:VOCODED], run.model.sample_rate, bands, how["seed"]) for bands in BANDS}
    rows = []
    try:
        rows += distance_rows(run, real, made, vocoded, how)
    except InputError as reason:
        left_out.append(f"{STFT}: {reason}")
    for metric in ("mel_distance", "loudness_difference"):
        name, entry = metric.replace("_", " "), P.METRICS[metric]
        try:
            values = score(metric, real, made, run.model.sample_rate)
            better = {"zero": ""}.get(entry.better, entry.better)
            rows.append(averaged(name, values, how, entry.unit, better, entry.convention))
            if len(values) < len(real):
                left_out.append(f"{name}: undefined on {len(real) - len(values)} of {len(real)} recordings")
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
    rows += rate_rows(run)
    seconds = clips.segment / run.model.sample_rate
    title = f"{len(real)} recordings ({split}) through the model and back, {seconds:.3g} s of each"
    sheet = [real[:SHOWN], made[:SHOWN], *(sounds[:SHOWN] for sounds in vocoded.values())]
    names = ["recording", "reconstruction", *(f"vocoder, {bands} bands" for bands in vocoded)]
    return Card("reconstructed", title, rows, left_out, {"reconstructed.png": partial(page, run, sheet, names)})


def stretch(run: Trained, pack: Pack, split: str) -> int:
    """Samples of a stretch."""
    clips = clips_of(run, pack, split)
    most = min(SECONDS * run.model.sample_rate, float(np.median(clips.length)))
    return max(1, int(most) // run.model.segment) * run.model.segment


def heard(clips: Clips, n: int) -> tuple[np.ndarray, list[str]]:
    """Recordings [some, time, channels] with sound in them, and what was left out."""
    wave = together(in_turn(clips, n)).wave
    each = flat(wave)
    sounding = P.audible(each, each).reshape(len(wave), -1).any(1)
    count, kept = len(wave), int(sounding.sum())
    if kept < 2:
        raise InputError(
            f"{count - kept} of {count} recordings are silent (below {P.SILENCE_DB:.0f} dB): scores need 2 with sound; "
            "raise --n, or choose another --split or --data"
        )
    return wave[sounding], [f"{count - kept} of {count} recordings, which are silent"] if kept < count else []


def through(run: Trained, waves: np.ndarray, seed: int, kept: int | None = None) -> np.ndarray:
    """What the model makes of sounds, in time with them; `kept`: of the leading components alone."""
    model, length = run.model, waves.shape[1]
    missing = -(length + model.delay) % model.hop + model.delay

    @jax.jit
    def reconstruct(params, wave, row):
        latent = model.encode(params, jnp.pad(wave, ((0, 0), (0, missing), (0, 0))))[..., :kept]
        made = model.decode(params, latent, jax.random.fold_in(jax.random.key(seed), row[0]))
        return made[:, model.delay : model.delay + length]

    most = max(1, model.batch_size * model.segment // length)  # what a training step has room for
    made = in_batches(partial(reconstruct, run.params), waves, np.arange(len(waves)), most=most)
    broken = int(np.sum(~np.isfinite(made).all((1, 2))))
    if broken:
        raise InputError(
            f"{shown(run.folder)} makes {broken} of {len(made)} recordings into sound that is not finite: name an "
            "earlier --checkpoint, or train it anew"
        )
    return made


def through_vocoder(waves: np.ndarray, sample_rate: int, bands: int, seed: int) -> np.ndarray:
    """The same sounds by noise in so many bands."""

    @jax.jit
    def vocode(wave, row):
        return noise_vocoder(wave, jax.random.fold_in(jax.random.key(seed), row[0]), sample_rate, bands)

    return in_batches(vocode, waves, np.arange(len(waves)), most=8)


def score(metric: str, real: np.ndarray, made: np.ndarray, sample_rate: int) -> np.ndarray:
    """A metric of `P.METRICS`, of every recording on which it is defined: the mean over its channels."""
    channels = real.shape[2]
    values, rows = P.measure(metric, flat(real), flat(made), sample_rate)
    count = np.bincount(rows // channels, minlength=len(real))
    total = np.bincount(rows // channels, values, minlength=len(real))
    return total[count > 0] / count[count > 0]


def flat(waves: np.ndarray) -> jax.Array:
    """[recordings * channels, time]."""
    return jnp.asarray(np.moveaxis(waves, 2, 1).reshape(-1, waves.shape[1]))


def averaged(name: str, values: np.ndarray, how: Mapping[str, int], unit: str, better: str, note: str) -> Row:
    """The row of a mean."""
    if len(values) < 2:
        raise InputError(f"defined on {len(values)} recordings: an interval needs 2")
    return Row(name, values.mean(), *mean_interval(values, **how), len(values), unit, better, note)


def distance_rows(
    run: Trained, real: np.ndarray, made: np.ndarray, vocoded: Mapping[int, np.ndarray], how: Mapping[str, int]
) -> list[Row]:
    """How far reconstructions are from what they should be, and what is as far."""
    far = lambda one, other: score("multi_resolution_stft", one, other, run.model.sample_rate)
    right, wrong = far(real, made), far(real[derangement(len(real), how["seed"])], made)
    rows = [averaged(STFT, right, how, "", "lower", P.METRICS["multi_resolution_stft"].convention)]
    for bands, sounds in vocoded.items():
        values = far(real[: len(sounds)], sounds)
        nearer = np.mean(right[: len(values)] < values)
        note = f"12 ms envelopes; the model is nearer in {nearer:.0%} of these recordings"
        rows.append(averaged(f"{STFT}, noise vocoder of {bands} bands", values, how, "", "", note))
    note = "of a reconstruction to another recording, drawn at random"
    rows.append(averaged(f"{STFT}, random other", wrong, how, "", "", note))
    ratio = lambda right, wrong: right.mean() / max(wrong.mean(), 1e-9)  # copies of one recording are 0 apart
    median = np.median(right / np.maximum(wrong, 1e-9))
    note = f"distance to the right recording over that to the other; median of each one's own {median:.3g}"
    bounds = interval(ratio, (right, wrong), **how)
    rows.append(Row("right over other", ratio(right, wrong), *bounds, len(right), "", "lower", note))
    spread = np.asarray(run.model.spread(run.params))
    for fidelity in FIDELITIES:
        kept = leading(spread, fidelity)
        values = right if kept == len(spread) else far(real, through(run, real, how["seed"], kept))
        note = f"{kept} of {len(spread)} components"
        rows.append(averaged(f"{STFT}, fidelity {fidelity}", values, how, "", "lower", note))
    return rows


def derangement(n: int, seed: int) -> np.ndarray:
    """For each of `n` rows another one: a random cycle through all of them."""
    order = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, 1)
    return other


def rate_rows(run: Trained) -> list[Row]:
    """How much a latent says: components, and real numbers per second."""
    spread = np.asarray(run.model.spread(run.params))
    frames = run.model.sample_rate / run.model.hop
    samples = run.model.sample_rate * run.model.channels
    note = f"{frames:.4g} latent frames of {len(spread)} components; a recording has {samples} samples per second"
    rows = [Row("numbers per second", len(spread) * frames, None, None, len(spread), "1/s", "", note)]
    for fidelity in FIDELITIES:
        kept = leading(spread, fidelity)
        note = f"hold that share of the variance; {kept * frames:.4g} numbers per second"
        rows.append(Row(f"components, fidelity {fidelity}", kept, None, None, len(spread), "", "", note))
    return rows


def page(run: Trained, sheet: list[np.ndarray], names: list[str], path: Path) -> None:
    """A row of spectrograms for each of `sheet`, recordings one below the other."""
    which = np.resize(np.arange(len(sheet[0])), SHOWN)  # the sheet has that many columns
    titles = [f"{name} {i + 1}" for name in names for i in which]
    draw(np.concatenate([sounds[which] for sounds in sheet]), run.model.sample_rate, titles, path)
