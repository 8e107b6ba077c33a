"""The scorecard: python -m benchmarks.quality RUN [--data FOLDER] [--classifier RUN2] [--json FILE]

Scores whatever a trained run can do on held-out recordings, with 95 % intervals, and adds a section to its report.html.
    generators    against recordings: distances, memorisation, and what a classifier run hears in the sounds
    predictors    generators that go on from sound: bits per sample, beside those of simple predictors
    composers     models of a codec's codes: kilobits per second, beside what the codes take without
    autoencoders  recordings and what comes back of them: distances beside those of noise vocoders, latent rate
    codecs        also what their streams cost, and how they sound at 1, 2, 4, ... codebooks
    vocoders      the same of sound made of the recordings' features, and what models of listeners say of it
    notes         whether they have the pitch asked for, as a tracker and a classifier run hear it
    restorers     SI-SDR, PESQ, STOI and distances of damaged recordings restored, beside classical ways to do so
    classifiers   accuracy, average precision, accuracy per speaker (or other group), confusion
Files against files of the same name: python -m benchmarks.pairs.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.special import log_softmax, softmax

from benchmarks.compression import of_codec
from benchmarks.pitch import of_pitches
from benchmarks.prediction import of_composer, of_predictor
from benchmarks.reconstruction import of_autoencoder, of_vocoder
from benchmarks.recordings import (
    BATCH,
    Taken,
    clips_of,
    cut_into,
    data_of,
    in_batches,
    in_turn,
    load_embeddings,
    noise_of,
    sounds_of,
    stretch,
    together,
    trained_on,
)
from benchmarks.restoration import damages_of, of_restorer
from benchmarks.scorecard import Card, Row, deliver, origin
from jaxaudio.core import Classifies, Composes, Continues, Encodes, Generates, InputError, Plays, Restores, Vocodes
from jaxaudio.data.audio import shown
from jaxaudio.data.clips import Clips
from jaxaudio.data.pack import Pack, cache_folder
from jaxaudio.dsp.mel import log_mel, mel_filters
from jaxaudio.losses import spectral_energy_distance
from jaxaudio.metrics import classification as C
from jaxaudio.metrics import generation as G
from jaxaudio.metrics.bootstrap import interval, jackknife_interval, mean_interval
from jaxaudio.runtime import command, report
from jaxaudio.runtime.confusion import draw_confusion
from jaxaudio.runtime.folder import Trained, trained
from jaxaudio.tasks.classify import hear, judge_of
from jaxaudio.tasks.reconstruct import has_codes

MEMORY = (2048, 512, 64)  # window, hop and mel bands of the pictures whose distances tell copies
KNOWN = 1024  # pictures of training recordings that are held at once
SEVERAL = 50  # groups (speakers) up to which each has a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    run: Annotated[Path, tyro.conf.Positional]  # the folder that train.py wrote
    data: Path | None = None  # folder of recordings to compare with; none: the run's own
    noise: Path | None = None  # folder of noise, of a model that restores; none: the run's own
    codec: Path | None = None  # of a model of codes: the codec's run; none: where it was when the model was trained
    classifier: Path | None = None  # a classifier's run, trained on recordings of the same kind
    embeddings: Path | None = None  # .npz of real and fake [clips, features] from a network of your own
    split: Literal["valid", "test", "train"] = "valid"  # which recordings are compared with
    n: int = 1000  # sounds made, and recordings taken at most; a classifier gets the whole split
    seed: int = 0  # of the sounds and of the intervals
    checkpoint: str = "latest"  # latest, best, or a step's number
    resamples: int = 200  # of the bootstrap
    json: Path | None = None  # the scores are written there too


class Given(NamedTuple):
    """What the options name, opened."""

    options: Options
    run: Trained
    pack: Pack  # the recordings to compare with
    judge: Trained | None
    embeddings: Mapping[str, np.ndarray] | None
    noise: Pack | None = None  # of a model that restores, where it learned from noise or noise is named

    @property
    def how(self) -> dict[str, int]:
        """Of intervals."""
        return {"resamples": self.options.resamples, "seed": self.options.seed}

    @property
    def recordings(self) -> str:
        """What those that are compared with are called."""
        return "training recordings" if self.options.split == "train" else "held-out recordings"


def main(arguments: list[str]) -> None:
    """Prints the cards of the run."""
    options = tyro.cli(Options, args=arguments, prog="benchmarks.quality", description=__doc__)
    command.prepare(cache_folder())
    began = time.perf_counter()
    given = opened(options)
    about = {**origin("benchmarks.quality", arguments), "step": given.run.step}
    compared = (given.run, given.pack, options.split, options.n, given.how)
    cards = {
        Continues: lambda: of_predictor(*compared),
        Composes: lambda: of_composer(*compared, options.codec),
        Generates: lambda: of_generator(in_stretches(given)),
        Plays: lambda: of_pitches(*compared, given.judge, options.seed),
        Encodes: lambda: of_autoencoder(*compared),
        Vocodes: lambda: of_vocoder(*compared),
        Classifies: lambda: of_classifier(given),
    }
    for capability, card in cards.items():
        if isinstance(given.run.model, capability):
            deliver(card(), about, options.run / "scores", options.json)
    if has_codes(given.run):
        deliver(of_codec(*compared), about, options.run / "scores", options.json)
    if isinstance(given.run.model, Restores):
        for restored in of_restorer(*compared, given.noise):
            deliver(restored, about, options.run / "scores", options.json)
    print(f"scored in {time.perf_counter() - began:.0f} s -> {shown(report.write(options.run))}")


def in_stretches(given: Given) -> Given:
    """The same with sounds as long as `stretch` says, of a model that makes any length whatever it is trained on."""
    run = given.run
    if not isinstance(run.model, Continues):
        return given
    return given._replace(run=cut_into(run, stretch(run, given.pack, given.options.split, run.model.frame)))


def opened(options: Options) -> Given:
    """Everything that the options name; what is wrong with them is said here, before a sound is made."""
    command.check_seed(options.seed)
    if options.n < 2:
        raise InputError(f"n is {options.n}: scores need 2 sounds at least")
    mean_interval(np.zeros(2), options.resamples)  # refuses too few resamples
    embeddings = load_embeddings(options.embeddings) if options.embeddings else None
    run = trained(options.run, options.checkpoint)
    if not isinstance(run.model, Generates | Composes | Encodes | Vocodes | Restores | Classifies):
        kinds = "generators, models of codes, autoencoders, vocoders, restorers and classifiers"
        raise InputError(f"{shown(run.folder)} can do nothing that is scored here: {kinds} are")
    judge = judge_for(run, trained(options.classifier)) if options.classifier else None
    return Given(options, run, data_of(run, options.data), judge, embeddings, noise_for(run, options.noise))


def noise_for(run: Trained, folder: Path | None) -> Pack | None:
    """The noise that a run which restores is scored with: in the folder or, where it learned from noise, its own."""
    if folder is not None and not isinstance(run.model, Restores):
        raise InputError(f"noise is {shown(folder)}, but {shown(run.folder)} restores nothing: leave --noise away")
    needed = isinstance(run.model, Restores) and "noise" in damages_of(run.model)
    return noise_of(run, folder) if folder or needed else None


def judge_for(run: Trained, judge: Trained) -> Trained:
    """The classifier's run, if it hears what the run makes."""
    if not isinstance(judge.model, Classifies):
        where = shown(judge.folder)
        raise InputError(f"{where} is no classifier's run: train one with python train.py classifier:digits")
    if (judge.model.sample_rate, judge.model.channels) != (run.model.sample_rate, run.model.channels):
        raise InputError(
            f"{shown(judge.folder)} hears {judge.model.channels} channels at {judge.model.sample_rate} Hz, "
            f"{shown(run.folder)} has {run.model.channels} at {run.model.sample_rate} Hz: train a classifier of that "
            "rate and channel count"
        )
    return judge


