"""The files that a verb of sample.py is given: which they are, what is said of each, and where its result goes."""

import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence, Set
from itertools import chain
from pathlib import Path

from jaxaudio.core import InputError
from jaxaudio.data import audio

RECORDINGS = audio.SUFFIXES | audio.UNREADABLE  # those that can't be read are named


def found(files: Iterable[Path], suffixes: Set[str], what: str) -> list[Path]:
    """The files, and all in the folders that end so, sorted. What can't be looked into is told of when it is read."""

    def within(folder: Path) -> list[Path]:
        try:
            return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
        except OSError:
            return [folder]

    paths = list(chain.from_iterable(within(path) if os.path.isdir(path) else [path] for path in files))
    if not paths:
        raise InputError(f"no {what} given: name files, or a folder that holds some")
    return paths


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Each path once, at its first place."""
    return list({os.path.abspath(path): path for path in paths}.values())


def why(path: Path, reason: audio.Unusable) -> str:
    """The reason, or the remedy where a file is of a format that is known and not read."""
    if os.path.isfile(path) and path.suffix.lower() in audio.UNREADABLE:
        return f"this format is not read: convert it, as ffmpeg -i x{path.suffix} x.wav"
    return str(reason)


def regular(path: Path) -> None:
    """Raises `audio.Unusable` for what is no regular file: reading a pipe would wait for ever."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise audio.Unusable("not a regular file")
    except OSError as problem:
        raise audio.Unusable(problem.strerror or "can't be read") from problem


def targets(paths: Sequence[Path], out: Path, suffix: str) -> list[Path]:
    """A file in `out` for each, NAME + suffix or, where that is one of `paths` or taken by another, NAME-2 + suffix."""
    taken, chosen = {os.path.realpath(path) for path in paths}, []
    for path in paths:
        target, n = out / f"{path.stem}{suffix}", 1
        while os.path.realpath(target) in taken:
            n += 1
            target = out / f"{path.stem}-{n}{suffix}"
        taken.add(os.path.realpath(target))
        chosen.append(target)
    return chosen


def placed(paths: Sequence[Path], out: Path, suffix: str, ends: Set[str]) -> list[Path]:
    """`targets`, or `out` itself where it ends in one of `ends` and is no folder: the file of the only path. Raises
    InputError where it looks like a file and can be none."""
    if os.path.isdir(out):
        return targets(paths, out, suffix)
    if out.suffix.lower() not in ends:
        end = f"end it in {' or '.join(sorted(ends))}, or " if ends else ""
        if os.path.lexists(out):
            raise InputError(f"out is {audio.shown(out)}, a file that is there: {end}name a folder")
        if ends and any(map(str.isalpha, out.suffix)):  # a folder may end as 1.5 does
            raise InputError(f"out is {audio.shown(out)}, no folder that is there: {end}make that folder first")
        return targets(paths, out, suffix)
    if len(paths) > 1:
        raise InputError(f"out is the file {audio.shown(out)}, but {len(paths)} files are given: name a folder")
    return [out]


def fresh(paths: Iterable[Path], force: bool) -> None:
    """Raises InputError where one of these is there already and is not to be overwritten."""
    there = [] if force else [path for path in paths if os.path.lexists(path)]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise InputError(f"{audio.shown(there[0])}{more} is there already: give another --out, or --force to overwrite")


def one_by_one(
    paths: Sequence[Path],
    out: Path,
    suffix: str,
    act: Callable[[Path, Path], str],
    ends: Set[str] = frozenset(),
    force: bool = True,
) -> None:
    """`act` on every file, once, and its target, with a printed row each; a file that can't be used is named and left
    out. Raises InputError where none can be used, and, without `force`, where a target is there already. ends: as in
    `placed`."""
    paths = distinct(paths)
    places = placed(paths, out, suffix, ends)
    fresh(places, force)
    width, problem, used = min(48, max(len(audio.shown(path)) for path in paths)), None, 0
    for path, target in zip(paths, places, strict=True):
        name = audio.shown(path)
        try:
            words = act(path, target)
            used += 1
        except audio.Unusable as reason:
            words = f"left out: {reason}"
            problem = problem or f"{name}: {reason}"
        print(f"{name[-width:]:{width}}  {words}", flush=True)
    if not used:
        raise InputError(f"none of {len(paths)} files can be used; the first: {problem}")
    tell_left_out(len(paths) - used, len(paths))


def tell_left_out(left_out: int, of: int) -> None:
    """On standard error, where rows that go to a file do not hide it."""
    if left_out:
        print(f"{left_out} of {of} files were left out", file=sys.stderr)


def said(sound: audio.Recording) -> str:
    """How long a recording is, and what was done to it to fit the model."""
    words = [f"{sound.frames / sound.sample_rate:.2f} s"]
    if sound.file_rate != sound.sample_rate:
        words.append(f"resampled from {sound.file_rate} to {sound.sample_rate} Hz")
    if sound.file_channels > sound.channels:
        words.append("mono by the mean of its two channels")
    elif sound.file_channels < sound.channels:
        words.append(f"its one channel repeated to {sound.channels}")
    if sound.scale > 1:
        words.append(f"scaled down from a peak of {sound.scale:.3g}")
    return ", ".join(words)
