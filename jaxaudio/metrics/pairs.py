"""Scores of an estimate of a sound: compressed, restored or vocoded, against the reference it should be.

All take (reference, estimate, sample_rate): float [batch, time] of one shape, amplitude in [-1, 1], aligned in time, at
`sample_rate` Hz; and return float64 [batch]. `METRICS` lists them, `measure` computes one of them by name.

None returns NaN. Distances have floors and take everything, silence too. The others are undefined where a sound of the
pair is silent (`audible`), and some where the reference is too short of speech; then they raise `UndefinedRows`, and
`measure` leaves those rows out.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxaudio.core import InputError
from jaxaudio.dsp.loudness import SILENCE as SILENT_LUFS
from jaxaudio.dsp.loudness import integrated_loudness
from jaxaudio.dsp.mel import log_mel, mel_filters
from jaxaudio.dsp.stft import magnitudes, window
from jaxaudio.metrics import listeners

Sounds = Float[Array, "batch time"]
Estimates = Float[Array, "rows samples"]  # of the reference's shape, which `_check` sees to
Scores = Float[np.ndarray, "batch"]
Metric = Callable[[Sounds, Estimates, int], Scores]

SILENCE_DB = -70.0  # a sound of less RMS about its mean, in dB below an amplitude of 1, is silent
MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))  # window, mels
STFT_WINDOWS = (2048, 512)
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # FFT, hop, window
POWER_FLOOR = 1e-7  # of the powers in the multi-resolution STFT and the log-spectral distance
FLOOR = 1e-5  # of the magnitudes that a logarithm is taken of
BLOCK = 2**20  # samples of each sound whose spectra are held at once: about 100 MiB


class UndefinedRows(InputError):
    """A metric is undefined on some rows: `rows` are their numbers, `values` [batch] has NaN for these alone."""

    def __init__(self, message: str, rows: np.ndarray, values: np.ndarray) -> None:
        super().__init__(message)
        self.rows = rows
        self.values = values


def audible(reference: Sounds, estimate: Estimates) -> Bool[np.ndarray, "batch"]:
    """Whether both sounds of a pair have an RMS about their mean of at least -70 dB (a sine of 0.00045)."""
    _check("audible", reference, estimate, 1)
    levels = [np.std(np.asarray(x, np.float64), axis=1) for x in (reference, estimate)]
    return np.minimum(*levels) >= 10 ** (SILENCE_DB / 20)


def mel_distance(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Sum over seven scales of the mean |log10 mel - log10 mel|; lower is better.

    Windows of 32 to 2048 samples with 5 to 320 Slaney mel bands up to half the rate, hop a quarter of the window, Hann,
    frames centred and reflected at the ends, magnitudes (not powers), mels of less than 1e-5 count as 1e-5. A band that
    holds no bin of its window counts as no difference. As the mel distance of the Descript codec's paper (Kumar et al.
    2023, sections 3.5 and 4.3), which resamples to 44.1 kHz first: compare at one rate. Raises InputError for fewer
    than 1025 samples.
    """
    _check("mel_distance", reference, estimate, sample_rate, 1025)
    return _in_blocks(functools.partial(_mel_distance, sample_rate=sample_rate), reference, estimate)


