"""Several folders as one source: each keeps what is its own, and none comes twice."""

import csv
import os
import shutil

import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.data import audio, layouts, pack

RATE = 16_000


def int16(i, frames):
    return np.random.default_rng(i).integers(-9000, 9000, frames, dtype=np.int16)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def two(tmp_path):
    """Two folders of two speakers each, s1 among both: a table with labels and splits, and folders of classes."""
    for i in range(4):
        audio.write(tmp_path / "a" / f"{i}.wav", int16(i, 100 + i) / np.float32(32768), RATE)
    rows = [(f"{i}.wav", ("yes", "no")[i % 2], f"s{i // 2}", ("train", "valid")[i // 2]) for i in range(4)]
    with open(tmp_path / "a" / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])
    for i, name in enumerate(("no/s1_nohash_0", "perhaps/s1_nohash_0", "perhaps/s2_nohash_0")):
        audio.write(tmp_path / "b" / f"{name}.wav", int16(9 + i, 200 + i) / np.float32(32768), RATE)
    return [tmp_path / "a", tmp_path / "b"]


def test_several_folders_keep_their_recordings_splits_and_speakers_and_share_their_labels(two, store):
    made = pack.open_pack(pack.recordings(two, RATE, 1), store)
    stems = ("a/0", "a/1", "a/2", "a/3", "b/no/s1_nohash_0", "b/perhaps/s1_nohash_0", "b/perhaps/s2_nohash_0")
    assert made.names == tuple(f"{stem}.wav" for stem in stems)
    assert [made.classes[i] for i in made.label] == ["yes", "no", "yes", "no", "no", "perhaps", "perhaps"]
    assert [made.groups[i] for i in made.group] == ["a/s0", "a/s0", "a/s1", "a/s1", "b/s1", "b/s1", "b/s2"]
    assert [layouts.SPLITS[i] for i in made.split] == ["train"] * 2 + ["valid"] * 2 + ["train"] * 3
    assert made.layout == "a (table) and b (folders)"
    for i, (start, length) in enumerate(zip(made.start, made.length, strict=True)):
        want = int16(i, 100 + i) if i < 4 else int16(5 + i, 196 + i)
        np.testing.assert_array_equal(made.samples[start : start + length, 0], want)


def test_where_one_of_several_folders_has_no_labels_there_are_none(two, store):
    (two[1] / "loose.wav").write_bytes((two[0] / "0.wav").read_bytes())
    made = pack.open_pack(pack.recordings(two, RATE, 1), store)
    assert made.classes == ()
    assert not made.label.any()
    assert made.layout == "a (table) and b (flat) without labels, as b has none"


def test_one_folder_is_packed_as_ever(two, store):
    alone, folder = pack.recordings(two[:1], RATE, 1), pack.Folder(two[0], RATE, 1)
    assert (alone.key, alone.layout) == (folder.key, folder.layout)
    made = pack.open_pack(alone, store)
    assert (made.fingerprint, made.names[0]) == ("b9e66916bb054d08", "0.wav")


def test_the_key_of_several_folders_follows_their_content_names_and_order_but_not_where_they_lie(two, tmp_path):
    key = lambda *paths: pack.recordings(paths, RATE, 1).key
    first = key(*two)
    (tmp_path / "elsewhere").mkdir()
    for path in two:
        shutil.copytree(path, tmp_path / "elsewhere" / path.name)
    moved = [tmp_path / "elsewhere" / path.name for path in two]
    assert key(*moved) == first
    moved[1].rename(tmp_path / "elsewhere" / "c")
    assert len({first, key(*two[::-1]), key(two[0], tmp_path / "elsewhere" / "c"), *map(key, two)}) == 5
    os.utime(two[1] / "no" / "s1_nohash_0.wav", (5, 5))
    assert key(*two) != first


def test_folders_of_one_name_are_told_apart(two, tmp_path):
    for name in ("x/a", "y/a-2", "z/a"):
        shutil.copytree(two[0], tmp_path / name)
    names = pack.recordings([tmp_path / name for name in ("x/a", "y/a-2", "z/a")], RATE, 1).layout.entries
    assert [entry.name for entry in names[::4]] == ["a/0.wav", "a-2/0.wav", "a-3/0.wav"]


@pytest.mark.parametrize("other", ["a", "b/../a", "link", "."])
def test_a_folder_named_twice_or_within_another_is_refused(other, two, tmp_path):
    (tmp_path / "link").symlink_to(two[0])
    with pytest.raises(InputError, match=r"hold the same recordings, as .*\.wav: name each folder once") as told:
        pack.recordings([two[0], tmp_path / other], RATE, 1)
    assert str(two[0]) in str(told.value)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        pack.recordings([two[0], tmp_path / "nowhere"], RATE, 1)


def test_several_folders_of_which_nothing_can_be_used_are_all_named(tmp_path, store):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.wav").write_text("no sound")
    with pytest.raises(InputError, match="a, .*b: none of 2 recordings can be used .*'a/x.wav'"):
        pack.open_pack(pack.recordings([tmp_path / "a", tmp_path / "b"], RATE, 1), store)
