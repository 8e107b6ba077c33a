"""train.py on mels that are given: that a run learns from them, knows them again, and says what is wrong."""

import csv
import json

import numpy as np
import pytest

import train
from jaxaudio import zoo
from jaxaudio.data import audio
from tests.commands import run

FEW = ("--samples", 2, "--eval-clips", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings and their mels, of which one is missing."""
    where, model = tmp_path_factory.mktemp("mels"), zoo.load("wavernn:tiny")
    for i in range(12):
        wave = (0.1 * np.random.default_rng(i).standard_normal((40 * model.hop, 1))).astype(np.float32)
        audio.write(where / "data" / f"{i}.wav", wave, model.sample_rate)
        (where / "mels").mkdir(exist_ok=True)
        if i:
            np.save(where / "mels" / f"{i}.npy", np.asarray(model.features(wave[None])[0]))
    return where


def words(folder, out, *others, mels="mels"):
    return ("wavernn:tiny", "--data", folder / "data", "--mels", folder / mels, "--out", out, *FEW, *others)


def weights(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["network/loss"] for line in lines if "network/loss" in line]


def test_a_run_learns_from_the_mels_that_are_given_and_knows_them_again(folder, tmp_path, capsys):
    few = ("--steps", 2, "--log-every", 1)
    code, out, err = run(train.main, *words(folder, tmp_path / "own", *few), capsys=capsys)
    assert code == 0, err
    assert "11 recordings to train on" in out
    rejected = list(csv.reader((tmp_path / "own" / "rejected.csv").read_text().splitlines()))[1:]
    assert rejected == [["0.wav", f"mels: {folder / 'mels' / '0.npy'}: No such file or directory"]]
    about = json.loads((tmp_path / "own" / "run.json").read_text())["mels"]
    assert about["folder"] == str(folder / "mels")

    (folder / "other").mkdir()
    for path in (folder / "mels").iterdir():
        np.save(folder / "other" / path.name, 1 - np.load(path))
    assert run(train.main, *words(folder, tmp_path / "other", *few, mels="other"))[0] == 0
    assert weights(tmp_path / "own")[0] != weights(tmp_path / "other")[0]

    assert run(train.main, *words(folder, tmp_path / "own", "--steps", 3))[0] == 0, "the same goes on"
    code, _, err = run(train.main, *words(folder, tmp_path / "own", "--steps", 4, mels="other"), capsys=capsys)
    assert code == 2
    assert f"given mels is {about['fingerprint']} there and" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("wavegan:tiny",), "but wavegan makes no sound of mels: leave --mels away"),
        (("hifigan:tiny",), "of sound as it is, but gain is peak: add --model.gain none"),
        ((None, "--gather", "device"), "and gather device, but mels are cut on the host: leave --gather away"),
        ((None, "--mels", "nowhere"), "mels is nowhere: no such folder; name one with a .npy for each recording"),
        ((None, "--model.mels", "9"), "none of 12 recordings has mels that can be used; the first"),
    ],
)
def test_mels_that_are_of_no_use_are_refused(change, message, folder, tmp_path, capsys):
    model, *others = change
    given = words(folder, tmp_path / "run", *others)
    code, _, err = run(train.main, model or given[0], *given[1:], capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_mels_of_sounds_that_are_made_up_are_refused(folder, tmp_path, capsys):
    code, _, err = run(train.main, "wavernn:tiny", "--mels", folder / "mels", "--out", tmp_path / "r", capsys=capsys)
    assert code == 2
    assert "but the synthesiser's sounds have none: name the recordings, as --data FOLDER" in err