def stft_distance(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Sum over windows of 2048 and 512 samples of mean |log10 A^2 - log10 B^2| + mean |A - B|; lower is better.

    A, B: magnitudes, in the logarithm at least 1e-5; hop a quarter of the window, Hann, frames centred and reflected at
    the ends. As MultiScaleSTFTLoss of the Descript codec's evaluation (scripts/evaluate.py), at the rate given: compare
    at one rate. Raises InputError for fewer than 1025 samples.
    """
    _check("stft_distance", reference, estimate, sample_rate, 1025)
    return _in_blocks(_stft_distance, reference, estimate)


def multi_resolution_stft(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Mean over three resolutions of |A - B| / |A| (Frobenius norms) + mean |ln A - ln B|; lower is better.

    A, B: magnitudes of reference and estimate with FFTs of 1024, 2048 and 512 samples, hops of 120, 240 and 50, Hann
    windows of 600, 1200 and 240, frames centred and reflected at the ends, powers of at least 1e-7: about 110 dB below
    a sine of amplitude 1, more than what 16 bits round off, so that digital silence counts as any silence. A reference
    of an RMS below -70 dB has the |A| of noise of that level. Spectral convergence and log magnitude of Yamamoto et
    al. 2020 (Parallel WaveGAN, eq. 4-6), floor and padding of its public implementation, in samples whatever the rate:
    compare at one rate. Independent noises of one colour are 1.35 apart: 0.66 in convergence and 0.69 in logarithms.
    Raises InputError for fewer than 1025 samples.
    """
    _check("multi_resolution_stft", reference, estimate, sample_rate, 1025)
    return _in_blocks(_multi_resolution_stft, reference, estimate)


def log_spectral_distance(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Mean over frames of the RMS over frequency of 20 log10 A - 20 log10 B, in dB; lower is better.

    A, B: magnitudes of windows of 32 ms every 8 ms, Hann, frames centred and reflected at the ends, powers of at least
    1e-7 as in `multi_resolution_stft`, so that digital silence counts as any silence. The d2 of Gray and Markel 1976,
    as papers on enhancement and bandwidth extension give it; they differ in windows and floors: compare within one.
    Independent noises of one colour are 7.88 apart. Raises InputError for less than 16 ms.
    """
    _check("log_spectral_distance", reference, estimate, sample_rate, _window(sample_rate) // 2 + 1)
    distance = functools.partial(_log_spectral_distance, size=_window(sample_rate))
    return _in_blocks(distance, reference, estimate)


def si_sdr(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Scale-invariant signal-to-distortion ratio in dB, limited to [-100, 100]; higher is better.

    |a r|^2 / |e - a r|^2 with a = <e, r> / <r, r>, after the mean of each sound is taken off. Undefined on silence.
    Source: Le Roux et al. 2019.
    """

    def rows(reference: Sounds, estimate: Sounds) -> np.ndarray:
        r, e = (np.asarray(x, np.float64) for x in (reference, estimate))
        r, e = (x - x.mean(1, keepdims=True) for x in (r, e))
        target = r * (np.sum(e * r, 1) / np.sum(r * r, 1))[:, None]
        kept, lost = np.sum(target**2, 1), np.sum((e - target) ** 2, 1)
        least = 1e-12 * (kept + lost)  # beyond the limits, and above 0
        return np.clip(10 * np.log10(np.maximum(kept, least) / np.maximum(lost, least)), -100, 100)

    _check("si_sdr", reference, estimate, sample_rate, 2)
    return _where_audible("si_sdr", rows, reference, estimate)


def loudness_difference(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Integrated loudness (ITU-R BS.1770-4) of the estimate minus that of the reference, in LU; 0 is best.

    Undefined where either has no block of 0.4 s above -70 LUFS. Raises InputError for less than 0.4 s, and for rates
    that are not multiples of 10 Hz.
    """

    def rows(reference: Sounds, estimate: Sounds) -> np.ndarray:
        return _in_blocks(functools.partial(_loudness_difference, sample_rate=sample_rate), reference, estimate)

    _check("loudness_difference", reference, estimate, sample_rate, round(0.4 * sample_rate))
    return _where_audible("loudness_difference", rows, reference, estimate, " or below -70 LUFS")


def envelope_correlation(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Pearson correlation over time of the envelopes: RMS in windows of 20 ms every 10 ms; -1 to 1, higher is better.

    Undefined where an envelope is steady: its deviation less than 1/1000 of its mean. Raises InputError for less than
    50 ms.
    """
    hop = max(1, round(0.01 * sample_rate))

    def envelope(x: Sounds) -> np.ndarray:
        count = x.shape[1] // hop
        powers = np.mean(np.asarray(x, np.float64)[:, : count * hop].reshape(-1, count, hop) ** 2, 2)
        levels = np.sqrt((powers[:, 1:] + powers[:, :-1]) / 2)
        return levels / np.maximum(levels.mean(1, keepdims=True), 1e-12)

    def rows(reference: Sounds, estimate: Sounds) -> np.ndarray:
        return _pearson(envelope(reference), envelope(estimate))

    _check("envelope_correlation", reference, estimate, sample_rate, 5 * hop)
    why = " or an envelope does not change"
    return _where_audible("envelope_correlation", rows, reference, estimate, why)


def spectral_correlation(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Pearson correlation over time and frequency of the log-mel spectrograms; -1 to 1, higher is better.

    80 Slaney bands up to half the rate, windows of 1024 samples every 256, Hann, centred, magnitudes of at least 1e-5:
    a difference in level counts for nothing above that floor. Undefined on silence. Raises InputError for fewer than
    513 samples.
    """

    def rows(reference: Sounds, estimate: Sounds) -> np.ndarray:
        return _in_blocks(functools.partial(_spectral_correlation, sample_rate=sample_rate), reference, estimate)

    _check("spectral_correlation", reference, estimate, sample_rate, 513)
    why = " or a spectrogram does not change"
    return _where_audible("spectral_correlation", rows, reference, estimate, why)


def pesq_wide(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Wide-band PESQ, MOS-LQO of ITU-T P.862.2 by the package pesq: 1.02 to 4.64, higher is better.

    At 16 kHz: other rates are resampled by soxr (HQ), so speech of a lower rate is rated without what it never had.
    Undefined on silence, and where it finds no utterance (200 ms) in the reference. Raises InputError for less than
    1/4 s, and for more than 20 s: beyond 50 utterances the reference implementation writes past its tables.
    """
    _check("pesq_wide", reference, estimate, sample_rate, round(0.25 * sample_rate) + 1)
    if reference.shape[1] > 20 * sample_rate:
        raise InputError(
            f"pesq_wide got {reference.shape[1] / sample_rate:.1f} s: it rates at most 20 s; cut the recordings"
        )
    return _listen("pesq_wide", "pesq", reference, estimate, sample_rate, 16000, " or the reference has no utterance")


def stoi(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """Short-time objective intelligibility by the package pystoi, the plain one: to 1, higher is better.

    pystoi resamples to 10 kHz by a filter of its own. Undefined on silence, and where less than 0.4 s of the reference
    lie within 40 dB of its loudest frame: single short words. Raises InputError for less than 0.42 s.
    """
    _check("stoi", reference, estimate, sample_rate, round(0.42 * sample_rate))
    why = " or the reference has less than 0.4 s of sound"
    return _listen("stoi", "stoi", reference, estimate, sample_rate, sample_rate, why)


def visqol_audio(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """ViSQOL v3 in audio mode, MOS-LQO: 1 to 4.73, higher is better.

    At 48 kHz (other rates by soxr, HQ), by the package visqol-python, which reproduces Google's. Undefined on silence.
    Raises InputError for less than 1 s.
    """
    _check("visqol_audio", reference, estimate, sample_rate, sample_rate)
    return _listen("visqol_audio", "visqol_audio", reference, estimate, sample_rate, 48000, "")


def visqol_speech(reference: Sounds, estimate: Estimates, sample_rate: int) -> Scores:
    """ViSQOL v3 in speech mode, MOS-LQO: 1 to 5, higher is better.

    At 16 kHz (other rates by soxr, HQ), by the package visqol-python with the polynomial mapping (Google's with
    --use_lattice_model=false; its lattice rates degraded speech 1 to 2 lower). Undefined on silence. Raises InputError
    for less than 0.7 s.
    """
    _check("visqol_speech", reference, estimate, sample_rate, round(0.7 * sample_rate))
    return _listen("visqol_speech", "visqol_speech", reference, estimate, sample_rate, 16000, "")


class Entry(NamedTuple):
    """A row of `METRICS`."""

    metric: Metric
    unit: str
    better: Literal["lower", "higher", "zero"]
    convention: str  # one sentence
    needs_audible: bool  # undefined on silence, and so on rows that `audible` refuses
    extra: str | None  # the extra of the installation that it needs


METRICS: Mapping[str, Entry] = {
    "mel_distance": Entry(
        mel_distance, "log10", "lower", "L1 of log10 mels, summed over 7 scales (Descript codec's paper).", False, None
    ),
    "stft_distance": Entry(
        stft_distance,
        "log10 + amplitude",
        "lower",
        "L1 of log10 powers plus L1 of magnitudes, windows 2048 and 512 (Descript codec's evaluation).",
        False,
        None,
    ),
    "multi_resolution_stft": Entry(
        multi_resolution_stft,
        "",
        "lower",
        "Spectral convergence plus L1 of ln magnitudes, mean of 3 resolutions (Parallel WaveGAN's paper).",
        False,
        None,
    ),
    "log_spectral_distance": Entry(
        log_spectral_distance,
        "dB",
        "lower",
        "RMS over frequency of the difference of levels, mean over frames of 32 ms every 8 ms.",
        False,
        None,
    ),
    "si_sdr": Entry(si_sdr, "dB", "higher", "Means taken off, within -100 to 100 (Le Roux et al. 2019).", True, None),
    "loudness_difference": Entry(
        loudness_difference, "LU", "zero", "Integrated loudness, estimate minus reference (BS.1770-4).", True, None
    ),
    "envelope_correlation": Entry(
        envelope_correlation, "", "higher", "Pearson correlation of the RMS of 20 ms every 10 ms.", True, None
    ),
    "spectral_correlation": Entry(
        spectral_correlation, "", "higher", "Pearson correlation of log-mel spectrograms, 80 bands.", True, None
    ),
    "pesq_wide": Entry(
        pesq_wide, "MOS-LQO", "higher", "ITU-T P.862.2 at 16 kHz, resampled by soxr (pesq).", True, "metrics"
    ),
    "stoi": Entry(stoi, "", "higher", "Taal et al. 2011, at 10 kHz, not extended (pystoi).", True, "metrics"),
    "visqol_audio": Entry(
        visqol_audio, "MOS-LQO", "higher", "ViSQOL v3, audio mode at 48 kHz (visqol-python).", True, "metrics"
    ),
    "visqol_speech": Entry(
        visqol_speech,
        "MOS-LQO",
        "higher",
        "ViSQOL v3, speech mode at 16 kHz, polynomial mapping (visqol-python).",
        True,
        "metrics",
    ),
}


def measure(
    name: str, reference: Sounds, estimate: Estimates, sample_rate: int
) -> tuple[Float[np.ndarray, "defined"], Int[np.ndarray, "defined"]]:
    """(values, rows): the metric of `METRICS` on the rows where it is defined, and their numbers; both may be empty."""
    if name not in METRICS:
        raise InputError(f"metric {name!r} is unknown: choose one of {', '.join(METRICS)}")
    try:
        values = METRICS[name].metric(reference, estimate, sample_rate)
    except UndefinedRows as error:
        values = error.values
    rows = np.flatnonzero(np.isfinite(values))
    return values[rows], rows


def _check(name: str, reference: Sounds, estimate: Estimates, sample_rate: int, least: int = 1) -> None:
    """Shapes, finite values, and at least so many samples."""
    if reference.ndim != 2 or reference.shape != estimate.shape or not reference.size:
        raise InputError(
            f"reference is {reference.shape} and estimate {estimate.shape}: both are [batch, time], of one shape and "
            "not empty; cut them to the same length"
        )
    for which, x in (("reference", reference), ("estimate", estimate)):
        wrong = np.flatnonzero(~np.isfinite(np.asarray(x)).all(1))
        if wrong.size:
            raise InputError(f"{which} row {wrong[0]} (of {wrong.size} such) is not finite: leave these rows out")
    if sample_rate < 1:
        raise InputError(f"sample_rate is {sample_rate}: it is positive, in Hz")
    if reference.shape[1] < least:
        raise InputError(f"{name} got {reference.shape[1]} samples: it needs {least}; pass longer sounds")


def _where_audible(
    name: str,
    metric: Callable[[Sounds, Sounds], np.ndarray],
    reference: Sounds,
    estimate: Sounds,
    why: str = "",
) -> Scores:
    """The metric on the audible rows; UndefinedRows where there are others, or where it gives NaN."""
    heard = audible(reference, estimate)
    values = np.full(len(heard), np.nan)
    if heard.all():
        values = metric(reference, estimate)
    elif heard.any():
        values[heard] = metric(reference[heard], estimate[heard])
    rows = np.flatnonzero(np.isnan(values))
    if rows.size:
        named = ", ".join(map(str, rows[:5])) + ", ..." * (rows.size > 5)
        message = (
            f"{name} is undefined on row {named}: a sound of the pair is silent{why}; leave it out, or use measure"
        )
        raise UndefinedRows(message, rows, values)
    return values


def _listen(
    name: str, listener: str, reference: Sounds, estimate: Sounds, sample_rate: int, rate: int, why: str
) -> Scores:
    """A listener's ratings at `rate` Hz."""
    module = {"pesq": "pesq", "stoi": "pystoi"}.get(listener, "visqol")
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{name} needs the package {module}, which is not here: pip install -e '.[metrics]'")

    def rows(reference: Sounds, estimate: Sounds) -> np.ndarray:
        r, e = (_resample(np.asarray(x, np.float64), sample_rate, rate) for x in (reference, estimate))
        return listeners.rate(listener, r, e, rate)

    return _where_audible(name, rows, reference, estimate, why)


def _resample(x: np.ndarray, sample_rate: int, rate: int) -> np.ndarray:
    if sample_rate == rate:
        return x
    import soxr

    return np.stack([soxr.resample(row, sample_rate, rate, quality="HQ") for row in x])


def _in_blocks(distance: Callable[[Array, Array], Array], reference: Sounds, estimate: Sounds) -> np.ndarray:
    """The distance of so many rows at a time that their spectra fit into memory."""
    batch, time = reference.shape
    rows = -(-batch // -(-batch * time // BLOCK))  # of each block, as even as can be
    values = []
    # Some accelerators would otherwise multiply matrices in 16 bits or so.
    with jax.default_matmul_precision("highest"):
        for start in range(0, batch, rows):
            # The last row fills the last block: one shape, one compilation.
            block = np.minimum(np.arange(start, start + rows), batch - 1)
            values.append(np.asarray(distance(*(x[block].astype(jnp.float32) for x in (reference, estimate)))))
    return np.concatenate(values)[:batch].astype(np.float64)


@functools.partial(jax.jit, static_argnames="sample_rate")
def _mel_distance(reference: Array, estimate: Array, sample_rate: int) -> Array:
    total = jnp.zeros(reference.shape[0])
    for size, mels in MEL_SCALES:
        # Every eighth bin of a window eight times as long is a bin of this one, and no band of that one is empty.
        filters = mel_filters(sample_rate, 8 * size, mels)[::8]
        r, e = (log_mel(x, filters, size, size // 4, floor=FLOOR, padding="torch") for x in (reference, estimate))
        total += jnp.mean(jnp.abs(r - e), (1, 2))
    return total / np.log(10)


@jax.jit
def _stft_distance(reference: Array, estimate: Array) -> Array:
    total = jnp.zeros(reference.shape[0])
    for size in STFT_WINDOWS:
        r, e = (magnitudes(x, size, size // 4, padding="torch") for x in (reference, estimate))
        logs = [2 * jnp.log10(jnp.maximum(x, FLOOR)) for x in (r, e)]
        total += jnp.mean(jnp.abs(logs[0] - logs[1]), (1, 2)) + jnp.mean(jnp.abs(r - e), (1, 2))
    return total


@jax.jit
def _multi_resolution_stft(reference: Array, estimate: Array) -> Array:
    total = jnp.zeros(reference.shape[0])
    for size, hop, width in RESOLUTIONS:
        taper = window("hann", width)
        r, e = (magnitudes(x, size, hop, taper, padding="torch") for x in (reference, estimate))
        r, e = (jnp.maximum(x, POWER_FLOOR**0.5) for x in (r, e))
        # The norm of white noise's spectrum, by Parseval, at the level of what is silent.
        least = 10 ** (SILENCE_DB / 20) * np.sqrt(r.shape[1] * size / 2 * np.sum(taper.astype(np.float64) ** 2))
        norm = lambda x: jnp.sqrt(jnp.sum(x**2, (1, 2)))
        total += norm(r - e) / jnp.maximum(norm(r), least.item())
        total += jnp.mean(jnp.abs(jnp.log(r) - jnp.log(e)), (1, 2))
    return total / len(RESOLUTIONS)


def _window(sample_rate: int) -> int:
    """32 ms in samples, a multiple of 4."""
    return 4 * max(1, round(0.008 * sample_rate))


@functools.partial(jax.jit, static_argnames="size")
def _log_spectral_distance(reference: Array, estimate: Array, size: int) -> Array:
    levels = [magnitudes(x, size, size // 4, padding="torch") for x in (reference, estimate)]
    r, e = (20 * jnp.log10(jnp.maximum(x, POWER_FLOOR**0.5)) for x in levels)
    return jnp.mean(jnp.sqrt(jnp.mean(jnp.square(r - e), 2)), 1)


@functools.partial(jax.jit, static_argnames="sample_rate")
def _loudness_difference(reference: Array, estimate: Array, sample_rate: int) -> Array:
    r, e = (integrated_loudness(x[..., None], sample_rate) for x in (reference, estimate))
    return jnp.where(jnp.minimum(r, e) > SILENT_LUFS + 1e-3, e - r, jnp.nan)


@functools.partial(jax.jit, static_argnames="sample_rate")
def _log_mels(x: Array, sample_rate: int) -> Array:
    filters = mel_filters(sample_rate, 8 * 1024, 80)[::8]
    return log_mel(x, filters, 1024, 256, floor=FLOOR, padding="torch").reshape(x.shape[0], -1)


def _spectral_correlation(reference: Array, estimate: Array, sample_rate: int) -> np.ndarray:
    r, e = (np.asarray(_log_mels(x, sample_rate), np.float64) for x in (reference, estimate))
    return _pearson(r, e)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of each row of a and b; NaN where the deviation of either is less than 1/1000."""
    defined = np.minimum(a.std(1), b.std(1)) >= 1e-3
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(defined, np.sum(a * b, 1) / np.where(defined, product, 1), np.nan)
