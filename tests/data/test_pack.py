"""A pack holds what the files hold, is made once, whole or not at all, and does not depend on timing or place."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxaudio.core import InputError
from jaxaudio.data import audio, layouts, pack

RATE = 16_000


def int16(i, frames):
    return np.random.default_rng(i).integers(-9000, 9000, frames, dtype=np.int16)


@pytest.fixture
def folder(tmp_path):
    """Three classes, two splits, a file that is text and one that is silent."""
    where = tmp_path / "set"
    for i, name in enumerate(["train/10/a.wav", "train/9/b.flac", "valid/10/c.wav", "valid/2/caf\udce9\n.wav"]):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        with open(where / name, "wb") as file:
            soundfile.write(file, int16(i, 1000 + 7 * i), RATE, "PCM_16", format="FLAC" if "flac" in name else "WAV")
    (where / "train" / "9" / "text\udcff.wav").write_text("not audio")
    soundfile.write(where / "train" / "9" / "silent.wav", np.zeros(500, np.int16), RATE)
    return where


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


class Made:
    """A source of `count` recordings of `frames` samples each; those in `bad` are unusable."""

    def __init__(self, count, key="made", frames=50, bad=(), delay_s=0.0, labels=None):
        labels = labels or [None] * count
        entries = (layouts.Entry(f"{i:06}", label, "train", None) for i, label in enumerate(labels))
        self.layout = layouts.Layout("made", tuple(entries))
        self.key, self.sample_rate, self.channels = key, RATE, 1
        self.frames, self.bad, self.delay_s, self.reads = frames, bad, delay_s, []

    def __str__(self):
        return "the made ones"

    def read(self, i):
        self.reads.append(i)
        time.sleep(self.delay_s * (i % 3))
        if i in self.bad:
            raise audio.Unusable("bad on purpose")
        return int16(i, (self.frames, 1)) / np.float32(32768)


def test_a_pack_holds_the_samples_bit_for_bit_and_the_index(folder, store):
    made = pack.open_pack(pack.Folder(folder, RATE, 1), store)
    assert made.names == ("train/10/a.wav", "train/9/b.flac", "valid/10/c.wav", "valid/2/caf\udce9\n.wav")
    assert made.samples.dtype == np.int16
    assert made.samples.shape == (1000 + 1007 + 1014 + 1021, 1)
    for i, (start, length) in enumerate(zip(made.start, made.length, strict=True)):
        np.testing.assert_array_equal(made.samples[start : start + length, 0], int16(i, 1000 + 7 * i))
        assert made.peak[i] == np.abs(int16(i, 1000 + 7 * i).astype(int)).max()
    assert made.classes == ("2", "9", "10")
    assert [made.classes[i] for i in made.label] == ["10", "9", "10", "2"]
    assert [layouts.SPLITS[i] for i in made.split] == ["train", "train", "valid", "valid"]
    assert (made.sample_rate, made.channels, made.layout, made.folder.parent) == (RATE, 1, "folders", store)
    dtypes = {"start": "int64", "length": "int64", "peak": "int32", "label": "int32", "group": "int32"}
    dtypes |= {"split": "int8"}
    assert {name: getattr(made, name).dtype.name for name in dtypes} == dtypes
    with pytest.raises(ValueError, match="read-only"):
        made.samples[0] = 1


def test_what_is_rejected_is_named_with_its_reason(folder, store):
    made = pack.open_pack(pack.Folder(folder, RATE, 1), store)
    expected = (("train/9/silent.wav", "silent"), ("train/9/text\udcff.wav", "Format not recognised"))
    assert made.rejected == expected
    with open(made.folder / "rejected.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("name", "reason"), *expected]


def test_full_scale_and_stereo_are_kept(tmp_path, store):
    samples = np.array([[-32768, 0], [5, 32767], [0, 9]], np.int16)
    (tmp_path / "set").mkdir()
    soundfile.write(tmp_path / "set" / "a.wav", samples, RATE)
    made = pack.open_pack(pack.Folder(tmp_path / "set", RATE, 2), store)
    np.testing.assert_array_equal(made.samples, samples)
    assert made.peak.tolist() == [32768]
    assert made.classes == ()
    assert made.label.tolist() == [0]


def test_groups_are_numbered_as_they_first_come_and_a_recording_may_have_none(store):
    source = Made(4, "g")
    entries = [e._replace(group=group) for e, group in zip(source.layout.entries, ("b", None, "a", "b"), strict=True)]
    source.layout = layouts.Layout("made", tuple(entries))
    made = pack.open_pack(source, store)
    assert made.groups == ("b", "a")
    assert made.group.tolist() == [0, -1, 1, 0]


def test_classes_sort_by_value_where_all_are_whole_numbers_and_else_stay_as_they_first_come(store):
    assert pack.open_pack(Made(4, "a", labels=["10", "9", "-1", "09"]), store).classes == ("-1", "09", "9", "10")
    assert pack.open_pack(Made(4, "b", labels=["10", "9", "²"]), store).classes == ("10", "9", "²")
    words = pack.open_pack(Made(4, "c", labels=["zero", "one", "zero", "eight"]), store)
    assert words.classes == ("zero", "one", "eight")
    assert words.label.tolist() == [0, 1, 0, 2]


def test_the_second_opening_reads_the_cache_alone(store):
    first, second = Made(5), Made(5)
    made, again = pack.open_pack(first, store), pack.open_pack(second, store)
    assert sorted(first.reads) == list(range(5))
    assert second.reads == []
    for name in ("samples", *pack.ARRAYS):
        np.testing.assert_array_equal(getattr(made, name), getattr(again, name))
    for name in ("names", "classes", "fingerprint", "folder", "rejected", "layout"):
        assert getattr(made, name) == getattr(again, name)


def test_the_pack_does_not_depend_on_workers_timing_or_place(tmp_path, folder, store):
    slow, quick = Made(40, delay_s=0.003, bad={3, 17}), Made(40, bad={3, 17})
    many, one = pack.open_pack(slow, store / "1", workers=8), pack.open_pack(quick, store / "2", workers=1)
    assert many.fingerprint == one.fingerprint
    np.testing.assert_array_equal(many.samples, one.samples)
    assert [name for name, _ in many.rejected] == ["000003", "000017"]
    shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy2)
    here, there = pack.Folder(folder, RATE, 1), pack.Folder(tmp_path / "elsewhere", RATE, 1)
    assert here.key == there.key
    assert pack.open_pack(here, store).folder == pack.open_pack(there, store).folder


def test_the_fingerprint_follows_every_part_of_the_content(store):
    def fingerprint(key, **changes):
        source = Made(4, key, labels=["a", "b", "a", "b"], frames=changes.pop("frames", 50), bad=changes.pop("bad", ()))
        for name, value in changes.items():
            setattr(source, name, value)
        return pack.open_pack(source, store).fingerprint

    entries = Made(4, labels=["a", "b", "a", "b"]).layout.entries
    swapped = layouts.Layout("made", (entries[0]._replace(label="b"), *entries[1:]))
    moved = layouts.Layout("made", (entries[0]._replace(split="valid"), *entries[1:]))
    renamed = layouts.Layout("made", (entries[0]._replace(name="0"), *entries[1:]))
    spoken = layouts.Layout("made", (entries[0]._replace(group="someone"), *entries[1:]))
    changes = [{}, {"frames": 51}, {"bad": {3}}, {"sample_rate": 8000}, {"read": lambda i: Made(4).read(i)[::-1]}]
    changes += [{"layout": layout} for layout in (swapped, moved, renamed, spoken, layouts.Layout("other", entries))]
    found = [fingerprint(str(i), **change) for i, change in enumerate(changes)]
    assert len(set(found)) == len(found)
    assert fingerprint("another key") == found[0]
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in found)


def test_the_key_follows_files_labels_rate_and_channels(folder):
    def key(rate=RATE, channels=1):
        return pack.Folder(folder, rate, channels).key

    seen = [key(), key(8000), key(RATE, 2)]
    os.utime(folder / "train" / "10" / "a.wav", ns=(1, 1))
    seen.append(key())
    (folder / "train" / "9" / "silent.wav").unlink()
    seen.append(key())
    rows = "".join(f"train/{name},x\n" for name in ("10/a.wav", "9/b.flac"))
    for split in ("train", "valid"):
        (folder / "metadata.csv").write_text("path,label,split\n" + rows.replace(",x", f",x,{split}"))
        seen.append(key())
    assert len(set(seen)) == len(seen)
    assert key() == seen[-1]


def test_few_recordings_are_held_while_one_takes_long(store):
    source, ahead = Made(100), []
    read = source.read

    def slow_at_first(i):
        wave = read(i)
        if i == 0:
            time.sleep(0.2)
            ahead.extend(source.reads)
        return wave

    source.read = slow_at_first
    assert len(pack.open_pack(source, store, workers=2).names) == 100
    assert 1 < len(ahead) <= 4


def test_nothing_usable_is_an_error_that_names_the_first_reasons(store):
    with pytest.raises(InputError, match=r"the made ones: none of 9 recordings .*'000000': bad on purpose; '000001'"):
        pack.open_pack(Made(9, bad=range(9)), store)
    assert list(store.iterdir()) == []


def test_silence_of_any_source_is_rejected(store):
    source = Made(2)
    source.read = lambda i: np.full((9, 1), i * 0.5, np.float32)
    assert pack.open_pack(source, store).rejected == (("000000", "silent"),)


def test_an_interrupted_pack_is_never_used(store):
    source, read = Made(30), Made(30).read

    def interrupted(i):
        if i == 20:
            raise KeyboardInterrupt
        return read(i)

    source.read = interrupted
    with pytest.raises(KeyboardInterrupt):
        pack.open_pack(source, store, workers=2)
    assert list(store.iterdir()) == []
    assert len(pack.open_pack(Made(30), store).names) == 30


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from jaxaudio.data import layouts, pack
class Slow:
    key, sample_rate, channels = "made", 16000, 1
    layout = layouts.Layout("made", tuple(layouts.Entry(f"{i:06}", None, "train", None) for i in range(30)))
    def read(self, i):
        if i == 20:
            print("half way", flush=True)
            time.sleep(60)
        return np.ones((50_000, 1), np.float32)
pack.open_pack(Slow(), Path(sys.argv[1]))
"""