# ------------------------------------------------------------------------------------------------------- generators


def of_generator(given: Given) -> Card:
    """Generated sounds against held-out recordings, and against the training set."""
    options, run = given.options, given.run
    real = together(in_turn(clips_of(run, given.pack, options.split), options.n))
    known, gone = None, ""
    try:
        known = Clips(trained_on(run, given.pack), run.model, 0, "train")
    except InputError as reason:
        gone = str(reason)
    asked = np.arange(options.n) % len(run.labels) if run.labels else None
    fake, left_out = sounds_of(run, options.n, asked, options.seed), []
    rows = [*signal_rows(given, real.wave, fake, left_out), *memory_rows(given, real.wave, fake, known, gone, left_out)]
    if given.judge:
        rows += classifier_rows(given, real, fake, asked, known, gone, left_out)
    else:
        left_out.append("Inception Score and its kin, Frechet distance, label accuracy: name a run with --classifier")
    if given.embeddings:
        of = f"embedding of {shown(options.embeddings.name)}"
        rows += frechet_rows(given.embeddings["real"], given.embeddings["fake"], of, left_out)
    title = f"{options.n} generated sounds, {len(real.wave)} recordings ({options.split})"
    return Card("generated", title, rows, left_out)


def signal_rows(given: Given, real: np.ndarray, fake: np.ndarray, left_out: list[str]) -> list[Row]:
    """What needs no other network."""
    name, rows = "spectral energy distance", []
    note = "energy distance of log spectra; 0: the same distribution; pairs of sounds drawn at random"
    rng = np.random.default_rng(given.options.seed)
    try:
        energy, n = energies(rng.permutation(real), rng.permutation(fake))
        rows.append(Row(name, energy.mean(), *mean_interval(energy, **given.how), n, "nepers", "lower", note))
    except InputError as reason:
        left_out.append(f"{name}: {reason}")
    silent = float(np.mean(np.abs(fake).max((1, 2)) < 1e-3))
    if silent:
        rows.append(Row("silent sounds", silent, None, None, len(fake), "", "lower", "share with a peak below 0.001"))
    return rows


