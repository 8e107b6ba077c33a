"""train.py on several folders, and with noise: what it hears, what it writes down, what it says to wrong input."""

import csv
import json

import jax
import numpy as np
import pytest
import soundfile

import sample
import train
from benchmarks.recordings import data_of, noise_of
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.runtime.checkpoint import Checkpoints, abstract
from jaxaudio.runtime.folder import trained
from jaxaudio.runtime.parallel import Devices
from tests.commands import run

pytestmark = pytest.mark.usefixtures("in_the_zoo")
RATE = 8000
FEW = ("--samples", 2, "--eval-clips", 16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of recordings, one with a speaker held out, and three of noise, one with noise held out."""
    where, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for name, lengths in (("speech", [700, 400] * 4), ("digits", [300] * 6), ("rain", [50, 900]), ("dogs", [100] * 3)):
        for i, length in enumerate(lengths):
            audio.write(where / name / f"{i}.wav", 0.1 * rng.standard_normal(length), RATE)
    for i in range(4):
        audio.write(where / "town" / ("valid" if i % 2 else "train") / f"{i}.wav", rng.uniform(-0.2, 0.2, 500), RATE)
    rows = [(f"{i}.wav", "any", f"s{i % 4}", "valid" if i % 4 == 3 else "train") for i in range(8)]
    with open(where / "speech" / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])
    return where


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """A run of four steps on two folders with two of noise."""
    out = tmp_path_factory.mktemp("runs") / "made"
    assert run(train.main, *words_of(folders), "--out", out, "--steps", 4, "--eval-every", 4)[0] == 0
    return out


def words_of(folders, noise=("rain", "dogs")):
    data = ("--data", folders / "speech", folders / "digits")
    return "mended:tiny", *data, "--noise", *(folders / name for name in noise), *FEW


def state_of(folder):
    """All of the last checkpoint."""
    model = trained(folder).model
    return Checkpoints(folder / "checkpoints", 1, model.criterion).latest(abstract(model, Devices("jit", 4)))


def test_a_run_writes_down_its_folders_and_the_same_recordings_are_found_again(made, folders):
    about = json.loads((made / "run.json").read_text())
    assert about["data"]["folder"] == [str(folders / "speech"), str(folders / "digits")]
    assert about["data"]["layout"] == "speech (table) and digits (flat) without labels, as digits has none"
    assert about["noise"]["folder"] == [str(folders / "rain"), str(folders / "dogs")]
    data, noise = (of(trained(made), None) for of in (data_of, noise_of))
    assert data.names[0] == "speech/0.wav"
    assert (data.fingerprint, noise.fingerprint) == tuple(about[name]["fingerprint"] for name in ("data", "noise"))
    assert noise_of(trained(made), folders / "town").names[0] == "train/0.wav"


def test_held_out_recordings_are_shown_clean_damaged_and_restored(made):
    names = {path.name for path in (made / "samples").iterdir()}
    assert names == {"real.png", "damaged.png", "0000004.png", "0000004-000.wav", "0000004-001.wav"}
    assert soundfile.info(made / "samples" / "0000004-000.wav").frames == 256
    assert "Damaged, as it was given" in (made / "report.html").read_text()
    assert any("valid/error" in line for line in (made / "metrics.jsonl").read_text().splitlines())


def test_with_noise_a_run_ends_in_the_same_state_however_it_gets_there(made, folders, tmp_path, capsys):
    """Cut on the device, and continued; and on four devices by pmap up to rounding."""
    words = (*words_of(folders), "--out", tmp_path / "other")
    for gather, steps in (("device", 3), ("host", 4)):
        code, out, _ = run(train.main, *words, "--steps", steps, "--gather", gather, capsys=capsys)
        assert code == 0
    assert "continues at step 3" in out
    for one, other in zip(*(jax.tree.leaves(state_of(each)) for each in (made, tmp_path / "other")), strict=True):
        np.testing.assert_array_equal(one, other)
    words = (*words_of(folders), "--out", tmp_path / "pmap", "--parallel", "pmap", "--steps", 4)
    assert run(train.main, *words)[0] == 0
    for one, other in zip(*(jax.tree.leaves(state_of(each)) for each in (made, tmp_path / "pmap")), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert float(state_of(made).extra["heard"]) > 0, "statistics of the data hear the noise"


def test_another_noise_or_other_folders_are_another_run(made, folders, capsys):
    for words, message in (
        (words_of(folders, ("rain",)), "noise data is "),
        (words_of(folders, ("dogs", "rain")), "noise data is "),
        (("mended:tiny", "--data", folders / "speech", "--noise", folders / "rain", folders / "dogs"), "data is "),
    ):
        code, _, err = run(train.main, *words, "--out", made, "--steps", 9, capsys=capsys)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    (made / "run.json").rename(made / "kept.json")
    (made / "run.json").write_text(json.dumps(json.loads((made / "kept.json").read_text()) | {"noise": 3}))
    code, _, err = run(train.main, *words_of(folders), "--out", made, "--steps", 9, capsys=capsys)
    (made / "kept.json").rename(made / "run.json")
    assert code == 2
    assert "run.json in" in err
    assert "is damaged" in err


def test_what_the_noise_is_is_said_and_where_none_is_held_out(folders, tmp_path, capsys):
    for noise, said in (
        ("rain", "noise: flat, 1 recordings (0.0 minutes), none held out: evaluated with the same"),
        ("town", "noise: folders, 2 recordings (0.0 minutes), 2 held out"),
    ):
        words = (*words_of(folders, (noise,)), "--out", tmp_path / noise, "--steps", 1)
        code, out, _ = run(train.main, *words, "--model.segment", 1024, capsys=capsys)
        assert code == 0
        assert said in out
    rejected = list(csv.reader((tmp_path / "rain" / "rejected.csv").read_text().splitlines()))
    assert rejected[1:] == [["0.wav", "as noise: 50 samples: shorter than 1/16 of a segment of 1024"]]


def test_without_folders_recordings_and_noise_are_synthesised_and_the_run_restores(tmp_path, capsys):
    code, out, _ = run(train.main, "mended:tiny", *FEW, "--out", tmp_path / "run", "--steps", 1, capsys=capsys)
    assert code == 0
    assert "noise: synthesised, 360 recordings (0.2 minutes), 20 held out" in out
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["noise"]["folder"] == about["data"]["folder"] == "None"
    assert set(noise_of(trained(tmp_path / "run"), None).classes) == {"rain", "wind"}
    audio.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(3000), RATE)
    words = ("restore", tmp_path / "run", tmp_path / "a.wav", "--out", tmp_path / "new")
    assert run(sample.main, *words, "--gap", "0.1:0.102", "0.2:0.202", "--gap", "0.3:0.302")[0] == 0
    (wave, new), _ = zip(
        *(soundfile.read(path) for path in (tmp_path / "a.wav", tmp_path / "new" / "a.wav")), strict=True
    )
    assert {i // 100 for i in np.flatnonzero(wave != new)} == {8, 16, 24}
    code, _, err = run(sample.main, *words, capsys=capsys)
    assert code == 2
    assert "a.wav is there already" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mended:tiny", "--data", "{}/digits"), "noise data missing: beside --data mended learns from recordings of"),
        (("wavegan:tiny", "--noise", "{}/rain"), "rain, but wavegan learns without: leave --noise away"),
        (("mended:tiny", "--noise", "{}/rain", "{}/rain"), "rain hold the same recordings, as 0.wav: name each folder"),
        (("mended:tiny", "--data", "{}/digits", "{}/digits/."), "name each folder once"),
        (("mended:tiny", "--data", "{}/digits", "--data", "{}/speech"), "--data is there 2 times: give it once"),
        (("mended:tiny", "--data", "{}/digits", "--data={}/speech"), "--data is there 2 times: give it once"),
        (("mended:tiny", "--data", "--noise", "{}/rain"), "--data is followed by no folder: name one or more"),
        (("mended:tiny", "--data", "{}/digits", "--noise"), "--noise is followed by no folder"),
        (("mended:tiny", "--data", "{}/dogs", "--noise", "{}/rain", "{}/dogs/."), "dogs is --data and --noise"),
        (("mended:tiny", "--noise", "{}/nowhere"), "nowhere: no such folder"),
        (("mended:tiny", "--noise", "{}/dogs", "--model.segment", "4096"), "no recording of 3 can be noise: 3 are in"),
    ],
)
def test_wrong_folders_get_one_line(words, message, folders, tmp_path, capsys):
    words = [word.format(folders) for word in words]
    code, _, err = run(train.main, *words, "--out", tmp_path / "run", "--steps", 1, capsys=capsys)
    assert code == 2, err
    assert message in err
    assert err.count("\n") == 1


def test_a_run_without_noise_has_none_to_score_with(maker):
    with pytest.raises(InputError, match="was trained without noise: name a folder of it"):
        noise_of(trained(maker), None)
