"""A folder of audio becomes one int16 memory map and an index, once; after that no codec runs.

A pack lies in the cache under the key of its source: `samples.i16`, `index.npz`, `index.json`, and `rejected.csv` with
every recording that can't be used and why. It is made in a temporary folder beside it and renamed when it is whole.
"""

import contextlib
import csv
import hashlib
import json
import os
import shutil
import time
import uuid
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from jaxaudio.core import InputError
from jaxaudio.data import audio, layouts
from jaxaudio.runtime.store import MANIFEST, Store, cache_folder, url_of

FORMAT = 2  # of a pack and of the rules by which it is made: part of every folder's key
ABANDONED = 24 * 3600  # seconds after which a temporary folder that nobody writes to is removed
ARRAYS = {"start": np.int64, "length": np.int64, "peak": np.int32, "label": np.int32, "group": np.int32}
ARRAYS |= {"split": np.int8}


@dataclass(frozen=True, eq=False)
class Pack:
    """Recordings of one rate and channel count, in the order of their source, without those that can't be used."""

    samples: np.ndarray  # int16 [frames, channels], a read-only memory map: all recordings end to end
    start: np.ndarray  # int64 [recordings], samples
    length: np.ndarray  # int64 [recordings], samples
    peak: np.ndarray  # int32 [recordings], largest |sample|, 1..32768
    label: np.ndarray  # int32 [recordings], index into classes; zeros where classes is empty
    group: np.ndarray  # int32 [recordings], index into groups; -1 where a recording has none
    split: np.ndarray  # int8 [recordings], index into layouts.SPLITS
    names: tuple[str, ...]
    classes: tuple[
        str, ...
    ]  # numbers by value, words as they first come (0_zero, 1_one, ...); () if there are no labels
    groups: tuple[str, ...]  # speakers, instruments or sources, as they first come
    sample_rate: int  # Hz
    channels: int
    layout: str  # the kind of Layout
    fingerprint: str  # 16 hex digits of all of the above, samples included; not of where or when it was made
    folder: Path  # where it lies in the cache
    rejected: tuple[tuple[str, str], ...]  # (name, reason)


@runtime_checkable  # for the check of types in the tests
class Source(Protocol):
    """What can be packed; `str` of it names it in errors."""

    key: str  # names the pack in the cache: changes whenever the content may have
    layout: layouts.Layout
    sample_rate: int  # Hz
    channels: int

    def read(self, i: int) -> np.ndarray:
        """Entry i as float32 [frames, channels], |x| <= 1; raises `audio.Unusable`. Called from several threads."""
        ...


class Folder:
    """A folder of audio files as a source. Its key follows from name, label, split, group, size and time of every file
    (so from the tables too), the rate and the channels, but not from where the folder lies. column: what a label is."""

    def __init__(self, path: str | Path, sample_rate: int, channels: int, column: str = "label") -> None:
        self.path, self.sample_rate, self.channels = Path(path), sample_rate, channels
        self.layout = layouts.describe(self.path, column)
        digest = hashlib.blake2b(repr((FORMAT, sample_rate, channels, self.layout.kind)).encode(), digest_size=16)
        for entry in self.layout.entries:
            try:
                found = os.stat(os.path.join(self.path, entry.name))
                state = (found.st_size, found.st_mtime_ns)
            except OSError:
                state = None
            digest.update(ascii((*entry, state)).encode())
        self.key = digest.hexdigest()

    def __str__(self) -> str:
        return audio.shown(self.path)

    def read(self, i: int) -> np.ndarray:
        """Entry i as float32 [frames, channels], |x| <= 1; raises `audio.Unusable`."""
        return audio.read(os.path.join(self.path, self.layout.entries[i].name), self.sample_rate, self.channels)