def energies(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, int]:
    """The mean energy distance of each group of rows, and the rows that are in one. Estimates of one batch share their
    sounds with their neighbours; groups share none, so that an interval of their mean is as wide as it should be."""
    n = min(len(real), len(fake))
    size = min(10, max(2, n // 40))
    count = n // size  # what is left over is left out: a lone sound would be compared with itself
    if count < 2:
        raise InputError(f"{n} sounds and recordings: 4 of both at least make the 2 groups that an interval needs")
    groups = [x[: count * size].reshape(count, size, *x.shape[1:]) for x in (real, fake)]
    distance = jax.jit(lambda a, b: jnp.mean(jax.vmap(spectral_energy_distance)(a, b), 1))
    return in_batches(distance, *groups, most=2 * BATCH // size).astype(np.float64), count * size


def memory_rows(
    given: Given, real: np.ndarray, fake: np.ndarray, known: Clips | None, gone: str, left_out: list[str]
) -> list[Row]:
    """Whether sounds are copies of training recordings, and how they differ, by the distance of log-mel pictures."""
    window, hop, mels = MEMORY
    filters = mel_filters(given.run.model.sample_rate, 8 * window, mels)[::8]

    @jax.jit
    def picture(wave):
        level = log_mel(jnp.mean(wave, -1), filters, window, hop, floor=1e-3)
        return level.reshape(len(wave), -1)

    made, held = (in_batches(picture, x) for x in (fake, real))
    rows = []
    try:
        if known is None:
            raise InputError(gone)
        if given.options.split == "train" and known.pack.fingerprint == given.pack.fingerprint:
            raise InputError("it compares with held-out recordings: choose another --split than train")
        near = nearest((made, held), known, picture)
        note = (
            f"distance to the nearest of {known.units} training clips, over that of {given.recordings}; well "
            "below 1: copies"
        )
        bounds = interval(G.memorisation, near, **given.how, independent=True)
        rows.append(Row("memorisation", G.memorisation(*near), *bounds, len(fake), "", "", note))
    except InputError as reason:
        left_out.append(f"memorisation: {reason}")
    try:
        blocks = max(2, min(20, len(made) // 2, len(held) // 2))
        bounds = jackknife_interval(relative_diversity, (made, held), blocks, independent=True)
        note = f"distance of two generated sounds, over that of two {given.recordings}; below 1: poorer"
        rows.append(Row("diversity, log-mel", relative_diversity(made, held), *bounds, len(fake), "", "", note))
    except InputError as reason:
        left_out.append(f"diversity, log-mel: {reason}")
    return rows


def relative_diversity(made: np.ndarray, held: np.ndarray) -> float:
    """Over that of recordings."""
    usual = G.diversity(held.astype(np.float64))
    if usual == 0:
        raise InputError("the recordings are all alike")
    return G.diversity(made.astype(np.float64)) / usual


def nearest(queries: tuple[np.ndarray, ...], known: Clips, picture: Callable) -> tuple[np.ndarray, ...]:
    """The distance of each row to the nearest picture of the whole training set, which is never held as a whole."""
    best, held = [np.full(len(x), np.inf) for x in queries], []

    def compare():
        block = np.concatenate(held)
        block = np.resize(block, (max(2, len(block)), block.shape[1]))  # a lone last one, twice
        for i, x in enumerate(queries):
            best[i] = np.minimum(best[i], G.nearest_distances(x, block))
        held.clear()

    for batch in in_turn(known, known.units):
        held.append(in_batches(picture, batch.wave))
        if sum(map(len, held)) >= KNOWN:
            compare()
    if held:
        compare()
    return tuple(best)


def classifier_rows(
    given: Given, real: Taken, fake: np.ndarray, asked, known: Clips | None, gone: str, left_out: list[str]
) -> list[Row]:
    """What a classifier hears."""
    judge, run, how = given.judge, given.run, given.how
    judged = judge_of(judge.model, judge.params)
    listen = lambda wave: listened(judged, judge, wave)
    (p, made), (real_p, held) = listen(fake), listen(real.wave)
    train_p, train = None, None
    if known:
        parts = [listen(batch.wave) for batch in in_turn(known, given.options.n)]
        train_p, train = (np.concatenate(part) for part in zip(*parts, strict=True))
    if judge.model.gain != run.model.gain:
        left_out.append(
            "differences in level: the classifier scales all sounds to a peak of 1 (its gain is peak, the run's none)"
            if judge.model.gain == "peak"
            else "the levels that the classifier was trained with (its gain is none): the run's has scaled all to 1"
        )
    classes, rows = p.shape[1], []
    rng = np.random.default_rng(given.options.seed)
    mixed, real_mixed = rng.permutation(p), rng.permutation(real_p)

    def score(name, statistic, better, unit="", note="", bounds_of=lambda f, x: interval(f, (x,), **how)):
        try:
            value, bounds = statistic(mixed), bounds_of(statistic, mixed)
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
            return
        try:
            reference = f"{statistic(real_mixed):.4g}"
        except InputError:
            reference = "too few"
        rows.append(Row(name, value, *bounds, len(p), unit, better, f"{note}; {given.recordings} {reference}"))

    splits = min(10, len(p) // classes, len(real_p) // classes) or 1
    score("Inception Score", lambda x: G.inception_score(x, splits), "higher", note=f"{splits} splits, 1 to {classes}")
    score("modified IS", G.modified_inception_score, "higher", note="KL between all pairs")
    if known:
        marginal = train_p.mean(0)
        score("AM score", lambda x: G.am_score(x, marginal), "lower", "nats", "against the training set's classes")
    else:
        left_out.append(f"AM score: {gone}")
    reference = train[: len(fake)] if known and given.options.split != "train" else None
    rows += frechet_rows(held, made, "the classifier's embedding", left_out, reference)
    even = lambda x: G.balance(x.argmax(1), classes)
    jackknife = lambda f, x: jackknife_interval(f, (x,), max(2, min(20, len(x) // 2)))
    score("class balance", even, "higher", note="entropy of the classes heard, 1: even", bounds_of=jackknife)
    if asked is not None and judge.labels == run.labels:
        right, note = G.agreement(p.argmax(1), asked), "heard as the class that was asked for"
        if given.pack.classes == judge.labels:
            note += f"; {given.recordings} {C.accuracy(real.label, real_p.argmax(1)):.1%}"
        rows.append(Row("label accuracy", right.mean(), *mean_interval(right, **how), len(right), "", "higher", note))
    elif asked is not None:
        names = ", ".join(map(shown, judge.labels[:5]))
        left_out.append(f"label accuracy: {shown(judge.folder)} knows other classes ({names}, ...)")
    return rows


def listened(judged: Callable, judge: Trained, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and embeddings of sounds of any length, as `sample.py classify` has them."""
    blocks = [hear(judged, waves[i : i + BATCH], judge.model) for i in range(0, len(waves), BATCH)]
    return tuple(np.concatenate(block) for block in zip(*blocks, strict=True))


def frechet_rows(
    real: np.ndarray, fake: np.ndarray, of: str, left_out: list[str], train: np.ndarray | None = None
) -> list[Row]:
    """The Frechet distance as it is usually given, and extrapolated to infinitely many clips; that of held-out
    recordings to as many training recordings, if there are some, is what to compare with."""
    rows, n = [], min(len(real), len(fake))
    kinds = {
        "Frechet distance": (G.frechet_distance, f"{of}, {len(fake)} against {len(real)}: biased upwards"),
        "Frechet distance, unbiased": (G.frechet_distance_unbiased, f"{of}, extrapolated to infinitely many"),
    }
    for name, (statistic, note) in kinds.items():
        try:
            bounds = jackknife_interval(statistic, (real, fake), max(2, min(20, n // 2)), independent=True)
            value = statistic(real, fake)
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
            continue
        try:
            if train is not None:
                note += f"; held-out against {len(train)} training clips {statistic(real, train):.4g}"
        except InputError:
            note += "; too few training clips to compare with"
        rows.append(Row(name, value, *bounds, n, "", "lower", note))
    return rows


# ------------------------------------------------------------------------------------------------------ classifiers


def of_classifier(given: Given) -> Card:
    """Accuracy in all and per group, average precision, confusion."""
    run, pack, how = given.run, given.pack, given.how
    if pack.classes != run.labels:
        data, own = (", ".join(map(shown, labels[:12])) or "none" for labels in (pack.classes, run.labels))
        raise InputError(f"the data's classes are {data}, the run's {own}: score it on data of the same classes")
    clips, judged = clips_of(run, pack, given.options.split), judge_of(run.model, run.params)
    heard = [(judged(batch.wave)[0], batch.label, batch.group) for batch in in_turn(clips, clips.units)]
    logits, label, group = (np.concatenate(parts) for parts in zip(*heard, strict=True))
    logits, n = logits.astype(np.float64), len(label)
    predicted, p = logits.argmax(1), softmax(logits, 1)
    right = (predicted == label).astype(np.float64)
    value = C.accuracy(label, predicted)
    rows = [Row("accuracy", value, *mean_interval(right, **how), n, "", "higher", "share that is right")]
    bounds, value = interval(C.mean_average_precision, (p, label), **how), C.mean_average_precision(p, label)
    note = "mean over classes of the average precision, each class against the rest"
    rows.append(Row("mAP", value, *bounds, n, "", "higher", note))
    surprise = -log_softmax(logits, 1)[np.arange(n), label]
    rows.append(Row("cross-entropy", surprise.mean(), *mean_interval(surprise, **how), n, "nats", "lower"))
    groups, left_out = C.group_accuracy(right, group) if pack.groups else {}, []
    if 1 < len(groups) <= SEVERAL:
        for name, (share, count) in sorted(groups.items(), key=lambda item: item[1][0]):
            rows.append(Row(f"accuracy, {shown(name) or 'no group'}", share, None, None, count, "", "higher"))
    elif len(groups) > SEVERAL:
        worst = min(groups, key=lambda name: groups[name][0])
        share = f"{groups[worst][0]:.1%}"
        left_out.append(
            f"accuracy per group: {len(groups)} groups, the worst is {shown(worst) or 'no group'} ({share})"
        )
    counts = C.confusion(label, predicted, len(run.labels))
    pictures = {"confusion.png": lambda path: draw_confusion(counts, run.labels, path)}
    return Card("classified", f"{n} recordings ({given.options.split})", rows, left_out, pictures)


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
