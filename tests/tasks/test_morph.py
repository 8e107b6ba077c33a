"""The verb morph, between recordings."""

import numpy as np
import pytest

import sample
from jaxaudio.core import InputError
from jaxaudio.data import audio, parts
from jaxaudio.tasks import morph
from tests.commands import run
from tests.toy import sound, toy


def made(given, out, *files, steps=3, **options):
    morph.perform(given, morph.Options(files=files, steps=steps, **options), 0, out)
    return [audio.read(path, 1000, 1) for path in sorted(out.glob("*.wav"))]


def test_the_path_goes_straight_from_each_recording_to_the_next(tmp_path, capsys):
    given, lengths = toy(tmp_path, delay=5), (400, 333, 350)
    waves = [sound(length, seed=i) for i, length in enumerate(lengths)]
    files = [tmp_path / f"{i}.wav" for i in range(3)]
    for file, wave in zip(files, waves, strict=True):
        audio.write(file, wave, 1000)
    found = made(given, tmp_path / "out", *files)
    a, b, c = (wave[:333] for wave in waves)
    for wave, expected in zip(found, (a, (a + b) / 2, b, b, (b + c) / 2, c), strict=True):
        np.testing.assert_allclose(wave, expected, atol=3.1e-5)
    assert "all cut to the shortest: 0.33 s" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "out").iterdir())][:2] == ["000-0.00.wav", "001-0.50.wav"]


def test_the_level_goes_along_where_a_model_hears_all_at_one(tmp_path):
    given, wave = toy(tmp_path, gain="peak"), sound(400, level=0.2)
    audio.write(tmp_path / "a.wav", wave, 1000)
    audio.write(tmp_path / "b.wav", wave / 2, 1000)
    middle = made(given, tmp_path / "out", tmp_path / "a.wav", tmp_path / "b.wav")[1]
    np.testing.assert_allclose(middle, 0.75 * wave, atol=6e-5)


def test_a_path_may_come_back_to_where_it_began_and_its_sheet_stays_small(tmp_path, monkeypatch):
    sheets = []
    monkeypatch.setattr(parts, "draw", lambda sounds, *rest: sheets.append(len(sounds)))
    for name in "ab":
        audio.write(tmp_path / f"{name}.wav", sound(8, seed=ord(name)), 1000)
    files = [tmp_path / f"{name}.wav" for name in "aba"]
    found = made(toy(tmp_path), tmp_path / "out", *files, steps=50)
    assert len(found) == 100
    np.testing.assert_array_equal(found[0], found[-1])
    assert sheets == [50], "every second one: at most 64"


def test_too_few_recordings_steps_or_a_broken_one_are_refused(tmp_path, maker, capsys):
    audio.write(tmp_path / "a.wav", sound(100), 1000)
    with pytest.raises(InputError, match="one recording is given"):
        made(toy(tmp_path), tmp_path / "out", tmp_path / "a.wav")
    for steps in (1, 1001):
        with pytest.raises(InputError, match=f"steps is {steps}: a path has 2 to 1000 steps"):
            made(toy(tmp_path), tmp_path / "out", tmp_path / "none.wav", tmp_path / "none.wav", steps=steps)
    for options in ({"seeds": "0,1"}, {"label": "fm"}):
        with pytest.raises(InputError, match="leave them away, or leave the files away"):
            made(toy(tmp_path), tmp_path / "out", tmp_path / "a.wav", tmp_path / "a.wav", **options)
    with pytest.raises(InputError, match="none.wav can't be used: No such file"):
        made(toy(tmp_path), tmp_path / "out", tmp_path / "a.wav", tmp_path / "none.wav")
    with pytest.raises(InputError, match="name two or more"):
        made(toy(tmp_path), tmp_path / "out")
    code, _, err = run(sample.main, "morph", maker, tmp_path / "a.wav", tmp_path / "a.wav", capsys=capsys)
    assert code == 2
    assert "can't encode recordings: leave the files away" in err


def test_a_model_that_encodes_morphs_between_files_and_one_with_a_prior_between_seeds(picture, tmp_path):
    for i in range(2):
        audio.write(tmp_path / f"{i}.wav", sound(700, seed=i), 16000)
    words = ("--steps", 2, "--out", tmp_path / "files")
    assert run(sample.main, "morph", picture, tmp_path / "0.wav", tmp_path / "1.wav", *words)[0] == 0
    assert len(audio.read(tmp_path / "files" / "001-1.00.wav", 16000, 1)) == 700
    assert run(sample.main, "morph", picture, "--steps", 2, "--out", tmp_path / "seeds")[0] == 0
    assert (tmp_path / "seeds" / "sheet.png").exists()
