"""The scorecard: python -m benchmarks.quality RUN [--data FOLDER] [--classifier RUN2] [--json FILE]

Scores whatever a trained run can do on held-out recordings, with 95 % intervals, and adds a section to its report.html.
    generators    against recordings: distances, memorisation, and what a classifier run hears in the sounds
    classifiers   accuracy, average precision, accuracy per speaker (or other group), confusion
    --pairs A B   without a run: the files of folder B (compressed, restored, vocoded) against those of A
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxaudio.core import Classifies, Generates, InputError
from jaxaudio.data import audio, synth
from jaxaudio.data.clips import Clips, Plan
from jaxaudio.data.pack import Folder, Pack, cache_folder, open_pack
from jaxaudio.dsp.mel import log_mel, mel_filters
from jaxaudio.losses import spectral_energy_distance
from jaxaudio.metrics import classification as C
from jaxaudio.metrics import generation as G
from jaxaudio.metrics import pairs as P
from jaxaudio.metrics.bootstrap import interval, jackknife_interval, mean_interval
from jaxaudio.runtime import command, report
from jaxaudio.runtime.confusion import draw_confusion
from jaxaudio.runtime.folder import Trained, trained
from jaxaudio.runtime.versions import revision, versions
from jaxaudio.tasks.classify import judge_of

BATCH = 50  # sounds made at once
MEMORY = (2048, 512, 64)  # window, hop and mel bands of the pictures whose distances tell copies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    run: Annotated[Path | None, tyro.conf.Positional] = None  # the folder that train.py wrote
    data: Path | None = None  # folder of recordings; none: the run's own
    classifier: Path | None = None  # a classifier's run, trained on recordings of the same kind
    embeddings: Path | None = None  # .npz of real and fake [clips, features] from a network of your own
    split: Literal["valid", "test", "train"] = "valid"  # which recordings are compared with
    n: int = 1000  # sounds made, and recordings taken at most
    seed: int = 0  # of the sounds and of the intervals
    checkpoint: str = "latest"  # latest, best, or a step's number
    resamples: int = 200  # of the bootstrap
    pairs: tuple[Path, Path] | None = None  # references and estimates, by file name; no run
    sample_rate: int = 16000  # Hz, of --pairs: files of another rate are resampled
    json: Path | None = None  # the scores are written there too


class Row(NamedTuple):
    """A line of the scorecard. `better`: higher, lower, or nothing where the value is to be compared."""

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str = ""
    better: str = ""
    note: str = ""


class Card(NamedTuple):
    """A table of scores: `pictures` are file names in the run's folder `scores`."""

    name: str
    title: str
    rows: list[Row]
    left_out: list[str]
    pictures: Mapping[str, Callable[[Path], Any]] = {}


def main(arguments: list[str]) -> None:
    """Prints the cards of the run, or of the pairs."""
    options = tyro.cli(Options, args=arguments, prog="benchmarks.quality", description=__doc__)
    command.prepare(cache_folder())
    if (options.run is None) == (options.pairs is None):
        raise InputError("name a run's folder, or two folders with --pairs")
    if options.n < 2:
        raise InputError(f"n is {options.n}: scores need 2 sounds at least")
    began = time.perf_counter()
    if options.pairs:
        cards, run = [of_pairs(*options.pairs, options.sample_rate, options.resamples)], None
    else:
        run = trained(options.run, options.checkpoint)
        cards = list(of_run(run, options))
    about = {"command": " ".join(["python -m benchmarks.quality", *arguments]), "step": run.step if run else 0}
    about |= {"when": time.strftime("%Y-%m-%d %H:%M"), "versions": versions(), "git": revision()}
    for card in cards:
        print(table(card))
        if run:
            write(options.run / "scores", card, about)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            with open(options.json, "a") as file:
                file.write(json.dumps(as_json(card, about)) + "\n")
    print(f"scored in {time.perf_counter() - began:.0f} s", end="")
    print(f" -> {report.write(options.run)}" if run else "" if options.json is None else f" -> {options.json}")