def test_a_killed_pack_is_never_used_and_its_remains_go_after_a_day(store):
    repository = Path(pack.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", KILLED, store], stdout=subprocess.PIPE, cwd=repository) as process:
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(signal.SIGKILL)
    (left,) = store.iterdir()
    made = pack.open_pack(Made(30), store)
    np.testing.assert_array_equal(made.samples[:50, 0], int16(0, 50))
    assert left.exists()
    for path in (left, *left.iterdir()):
        os.utime(path, (time.time() - 90_000,) * 2)
    pack.open_pack(Made(30, "other"), store)
    assert sorted(path.name for path in store.iterdir()) == ["made", "other"]


def test_two_that_pack_at_once_both_end_well(store):
    results, start = [], threading.Barrier(4)

    def work():
        start.wait()
        results.append(pack.open_pack(Made(30, delay_s=0.001), store))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({made.fingerprint for made in results}) == 1
    for made in results:
        np.testing.assert_array_equal(made.samples[-50:, 0], int16(29, 50))
    assert [path.name for path in store.iterdir()] == ["made"]


@pytest.mark.parametrize("file", ["samples.i16", "index.npz", "index.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "nonsense"])
def test_a_damaged_pack_is_packed_anew(store, file, damage):
    before = pack.open_pack(Made(5), store)
    path = before.folder / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"short": content[:-2], "empty": b"", "nonsense": b"[1]"}[damage])
    source = Made(5)
    after = pack.open_pack(source, store)
    assert len(source.reads) == 5
    assert after.fingerprint == before.fingerprint
    assert [path.name for path in store.iterdir()] == ["made"]


def test_a_pack_of_another_format_is_packed_anew(store):
    path = pack.open_pack(Made(5), store).folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": -1}))
    source = Made(5)
    pack.open_pack(source, store)
    assert len(source.reads) == 5


def test_a_full_disk_is_named_with_the_remedy_and_nothing_is_left(store):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"store: the pack can't be written .*too large.*JAXAUDIO_CACHE"):
            pack.open_pack(Made(300, frames=1000), store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(store.iterdir()) == []


def test_a_cache_that_can_not_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(InputError, match=rf"{cache}: the pack can't be written .*JAXAUDIO_CACHE"):
            pack.open_pack(Made(5), cache)


def test_the_cache_follows_the_environment(monkeypatch, cache):
    assert pack.cache_folder() == cache
    assert pack.open_pack(Made(3)).folder == cache / "made"
    monkeypatch.setenv("JAXAUDIO_CACHE", "~/here")
    assert pack.cache_folder() == Path.home() / "here"
    monkeypatch.delenv("JAXAUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert pack.cache_folder() == Path("/xdg/jaxaudio")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert pack.cache_folder() == Path.home() / ".cache" / "jaxaudio"


def test_an_unexpected_error_of_a_source_is_not_hidden(store):
    source = Made(5)
    source.read = lambda i: 1 / 0
    with pytest.raises(ZeroDivisionError):
        pack.open_pack(source, store)
    assert list(store.iterdir()) == []


def test_a_progress_bar_is_for_terminals_only(store, capfd):
    pack.open_pack(Made(5), store)
    assert capfd.readouterr() == ("", "")


def test_a_large_pack_opens_at_once(store):
    count = 100_000
    folder = store / "large"
    folder.mkdir(parents=True)
    (folder / "samples.i16").write_bytes(bytes(2 * count))
    ones = np.ones(count)
    columns = {"start": np.arange(count), "length": ones, "peak": ones}
    columns |= dict.fromkeys(("label", "group", "split"), 0 * ones)
    np.savez(folder / "index.npz", **{name: columns[name].astype(dtype) for name, dtype in pack.ARRAYS.items()})
    meta = {
        "format": pack.FORMAT,
        "names": [f"train/class/{i:09}.wav" for i in range(count)],
        "classes": [],
        "groups": [],
        "rejected": [],
    }
    meta |= {"sample_rate": RATE, "channels": 1, "layout": "made", "fingerprint": "0" * 16}
    (folder / "index.json").write_text(json.dumps(meta))
    began = time.perf_counter()
    made = pack.open_pack(Made(0, "large"), store)
    assert time.perf_counter() - began < 1
    assert len(made.names) == count
