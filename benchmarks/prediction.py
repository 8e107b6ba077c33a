"""Bits per sample of a model that goes on from sound, beside those of simple predictors: a card of benchmarks.quality.
And kilobits per second of a model of a codec's codes, beside what they take without it.

Scored are stretches of recordings, a whole number of the model's frames: 3 seconds, or the median recording where that
is shorter; a shorter recording is followed by zeros. Model and predictors get the same samples, rounded to the model's
levels, and know nothing before the first. The predictors are fitted to the recordings that the run was trained on.
Codes are scored in stretches of whole frames in the same way; the codes of silence follow a shorter recording.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np

from benchmarks.recordings import Taken, clips_of, cut_into, in_batches, in_turn, stretch, together, trained_on
from benchmarks.scorecard import Card, Row
from jaxaudio.core import Composes, InputError
from jaxaudio.data.audio import shown
from jaxaudio.data.clips import Clips
from jaxaudio.data.codes import CodeClips
from jaxaudio.data.pack import Pack
from jaxaudio.metrics import prediction as P
from jaxaudio.metrics.bootstrap import mean_interval
from jaxaudio.runtime.folder import Trained
from jaxaudio.tasks.generate import codec_of, coded
from jaxaudio.tasks.reconstruct import raw_kbps

FITTED = 1000  # stretches at most that predictors are fitted to,
SAMPLES = 2**25  # and samples of these
BITS = "bits per sample"
FOLLOWING, ONE = (f"{BITS}, linear predictor, {scale} scale" for scale in ("following", "one"))
PAIRS = f"{BITS}, table of pairs"
DIFFERENCE = "model minus following scale"
RATE = "rate of the codes"
COUNTED, RAW, LESS = f"{RATE}, by how often each comes", f"{RATE}, as they are", "model minus how often each comes"

Scores = Callable[[np.ndarray], np.ndarray]  # codes [rows, time] -> bits per sample of each row


def of_predictor(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """The bits of `n` recordings at most; how: `resamples` and `seed` of the intervals."""
    stretched = cut_into(run, stretch(run, pack, split, run.model.frame))
    held = together(in_turn(clips_of(stretched, pack, split), n))
    quantiser, left_out, bits, rows = P.Quantiser(run.model.levels, run.model.law), [], {}, []
    if unlike := other_classes(run, pack):
        left_out += [f"{BITS}: {unlike}", f"{DIFFERENCE}: {unlike}"]
    else:
        bits[BITS] = model_bits(run, held)
        note = f"of the model; {quantiser.levels} levels, {quantiser.law.replace('_', '-')}"
        rows.append(averaged(BITS, bits[BITS], how, "lower", note))
    try:
        for name, (bits_of, note) in fitted(stretched, pack, quantiser, left_out).items():
            bits[name] = by_recording(bits_of, quantiser, held.wave)
            rows.append(averaged(name, bits[name], how, "", note))
    except InputError as reason:
        left_out.append(f"simple predictors: {reason}")
    if BITS in bits and FOLLOWING in bits:
        less = bits[BITS] - bits[FOLLOWING]
        note = f"paired; the model needs fewer in {np.mean(less < 0):.0%} of the recordings"
        rows.append(averaged(DIFFERENCE, less, how, "lower", note))
    seconds = held.wave.shape[1] / run.model.sample_rate
    title = f"{len(held.wave)} recordings ({split}) foretold sample by sample, {seconds:.3g} s of each"
    return Card("predicted", title, rows, left_out)


def of_composer(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int], codec: Path | None) -> Card:
    """The kilobits per second that the codes of `n` recordings at most need; codec: its run's folder, None: as when
    the run was trained. What the model needs, an entropy coder that asks it takes."""
    coder, model = codec_of(run, codec), cut_into(run, stretch(run, pack, split, run.model.hop)).model
    taken = lambda pack, split, n: codes_of(CodeClips(coded(pack, coder, model), model, 0, split), n)
    held, left_out, kbits, rows = taken(pack, split, n), [], {}, []
    per_second, of_each = model.sample_rate / model.hop / 1000, f"{model.codebooks} codebooks of {model.codebook_size}"
    if unlike := other_classes(run, pack):
        left_out += [f"{RATE}: {unlike}", f"{LESS}: {unlike}"]
    else:
        kbits[RATE] = per_second * model_bits(run, held)
        rows.append(averaged(RATE, kbits[RATE].sum(1), how, "lower", f"of the model; {of_each}", "kbit/s"))
    try:
        kbits[COUNTED] = per_second * counted_bits(taken(trained_on(run, pack), "train", FITTED).wave, held.wave, model)
        note = "in the recordings that the run was trained on; each codebook by itself"
        rows.append(averaged(COUNTED, kbits[COUNTED].sum(1), how, "", note, "kbit/s"))
    except InputError as reason:
        left_out.append(f"{COUNTED}: {reason}")
    raw = raw_kbps(coder.model, model.codebooks)
    rows.append(Row(RAW, raw, None, None, len(held.wave), "kbit/s", "", "whole bits for each code"))
    if RATE in kbits and COUNTED in kbits:
        less = kbits[RATE].sum(1) - kbits[COUNTED].sum(1)
        share = 1 - kbits[RATE].sum() / len(less) / raw
        note = f"paired; the model saves {share:.1%} of the codes as they are"
        rows.append(averaged(LESS, less, how, "lower", note, "kbit/s"))
    for i in range(model.codebooks if RATE in kbits else 0):
        note = f"of {raw / model.codebooks:.3g} as they are"
        if COUNTED in kbits:
            note = f"{kbits[COUNTED][:, i].mean():.3g} by how often each comes, {note}"
        rows.append(averaged(f"{RATE}, codebook {i + 1}", kbits[RATE][:, i], how, "lower", note, "kbit/s"))
    seconds = model.segment / model.sample_rate
    title = f"{len(held.wave)} recordings ({split}) foretold code by code, {seconds:.3g} s of each"
    return Card("predicted", title, rows, left_out)


def codes_of(clips: CodeClips, most: int) -> Taken:
    """The codes [n, frames, codebooks] of at most so many recordings of a split, evenly spread over it."""
    if clips.units < 2:
        raise InputError(f"{clips.units} recordings in the split: scores need 2 at least; choose another --split")
    batches = ((clips.gather(plan), count) for plan, count in clips.survey(most))
    parts = [(batch.given[:count], batch.label[:count]) for batch, count in batches]
    given, label = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Taken(given, label, np.full(len(given), ""))


def counted_bits(known: np.ndarray, held: np.ndarray, model: Composes) -> np.ndarray:
    """Bits per code [recordings, codebooks] of the codes `held` by how often each comes in `known`."""
    bits = []
    for i in range(model.codebooks):
        counts = np.bincount(known[..., i].ravel(), minlength=model.codebook_size) + P.SMOOTHING
        bits.append(-np.log2(counts / counts.sum())[held[..., i]].mean(1))
    return np.stack(bits, 1)


def other_classes(run: Trained, pack: Pack) -> str:
    """Why the recordings' labels tell the model nothing; "" where they do, or it wants none."""
    if not run.model.classes or pack.classes == run.labels:
        return ""
    data, own = (", ".join(map(shown, labels[:5])) or "none" for labels in (pack.classes, run.labels))
    return f"the data's classes are {data}, the run's {own}: score it on data of the same classes"


