"""Labels, splits and groups, from how a folder of audio is laid out.

Known layouts, the first that fits is taken:

    metadata.csv                          a table: columns path and label (or another); split, speaker where it has them
    meta/esc50.csv                        ESC-50: label category; folds 1-3 train, 4 valid, 5 test; group src_file
    validation_list.txt, testing_list.txt Speech Commands: label folder, group speaker; folders named _... are left out
    nsynth-SPLIT/audio/*.wav              NSynth: label instrument family, or pitch; group instrument; all in the name
    LibriSpeech, LibriTTS                 label speaker, group chapter; train-*, dev-* (valid), test-*
    AudioMNIST                            data/01/0_01_0.wav: label digit, group speaker
    GTZAN                                 genres/blues/blues.00000.wav: label genre
    SC09                                  train/Zero_xxx.wav: label digit (lower case), group speaker if the name has it
    folders                               SPLIT/CLASS/..., CLASS/... or SPLIT/...
    flat                                  anything else: no labels

A split that the layout states is taken as it is; `test` stays test, and where no recording is in `valid` there is
nothing to evaluate on. Where it states none at all, a hash of the group (of the name, where there is no group) puts
90 % in train, 5 % in valid and 5 % in test, whatever else the folder holds; with fewer than 20 groups all is train.
Duplicated recordings are not looked for.
"""

import csv
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxaudio.core import InputError
from jaxaudio.data.audio import SUFFIXES, UNREADABLE, shown

SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
FEWEST_GROUPS = 20  # to be split by a hash
REMEDY = "name a folder of audio files"

# Layouts that are told by their file names alone; all files must fit. Groups of the expression are fields of Entry.
_KNOWN = {
    "nsynth": r"(nsynth-(?P<split>train|valid|test)/)?audio/"
    r"(?P<group>(?P<label>[a-z_]+)_(acoustic|electronic|synthetic)_[0-9]{3})-(?P<pitch>[0-9]{3})-[0-9]{3}\.\w+",
    "librispeech": r"((?P<split>train|dev|test)-[a-z]+(-[0-9]+)?/)?"
    r"(?P<label>[0-9]+)/(?P<chapter>[0-9]+)/(?P<group>(?P=label)[-_](?P=chapter))[-_][0-9_]+\.\w+",
    "audiomnist": r"(?P<group>[0-9]{2})/(?P<label>[0-9])_(?P=group)_[0-9]+\.\w+",
    "gtzan": r"(?P<label>[a-z]+)/(?P=label)\.[0-9]{5}\.\w+",
    "sc09": r"(?P<split>train|valid|test)/(?P<label>(?i:zero|one|two|three|four|five|six|seven|eight|nine))_"
    r"((?P<group>[^/]+?)_nohash_[0-9]+|[^/]+)\.\w+",
}
_GROUP = re.compile(r"((?P<speaker>.+?)_nohash_[0-9]+|(?P<chapter>LJ[0-9]{3})-[0-9]{4})\.\w+")


class Entry(NamedTuple):
    """A recording: `group` (speaker, instrument, source) is what must not cross splits; `split` is one of SPLITS."""

    name: str  # path relative to the folder, with "/"
    label: str | None
    split: str | None
    group: str | None


class Layout(NamedTuple):
    """Recordings of a folder, sorted by name. Either all have a label or none; all have a split."""

    kind: str
    entries: tuple[Entry, ...]


