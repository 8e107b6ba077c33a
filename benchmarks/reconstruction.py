"""How well autoencoders and vocoders give recordings back, beside two noise vocoders, and Griffin-Lim for vocoders.

Scored are stretches of recordings: as many of an autoencoder's segments, or of a vocoder's hops, as fit into 3 seconds
and into the median recording, one at least; a shorter recording is followed by zeros. Silent ones are left out.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.recordings import clips_of, cut_into, in_batches, in_turn, stretch, together
from benchmarks.scorecard import Card, Row
from jaxaudio.core import Encodes, InputError
from jaxaudio.data.audio import shown
from jaxaudio.data.clips import Clips
from jaxaudio.data.pack import Pack
from jaxaudio.dsp.griffin_lim import griffin_lim
from jaxaudio.dsp.mel import mel_filters, mel_inverse
from jaxaudio.dsp.noise_vocoder import noise_vocoder
from jaxaudio.dsp.stft import stft
from jaxaudio.metrics import pairs as P
from jaxaudio.metrics.bootstrap import interval, mean_interval
from jaxaudio.runtime.folder import Trained
from jaxaudio.runtime.sheet import draw
from jaxaudio.tasks.reconstruct import leading
from jaxaudio.tasks.vocode import Vocoder

BANDS = (16, 64)  # of the noise vocoders
VOCODED = 200  # recordings at most that go through these, which take longer than most models
DRAWN = 64  # recordings at most that go through a vocoder, which may draw them sample by sample
ITERATIONS = 60  # of Griffin-Lim
FIDELITIES = (0.95, 0.99)  # shares of the latent variance
SHOWN = 4  # recordings on the sheet
STFT = "multi-resolution STFT"
ALSO = ("mel_distance", "loudness_difference")  # of `P.METRICS`; of a vocoder also what models of listeners say


def of_autoencoder(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Recordings through the model and back, `n` at most; how: `resamples` and `seed` of intervals, and of noise."""
    clips = clips_of(cut_into(run, stretch(run, pack, split, run.model.segment)), pack, split)
    real, left_out = heard(clips, n)
    made = through(run, real, how["seed"])
    seconds = clips.segment / run.model.sample_rate
    title = f"{len(real)} recordings ({split}) through the model and back, {seconds:.3g} s of each"
    rows, sheet = compared(run, real, made, how, left_out, ALSO)
    return Card("reconstructed", title, [*rows, *rate_rows(run)], left_out, {"reconstructed.png": sheet})


