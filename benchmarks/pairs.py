"""Compressed, restored or vocoded sound against what it should be: python -m benchmarks.pairs REFERENCES ESTIMATES

Every file of one folder is compared with the file of the same name (but for the suffix) in the other.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.scorecard import Card, Row, deliver, origin, shortened
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data.pack import cache_folder
from jaxaudio.metrics import pairs as P
from jaxaudio.metrics.bootstrap import mean_interval
from jaxaudio.runtime import command

GRID_MS = 10  # lengths are cut down to multiples of it, so that many pairs share one, and so one compiled program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of this benchmark."""

    references: Annotated[Path, tyro.conf.Positional]  # folder of recordings
    estimates: Annotated[Path, tyro.conf.Positional]  # folder of what was made from them
    sample_rate: int = 16000  # Hz; files of another rate are resampled
    resamples: int = 1000  # of the bootstrap
    json: Path | None = None  # the scores are written there too


def main(arguments: list[str]) -> None:
    """Prints the card."""
    options = tyro.cli(Options, args=arguments, prog="benchmarks.pairs", description=__doc__)
    command.prepare(cache_folder())
    began = time.perf_counter()
    card = score(options.references, options.estimates, options.sample_rate, options.resamples)
    deliver(card, origin("benchmarks.pairs", arguments), None, options.json)
    where = f" -> {audio.shown(options.json)}" if options.json else ""
    print(f"scored in {time.perf_counter() - began:.0f} s{where}")


def score(references: Path, estimates: Path, sample_rate: int, resamples: int = 1000) -> Card:
    """All metrics that are defined on these pairs, and what was left out of which."""
    mean_interval(np.zeros(2), resamples)  # refuses too few resamples, before anything is read
    grid = sample_rate * GRID_MS // 1000
    if grid < 1:
        raise InputError(f"sample_rate is {sample_rate}: it is {1000 // GRID_MS} Hz at least")
    found = files_of(references), files_of(estimates)
    names = [name for name in found[0] if name in found[1]]
    if not names:
        raise InputError(
            f"no file of {audio.shown(references)} has one of the same name in {audio.shown(estimates)}: "
            "references and estimates are paired by their names"
        )
    left_out = [
        f"{len(files) - len(names)} files of {audio.shown(folder)} have no partner"
        for files, folder in zip(found, (references, estimates), strict=True)
        if len(files) > len(names)
    ]
    groups, unreadable, cuts = read(names, *found, sample_rate, grid)
    readable = len(names) - len(unreadable)
    if not readable:
        raise InputError(f"none of {len(names)} pairs can be read; the first: {unreadable[0]}")
    if unreadable:
        each = "; ".join(shortened(unreadable))
        left_out.append(f"{len(unreadable)} of {len(names)} pairs, which can't be read: {each}")
    for what, cut in zip(
        ("the end of the longer sound", f"what lies beyond a multiple of {GRID_MS} ms"), cuts, strict=True
    ):
        if any(cut):
            seconds = max(cut) / sample_rate
            left_out.append(f"{what}, in {np.count_nonzero(cut)} of {readable} pairs, {seconds:.3g} s at most")
    rows = []
    for metric, entry in P.METRICS.items():
        values, refused = measured(metric, groups, sample_rate)
        left_out += [f"{metric}: {reason}" for reason in refused]
        undefined = readable - len(values)
        if undefined and not any("pip install" in reason for reason in refused):
            left_out.append(f"{metric}: undefined on {undefined} of {readable} pairs (silence, or too short)")
        if len(values):
            bounds = mean_interval(values, resamples) if len(values) > 1 else (None, None)
            better = {"zero": ""}.get(entry.better, entry.better)
            rows.append(Row(metric, values.mean(), *bounds, len(values), entry.unit, better, entry.convention))
    return Card("pairs", f"{readable} pairs at {sample_rate} Hz", rows, left_out)


def files_of(folder: Path) -> dict[Path, Path]:
    """The audio files in a folder, by their name without suffix."""
    if not folder.is_dir():
        raise InputError(f"{audio.shown(folder)} is no folder: name two folders of audio files")
    found: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in audio.SUFFIXES:
            continue
        name = path.relative_to(folder).with_suffix("")
        if name in found:
            raise InputError(
                f"{audio.shown(found[name])} and {audio.shown(path)} have one name: keep one of them, since pairs are "
                "told by the name without its suffix"
            )
        found[name] = path
    return found


def read(
    names: list[Path], references: Mapping[Path, Path], estimates: Mapping[Path, Path], sample_rate: int, grid: int
) -> tuple[dict[int, list[tuple[np.ndarray, np.ndarray]]], list[str], tuple[list[int], list[int]]]:
    """Pairs by their length, cut to that of the shorter one and to a multiple of `grid`; why others can't be read; and
    how many samples the one and the other cut took off each pair."""
    groups: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    unreadable, cuts = [], ([], [])
    for name in names:
        try:
            r, e = (audio.read(str(files[name]), sample_rate, 1)[:, 0] for files in (references, estimates))
        except audio.Unusable as reason:
            unreadable.append(f"{audio.shown(name)}: {reason}")
            continue
        shorter = min(len(r), len(e))
        length = shorter // grid * grid
        cuts[0].append(max(len(r), len(e)) - shorter)
        cuts[1].append(shorter - length)
        groups.setdefault(length, []).append((r[:length], e[:length]))
    return groups, unreadable, cuts


def measured(
    metric: str, groups: Mapping[int, list[tuple[np.ndarray, np.ndarray]]], sample_rate: int
) -> tuple[np.ndarray, list[str]]:
    """The metric's values on all pairs on which it is defined, and why it refuses whole groups. Pairs of one length are
    measured at once: one compilation, and listeners spread over the cores."""
    values, refused = [np.zeros(0)], []
    for _, pairs in sorted(groups.items()):
        r, e = (jnp.asarray(np.stack(side)) for side in zip(*pairs, strict=True))
        try:
            values.append(P.measure(metric, r, e, sample_rate)[0])
        except InputError as reason:
            if "pip install" in str(reason):
                return np.zeros(0), [str(reason)]
            refused.append(f"{reason} ({len(pairs)} pairs)")
    return np.concatenate(values), refused


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
