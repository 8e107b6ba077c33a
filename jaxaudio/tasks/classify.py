"""Which class a recording belongs to."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.special import softmax

from jaxaudio.core import Classifies, InputError, Model, Params
from jaxaudio.data import audio
from jaxaudio.data.files import RECORDINGS, distinct, found, tell_left_out, why
from jaxaudio.runtime.folder import Trained

NEEDS = Classifies
Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # of `judge_of`

ROWS = 16  # parts of recordings that are classified at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of the verb classify."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # recordings, or folders of them
    top: int = 3  # classes shown per recording, the most probable first
    csv: Path | None = None  # a table of all probabilities is written there


class Judged(NamedTuple):
    """A recording, with the probability of every class, or why it can't be used."""

    path: Path
    probabilities: np.ndarray | None  # [classes]
    problem: str = ""


def perform(trained: Trained, options: Options, seed: int, out: Path) -> Path | None:
    """Prints a row per recording; with `csv`, writes the table. A recording that is longer than the model's segment is
    classified in parts, and their probabilities are averaged."""
    del seed, out
    if options.top < 1:
        raise InputError(f"top is {options.top}: ask for at least one class")
    paths, rows = distinct(found(options.files, RECORDINGS, "recording")), []
    width = min(48, max(len(audio.shown(path)) for path in paths))
    for each in judged(trained, paths):
        print(f"{audio.shown(each.path)[-width:]:{width}}  {told(each, trained.labels, options.top)}", flush=True)
        rows.append(each)
    if all(each.probabilities is None for each in rows):
        first = f"{audio.shown(rows[0].path)}: {rows[0].problem}"
        raise InputError(f"none of {len(rows)} recordings can be used; the first: {first}")
    tell_left_out(sum(each.probabilities is None for each in rows), len(rows))
    if options.csv:
        write(options.csv, rows, trained.labels)
    return options.csv


def judged(trained: Trained, paths: Sequence[Path]) -> Iterator[Judged]:
    """Every recording in turn; one that can't be read comes with the reason."""
    judge = judge_of(trained.model, trained.params)
    for path in paths:
        try:
            wave = audio.read(str(path), trained.model.sample_rate, trained.model.channels)
        except audio.Unusable as reason:
            yield Judged(path, None, why(path, reason))
            continue
        yield Judged(path, hear(judge, [wave], trained.model)[0][0])


def hear(judge: Judge, waves: Iterable[np.ndarray], model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes] and embeddings [n, features] of sounds [frames, channels], each the mean over its
    parts, in float64."""
    parts = [parts_of(wave, model) for wave in waves]
    counts = np.array([len(each) for each in parts])
    logits, embeddings = judge(np.concatenate(parts))
    mean = lambda x: np.add.reduceat(x, np.cumsum(counts) - counts) / counts[:, None]
    return mean(softmax(logits.astype(np.float64), 1)), mean(embeddings.astype(np.float64))


def judge_of(model: Classifies, params: Params) -> Judge:
    """wave [n, segment, channels] -> logits [n, classes] and embeddings [n, features] as numpy, in batches of one
    size, so that there is one compilation."""
    program = jax.jit(model.classify)

    def judge(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = []
        for first in range(0, len(wave), ROWS):
            part = wave[first : first + ROWS]
            rows = np.concatenate([part, np.zeros((ROWS - len(part), *part.shape[1:]), np.float32)])
            outputs.append([np.asarray(x)[: len(part)] for x in program(params, jnp.asarray(rows))])
        logits, embeddings = zip(*outputs, strict=True)
        return np.concatenate(logits), np.concatenate(embeddings)

    return judge


def parts_of(wave: np.ndarray, model: Model) -> np.ndarray:
    """[frames, channels] -> [parts, segment, channels]: one after the other, the last one ending where the recording
    ends; a shorter recording is followed by zeros. Scaled as the model's recordings are (`gain`)."""
    if model.gain == "peak":
        wave = wave / max(float(np.abs(wave).max()), 1e-9)
    short = max(0, model.segment - len(wave))
    wave = np.pad(wave, ((0, short), (0, 0)))
    count = -(-len(wave) // model.segment)
    starts = [min(i * model.segment, len(wave) - model.segment) for i in range(count)]
    return np.stack([wave[start : start + model.segment] for start in starts]).astype(np.float32)


def told(each: Judged, labels: Sequence[str], top: int) -> str:
    """A row's text: the most probable classes, or what is wrong."""
    if each.probabilities is None:
        return f"left out: {each.problem}"
    best = np.argsort(-each.probabilities, kind="stable")[:top]
    return "  ".join(f"{audio.shown(labels[i])} {each.probabilities[i]:6.1%}" for i in best)


def write(path: Path, found: Sequence[Judged], labels: Sequence[str]) -> None:
    """A row per recording: path, its class, the probability of every class; or path and the reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", "class", *labels, "left_out"])
        for each in found:
            if each.probabilities is None:
                table.writerow([each.path, "", *[""] * len(labels), each.problem])
            else:
                values = [f"{p:.6f}" for p in each.probabilities]
                table.writerow([each.path, labels[int(each.probabilities.argmax())], *values, ""])
