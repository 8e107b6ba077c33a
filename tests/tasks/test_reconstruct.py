"""The verb reconstruct: in parts or in one piece, as long as the recording and in time with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import sample
from jaxaudio.core import InputError
from jaxaudio.data import audio, parts
from jaxaudio.data import coder as through
from jaxaudio.runtime.folder import trained as trained_run
from jaxaudio.tasks import reconstruct
from tests.commands import run
from tests.toy import MIXING, sound, toy


def made(trained, files, out, **options):
    return reconstruct.perform(trained, reconstruct.Options(files=tuple(files), **options), 3, out)


def in_blocks(wave, rng):
    while len(wave):
        size = int(rng.integers(0, 50))
        yield wave[:size]
        wave = wave[size:]


def at_once(trained, wave, seed=3, components=None):
    """Encoded and decoded in one piece, with so much behind it that its end is not felt."""
    model = trained.model
    frames = -(-(len(wave) + model.delay) // model.hop)
    whole = jnp.pad(jnp.asarray(wave), ((0, (frames + model.reach) * model.hop - len(wave)), (0, 0)))[None]

    @jax.jit
    def codec(params, whole):
        latent = model.encode(params, whole)[:, :frames, :components]
        latent = jnp.pad(latent, ((0, 0), (0, model.reach), (0, 0)), "edge")
        return model.decode(params, latent, jax.random.key(seed))

    return np.asarray(codec(trained.params, whole))[0, model.delay :][: len(wave)]


@pytest.mark.parametrize("length", [401, 408, 409, 1000, 1337])
@pytest.mark.parametrize("fields", [{}, {"delay": 13}, {"channels": 2, "delay": 3}], ids=str)
def test_parts_are_the_whole_and_so_is_their_noise(tmp_path, monkeypatch, fields, length):
    monkeypatch.setattr(through, "PART_SECONDS", 0.3)
    trained = toy(tmp_path, **MIXING, **fields)
    codec, wave = through.Codec(trained.model, trained.params, 3), sound(length, trained.model.channels)
    assert codec.frames(length) > codec.most, "else there is one part"
    latents = codec.latents(in_blocks(wave, np.random.default_rng(length)), length)
    parts = np.concatenate(list(codec.sound(latents, length, 1.0)))
    np.testing.assert_allclose(parts, at_once(trained, wave), atol=1e-5)
    assert codec.encode._cache_size() == codec.decode._cache_size() == 1


def test_short_recordings_share_a_few_compilations_and_are_the_whole(tmp_path):
    trained = toy(tmp_path, **MIXING)
    codec = through.Codec(trained.model, trained.params, 3)
    for length in (1, 9, 32, 33, 63, 100, 250):
        wave = sound(length)
        result = np.concatenate(list(codec.sound(codec.latents([wave], length), length, 1.0)))
        assert len(result) == length
        np.testing.assert_allclose(result, at_once(trained, wave), atol=1e-5)
    assert codec.encode._cache_size() == 4, "4, 8, 16 and 64 frames"


def test_no_more_of_a_long_recording_is_read_than_a_part_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(through, "PART_SECONDS", 0.3)
    trained, read = toy(tmp_path, **MIXING), 0
    codec = through.Codec(trained.model, trained.params, 3)

    def recording():
        nonlocal read
        for _ in range(1000):
            read += 10
            yield np.zeros((10, 1), np.float32)

    heard = 0
    for block in codec.sound(codec.latents(recording(), 10_000), 10_000, 1.0):
        heard += len(block)
        assert read - heard < 3 * codec.most * trained.model.hop
    assert heard == 10_000


def test_parts_that_differ_pass_into_each_other_without_a_step():
    size, reach, rows, frames = 20, 2, 10, 100
    last = frames + reach - size
    starts = [*range(0, last, size - 2 * reach - parts.FADE), last]
    results = ((start, np.full((size * rows, 1), i % 2, np.float32)) for i, start in enumerate(starts))
    whole = np.concatenate(list(parts.joined(results, frames, rows, size, reach, parts.FADE)))
    assert len(whole) == frames * rows
    assert {0.0, 1.0} < set(whole[:, 0].tolist())
    assert np.abs(np.diff(whole[:, 0])).max() <= 1 / (parts.FADE * rows) + 1e-6


@pytest.mark.parametrize("gain", ["none", "peak"])
def test_what_a_model_keeps_comes_back_bit_for_bit_in_time_and_as_loud(tmp_path, gain):
    trained, wave = toy(tmp_path, delay=13, gain=gain), sound(501)
    audio.write(tmp_path / "a.wav", wave, 1000)
    out = made(trained, [tmp_path / "a.wav"], tmp_path / "out")
    np.testing.assert_array_equal(audio.read(out / "a.wav", 1000, 1), wave)
    assert (out / "sheet.png").stat().st_size > 5000


def test_a_model_of_gain_peak_hears_a_peak_of_one(tmp_path):
    trained = toy(tmp_path, gain="peak")
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    codec = through.Codec(trained.model, trained.params, 0)
    heard = np.concatenate(list(codec.blocks(codec.survey(tmp_path / "a.wav"))))
    assert np.abs(heard).max() == pytest.approx(1)


def test_fidelity_keeps_as_few_leading_components_as_hold_that_share(tmp_path, capsys):
    assert [reconstruct.leading(np.array([5.0, 3.0, 1.0, 1.0]), f) for f in (0.3, 0.5, 0.51, 0.8, 0.85, 1.0)] == [
        *(1, 1, 2, 2, 3, 4)
    ]
    trained, wave = toy(tmp_path), sound(400)  # spread 8 to 1, in all 36
    audio.write(tmp_path / "a.wav", wave, 1000)
    out = made(trained, [tmp_path / "a.wav"], tmp_path / "out", fidelity=0.6)
    assert "fidelity 0.6: 4 of 8 components" in capsys.readouterr().out
    kept = audio.read(out / "a.wav", 1000, 1)
    np.testing.assert_allclose(kept, at_once(trained, wave, components=3 + 1), atol=2e-5)
    for wrong in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="fidelity"):
            made(trained, [tmp_path / "a.wav"], tmp_path / "out", fidelity=wrong)


def test_any_recording_fits_what_was_done_is_said_and_what_can_not_be_read_is_left_out(coder, tmp_path, capsys):
    soundfile.write(tmp_path / "in-48k.wav", sound(9000, 2), 48000)
    soundfile.write(tmp_path / "loud.wav", 3 * sound(3000, level=0.3), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "six.wav", sound(5000, 6), 16000)
    (tmp_path / "text.wav").write_text("no sound")
    code, out, err = run(sample.main, "reconstruct", coder, tmp_path, "--out", tmp_path / "new", capsys=capsys)
    assert code == 0, err
    rows = {name: next(row for row in out.splitlines() if f"{name}.wav  " in row) for name in ("in-48k", "loud", "six")}
    assert "0.19 s, resampled from 48000 to 16000 Hz, mono by the mean of its two channels -> " in rows["in-48k"]
    assert "scaled down from a peak of" in rows["loud"]
    assert "left out: has 6 channels, wanted 1" in rows["six"]
    assert "left out: Format not recognised" in out
    assert out.splitlines()[-1].endswith(f"-> {tmp_path / 'new'}")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"in-48k.wav", "loud.wav", "sheet.png"}
    assert soundfile.info(tmp_path / "new" / "in-48k.wav").frames == 3000
    code, _, err = run(sample.main, "reconstruct", coder, tmp_path / "text.wav", tmp_path / "none.wav", capsys=capsys)
    assert code == 2
    assert "none of 2 files can be used; the first: " in err
    (tmp_path / "empty").mkdir()
    assert run(sample.main, "reconstruct", coder, tmp_path / "empty")[0] == 2


@pytest.mark.parametrize("which", ["coder", "picture"])
def test_silence_clipping_noise_and_one_sample_give_finite_sound(which, tmp_path, request):
    folder, rng = request.getfixturevalue(which), np.random.default_rng(0)
    waves = {"silence": np.zeros(3000), "noise": rng.choice([-1.0, 1.0], 3000), "click": np.ones(1)}
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="FLOAT")
    assert run(sample.main, "reconstruct", folder, tmp_path, "--out", tmp_path / "new")[0] == 0
    for name, wave in waves.items():
        result = soundfile.read(tmp_path / "new" / f"{name}.wav")[0]
        assert len(result) == len(wave)
        assert np.isfinite(result).all()
    assert soundfile.read(tmp_path / "new" / "noise.wav")[0].std() > 0


def test_a_trained_codec_gives_in_parts_what_it_gives_at_once(coder, tmp_path, monkeypatch):
    trained = trained_run(coder)
    monkeypatch.setattr(through, "PART_SECONDS", 0.01)
    codec = through.Codec(trained.model, trained.params, 3)
    wave = sound(3 * codec.most * trained.model.hop + 5)
    parts = np.concatenate(list(codec.sound(codec.latents([wave], len(wave)), len(wave), 1.0)))
    whole = at_once(trained, wave)
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_what_is_sound_by_its_content_is_read_whatever_its_name(tmp_path, capsys):
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    (tmp_path / "a.wav").rename(tmp_path / "a.m4a")
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    assert (made(toy(tmp_path), [tmp_path], tmp_path / "out") / "a.wav").exists()
    assert "x.m4a  left out: this format is not read: convert it, as ffmpeg -i x.m4a x.wav" in capsys.readouterr().out
