"""The files that a verb is given: found, named, acted on one by one."""

import shutil
from pathlib import Path

import pytest

from jaxaudio.core import InputError
from jaxaudio.data import audio, files
from tests.toy import sound


def surveyed(path, target):
    """What the verbs do first."""
    return f"{files.said(audio.survey(path, 1000, 1))} -> {target.name}"


def test_files_of_one_name_are_kept_apart_and_none_is_overwritten(tmp_path):
    names = ("a/x.wav", "b/x-2.flac", "b/x.wav", "x.wav")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    given = files.found([tmp_path / "a", tmp_path / "b", tmp_path / "x.wav"], files.RECORDINGS, "recording")
    files.one_by_one(given, tmp_path, ".wav", lambda path, target: str(shutil.copy(path, target)))
    results = [(tmp_path / f"{name}.wav").read_text() for name in ("x-2", "x-2-2", "x-3", "x-4")]
    assert results == list(names)
    assert [(tmp_path / name).read_text() for name in names] == list(names)


def test_links_in_circles_and_long_names_are_rows_and_a_file_is_acted_on_once(tmp_path, capsys):
    audio.write(tmp_path / "in" / "a.wav", sound(400), 1000)
    (tmp_path / "in" / "round.wav").symlink_to("round.wav")
    twice = tmp_path / "in" / ".." / "in" / "a.wav"
    given = [tmp_path / "in", twice, tmp_path / "in" / "round.wav", tmp_path / ("n" * 300 + ".wav")]
    files.one_by_one(files.found(given, files.RECORDINGS, "recording"), tmp_path, ".npz", surveyed)
    out, err = capsys.readouterr()
    rows = {name: row for row in out.splitlines() for name in ("a.wav", "round.wav", "nnn.wav") if name in row}
    assert len(out.splitlines()) == 3
    assert rows["a.wav"].endswith("a.wav  0.40 s -> a.npz")
    assert "left out: Too many levels of symbolic links" in rows["round.wav"]
    assert "left out: File name too long" in rows["nnn.wav"]
    assert err == "2 of 3 files were left out\n"
    (tmp_path / "in" / "a.wav").unlink()
    with pytest.raises(InputError, match="none of 1 files can be used; the first: .*round.wav: Too many levels"):
        files.one_by_one(files.found([tmp_path / "in"], files.RECORDINGS, "recording"), tmp_path, ".npz", surveyed)


def test_folders_are_searched_for_what_ends_right_and_a_named_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("deep/b.WAV", "deep/er/a.flac", "deep/notes.txt", "deep/old.wma"):
        (tmp_path / name).touch()
    found = files.found([tmp_path / "text.txt", tmp_path], files.RECORDINGS, "recording")
    names = ["text.txt", "deep/b.WAV", "deep/er/a.flac", "deep/old.wma"]
    assert found == [tmp_path / name for name in names], "one that is known and not read is named later"
    with pytest.raises(InputError, match="no file of latents given"):
        files.found([tmp_path], {".npz"}, "file of latents")


def test_the_reason_gives_way_to_the_remedy_where_a_format_is_known(tmp_path):
    reason = audio.Unusable("Format not recognised")
    (tmp_path / "x.M4A").touch()
    assert files.why(tmp_path / "x.M4A", reason) == "this format is not read: convert it, as ffmpeg -i x.M4A x.wav"
    assert files.why(tmp_path / "gone.m4a", reason) == files.why(Path("x.wav"), reason) == "Format not recognised"


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        ({}, "0.40 s"),
        ({"file_rate": 8000}, "0.40 s, resampled from 8000 to 1000 Hz"),
        ({"file_channels": 2}, "0.40 s, mono by the mean of its two channels"),
        ({"channels": 2}, "0.40 s, its one channel repeated to 2"),
        ({"scale": 1.5}, "0.40 s, scaled down from a peak of 1.5"),
    ],
)
def test_what_was_done_to_a_recording_is_said(differs, words, tmp_path):
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    assert files.said(audio.survey(tmp_path / "a.wav", 1000, 1)._replace(**differs)) == words