def of_run(run: Trained, options: Options) -> Iterator[Card]:
    """A card for each thing that the run can do and that can be scored."""
    pack = data_of(run, options)
    known = False
    if isinstance(run.model, Generates):
        known = True
        yield of_generator(run, pack, options)
    if isinstance(run.model, Classifies):
        known = True
        yield of_classifier(run, pack, options)
    if not known:
        raise InputError(f"{run.folder} can do nothing that is scored here: generators and classifiers are")


def data_of(run: Trained, options: Options) -> Pack:
    """The recordings: those asked for, or those of the run."""
    model, folder = run.model, options.data
    if folder is None:
        stated = json.loads((run.folder / "run.json").read_text())["data"]["folder"]
        folder = None if stated == "None" else Path(stated)
    if folder is None:
        return open_pack(synth.Recordings(model.sample_rate, model.channels, model.segment))
    return open_pack(Folder(folder, model.sample_rate, model.channels))


# ------------------------------------------------------------------------------------------------------- generators


def of_generator(run: Trained, pack: Pack, options: Options) -> Card:
    """Generated sounds against held-out recordings, and against the training set."""
    real, train = (clips_of(run, pack, split, options.n) for split in (options.split, "train"))
    asked = np.arange(options.n) % len(run.labels) if run.labels else None
    fake = sounds_of(run, options.n, asked, options.seed)
    how, left_out = {"resamples": options.resamples, "seed": options.seed}, []
    rows = [*signal_rows(real.wave, fake, how), *memory_rows(run, real.wave, fake, train.wave, how)]
    if options.classifier:
        judge = trained(options.classifier)
        rows += classifier_rows(judge, run, real, train, fake, asked, how, left_out)
    else:
        left_out.append("Inception Score and its kin, Frechet distance, label accuracy: name a run with --classifier")
    if options.embeddings:
        given = load_embeddings(options.embeddings)
        rows += frechet_rows(given["real"], given["fake"], f"embedding of {options.embeddings.name}", left_out)
    return Card(
        "generated", f"{options.n} generated sounds, {len(real.wave)} recordings ({options.split})", rows, left_out
    )


class Taken(NamedTuple):
    """Recordings as the model hears them: wave [n, segment, channels], label [n], group [n] by name."""

    wave: np.ndarray
    label: np.ndarray
    group: np.ndarray


def clips_of(run: Trained, pack: Pack, split: str, most: int) -> Taken:
    """At most so many recordings of a split, evenly spread over it."""
    clips = Clips(pack, run.model, 0, split)
    if clips.units < 2:
        raise InputError(
            f"{clips.units} recordings in the split {split}: scores need 2 at least; choose another --split"
        )
    names = np.array([*pack.groups, ""])
    waves, labels, groups = [], [], []
    for plan, count in clips.survey(most):
        batch = clips.gather(Plan(*(field[:count] for field in plan)))
        which = np.searchsorted(clips.start, plan.start[:count], side="right") - 1
        waves.append(batch.wave)
        labels.append(batch.label)
        groups.append(names[pack.group[clips.chosen[which]]])
    return Taken(*(np.concatenate(parts) for parts in (waves, labels, groups)))