def model_bits(run: Trained, held: Taken) -> np.ndarray:
    """Bits per sample of each recording; of codes, per code of each codebook."""
    model = run.model
    size = held.wave.shape[1] * (model.hop if isinstance(model, Composes) else 1)

    @jax.jit
    def bits(params, wave, label):
        return model.bits(params, wave, label if model.classes else None)

    most = max(1, model.batch_size * model.segment // size)  # what a training step has room for
    found = in_batches(partial(bits, run.params), held.wave, held.label, most=most).astype(np.float64)
    broken = int(np.sum(~np.isfinite(found.reshape(len(found), -1)).all(1)))
    if broken:
        raise InputError(
            f"{shown(run.folder)} needs bits for {broken} of {len(found)} recordings that are not finite: name an "
            "earlier --checkpoint, or train it anew"
        )
    return found


def fitted(run: Trained, pack: Pack, quantiser: P.Quantiser, left_out: list[str]) -> dict[str, tuple[Scores, str]]:
    """The simple predictors by name, with notes on them, fitted to stretches as long as the run's segment."""
    known = Clips(trained_on(run, pack), run.model, 0, "train")
    count = max(1, min(FITTED, SAMPLES // run.model.segment))
    codes = rows_of(quantiser, together(in_turn(known, count)).wave)
    taps, predictors = P.fit_taps(codes, quantiser), {}
    for name, follows in ((FOLLOWING, True), (ONE, False)):
        linear = P.fit_scale(codes, quantiser, taps, follows)
        scale = f"{linear.floor:.2g}"
        if follows:
            memory = 1 / (1 - linear.decay)
            scale += f" + {linear.multiplier:.2g} times the mean residual of about {memory:.2g} samples"
        note = f"{len(taps)} taps; Laplace of scale {scale}, {linear.uniform:.2g} uniform"
        predictors[name] = (lambda codes, linear=linear: P.linear_bits(codes, quantiser, linear), note)
    try:
        table = P.fit_bigram(codes, quantiser)
        note = "how often a code came after another"
        predictors[PAIRS] = (lambda codes: P.bigram_bits(codes, quantiser, table), note)
    except InputError as reason:
        left_out.append(f"{PAIRS}: {reason}")
    return predictors


def by_recording(bits_of: Scores, quantiser: P.Quantiser, wave: np.ndarray) -> np.ndarray:
    """Of each recording [n, time, channels]: the mean over its channels, each foretold from its own past."""
    return bits_of(rows_of(quantiser, wave)).reshape(len(wave), -1).mean(1)


def rows_of(quantiser: P.Quantiser, wave: np.ndarray) -> np.ndarray:
    """The codes [recordings * channels, time]."""
    return quantiser.encode(np.moveaxis(wave, 2, 1).reshape(-1, wave.shape[1]))


def averaged(name: str, bits: np.ndarray, how: Mapping[str, int], better: str, note: str, unit: str = "bits") -> Row:
    """The row of a mean over recordings."""
    return Row(name, bits.mean(), *mean_interval(bits, **how), len(bits), unit, better, note)
