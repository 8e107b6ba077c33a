"""train.py and sample.py with pitches: which column of the data they are, and what is written down of it."""

import csv
import json

import numpy as np
import pytest

import sample
import train
from benchmarks.recordings import data_of
from jaxaudio.data import audio
from jaxaudio.runtime.folder import trained
from tests.commands import run
from tests.data.test_notes import off, on, song

pytestmark = pytest.mark.usefixtures("in_the_zoo")
FEW = ("--steps", 1, "--samples", 2, "--eval-clips", 8, "--model.segment", 512)


@pytest.fixture
def folder(tmp_path):
    """Notes of three pitches by two instruments; in the table the pitches come in no order."""
    rng = np.random.default_rng(0)
    rows = [(f"{i}.wav", "reed", f"s{i % 2}", (100, 60, 9)[i % 3]) for i in range(6)]
    for name, *_ in rows:
        audio.write(tmp_path / "data" / name, 0.1 * rng.standard_normal((600, 1)), 8000)
    with open(tmp_path / "data" / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "pitch"), *rows])
    return tmp_path / "data"


def test_a_model_of_notes_learns_the_pitches_of_the_table_in_their_order(folder, tmp_path, capsys):
    words = ("tuned:tiny", "--data", folder, "--out", tmp_path / "run", *FEW)
    code, out, err = run(train.main, *words, capsys=capsys)
    assert code == 0, err
    assert "3 classes" in out
    model, about = trained(tmp_path / "run").model, json.loads((tmp_path / "run" / "run.json").read_text())
    assert (model.classes, model.pitches) == (3, (9, 60, 100))
    assert (about["data"]["classes"], about["data"]["column"]) == (["9", "60", "100"], "pitch")
    pack = data_of(trained(tmp_path / "run"), None)
    assert pack.fingerprint == about["data"]["fingerprint"]
    assert [pack.classes[i] for i in pack.label] == ["100", "60", "9"] * 2
    assert run(train.main, *words, capsys=capsys)[0] == 0, "it is the same run still"

    file = song(tmp_path / "a.mid", [on(0, 72), off(1, 72)])
    code, out, err = run(sample.main, "play", tmp_path / "run", file, "--out", tmp_path / "a.wav", capsys=capsys)
    assert code == 0, err
    assert "1 notes, 1 of them moved by octaves to the 9, 60, 100 of this run -> a.wav" in out
    assert out.splitlines()[-1] == f"play: step 1 of {tmp_path / 'run'} -> {tmp_path / 'a.wav'}"
    code, _, err = run(sample.main, "generate", tmp_path / "run", "--pitch", "9,100", "--out", tmp_path / "s")
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"000-9.wav", "001-100.wav", "sheet.png"}


def test_without_a_folder_the_synthesiser_gives_notes(tmp_path, capsys):
    code, _, err = run(train.main, "tuned:tiny", "--out", tmp_path / "run", *FEW, capsys=capsys)
    assert code == 0, err
    assert trained(tmp_path / "run").model.pitches == tuple(range(48, 72))
    pack = data_of(trained(tmp_path / "run"), None)
    assert set(pack.classes) == {str(each) for each in range(48, 72)}


def test_another_model_learns_the_column_it_is_told(folder, tmp_path, capsys):
    few = ("--steps", 1, "--samples", 2, "--model.sample-rate", 8000)
    words = ("wavegan:tiny", "--data", folder, "--label", "speaker", "--out", tmp_path / "run", *few)
    code, _, err = run(train.main, *words, capsys=capsys)
    assert code == 0, err
    assert trained(tmp_path / "run").labels == ("s0", "s1")
    assert data_of(trained(tmp_path / "run"), None).classes == ("s0", "s1")
    assert data_of(trained(tmp_path / "run"), folder).classes == ("s0", "s1")
    code, _, err = run(train.main, *words[:3], "--out", tmp_path / "run", *few, capsys=capsys)
    assert code == 2
    assert "data is" in err, "other labels are other data"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tuned", "--label", "label"), "a recording's pitch is 'reed': it is a MIDI number, 0 to 127; give a column"),
        (("tuned", "--label", "octave"), "0 columns 'octave' in: path, label, speaker, pitch; give it one"),
        (("tuned", "--model.pitches", "1", "2"), "model.pitches is (1, 2), but the data has (9, 60, 100): leave it"),
        (("tuned", "--model.classes", "2"), "model.classes is 2, but the data has 3: leave it away"),
    ],
)
def test_what_is_no_pitch_is_refused(words, message, folder, tmp_path, capsys):
    model, *rest = words
    code, _, err = run(train.main, model, *rest, "--data", folder, "--out", tmp_path / "run", *FEW, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_synthesiser_has_no_other_columns_and_data_without_labels_has_no_pitches(tmp_path, capsys):
    code, _, err = run(train.main, "tuned", "--label", "octave", "--out", tmp_path / "run", *FEW, capsys=capsys)
    assert code == 2
    assert "label is 'octave', but the synthesiser's sounds have label and pitch: name --data" in err
    audio.write(tmp_path / "flat" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal((5000, 1)), 8000)
    code, _, err = run(train.main, "tuned", "--data", tmp_path / "flat", "--out", tmp_path / "run", capsys=capsys)
    assert code == 2
    assert "this model needs labels, but the data has none" in err


def test_a_run_without_pitches_does_not_play(maker, tmp_path, capsys):
    code, _, err = run(sample.main, "play", maker, tmp_path / "a.mid", capsys=capsys)
    assert code == 2
    assert "can't play: it can generate, morph" in err
    code, _, err = run(sample.main, "generate", maker, "--pitch", "60", capsys=capsys)
    assert code == 2
    assert "has learned no pitches: leave --pitch away" in err