def of_vocoder(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Sound that a vocoder makes of the features of recordings, `n` and DRAWN at most; how: as above."""
    clips = clips_of(cut_into(run, stretch(run, pack, split, run.model.hop)), pack, split)
    real, left_out = heard(clips, min(n, DRAWN))
    made, bands = vocoded(run, real, how["seed"])
    try:
        plain = {f"Griffin-Lim of {bands} bands": griffin_lims(real, run.model.sample_rate, run.model.hop, bands)}
    except InputError as reason:
        plain, left_out = {}, [*left_out, f"Griffin-Lim of {bands} bands: {reason}"]
    seconds = clips.segment / run.model.sample_rate
    title = f"{len(real)} recordings ({split}, {DRAWN} at most) as features and back, {seconds:.3g} s of each"
    listeners = [metric for metric, entry in P.METRICS.items() if entry.extra]
    rows, sheet = compared(run, real, made, how, left_out, (*ALSO, *listeners), plain)
    seen = feature_rows(
        run, real, {"features": made, **{f"features, {name}": wave for name, wave in plain.items()}}, how
    )
    rows = [*rows, *seen, rate_row(run, bands, "features")]
    return Card("vocoded", title, rows, left_out, {"vocoded.png": sheet})


def compared(
    run: Trained,
    real: np.ndarray,
    made: np.ndarray,
    how: Mapping[str, int],
    left_out: list[str],
    also: Sequence[str],
    plain: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[list[Row], partial]:
    """Distances, the metrics `also` (of sounds that are made in a plain way too), and what draws the sheet; `left_out`
    grows."""
    heard = lambda bands: through_vocoder(real[:VOCODED], run.model.sample_rate, bands, how["seed"])
    others = {f"noise vocoder of {bands} bands": heard(bands) for bands in BANDS} | plain
    rows = []
    try:
        rows += distance_rows(run, real, made, others, how)
    except InputError as reason:
        left_out.append(f"{STFT}: {reason}")
    for metric in also:
        name, entry = metric.replace("_", " "), P.METRICS[metric]
        try:
            values = score(metric, real, made, run.model.sample_rate)
            better = {"zero": ""}.get(entry.better, entry.better)
            rows.append(averaged(name, values, how, entry.unit, better, entry.convention))
            if len(values) < len(real):
                left_out.append(f"{name}: undefined on {len(real) - len(values)} of {len(real)} recordings")
            for other, sounds in plain.items():
                values = score(metric, real, sounds, run.model.sample_rate)
                rows.append(averaged(f"{name}, {other}", values, how, entry.unit, "", f"{ITERATIONS} iterations"))
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
    sheet = [real[:SHOWN], made[:SHOWN], *(sounds[:SHOWN] for sounds in others.values())]
    names = ["recording", "reconstruction", *others]
    return rows, partial(page, run, sheet, names)


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
    return finite(run, made)


def vocoded(run: Trained, waves: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """What the model makes of the features of sounds, in time with them; and how many features a frame has."""
    vocoder, length = Vocoder(run.model, run.model.prepared(run.params), seed), waves.shape[1]
    frames = np.asarray(vocoder.take(np.pad(waves, ((0, 0), (0, -length % run.model.hop), (0, 0)))))
    around = ((0, 0), (run.model.reach, run.model.reach), (0, 0))
    made = vocoder.side_by_side(np.pad(frames, around, "edge"))[:, :length]
    return finite(run, made), frames.shape[2]


def finite(run: Trained, made: np.ndarray) -> np.ndarray:
    """The same sounds. Raises InputError where some are not finite."""
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


def griffin_lims(waves: np.ndarray, sample_rate: int, hop: int, bands: int) -> np.ndarray:
    """The same sounds from so many mel bands of windows of four hops or, where a band would have no bin, more. Raises
    InputError where windows as long as the sounds have none either."""
    size, length = 4 * hop, waves.shape[1]
    while True:
        try:
            filters = mel_filters(sample_rate, size, bands)
            break
        except InputError:
            size *= 2
            if size > length:
                raise

    @jax.jit
    def make(wave, row):
        del row
        wave = jnp.moveaxis(wave, 2, 1)
        mels = jnp.abs(stft(wave, size, hop, padding="librosa")) @ jnp.asarray(filters)
        made = griffin_lim(mel_inverse(mels, filters), size, hop, length, ITERATIONS)
        return jnp.moveaxis(made, 1, 2)

    return in_batches(make, waves, np.arange(len(waves)), most=8)


def feature_rows(run: Trained, real: np.ndarray, made: Mapping[str, np.ndarray], how: Mapping[str, int]) -> list[Row]:
    """How far the features of sounds are from those of the recordings, as the model sees them; what follows the end of
    a shorter recording does not count."""
    hop, features = run.model.hop, run.model.features
    whole = lambda waves: jnp.pad(jnp.asarray(waves), ((0, 0), (0, -waves.shape[1] % hop), (0, 0)))

    @jax.jit
    def distance(a, b):
        sounding = jnp.any(a.reshape(a.shape[0], -1, hop * a.shape[2]) != 0, 2)
        heard = jnp.flip(jnp.cumsum(jnp.flip(sounding, 1), 1), 1) > 0  # there is something from here on
        difference = jnp.mean(jnp.abs(features(a) - features(b)), 2)
        return jnp.sum(difference * heard, 1) / jnp.sum(heard, 1)

    note = "mean |difference| to the recording's, in the units that the model sees"
    values = {name: np.asarray(distance(whole(real), whole(wave)), np.float64) for name, wave in made.items()}
    return [averaged(name, each, how, "", "lower" if name == "features" else "", note) for name, each in values.items()]


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
    run: Trained, real: np.ndarray, made: np.ndarray, others: Mapping[str, np.ndarray], how: Mapping[str, int]
) -> list[Row]:
    """How far reconstructions are from what they should be, and what is as far."""
    far = lambda one, other: score("multi_resolution_stft", one, other, run.model.sample_rate)
    right, wrong = far(real, made), far(real[derangement(len(real), how["seed"])], made)
    rows = [averaged(STFT, right, how, "", "lower", P.METRICS["multi_resolution_stft"].convention)]
    for name, sounds in others.items():
        values = far(real[: len(sounds)], sounds)
        nearer = np.mean(right[: len(values)] < values)
        how_made = "12 ms envelopes" if name.startswith("noise") else f"{ITERATIONS} iterations"
        note = f"{how_made}; the model is nearer in {nearer:.0%} of these recordings"
        rows.append(averaged(f"{STFT}, {name}", values, how, "", "", note))
    note = "of a reconstruction to another recording, drawn at random"
    rows.append(averaged(f"{STFT}, random other", wrong, how, "", "", note))
    ratio = lambda right, wrong: right.mean() / max(wrong.mean(), 1e-9)  # copies of one recording are 0 apart
    median = np.median(right / np.maximum(wrong, 1e-9))
    note = f"distance to the right recording over that to the other; median of each one's own {median:.3g}"
    bounds = interval(ratio, (right, wrong), **how)
    rows.append(Row("right over other", ratio(right, wrong), *bounds, len(right), "", "lower", note))
    return rows + fidelity_rows(run, real, right, how) if isinstance(run.model, Encodes) else rows


def fidelity_rows(run: Trained, real: np.ndarray, whole: np.ndarray, how: Mapping[str, int]) -> list[Row]:
    """How far an autoencoder's reconstructions from leading components are; whole: the distances of those from all."""
    spread, rows = np.asarray(run.model.spread(run.params)), []
    for fidelity in FIDELITIES:
        kept = leading(spread, fidelity)
        made = None if kept == len(spread) else through(run, real, how["seed"], kept)
        values = whole if made is None else score("multi_resolution_stft", real, made, run.model.sample_rate)
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
    rows = [rate_row(run, len(spread), "latent components")]
    for fidelity in FIDELITIES:
        kept = leading(spread, fidelity)
        note = f"hold that share of the variance; {kept * frames:.4g} numbers per second"
        rows.append(Row(f"components, fidelity {fidelity}", kept, None, None, len(spread), "", "", note))
    return rows


def rate_row(run: Trained, count: int, of: str) -> Row:
    """How many numbers stand for a second of sound."""
    frames, samples = run.model.sample_rate / run.model.hop, run.model.sample_rate * run.model.channels
    note = f"{frames:.4g} frames of {count} {of}; a recording has {samples} samples per second"
    return Row("numbers per second", count * frames, None, None, count, "1/s", "", note)


def page(run: Trained, sheet: list[np.ndarray], names: list[str], path: Path) -> None:
    """A row of spectrograms for each of `sheet`, recordings one below the other."""
    which = np.resize(np.arange(len(sheet[0])), SHOWN)  # the sheet has that many columns
    titles = [f"{name} {i + 1}" for name in names for i in which]
    draw(np.concatenate([sounds[which] for sounds in sheet]), run.model.sample_rate, titles, path)
