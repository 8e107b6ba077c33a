"""The verb traverse: one component from low to high."""

from pathlib import Path

import numpy as np
import pytest

import sample
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.tasks import traverse
from tests.commands import run
from tests.toy import sound, toy


def made(given, out, **options):
    traverse.perform(given, traverse.Options(**options), 0, out)
    return {path.stem: audio.read(path, 1000, 1) for path in sorted(out.glob("*.wav"))}


def test_a_component_takes_values_in_deviations_and_all_others_their_mean(tmp_path):
    given = toy(tmp_path)
    given = given._replace(params={"spread": given.params["spread"] / 400})
    found = made(given, tmp_path / "out", component=2, low=-3.0, high=2.0, steps=3)
    assert list(found) == ["000--3", "001--0.5", "002-+2"]
    for wave, value in zip(found.values(), (-3, -0.5, 2), strict=True):
        frame = value * np.sqrt(6 / 400) * given.model.basis[:, 2]
        np.testing.assert_allclose(wave.reshape(-1, 8), np.tile(frame, (8, 1)), atol=2e-5)
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 5000


def test_around_a_recording_the_other_components_stay_as_they_are(tmp_path):
    given, wave = toy(tmp_path, delay=5), sound(203)
    audio.write(tmp_path / "a.wav", wave, 1000)
    for changed in made(
        given, tmp_path / "out", file=tmp_path / "a.wav", component=1, steps=2, low=-0.1, high=0.1
    ).values():
        assert len(changed) == 203
        before, after = ((x[:200].reshape(-1, 8) @ given.model.basis) for x in (wave, changed))
        others = np.arange(8) != 1
        np.testing.assert_allclose(after[:, others], before[:, others], atol=1e-4)
        np.testing.assert_allclose(np.abs(after[:, 1]), 0.1 * np.sqrt(7), atol=1e-4)


def test_wrong_components_values_and_recordings_are_refused(tmp_path):
    given = toy(tmp_path)
    for options, words in (
        ({"component": 8}, "has 0 to 7"),
        ({"component": -1}, "has 0 to 7"),
        ({"steps": 1}, "has 2 to 1000 steps"),
        ({"steps": 1001, "file": Path("none.wav")}, "has 2 to 1000 steps"),
        ({"low": float("nan")}, "low is nan and high 3.0: each is -100 to 100"),
        ({"high": float("nan")}, "high nan: each is -100 to 100"),
        ({"low": 1e300}, r"low is 1e\+300"),
        ({"file": Path("none.wav")}, "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            made(given, tmp_path / "out", **options)


def test_a_value_whose_sound_is_not_finite_is_refused_by_its_name(tmp_path):
    given = toy(tmp_path)
    given = given._replace(params={"spread": given.params["spread"] * np.inf})
    with pytest.raises(InputError, match=r"000--3.wav: .* not finite: name an earlier --checkpoint"):
        made(given, tmp_path / "out", steps=2)
    assert not list((tmp_path / "out").glob("*"))


def test_a_trained_model_is_traversed(coder, tmp_path, capsys):
    code, out, err = run(
        sample.main,
        "traverse",
        coder,
        "--steps",
        3,
        "--component",
        1,
        "--low",
        -2,
        "--out",
        tmp_path / "t",
        capsys=capsys,
    )
    assert code == 0, err
    assert out.splitlines()[-1].endswith(f"-> {tmp_path / 't'}")
    names = {path.name for path in (tmp_path / "t").iterdir()}
    assert names == {"000--2.wav", "001-+0.5.wav", "002-+3.wav", "sheet.png"}
