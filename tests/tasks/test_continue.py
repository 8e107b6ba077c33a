"""The verb continue: what was heard, then what the model makes of it."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import sample
from jaxaudio.core import InputError
from jaxaudio.data import audio, coder
from jaxaudio.tasks import generate
from tests.coded import composed, decoded
from tests.commands import run
from tests.still import PARAMS, Walk, run_of
from tests.toy import sound

verb = importlib.import_module("jaxaudio.tasks.continue")  # its name is a keyword


def made(given, files, out, **options):
    return verb.perform(given, verb.Options(files=tuple(files), **options), 3, out)


def going_on(model, prompt, length, n=1, label=None, loud=1.0):
    """The samples behind a prompt [time, channels], in one piece."""
    carry = model.hear(PARAMS, np.repeat(prompt[None] / np.float32(loud), n, 0), label)
    _, wave = model.extend(PARAMS, carry, jax.random.key(3), -(-length // model.frame))
    return np.asarray(wave)[:, :length] * loud


@pytest.mark.parametrize("gain", ["none", "peak"])
@pytest.mark.parametrize("fields", [{}, {"channels": 2}, {"frame": 1}], ids=str)
def test_the_beginning_is_the_prompt_bit_for_bit_and_the_rest_goes_on_from_it(tmp_path, gain, fields, capsys):
    model = Walk(gain=gain, **fields)
    wave = sound(503, model.channels)
    audio.write(tmp_path / "a.wav", wave, 1000)
    out = made(run_of(model, tmp_path), [tmp_path / "a.wav"], tmp_path / "out", seconds=2.5)
    whole, prompt = audio.read(out / "a.wav", 1000, model.channels), wave[503 % model.frame :]
    np.testing.assert_array_equal(whole[: len(prompt)], prompt)
    loud = np.abs(wave).max() if gain == "peak" else 1.0
    np.testing.assert_allclose(whole[len(prompt) :], going_on(model, prompt, 2500, loud=loud)[0], atol=3e-5)
    assert f"0.50 s, {len(prompt) / 1000:.2f} s heard, 2.50 s more -> a.wav" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"a.wav", "sheet.png"}


def test_of_a_long_recording_only_the_end_is_heard_and_held(tmp_path):
    model, wave = Walk(), sound(5003)
    audio.write(tmp_path / "a.wav", wave, 1000)
    out = made(run_of(model, tmp_path), [tmp_path / "a.wav"], tmp_path / "out", heard=0.3, seconds=0.1)
    whole = audio.read(out / "a.wav", 1000, 1)
    assert len(whole) == 296 + 100
    np.testing.assert_array_equal(whole[:296], wave[-296:])
    read, dropped = 0, []

    class Block(np.ndarray):
        def __del__(self):
            dropped.append(1)

    def blocks():
        nonlocal read
        for _ in range(100):
            read += 1
            assert read - len(dropped) < 10, "memory grows with the recording"
            yield np.zeros((100, 1), np.float32).view(Block)

    assert len(verb.last(blocks(), model, 300)) == 296


def test_continuations_of_one_recording_differ_and_no_file_is_overwritten(tmp_path):
    model, out = Walk(), tmp_path / "out"
    waves = {name: sound(80, seed=i) for i, name in enumerate(("out/a-001.wav", "out/a.wav", "in/a.flac"))}
    for name, wave in waves.items():
        audio.write(tmp_path / name, wave, 1000)
    before = {name: (tmp_path / name).read_bytes() for name in waves}
    made(run_of(model, tmp_path), [tmp_path / name for name in waves], out, n=3, seconds=0.1)
    assert {name: (tmp_path / name).read_bytes() for name in waves} == before
    names = {"a-001-000.wav", "a-001-001.wav", "a-001-002.wav", "a-000.wav", "a-2-001.wav", "a-002.wav"}
    names |= {"a-2-000.wav", "a-3-001.wav", "a-2-002.wav"}
    assert {path.name for path in out.iterdir()} == names | {"a-001.wav", "a.wav", "sheet.png"}
    mine = [audio.read(out / name, 1000, 1) for name in ("a-000.wav", "a-2-001.wav", "a-002.wav")]
    expected = going_on(model, waves["out/a.wav"], 100, n=3)
    np.testing.assert_allclose(np.stack(mine)[:, 80:], expected, atol=3e-5)
    assert len({wave.tobytes() for wave in mine}) == 3


def test_alone_the_continuation_is_what_else_follows_the_recording(tmp_path):
    given = run_of(Walk(), tmp_path)
    audio.write(tmp_path / "a.wav", sound(80), 1000)
    whole = audio.read(made(given, [tmp_path / "a.wav"], tmp_path / "whole") / "a.wav", 1000, 1)
    alone = audio.read(made(given, [tmp_path / "a.wav"], tmp_path / "alone", alone=True) / "a.wav", 1000, 1)
    np.testing.assert_array_equal(alone, whole[80:])


def test_a_recording_is_not_continued_as_a_class_that_nobody_chose(tmp_path):
    given = run_of(Walk(classes=2), tmp_path, ("low", "high"))
    with pytest.raises(InputError, match="conditional: name the class with --label, one of 0 low, 1 high$"):
        made(given, [tmp_path / "none.wav"], tmp_path / "out", n=1)


def test_a_continuation_that_is_not_finite_is_left_out(tmp_path):
    audio.write(tmp_path / "a.wav", sound(80), 1000)
    given = run_of(Walk(), tmp_path)._replace(params={"loud": np.float32("nan")})
    with pytest.raises(InputError, match="none of 1 files can be used; .* not finite: name an earlier --checkpoint"):
        made(given, [tmp_path / "a.wav"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_label_is_chosen_by_name_or_number_else_all_come_in_turn(tmp_path):
    given = run_of(Walk(classes=2), tmp_path, ("low", "high"))
    audio.write(tmp_path / "a.wav", sound(80), 1000)

    def levels(name, **options):
        out = made(given, [tmp_path / "a.wav"], tmp_path / name, seconds=2.0, alone=True, **options)
        return {path.name: audio.read(path, 1000, 1).mean() for path in out.glob("*.wav")}

    turn = levels("turn", n=3)
    assert set(turn) == {"a-000-low.wav", "a-001-high.wav", "a-002-low.wav"}
    assert turn["a-001-high.wav"] == pytest.approx(0.04, abs=0.01), "0.01 / (1 - 0.75)"
    assert turn["a-002-low.wav"] == pytest.approx(0.0, abs=0.01)
    assert levels("name", label="high") == levels("number", label="1")
    assert levels("name", label="high")["a.wav"] == pytest.approx(0.04, abs=0.01)
    with pytest.raises(InputError, match="there is no label 'loud': choose from 0 low, 1 high"):
        levels("none", label="loud")


def test_a_prompt_shorter_than_a_frame_is_refused_with_the_shortest_there_can_be(tmp_path, capsys):
    given = run_of(Walk(frame=32), tmp_path)
    audio.write(tmp_path / "short.wav", sound(31), 1000)
    audio.write(tmp_path / "enough.wav", sound(32), 1000)
    words = "too short: 31 samples at 1000 Hz, this model hears 32 samples, 0.032 s or more"
    with pytest.raises(InputError, match=f"none of 1 files can be used; the first: .*short.wav: {words}"):
        made(given, [tmp_path / "short.wav"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made(given, [tmp_path / "short.wav", tmp_path / "enough.wav"], tmp_path / "out")
    out, err = capsys.readouterr()
    assert f"left out: {words}" in out
    assert err == "1 of 2 files were left out\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"enough.wav", "sheet.png"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n is 0: 1 to 128 continuations"),
        ({"n": 129}, "n is 129"),
        ({"seconds": 0.0}, "seconds is 0: a sample or more"),
        ({"seconds": -1.0}, "seconds is -1"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 20_000.0, "n": 2}, "36000 s at most in all: lower --seconds to 18000"),
        ({"heard": 0.005}, r"heard is 0.005: hear 8 samples \(0.008 s\) or more"),
        ({"heard": float("inf")}, "heard is inf"),
        ({"heard": 20.0, "n": 31}, "600 s at most for all n: lower --heard to 19"),
        ({"n": 128}, "heard is 10 and n 128: .*: lower --heard to 4$"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"label": "a"}, "label is 'a', but this model is unconditional"),
    ],
)
def test_impossible_wishes_are_refused_before_a_file_is_read(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        made(run_of(Walk(), tmp_path), [tmp_path / "none.wav"], tmp_path / "out", **options)


def test_a_trained_model_goes_on_from_recordings_of_any_kind(singer, tmp_path, capsys):
    soundfile.write(tmp_path / "in.flac", sound(9000, 2), 48000)
    audio.write(tmp_path / "b.wav", sound(3001), 16000)
    words = ("continue", singer, tmp_path, "--seconds", 0.2, "--label", "hiss", "--seed", 4)
    for name in ("a", "again"):
        code, out, err = run(sample.main, *words, "--out", tmp_path.parent / name, capsys=capsys)
        assert code == 0, err
    assert "resampled from 48000 to 16000 Hz, mono by the mean" in out
    out = tmp_path.parent / "a"
    for path in out.iterdir():
        assert (tmp_path.parent / "again" / path.name).read_bytes() == path.read_bytes()
    whole = audio.read(out / "b.wav", 16000, 1)
    np.testing.assert_array_equal(whole[:3000], sound(3001)[1:])
    assert len(whole) == 3000 + 3200
    assert np.abs(whole[3000:]).max() > 0


def test_the_verb_is_listed_helped_with_and_refused_where_a_run_lacks_it(singer, maker, tmp_path, capsys):
    code, out, _ = run(sample.main, "--help", capsys=capsys)
    assert code == 0
    assert "continue     How a recording goes on" in out
    code, out, _ = run(sample.main, "continue", "--help", capsys=capsys)
    assert code == 0
    for words in ("seconds at the end of a longer recording", "continuations of each recording", "--temperature"):
        assert words in out
    code, _, err = run(sample.main, "continue", maker, tmp_path, capsys=capsys)
    assert code == 2
    assert "can't continue: it can generate, morph" in err
    audio.write(tmp_path / "short.wav", sound(7), 16000)
    code, _, err = run(sample.main, "continue", singer, tmp_path, "--label", "hiss", capsys=capsys)
    assert code == 2
    assert "too short: 7 samples at 16000 Hz, this model hears 8 samples, 0.0005 s or more" in err
    assert err.count("\n") == 1


def test_going_on_in_blocks_is_going_on(monkeypatch, tmp_path):
    given = run_of(Walk(), tmp_path)
    audio.write(tmp_path / "a.wav", sound(80), 1000)
    results = []
    for seconds in (0.05, 1.0):
        monkeypatch.setattr(generate, "BLOCK_SECONDS", seconds)
        results.append(made(given, [tmp_path / "a.wav"], tmp_path / str(seconds)) / "a.wav")
    assert results[0].read_bytes() == results[1].read_bytes()


# ----------------------------------------------------------------------------------------------- through a codec


@pytest.mark.parametrize("fields", [{}, {"delay": 3}, {"gain": "peak"}], ids=str)
def test_codes_go_on_from_a_recording_and_their_sound_is_joined_to_it(tmp_path, monkeypatch, fields):
    monkeypatch.setattr(coder, "PART_SECONDS", 0.2)
    given, codec = composed(tmp_path, monkeypatch, **fields)
    wave = sound(803, level=0.2)
    audio.write(tmp_path / "a.wav", wave, 1000)
    out = made(given, [tmp_path / "a.wav"], tmp_path / "out", seconds=1.5, n=2)
    prompt, loud = wave[3:], np.abs(wave).max() if fields.get("gain") else np.float32(1)
    mirrored = np.concatenate([prompt, prompt[::-1]])[None] / loud  # what is heard ends in no silence
    heard = codec.model.codes(codec.params, mirrored)[:, :100]
    carry = given.model.hear(given.params, jnp.repeat(heard, 2, 0), None)
    _, new = given.model.extend(given.params, carry, jax.random.key(3), 188)
    whole = decoded(codec, jnp.concatenate([jnp.repeat(heard, 2, 0), new], 1))
    for i in range(2):
        found = audio.read(out / f"a-00{i}.wav", 1000, 1)
        np.testing.assert_array_equal(found[:800], prompt)
        expected = whole[i, 800:2300].copy()
        lost = (prompt / loud - whole[i, :800])[780:][::-1]
        expected[:20] += lost * (1 - (np.arange(20).reshape(-1, 1) + 0.5) / 20)
        np.testing.assert_allclose(found[800:], loud * np.clip(expected, -1, 1), atol=5e-5)


def test_behind_a_tone_that_a_codec_gives_back_at_another_level_there_is_no_step(tmp_path):
    time = np.arange(400).reshape(1, -1, 1) / 1000
    tone = 0.5 * np.sin(2 * np.pi * 5 * time).astype(np.float32) + 0.2
    given_back = 0.6 * tone
    (joined,) = np.concatenate(list(generate.mended(tone[0, :200], [given_back[:, :90], given_back[:, 90:]], 50)), 1)
    assert joined.shape == (200, 1)
    assert abs(given_back[0, 200, 0] - tone[0, 199, 0]) > 0.05
    assert abs(joined[0, 0] - tone[0, 199, 0]) < 0.02
    assert np.abs(np.diff(joined[:, 0])).max() < 0.03
    np.testing.assert_array_equal(joined[50:], given_back[0, 250:])
    brief = list(generate.mended(tone[0, :200], [given_back[:, :203]], 50))
    assert np.concatenate(brief, 1).shape == (1, 3, 1)
