"""Labels, splits and groups from small trees of every layout, and from tables with every fault."""

import os
from collections import Counter

import pytest

from jaxaudio.core import InputError
from jaxaudio.data import layouts


def plant(folder, *names):
    for name in names:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
    return folder


def table(folder, text, *names):
    plant(folder, *(names or ["a.wav", "b.wav"]))
    (folder / "metadata.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def columns(layout, *fields):
    return [tuple(getattr(entry, field) for field in ("name", *fields)) for entry in layout.entries]


def complaint(folder, *parts):
    with pytest.raises(InputError) as caught:
        layouts.describe(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_table_states_labels_splits_and_speakers(tmp_path):
    text = "path,label,speaker,split,duration\nb.wav,two,s1,validation,60\n./x/a.wav,one,,TRAIN,nonsense\n"
    layout = layouts.describe(table(tmp_path, text, "x/a.wav", "b.wav", "not_in_table.wav"))
    assert layout.kind == "table"
    assert layout.entries == (
        layouts.Entry("b.wav", "two", "valid", "s1"),
        layouts.Entry("x/a.wav", "one", "train", None),
    )


def test_any_column_of_a_table_may_be_the_label_and_a_folder_per_class_is_one(tmp_path):
    text = "path,label,pitch\na.wav,one,60\nb.wav,two,\n"
    with pytest.raises(InputError, match="line 3: pitch is empty; give every recording one"):
        layouts.describe(table(tmp_path / "table", text), "pitch")
    table(tmp_path / "table", text.replace("two,", "two,48"))
    assert columns(layouts.describe(tmp_path / "table", "pitch"), "label") == [("a.wav", "60"), ("b.wav", "48")]
    with pytest.raises(InputError, match="line 1: 0 columns 'octave' in: path, label, pitch; give it one"):
        layouts.describe(tmp_path / "table", "octave")
    plant(tmp_path / "folders", "60/a.wav", "61/b.wav")
    assert columns(layouts.describe(tmp_path / "folders", "pitch"), "label") == [("60/a.wav", "60"), ("61/b.wav", "61")]


def test_a_table_may_have_a_byte_order_mark_any_line_ends_and_quoted_names(tmp_path):
    text = '\ufeffpath,label\r\n"a,""b"".wav",café\r\n\r\n日本.wav,x\r\n'
    layout = layouts.describe(table(tmp_path, text, 'a,"b".wav', "日本.wav"))
    assert columns(layout, "label") == [('a,"b".wav', "café"), ("日本.wav", "x")]


FAULTS = {
    "missing file": ("path,label\na.wav,x\nnone.wav,y\n", ["line 3", "none.wav"]),
    "two labels": ("path,label\na.wav,x\n./a.wav,y\n", ["line 3", "a.wav", "'x'", "'y'"]),
    "two splits": ("path,label,split\na.wav,x,train\na.wav,x,valid\n", ["line 3", "'train'", "'valid'"]),
    "twice alike": ("path,label\na.wav,x\na.wav,x\n", ["line 3", "a.wav"]),
    "absolute": ("path,label\n/etc/hostname,x\n", ["line 2", "/etc/hostname"]),
    "climbing": ("path,label\nb/../../a.wav,x\n", ["line 2", "b/../../a.wav"]),
    "itself": ("path,label\n.,x\n", ["line 2"]),
    "no path given": ("path,label\n,x\n", ["line 2"]),
    "no label given": ("path,label\na.wav,\n", ["line 2", "label"]),
    "unknown split": ("path,label,split\na.wav,x,middle\n", ["line 2", "middle", "train, valid, test"]),
    "no split given": ("path,label,split\na.wav,x,\n", ["line 2", "''"]),
    "no label column": ("path,split\na.wav,train\n", ["line 1", "label", "path, split"]),
    "two label columns": ("path,label,label\na.wav,x,y\n", ["line 1", "2 columns 'label'"]),
    "parted by bars": ("path|label\na.wav|x\n", ["line 1", "0 columns 'path' in: path|label"]),
    "empty": ("", ["no rows"]),
    "header only": ("path,label\n", ["no rows"]),
    "latin1": ("path,label\na.wav,x\nb.wav,café\n".encode("latin-1"), ["line 3", "0xe9", "UTF-8"]),
    "too few fields": ("path,label,split\na.wav,x\n", ["line 2", "2 fields", "3 columns"]),
    "too many fields": ("path,label\na.wav,x,y\n", ["line 2", "3 fields", "2 columns"]),
    "open quote": ('path,label\na.wav,"x\nb.wav,y\n', ["metadata.csv, line 3", "quotes"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_refused_by_line_and_value(tmp_path, fault):
    text, parts = FAULTS[fault]
    complaint(table(tmp_path, text), "metadata.csv", *parts)


def test_speech_commands_takes_its_splits_from_its_lists(tmp_path):
    plant(
        tmp_path,
        "_background_noise_/hum.wav",
        "yes/aa_nohash_0.wav",
        "yes/bb_nohash_1.wav",
        "no/aa_nohash_0.wav",
        "x.wav",
    )
    (tmp_path / "validation_list.txt").write_text("yes/bb_nohash_1.wav\nword_left_out/bb_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/aa_nohash_0.wav\n")
    layout = layouts.describe(tmp_path)
    assert layout.kind == "speech commands"
    assert layout.entries == (
        layouts.Entry("no/aa_nohash_0.wav", "no", "test", "aa"),
        layouts.Entry("yes/aa_nohash_0.wav", "yes", "train", "aa"),
        layouts.Entry("yes/bb_nohash_1.wav", "yes", "valid", "bb"),
    )
    (tmp_path / "testing_list.txt").write_text("yes/bb_nohash_1.wav\n")
    complaint(tmp_path, "testing_list.txt", "yes/bb_nohash_1.wav", "both")
    (tmp_path / "validation_list.txt").write_text("yes/other.wav\n")
    (tmp_path / "testing_list.txt").unlink()
    complaint(tmp_path, "no file that is here")


def test_sc09_has_its_digits_in_the_names(tmp_path):
    plant(tmp_path, "train/Zero_004ae714_nohash_0.wav", "valid/Seven_3.wav", "test/Nine_a_b.wav")
    layout = layouts.describe(tmp_path)
    assert layout.kind == "sc09"
    assert columns(layout, "label", "split", "group") == [
        ("test/Nine_a_b.wav", "nine", "test", None),
        ("train/Zero_004ae714_nohash_0.wav", "zero", "train", "004ae714"),
        ("valid/Seven_3.wav", "seven", "valid", None),
    ]


def test_nsynth_is_labelled_by_family_and_grouped_by_instrument(tmp_path):
    plant(tmp_path, "nsynth-train/examples.json", "nsynth-train/audio/synth_lead_synthetic_003-024-025.wav")
    plant(tmp_path, "nsynth-test/audio/bass_acoustic_000-024-025.wav")
    layout = layouts.describe(tmp_path)
    assert layout.kind == "nsynth"
    assert [entry[1:] for entry in layout.entries] == [
        ("bass", "test", "bass_acoustic_000"),
        ("synth_lead", "train", "synth_lead_synthetic_003"),
    ]
    alone = layouts.describe(tmp_path / "nsynth-train")
    assert (alone.kind, alone.entries[0].label, alone.entries[0].split) == ("nsynth", "synth_lead", "train")
    pitched = layouts.describe(tmp_path, "pitch")
    assert [entry[1:] for entry in pitched.entries] == [
        ("24", "test", "bass_acoustic_000"),
        ("24", "train", "synth_lead_synthetic_003"),
    ]


def test_esc50_takes_its_splits_from_its_folds(tmp_path):
    names = [f"{fold}-100-A-0.wav" for fold in range(1, 6)]
    plant(tmp_path, "meta/esc50.csv", *(f"audio/{name}" for name in names))
    head = "filename,fold,target,category,esc10,src_file,take\n"
    rows = [f"{name},{name[0]},0,dog,True,10{name[0]},A\n" for name in names]
    (tmp_path / "meta" / "esc50.csv").write_text(head + "".join(rows))
    layout = layouts.describe(tmp_path)
    assert layout.kind == "esc50"
    assert [entry.split for entry in layout.entries] == ["train", "train", "train", "valid", "test"]
    assert layout.entries[4] == layouts.Entry("audio/5-100-A-0.wav", "dog", "test", "105")
    (tmp_path / "meta" / "esc50.csv").write_text(head + rows[0].replace(",1,", ",6,"))
    complaint(tmp_path, "esc50.csv, line 2", "'6'")
    (tmp_path / "meta" / "esc50.csv").write_text(head + "9-9-A-0.wav,1,0,dog,True,9,A\n")
    complaint(tmp_path, "line 2", "9-9-A-0.wav")


@pytest.mark.parametrize("above", ["", "LibriSpeech/", "train-clean-100/"])
def test_librispeech_is_labelled_by_speaker_and_grouped_by_chapter(tmp_path, above):
    plant(
        tmp_path, f"{above}train-clean-100/19/198/19-198-0000.flac", f"{above}train-clean-100/19/198/19-198.trans.txt"
    )
    plant(tmp_path, f"{above}dev-other/84/121123/84-121123-0001.flac", f"{above}test-clean/61/70968/61-70968-0000.flac")
    layout = layouts.describe(tmp_path)
    assert layout.kind == "librispeech"
    assert [entry[1:] for entry in layout.entries] == [
        ("84", "valid", "84-121123"),
        ("61", "test", "61-70968"),
        ("19", "train", "19-198"),
    ]


def test_audiomnist_is_labelled_by_digit_and_grouped_by_speaker(tmp_path):
    plant(tmp_path, "data/01/0_01_0.wav", "data/60/9_60_49.wav", "data/audioMNIST_meta.txt")
    layout = layouts.describe(tmp_path)
    assert layout.kind == "audiomnist"
    assert [entry[1:] for entry in layout.entries] == [("0", "train", "01"), ("9", "train", "60")]


def test_gtzan_is_labelled_by_genre(tmp_path):
    plant(tmp_path, "genres/blues/blues.00000.wav", "genres/metal/metal.00099.au", "images/x.png")
    layout = layouts.describe(tmp_path)
    assert layout.kind == "gtzan"
    assert [entry.label for entry in layout.entries] == ["blues", "metal"]


def test_ljspeech_has_transcripts_and_no_labels(tmp_path):
    plant(tmp_path, *(f"wavs/LJ{book:03}-{i:04}.wav" for book in range(1, 41) for i in range(3)))
    (tmp_path / "metadata.csv").write_text("LJ001-0001|Printing, in the only sense|Printing, in the only sense\n")
    layout = layouts.describe(tmp_path)
    assert {entry.label for entry in layout.entries} == {None}
    assert len({(entry.group, entry.split) for entry in layout.entries}) == 40
    assert {entry.split for entry in layout.entries} > {"train"}


def test_a_folder_per_class_gives_labels(tmp_path):
    plant(tmp_path, "audio/dog/1.wav", "audio/dog/deep/2.MP3", "audio/train/3.flac")
    assert columns(layouts.describe(tmp_path), "label", "split") == [
        ("audio/dog/1.wav", "dog", "train"),
        ("audio/dog/deep/2.MP3", "dog", "train"),
        ("audio/train/3.flac", "train", "train"),  # a class of vehicles: one folder named like a split is none
    ]


@pytest.mark.parametrize(("train", "valid", "test"), [("train", "valid", "test"), ("Training", "dev", "eval")])
def test_folders_named_like_splits_are_splits(tmp_path, train, valid, test):
    plant(tmp_path, f"set/{train}/dog/1.wav", f"set/{valid}/dog/2.wav", f"set/{test}/cat/3.wav")
    layout = layouts.describe(tmp_path)
    found = {entry.name[-5]: (entry.label, entry.split) for entry in layout.entries}
    assert found == {"1": ("dog", "train"), "2": ("dog", "valid"), "3": ("cat", "test")}
    plant(tmp_path, "set/other/4.wav")
    complaint(tmp_path, "'other'")


def test_splits_without_classes_and_classes_beside_loose_files_give_no_labels(tmp_path):
    plant(tmp_path, "train/audio/1.wav", "test/audio/2.wav")
    assert [entry[1:3] for entry in layouts.describe(tmp_path).entries] == [(None, "test"), (None, "train")]
    plant(tmp_path / "b", "dog/1.wav", "cat/2.wav", "3.wav")
    layout = layouts.describe(tmp_path / "b")
    assert (layout.kind, {entry.label for entry in layout.entries}) == ("flat", {None})


def test_without_splits_a_hash_of_the_group_divides(tmp_path):
    plant(tmp_path, *(f"{word}/{speaker:04x}_nohash_0.wav" for word in ("yes", "no") for speaker in range(2000)))
    entries = layouts.describe(tmp_path).entries
    assert len({(entry.group, entry.split) for entry in entries}) == 2000
    counts = Counter(entry.split for entry in entries)
    assert counts["train"] == pytest.approx(3600, abs=80)
    assert counts["valid"] == pytest.approx(200, abs=60)
    assert counts["test"] == pytest.approx(200, abs=60)
    os.remove(tmp_path / "yes" / "0000_nohash_0.wav")
    assert layouts.describe(tmp_path).entries == tuple(e for e in entries if e.name != "yes/0000_nohash_0.wav")


def test_the_hash_stays_what_it_is(tmp_path):
    plant(tmp_path, *(f"{i}.wav" for i in range(20)))
    splits = {entry.name: entry.split for entry in layouts.describe(tmp_path).entries}
    assert [name for name, split in splits.items() if split != "train"] == ["16.wav", "3.wav"]


def test_a_split_that_is_stated_is_taken_even_where_it_is_the_only_one(tmp_path):
    plant(tmp_path, *(f"set/test/{i % 2}/{i}.wav" for i in range(100)))
    assert {entry.split for entry in layouts.describe(tmp_path).entries} == {"test"}
    assert {entry.label for entry in layouts.describe(tmp_path).entries} == {"0", "1"}


def test_few_groups_are_not_divided(tmp_path):
    plant(tmp_path, *(f"{i}.wav" for i in range(19)))
    assert {entry.split for entry in layouts.describe(tmp_path).entries} == {"train"}


def test_names_are_taken_as_they_are(tmp_path):
    names = [
        "a b .wav",
        "brackets[0-9]{a}*.wav",
        "caf\udce9.wav",
        "line\nbreak.wav",
        "x.tar.FLAC",
        "日本.ogg",
        "%20.wav",
    ]
    plant(tmp_path, *names)
    plant(tmp_path, ".hidden.wav", ".folder/a.wav", "no_suffix", "notes.txt", ".wav", "data.raw")
    os.mkdir(tmp_path / "folder.wav")
    layout = layouts.describe(tmp_path)
    assert [entry.name for entry in layout.entries] == sorted(names)


def test_audio_that_no_decoder_here_reads_is_named_all_the_same(tmp_path):
    plant(tmp_path, "a.m4a", "b.wav")
    os.symlink(tmp_path / "gone.wav", tmp_path / "c.wav")
    assert [entry.name for entry in layouts.describe(tmp_path).entries] == ["a.m4a", "b.wav", "c.wav"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    plant(tmp_path / "real", "a.wav")
    plant(tmp_path / "set", "b.wav")
    os.symlink(tmp_path / "real", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "circle")
    assert [entry.name for entry in layouts.describe(tmp_path / "set").entries] == ["b.wav", "linked/a.wav"]


def test_a_folder_that_is_none_or_holds_no_audio_is_refused(tmp_path):
    complaint(tmp_path / "none", "none: no such folder")
    plant(tmp_path, "a.txt", "b/c.mid")
    complaint(tmp_path / "a.txt", "is a file")
    complaint(tmp_path, "no audio among 2 files")
    complaint(plant(tmp_path / "new\nline", "x.txt"), "no audio")


@pytest.mark.parametrize(
    "pack", ["digits16k", "digits8k", "esc10", "music22k", "noise16k", "notes16k", "speech16k", "speech22k"]
)
def test_the_packs_are_tables(recordings, pack):
    layout = layouts.describe(recordings / pack)
    assert layout.kind == "table"
    assert {entry.split for entry in layout.entries} == {"train", "valid"}
    assert all(entry.group for entry in layout.entries)
    assert len(layout.entries) == sum(1 for path in (recordings / pack).rglob("*.flac"))