class Folders:
    """Several folders as one source, one after the other: each keeps its own layout, splits and groups.

    A recording's name and its group begin with the folder's name (NAME-2 where another one has it), so that two
    speakers s1 stay two. A label that two folders have is one class; where a folder has no labels, there are none. The
    key follows from the folders' names and keys, in their order.
    """

    def __init__(self, paths: Sequence[Path], sample_rate: int, channels: int, column: str = "label") -> None:
        self.sample_rate, self.channels = sample_rate, channels
        folders = [Folder(path, sample_rate, channels, column) for path in paths]
        _refuse_shared(folders)
        self.words = ", ".join(map(str, folders))
        self.places = [(folder, i) for folder in folders for i in range(len(folder.layout.entries))]
        named = dict(zip(_names(paths), folders, strict=True))
        bare = [name for name, folder in named.items() if folder.layout.entries[0].label is None]

        def within(name: str, entry: layouts.Entry) -> layouts.Entry:
            label, group = None if bare else entry.label, entry.group and f"{name}/{entry.group}"
            return entry._replace(name=f"{name}/{entry.name}", label=label, group=group)

        entries = (within(name, entry) for name, folder in named.items() for entry in folder.layout.entries)
        kind = " and ".join(f"{audio.shown(name)} ({folder.layout.kind})" for name, folder in named.items())
        if 0 < len(bare) < len(folders):
            kind += f" without labels, as {audio.shown(bare[0])} has none"
        self.layout = layouts.Layout(kind, tuple(entries))
        about = (FORMAT, sample_rate, channels, *((name, folder.key) for name, folder in named.items()))
        self.key = hashlib.blake2b(ascii(about).encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        return self.words

    def read(self, i: int) -> np.ndarray:
        """Entry i as float32 [frames, channels], |x| <= 1; raises `audio.Unusable`."""
        folder, index = self.places[i]
        return folder.read(index)


class Stored:
    """A pack in a store, where `python -m jaxaudio.data.upload` has put it, in place of the recordings.

    Below one URL lie the packs of the same recordings, one for each rate, channel count and meaning of a label. The key
    follows from the manifest of what is there. Raises InputError where there is none, or not a whole one.
    """

    def __init__(self, url: str | Path, sample_rate: int, channels: int, column: str = "label") -> None:
        self.store, self.below = Store(url), below(sample_rate, channels, column)
        manifest = self.store.read(self.below + MANIFEST)
        if manifest is None or not self.store.whole(self.below):
            raise InputError(
                f"{self} has no pack of {sample_rate} Hz, {channels} channels and the labels {column!r}: put it there "
                f"from where the recordings are, as python -m jaxaudio.data.upload {self} --data FOLDER --sample-rate "
                f"{sample_rate} --channels {channels}" + (f" --label {column}" if column != "label" else "")
            )
        about = repr((FORMAT, self.store.url, self.below)).encode()
        self.key = hashlib.blake2b(about + manifest, digest_size=16).hexdigest()

    def __str__(self) -> str:
        return audio.shown(self.store.url)

    def fetch(self, folder: Path) -> None:
        """All files of the pack, into an empty folder."""
        print(f"fetching the pack {self}/{self.below.rstrip('/')}", flush=True)
        self.store.get(self.below, folder)


def below(sample_rate: int, channels: int, column: str) -> str:
    """Where such a pack lies below the URL that `--data` names."""
    return f"pack-{FORMAT}/{sample_rate}-{channels}-{quote(column, safe='')}/"


def recordings(
    paths: Sequence[Path], sample_rate: int, channels: int, column: str = "label"
) -> Folder | Folders | Stored:
    """A folder, or several, as a source; or what a store holds of them. column: what a label is."""
    if urls := [path for path in paths if url_of(path)]:
        if len(paths) > 1:
            raise InputError(f"{audio.shown(urls[0])} is given beside other folders: a pack in a store stands alone")
        return Stored(urls[0], sample_rate, channels, column)
    if len(paths) == 1:
        return Folder(paths[0], sample_rate, channels, column)
    return Folders(paths, sample_rate, channels, column)


def _names(paths: Sequence[Path]) -> list[str]:
    """What the folders are called, each otherwise."""
    names = []
    for path in paths:
        name = first = os.path.basename(os.path.abspath(path)) or "root"
        n = 1
        while name in names:
            n += 1
            name = f"{first}-{n}"
        names.append(name)
    return names


def _refuse_shared(folders: Sequence[Folder]) -> None:
    """Raises `InputError` where two folders hold the same file: it would come twice, perhaps in two splits."""
    owners: dict[str, Folder] = {}
    for folder in folders:
        real = os.path.realpath(folder.path)
        for entry in folder.layout.entries:
            other = owners.setdefault(os.path.join(real, entry.name), folder)
            if other is not folder:
                shared = f"hold the same recordings, as {audio.shown(entry.name)}"
                raise InputError(f"{other} and {folder} {shared}: name each folder once, and none within another")


def open_pack(source: Source | Stored, cache: Path | None = None, workers: int | None = None) -> Pack:
    """The pack of `source`, from `cache` (`cache_folder()`), or made now by `workers` threads (one per core) or
    fetched.

    A pack in the cache that is damaged is made anew. Raises `InputError` where no recording can be used or the cache
    can't be written.
    """
    folder = (cache or cache_folder()) / source.key
    for _ in range(3):  # another process may put its own pack into this place between making and opening
        if pack := _load(folder):
            return pack
        _make(source, folder, workers or _cores())
    raise InputError(f"{audio.shown(folder)}: a pack just made can't be read; check the disk or set $JAXAUDIO_CACHE")


def _load(folder: Path) -> Pack | None:
    """The pack in this folder; None where there is none, or not a whole one (its samples are not read)."""
    try:
        meta = json.loads((folder / "index.json").read_text(encoding="ascii"))
        if meta.pop("format") != FORMAT:
            return None
        with open(folder / "index.npz", "rb") as file, np.load(file) as index:
            arrays = {name: index[name] for name in ARRAYS}
        shape = (int(arrays["length"].sum()), meta["channels"])
        if any(len(array) != len(meta["names"]) for array in arrays.values()):
            return None
        samples = np.memmap(folder / "samples.i16", dtype="<i2", mode="r", shape=shape)  # ValueError: file is shorter
        for name in ("names", "classes", "groups"):
            meta[name] = tuple(meta[name])
        meta["rejected"] = tuple((name, reason) for name, reason in meta["rejected"])
        return Pack(samples=samples, folder=folder, **arrays, **meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


def _make(source: Source | Stored, folder: Path, workers: int) -> None:
    """Packs into a temporary folder, and renames that; another process that was faster is given way."""
    temporary, damaged = (folder.parent / f".{uuid.uuid4().hex}.tmp" for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        _remove_abandoned(folder.parent)
        if isinstance(source, Stored):
            source.fetch(temporary)
        else:
            _write(source, temporary, workers)
        if folder.exists() and _load(folder) is None:
            os.rename(folder, damaged)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    except OSError as e:
        raise InputError(
            f"{audio.shown(folder.parent)}: the pack can't be written there ({e.strerror}); "
            "make room or set $JAXAUDIO_CACHE to another folder"
        ) from e
    finally:
        for path in (temporary, damaged):
            shutil.rmtree(path, ignore_errors=True)


def _write(source: Source, folder: Path, workers: int) -> None:
    """All files of a pack, into an empty folder."""
    kept, peaks, lengths, rejected = [], [], [], []
    digest = hashlib.blake2b(digest_size=8)
    entries = source.layout.entries
    with open(folder / "samples.i16", "wb") as file, contextlib.closing(_converted(source, workers)) as converted:
        results = tqdm(converted, total=len(entries), desc="packing", unit="file", disable=None)
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, str):
                rejected.append((entry.name, result))
                continue
            file.write(result)
            digest.update(result)
            kept.append(entry)
            lengths.append(len(result))
            peaks.append(max(int(result.max()), -int(result.min())))
    if not kept:
        first = "; ".join(f"{name!r}: {reason}" for name, reason in rejected[:3])
        raise InputError(f"{source}: none of {len(entries)} recordings can be used ({first}); name another folder")

    classes = _classes(entry.label for entry in kept if entry.label is not None)
    index = {name: i for i, name in enumerate(classes)}
    groups = {name: i for i, name in enumerate(dict.fromkeys(e.group for e in kept if e.group is not None))}
    columns = {
        "start": np.cumsum([0, *lengths[:-1]]),
        "length": lengths,
        "peak": peaks,
        "label": [index.get(entry.label, 0) for entry in kept],
        "group": [groups.get(entry.group, -1) for entry in kept],
        "split": [layouts.SPLITS.index(entry.split) for entry in kept],
    }
    arrays = {name: np.asarray(columns[name], dtype) for name, dtype in ARRAYS.items()}
    meta = {"names": [entry.name for entry in kept], "classes": classes, "groups": list(groups)}
    meta |= {"sample_rate": source.sample_rate, "channels": source.channels, "layout": source.layout.kind}
    for array in arrays.values():
        digest.update(array)
    digest.update(json.dumps(meta).encode())
    np.savez(folder / "index.npz", **arrays)
    meta |= {"fingerprint": digest.hexdigest(), "rejected": rejected, "format": FORMAT}
    (folder / "index.json").write_text(json.dumps(meta), encoding="ascii")
    with open(folder / "rejected.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as table:
        csv.writer(table).writerows([("name", "reason"), *rejected])


def _converted(source: Source, workers: int) -> Iterator[np.ndarray | str]:
    """Every entry in order, as int16 [frames, channels] or as the reason why it can't be used; few are held at once."""
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for i in range(len(source.layout.entries)):
                ahead.append(pool.submit(_convert, source, i))
                if len(ahead) >= 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _convert(source: Source, i: int) -> np.ndarray | str:
    try:
        samples = np.ascontiguousarray(audio.to_int16(source.read(i)), dtype="<i2")
    except audio.Unusable as e:
        return str(e)
    return samples if samples.any() else "silent"


def _cores() -> int:
    """Cores that this process may use; beyond 32 the threads would wait for each other."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _classes(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their indices: by value where all are whole numbers, else as they first come, so that the
    folders 0_zero, 1_one, ... number the labels that a table calls zero, one, ..."""
    found = list(dict.fromkeys(labels))
    numeric = all(label.isascii() and label.removeprefix("-").isdigit() for label in found)
    return sorted(found, key=lambda label: (int(label), label)) if numeric else found


def _remove_abandoned(cache: Path) -> None:
    """Removes what killed processes left behind."""
    with os.scandir(cache) as found:
        leftovers = [Path(item) for item in found if item.name.startswith(".") and item.name.endswith(".tmp")]
    for folder in leftovers:
        with contextlib.suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