def sounds_of(run: Trained, n: int, asked: np.ndarray | None, seed: int) -> np.ndarray:
    """[n, segment, channels], made from the seed alone; with labels if the model is conditional."""
    make, made = jax.jit(run.model.generate, static_argnums=(2, 3)), []
    for i in range(-(-n // BATCH)):
        label = None if asked is None else jnp.asarray(np.resize(asked[i * BATCH : (i + 1) * BATCH], BATCH))
        key = jax.random.fold_in(jax.random.key(seed), i)
        made.append(np.asarray(make(run.params, key, BATCH, run.model.segment, label)))
    return np.concatenate(made)[:n]


def signal_rows(real: np.ndarray, fake: np.ndarray, how: Mapping[str, int]) -> list[Row]:
    """What needs no other network."""
    rng = np.random.default_rng(how["seed"])
    n = min(len(real), len(fake))
    halves = (rng.permutation(x)[:n] for x in (real, fake))
    energy = in_batches(jax.jit(spectral_energy_distance), *halves).astype(np.float64)
    silent = float(np.mean(np.abs(fake).max((1, 2)) < 1e-3))
    note = "energy distance of log spectra; 0: the same distribution; pairs of sounds drawn at random"
    rows = [Row("spectral energy distance", energy.mean(), *mean_interval(energy, **how), n, "nepers", "lower", note)]
    if silent:
        rows.append(Row("silent sounds", silent, None, None, len(fake), "", "lower", "share with a peak below 0.001"))
    return rows


def memory_rows(run: Trained, real, fake, train, how) -> list[Row]:
    """Whether sounds are copies of training recordings, by the distance of log-mel pictures."""
    window, hop, mels = MEMORY
    filters = mel_filters(run.model.sample_rate, 8 * window, mels)[::8]

    @jax.jit
    def picture(wave):
        level = log_mel(jnp.mean(wave, -1), filters, window, hop, floor=1e-3)
        return level.reshape(len(wave), -1)

    made, held, known = (in_batches(picture, x).astype(np.float64) for x in (fake, real, train))
    near = G.nearest_distances(made, known), G.nearest_distances(held, known)
    ratio = lambda a, b: float(np.median(a) / max(np.median(b), 1e-12))
    note = (
        f"distance to the nearest of {len(train)} training recordings, over that of held-out ones; well below 1: copies"
    )
    spread = G.diversity(made), G.diversity(held)
    return [
        Row("memorisation", ratio(*near), *interval(ratio, near, **how, independent=True), len(fake), "", "", note),
        Row(
            "diversity, log-mel",
            spread[0] / spread[1],
            *interval(
                lambda a, b: G.diversity(a) / G.diversity(b), (made, held), 40, seed=how["seed"], independent=True
            ),
            len(fake),
            "",
            "",
            "distance of two generated sounds, over that of two held-out recordings; below 1: poorer",
        ),
    ]


def classifier_rows(judge: Trained, run: Trained, real, train, fake, asked, how, left_out) -> list[Row]:
    """What a classifier hears."""
    hear = listener(judge, run)
    (logits, made), (real_logits, held), (train_logits, _) = (hear(x) for x in (fake, real.wave, train.wave))
    p, real_p, train_p = (np.asarray(jax.nn.softmax(x, -1), np.float64) for x in (logits, real_logits, train_logits))
    rng = np.random.default_rng(how["seed"])
    p, real_p = rng.permutation(p), rng.permutation(real_p)
    classes, marginal, rows = p.shape[1], train_p.mean(0), []

    def score(name, statistic, better, unit="", note=""):
        try:
            value, reference = statistic(p), statistic(real_p)
            bounds = interval(statistic, (p,), **how)
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
            return
        rows.append(Row(name, value, *bounds, len(p), unit, better, f"{note}; held-out recordings {reference:.4g}"))

    splits = min(10, len(p) // classes, len(real_p) // classes) or 1
    score("Inception Score", lambda x: G.inception_score(x, splits), "higher", note=f"{splits} splits, 1 to {classes}")
    score("modified IS", G.modified_inception_score, "higher", note="KL between all pairs")
    score("AM score", lambda x: G.am_score(x, marginal), "lower", "nats", "against the training set's classes")
    rows += frechet_rows(held, made, "the classifier's embedding", left_out)
    heard = p.argmax(1)
    even = lambda labels: G.balance(labels, classes)
    note = f"entropy of the classes heard, 1: even; held-out recordings {even(real_p.argmax(1)):.3f}"
    rows.append(
        Row(
            "class balance",
            even(heard),
            *jackknife_interval(even, (heard,), min(20, len(p) // 2)),
            len(p),
            "",
            "higher",
            note,
        )
    )
    if asked is not None and judge.labels == run.labels:
        right = G.agreement(logits.argmax(1), asked)
        held_out = np.mean(real_logits.argmax(1) == real.label)
        note = f"heard as the class that was asked for; held-out recordings {held_out:.1%}"
        rows.append(Row("label accuracy", right.mean(), *mean_interval(right, **how), len(right), "", "higher", note))
    elif asked is not None:
        left_out.append(f"label accuracy: {judge.folder} knows other classes ({', '.join(judge.labels[:5])}, ...)")
    return rows


def frechet_rows(real: np.ndarray, fake: np.ndarray, of: str, left_out: list[str]) -> list[Row]:
    """The Frechet distance as it is usually given, and extrapolated to infinitely many clips."""
    rows, n = [], min(len(real), len(fake))
    kinds = {
        "Frechet distance": (G.frechet_distance, f"{of}, {len(fake)} against {len(real)}: biased upwards"),
        "Frechet distance, unbiased": (G.frechet_distance_unbiased, f"{of}, extrapolated to infinitely many"),
    }
    for name, (statistic, note) in kinds.items():
        try:
            bounds = jackknife_interval(statistic, (real, fake), min(20, n // 2), independent=True)
            rows.append(Row(name, statistic(real, fake), *bounds, n, "", "lower", note))
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
    return rows


def listener(judge: Trained, run: Trained) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """wave [n, segment, channels] as the run has it -> the classifier's logits and embeddings."""
    model = judge.model
    if not isinstance(model, Classifies):
        raise InputError(f"{judge.folder} is no classifier's run: train one with python train.py classifier:digits")
    if (model.sample_rate, model.channels) != (run.model.sample_rate, run.model.channels):
        raise InputError(
            f"{judge.folder} hears {model.channels} channels at {model.sample_rate} Hz, {run.folder} has "
            f"{run.model.channels} at {run.model.sample_rate} Hz: train a classifier of that rate and channel count"
        )
    hear = judge_of(model, judge.params)

    def listen(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        short = max(0, model.segment - wave.shape[1])
        wave = np.pad(wave[:, : model.segment], ((0, 0), (0, short), (0, 0)))
        if model.gain == "peak":
            wave = wave / np.maximum(np.abs(wave).max((1, 2), keepdims=True), 1e-9)
        return hear(wave.astype(np.float32))

    return listen


def load_embeddings(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays `real` and `fake` of an .npz file, [clips, features]."""
    try:
        with np.load(path) as file:
            given = {name: np.asarray(file[name], np.float64) for name in ("real", "fake")}
    except (OSError, ValueError, KeyError) as problem:
        raise InputError(f"{path} is no .npz file with the arrays real and fake ({problem})") from problem
    if any(x.ndim != 2 for x in given.values()):
        raise InputError(f"{path} holds arrays of {[x.shape for x in given.values()]}: they are [clips, features]")
    return given


# ------------------------------------------------------------------------------------------------------ classifiers


def of_classifier(run: Trained, pack: Pack, options: Options) -> Card:
    """Accuracy in all and per group, average precision, confusion."""
    if pack.classes != run.labels:
        raise InputError(
            f"the data's classes are {', '.join(pack.classes[:12]) or 'none'}, the run's {', '.join(run.labels[:12])}: "
            "score it on data of the same classes"
        )
    taken = clips_of(run, pack, options.split, 10**9)
    logits, _ = judge_of(run.model, run.params)(taken.wave)
    predicted, label = logits.argmax(1), taken.label
    how = {"resamples": options.resamples, "seed": options.seed}
    right = (predicted == label).astype(np.float64)
    rows = [
        Row("accuracy", right.mean(), *mean_interval(right, **how), len(right), "", "higher", "share that is right")
    ]
    precision = interval(C.mean_average_precision, (logits, label), **how)
    value = C.mean_average_precision(logits, label)
    note = "mean over classes of the average precision, each class against the rest"
    rows.append(Row("mAP", value, *precision, len(right), "", "higher", note))
    surprise = -np.asarray(jax.nn.log_softmax(logits, -1), np.float64)[np.arange(len(label)), label]
    rows.append(Row("cross-entropy", surprise.mean(), *mean_interval(surprise, **how), len(right), "nats", "lower"))
    groups = C.group_accuracy(right, taken.group) if pack.groups else {}
    left_out = []
    if 1 < len(groups) <= 50:
        for name, (share, count) in sorted(groups.items(), key=lambda item: item[1][0]):
            rows.append(Row(f"accuracy, {name or 'no group'}", share, None, None, count, "", "higher", "one group"))
    elif groups:
        worst = min(groups, key=lambda name: groups[name][0])
        left_out.append(f"accuracy per group: {len(groups)} groups, the worst is {worst} ({groups[worst][0]:.1%})")
    counts = C.confusion(label, predicted, len(run.labels))
    pictures = {"confusion.png": lambda path: draw_confusion(counts, run.labels, path)}
    return Card("classified", f"{len(right)} recordings ({options.split})", rows, left_out, pictures)


# ------------------------------------------------------------------------------------------------------------ pairs


def of_pairs(references: Path, estimates: Path, sample_rate: int, resamples: int) -> Card:
    """Every file of one folder against the file of the same name (but for the suffix) in the other."""
    names_of = lambda folder: {
        path.relative_to(folder).with_suffix(""): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in audio.SUFFIXES
    }
    found = names_of(references), names_of(estimates)
    names = [name for name in found[0] if name in found[1]]
    if not names:
        raise InputError(f"no file of {references} has one of the same name in {estimates}")
    alone = [(len(files) - len(names), folder) for files, folder in zip(found, (references, estimates), strict=True)]
    left_out = [f"{count} files of {folder} have no partner" for count, folder in alone if count]
    scores: dict[str, list[np.ndarray]] = {name: [] for name in P.METRICS}
    for name in names:
        try:
            r, e = (audio.read(str(files[name]), sample_rate, 1)[:, 0] for files in found)
        except audio.Unusable as reason:
            left_out.append(f"{name}: {reason}")
            continue
        n = min(len(r), len(e))
        for metric in list(scores):
            try:
                values, _ = P.measure(metric, jnp.asarray(r[None, :n]), jnp.asarray(e[None, :n]), sample_rate)
                scores[metric].append(values)
            except InputError as reason:
                if "pip install" in str(reason):
                    del scores[metric]
                left_out.append(f"{metric} of {name}: {reason}")
    rows = []
    for metric, parts in scores.items():
        values, entry = np.concatenate([np.zeros(0), *parts]), P.METRICS[metric]
        better = {"zero": ""}.get(entry.better, entry.better)
        if len(values) < len(names):
            left_out.append(
                f"{metric}: undefined on {len(names) - len(values)} of {len(names)} pairs (silence, or too short)"
            )
        if len(values):
            bounds = mean_interval(values, resamples) if len(values) > 1 else (None, None)
            rows.append(Row(metric, values.mean(), *bounds, len(values), entry.unit, better, entry.convention))
    return Card("pairs", f"{len(names)} pairs at {sample_rate} Hz", rows, left_out)


# ----------------------------------------------------------------------------------------------------------- output


def in_batches(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """function(*rows) over blocks of one size, the last one filled up from its own beginning; what it gave, joined."""
    n, outputs = len(arrays[0]), []
    size = min(n, 2 * BATCH)
    for first in range(0, n, size):
        rows = np.resize(np.arange(first, min(first + size, n)), size)
        outputs.append(np.asarray(function(*(jnp.asarray(x[rows]) for x in arrays)))[: min(size, n - first)])
    return np.concatenate(outputs)


def as_json(card: Card, about: Mapping[str, Any]) -> dict[str, Any]:
    """What report.html and programs read."""
    rows = [{**row._asdict(), "value": float(row.value)} for row in card.rows]
    return {"title": card.title, **about, "rows": rows, "left_out": card.left_out, "pictures": list(card.pictures)}


def write(folder: Path, card: Card, about: Mapping[str, Any]) -> None:
    """scores/NAME.json and its pictures, in a run's folder."""
    folder.mkdir(exist_ok=True)
    for name, draw in card.pictures.items():
        draw(folder / name)
    fresh = folder / f"{card.name}.new"
    fresh.write_text(json.dumps(as_json(card, about), indent=1) + "\n")
    fresh.replace(folder / f"{card.name}.json")


def table(card: Card) -> str:
    """The card for people."""
    width = max([len(row.metric) for row in card.rows] or [0])
    lines = [card.title]
    for row in card.rows:
        bounds = "" if row.low is None else f"[{row.low:.4g}, {row.high:.4g}]"
        sign = {"higher": "+", "lower": "-"}.get(row.better, " ")
        lines.append(f"  {row.metric:{width}} {sign} {row.value:9.4g} {bounds:22} {row.unit:7} n {row.n:5}  {row.note}")
    lines += [f"  left out: {reason}" for reason in _shortened(card.left_out)]
    return "\n".join(lines)


def _shortened(reasons: Sequence[str], most: int = 8) -> list[str]:
    return [*reasons[:most], *([f"and {len(reasons) - most} more"] if len(reasons) > most else [])]


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