def describe(folder: str | Path, column: str = "label") -> Layout:
    """What lies in `folder`, by the rules at the head of this file; raises `InputError`.

    Without a table, every file is taken whose suffix (any case) is that of audio, in all folders below; names that
    begin with "." are left out. A table alone decides what is in: files that it does not name are left out. `column`:
    what a label is; layouts that tell of one thing only, such as a folder per class, tell that.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{shown(folder)}: no such folder; {REMEDY}")
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: is a file, not a folder; {REMEDY} (unpack it, if it is an archive)")
    if _is_table(folder / "metadata.csv"):
        kind, entries = "table", _table(folder, column)
    elif (folder / "meta" / "esc50.csv").is_file():
        kind, entries = "esc50", _esc50(folder)
    else:
        names = _scan(folder)
        kind, entries = _speech_commands(folder, names) or _known(names, column) or _folders(folder, names)
    return Layout(kind, tuple(sorted(_with_splits(entries), key=lambda entry: entry.name)))


def _scan(folder: Path) -> list[str]:
    """Names of the audio files below `folder`, whatever they hold; links are followed, but not in circles."""
    names, others = [], 0

    def visit(prefix: str, above: frozenset[str]) -> None:
        nonlocal others
        here = os.path.join(folder, prefix)
        real = os.path.realpath(here)
        if real in above:
            return
        try:
            with os.scandir(here) as found:
                visible = [(item.name, item.is_dir()) for item in found if not item.name.startswith(".")]
        except OSError as e:
            raise InputError(f"{shown(here)}: cannot be listed ({e.strerror}); make it readable or move it away") from e
        for name, is_folder in visible:
            if is_folder:
                visit(f"{prefix}{name}/", above | {real})
            elif os.path.splitext(name)[1].lower() in SUFFIXES | UNREADABLE:
                names.append(prefix + name)
            else:
                others += 1

    visit("", frozenset())
    if not names:
        raise InputError(f"{shown(folder)}: no audio among {others} files; {REMEDY} (.wav, .flac, .mp3, .ogg, ...)")
    return names


def _is_table(path: Path) -> bool:
    """Whether this is a table of ours; LJSpeech's transcripts have the same name, columns parted by "|" and no head."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.readline()
    return b"|" not in head or b"path" in head


def _rows(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV (UTF-8, with or without BOM, any line ends) as (place for messages, fields by column)."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line, byte = data[: e.start].count(b"\n") + 1, data[e.start]
        raise InputError(f"{shown(path)}, line {line}: byte 0x{byte:02x} is not UTF-8; save the table as UTF-8") from e
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, columns = 0, None
    try:
        for row in reader:
            place = f"{shown(path)}, line {reader.line_num}"
            if not row:
                continue
            if columns is None:
                columns = [name.strip() for name in row]
                for name in required:
                    if columns.count(name) != 1:
                        found = ", ".join(columns)
                        raise InputError(f"{place}: {columns.count(name)} columns '{name}' in: {found}; give it one")
            elif len(row) != len(columns):
                raise InputError(f"{place}: {len(row)} fields under {len(columns)} columns; mend the row (quotes?)")
            else:
                rows += 1
                yield place, dict(zip(columns, row, strict=True))
    except csv.Error as e:
        raise InputError(f"{shown(path)}, line {reader.line_num}: {e}; mend the quotes") from e
    if not rows:
        raise InputError(f"{shown(path)}: has no rows; a table has a line of columns and one per recording")


def _table(folder: Path, column: str) -> list[Entry]:
    """The recordings of metadata.csv; other columns are not used, a duration that is wrong does no harm."""
    path = folder / "metadata.csv"
    entries: dict[str, Entry] = {}
    for place, row in _rows(path, ("path", column)):
        name = posixpath.normpath(row["path"])
        if os.path.isabs(name) or name in (".", "..") or name.startswith("../"):
            raise InputError(f"{place}: path {row['path']!r} leaves the folder; give paths relative to the table")
        if not row[column]:
            raise InputError(f"{place}: {column} is empty; give every recording one, or take the table away")
        split = SPLIT_NAMES.get(row.get("split", "train").strip().lower())
        if split is None:
            raise InputError(f"{place}: split is {row['split']!r}, not one of {', '.join(SPLITS)}; mend it")
        entry = Entry(name, row[column], split if "split" in row else None, row.get("speaker") or None)
        if name in entries:
            first = f"{column} {entries[name].label!r} and split {entries[name].split!r}"
            here = f"{column} {entry.label!r} and split {entry.split!r}"
            raise InputError(f"{place}: path {name!r} has {here}, further up {first}; leave one row per recording")
        _must_exist(folder, name, place)
        entries[name] = entry
    return list(entries.values())


def _esc50(folder: Path) -> list[Entry]:
    folds = {"1": "train", "2": "train", "3": "train", "4": "valid", "5": "test"}
    entries = []
    for place, row in _rows(folder / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file")):
        if row["fold"] not in folds:
            raise InputError(f"{place}: fold is {row['fold']!r}, not one of {', '.join(folds)}; mend it")
        name = f"audio/{row['filename']}"
        _must_exist(folder, name, place)
        entries.append(Entry(name, row["category"], folds[row["fold"]], row["src_file"]))
    return entries


def _must_exist(folder: Path, name: str, place: str) -> None:
    if not os.path.isfile(os.path.join(folder, name)):
        raise InputError(f"{place}: there is no file {name!r} in {shown(folder)}; bring it back or remove the row")


def _speech_commands(folder: Path, names: Sequence[str]) -> tuple[str, list[Entry]] | None:
    """By the two lists; those may name words that are not here, and files that are in no folder are left out."""
    listed: dict[str, str] = {}
    for split, file in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        if (folder / file).is_file():
            lines = (folder / file).read_bytes().decode("utf-8", "surrogateescape").splitlines()
            twice = listed.keys() & set(lines) - {""}
            if twice:
                raise InputError(f"{shown(folder / file)}: {min(twice)!r} is in both lists; take it out of one")
            listed.update(dict.fromkeys(lines, split))
    if not listed:
        return None
    names = [name for name in names if "/" in name and not name.startswith("_")]
    if listed.keys().isdisjoint(names):
        raise InputError(f"{shown(folder)}: its lists for validation and testing name no file that is here; mend them")
    return "speech commands", [
        Entry(name, name.split("/")[0], listed.get(name, "train"), _group_of(name)) for name in names
    ]


def _known(names: Sequence[str], column: str) -> tuple[str, list[Entry]] | None:
    """The layout of _KNOWN, below any folder, that all names fit; where one states a split, all do. A number in a name,
    such as NSynth's pitch, is without its leading zeros."""
    for kind, rule in _KNOWN.items():
        pattern, entries = re.compile(rf"(.*?/)??{rule}"), []
        for name in names:
            found = pattern.fullmatch(name)
            if found is None:
                break
            stated = found.groupdict()
            split, told = stated.get("split"), stated["label"].lower()
            label = str(int(stated["pitch"])) if column == "pitch" and "pitch" in stated else told
            entries.append(Entry(name, label, split and SPLIT_NAMES[split], stated.get("group")))
        if len(entries) == len(names) and len({entry.split is None for entry in entries}) == 1:
            return kind, entries
    return None


def _folders(folder: Path, names: Sequence[str]) -> tuple[str, list[Entry]]:
    """One folder per class, below folders named like splits or not; folders that all files share say nothing.

    Top folders are splits if all of them are named so, classes else ("train" among vehicles); two splits beside
    another folder are refused. Classes are two or more folders that together hold all the files.
    """
    paths = _without_shared([name.split("/") for name in names], keep=SPLIT_NAMES.keys())
    tops = {path[0].lower() if len(path) > 1 else "" for path in paths}
    splits: list[str | None] = [None] * len(names)
    if tops <= SPLIT_NAMES.keys():
        splits = [SPLIT_NAMES[path[0].lower()] for path in paths]
        paths = _without_shared([path[1:] for path in paths])
    elif len({SPLIT_NAMES[top] for top in tops & SPLIT_NAMES.keys()}) > 1:
        stray = min(path[0] for path in paths if len(path) == 1 or path[0].lower() not in SPLIT_NAMES)
        raise InputError(f"{shown(folder)}: {stray!r} lies beside folders of splits; move it into one of them, or away")
    classes = {path[0] if len(path) > 1 else None for path in paths}
    labelled = None not in classes
    entries = [
        Entry(name, path[0] if labelled else None, split, _group_of(name))
        for name, path, split in zip(names, paths, splits, strict=True)
    ]
    return "folders" if labelled or splits[0] else "flat", entries


def _without_shared(paths: list[list[str]], keep: Iterable[str] = ()) -> list[list[str]]:
    """Paths without the folders at their head that all of them share, up to one whose name is in `keep`."""
    depth = 0
    while all(len(path) > depth + 1 and path[depth] == paths[0][depth] for path in paths):
        if paths[0][depth].lower() in keep:
            break
        depth += 1
    return [path[depth:] for path in paths]


def _group_of(name: str) -> str | None:
    """The speaker in a name of Speech Commands, the chapter in one of LJSpeech."""
    found = _GROUP.fullmatch(posixpath.basename(name))
    return found and (found["speaker"] or found["chapter"])


def _with_splits(entries: Sequence[Entry]) -> list[Entry]:
    """Entries with the splits they state, or else with those of a hash that no other recording has a say in."""
    if any(entry.split for entry in entries):
        return list(entries)
    few = len({entry.group or entry.name for entry in entries}) < FEWEST_GROUPS

    def split(entry: Entry) -> str:
        key = (entry.group or entry.name).encode("utf-8", "surrogatepass")
        share = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
        return SPLITS[0 if few or share < 0.9 else 1 if share < 0.95 else 2]

    return [entry._replace(split=split(entry)) for entry in entries]
