"""The verbs vocode, encode and reconstruct of vocoders: in blocks or at once, whole or folded."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import sample
from jaxaudio.core import InputError
from jaxaudio.data import audio, frames, parts
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import encode, reconstruct, vocode
from tests.commands import run
from tests.still import PARAMS, Still, run_of
from tests.toy import sound, toy

MIXING = {"around": 0.25, "stays": 0.5, "hiss": 0.2}


def of_recordings(verb, given, files, out, **options):
    return verb.perform(given, verb.Options(files=tuple(files), **options), 3, out)


def vocoder_of(seed=3, fold=None, **fields):
    return vocode.Vocoder(Still(**fields), PARAMS, seed, fold)


def in_blocks(x, rng):
    while len(x):
        size = int(rng.integers(0, 50))
        yield x[:size]
        x = x[size:]


def made(vocoder, frames, length=None, seed=0):
    """The sound of frames that come in blocks."""
    length = len(frames) * vocoder.model.hop if length is None else length
    return np.concatenate(list(vocoder.sound(in_blocks(frames, np.random.default_rng(seed)), length, 1.0)))


def at_once(vocoder, frames):
    """In one piece."""
    model = vocoder.model
    around = np.pad(frames, ((model.reach, model.reach), (0, 0)), "edge")[None]
    key = jax.random.fold_in(vocoder.key, 0)
    vocode = jax.jit(lambda params, frames: model.vocode(params, model.open(params, 1), frames, key)[1])
    return np.asarray(vocode(vocoder.params, jnp.asarray(around)))[0]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 300])
@pytest.mark.parametrize("seconds", [0.008, 0.25, 0.1])
@pytest.mark.parametrize("fields", [{}, {"channels": 2, "reach": 3}], ids=str)
def test_blocks_of_any_size_are_the_whole_and_so_is_their_noise(monkeypatch, fields, seconds, count):
    monkeypatch.setattr(vocode, "BLOCK_SECONDS", seconds)
    vocoder = vocoder_of(**MIXING, **fields)
    frames = sound(count, 8 * vocoder.model.channels)
    np.testing.assert_allclose(made(vocoder, frames, seed=count), at_once(vocoder, frames), atol=1e-5)
    assert vocoder.program._cache_size() == 1


@pytest.mark.parametrize("length", [1, 8, 401, 1337, 3000])
def test_features_of_parts_are_those_of_the_whole(monkeypatch, length):
    monkeypatch.setattr(vocode, "PART_SECONDS", 0.3)
    monkeypatch.setattr(vocode, "AROUND_SECONDS", 0.05)
    vocoder, wave = vocoder_of(around=0.25), sound(length)
    found = np.concatenate(list(vocoder.features(in_blocks(wave, np.random.default_rng(0)), length)))
    whole = np.pad(wave, ((0, -length % 8), (0, 0)))[None]
    np.testing.assert_allclose(found, vocoder.model.features(whole)[0], atol=1e-6)
    assert vocoder.take._cache_size() == 1


@pytest.mark.parametrize("gain", ["none", "peak"])
def test_what_a_vocoder_keeps_comes_back_in_time_as_long_and_as_loud(tmp_path, gain):
    wave = sound(501)
    audio.write(tmp_path / "a.wav", wave, 1000)
    given = run_of(Still(gain=gain), tmp_path)
    out = of_recordings(reconstruct, given, [tmp_path / "a.wav"], tmp_path / "out")
    np.testing.assert_allclose(audio.read(out / "a.wav", 1000, 1), wave, atol=1e-6)
    assert (out / "sheet.png").stat().st_size > 5000


def test_vocoding_what_was_encoded_is_reconstructing(tmp_path, capsys):
    given = run_of(Still(**MIXING), tmp_path)
    for name, length in (("a", 501), ("b", 80)):
        audio.write(tmp_path / "in" / f"{name}.wav", sound(length), 1000)
    of_recordings(encode, given, [tmp_path / "in"], tmp_path / "frames")
    assert "501 samples" not in capsys.readouterr().out
    of_recordings(vocode, given, [tmp_path / "frames"], tmp_path / "new")
    assert "63 frames, 0.50 s -> a.wav" in capsys.readouterr().out
    of_recordings(reconstruct, given, [tmp_path / "in"], tmp_path / "same")
    for name, length in (("a", 501), ("b", 80)):
        frames = np.load(tmp_path / "frames" / f"{name}.npy")
        assert (frames.dtype, frames.shape) == (np.float32, (-(-length // 8), 8))
        new, same = (audio.read(tmp_path / where / f"{name}.wav", 1000, 1) for where in ("new", "same"))
        assert (len(new), len(same)) == (8 * len(frames), length)
        np.testing.assert_array_equal(new[:length], same)


def test_no_more_of_a_long_recording_is_read_than_a_block_needs(monkeypatch):
    monkeypatch.setattr(vocode, "PART_SECONDS", 0.3)
    monkeypatch.setattr(vocode, "AROUND_SECONDS", 0.02)
    for fold in (None, 0.1):
        vocoder, read, heard = vocoder_of(fold=fold, **MIXING), 0, 0
        monkeypatch.setattr(vocode, "ROWS", 2)

        def recording():
            nonlocal read
            for _ in range(1000):
                read += 10
                yield np.zeros((10, 1), np.float32)

        for block in vocoder.sound(vocoder.features(recording(), 10_000), 10_000, 1.0):
            heard += len(block)
            assert read - heard < 1500
        assert heard == 10_000


@pytest.mark.parametrize(("frames", "size", "step", "reach"), [(1, 4, 4, 0), (9, 4, 4, 2), (10, 5, 3, 2), (2, 5, 3, 9)])
def test_surrounded_parts_hold_every_frame_and_what_lies_around(frames, size, step, reach):
    x = np.arange(frames * 2.0).reshape(frames, 2)
    found = list(parts.surrounded(in_blocks(x, np.random.default_rng(1)), frames, size, step, reach))
    padded = np.pad(x, ((reach, reach + 3 * size), (0, 0)), "edge")
    for i, part in enumerate(found):
        np.testing.assert_array_equal(part, padded[i * step : i * step + size + 2 * reach])
    assert (len(found) - 1) * step + size >= frames, "all are held"
    assert len(found) == 1 or (len(found) - 2) * step + size < frames, "none is superfluous"


# -------------------------------------------------------------------------------------------------------------- folding


def test_folded_stretches_are_the_whole_but_for_where_they_pass_into_each_other(monkeypatch):
    monkeypatch.setattr(vocode, "ROWS", 4)
    frames = np.abs(sound(400, 8)) + 0.1
    folded, whole = vocoder_of(fold=0.2, around=0.25), vocoder_of(around=0.25)
    assert (folded.step, folded.overlap) == (25, 3)
    ratio = (made(folded, frames) / made(whole, frames)).reshape(-1, 8)
    for i in range(1, 16):
        crossing, rest = ratio[25 * i : 25 * i + 3].ravel(), ratio[25 * i + 3 : 25 * i + 25].ravel()
        np.testing.assert_allclose(rest, 1, atol=1e-5)
        np.testing.assert_allclose(crossing[:12], 1, atol=1e-5, err_msg="the new one is not heard yet")
        assert (crossing[12:] > 1).all(), "of what is alike the power grows"
    assert folded.program._cache_size() == 1


def test_the_power_of_what_is_not_alike_stays_when_stretches_pass_into_each_other():
    vocoder = vocoder_of(fold=0.03, hiss=0.5)
    assert (vocoder.step, vocoder.overlap) == (4, 3)
    wave = made(vocoder, np.zeros((8000, 8), np.float32)).reshape(-1, 32)[1:]
    power = np.mean(wave**2, 0)
    np.testing.assert_allclose(power, np.full(32, 0.5**2 / 12), rtol=0.1)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_each_stretch_begins_afresh_with_noise_of_its_own(monkeypatch, rows):
    monkeypatch.setattr(vocode, "ROWS", rows)
    vocoder = vocoder_of(fold=0.08, hiss=0.5, stays=0.5)
    wave = made(vocoder, np.zeros((200, 8), np.float32))
    alone = at_once(vocoder, np.zeros((13, 8), np.float32))
    np.testing.assert_allclose(wave[:92], alone[:92], atol=1e-6)
    stretches = wave.reshape(-1, 80)[:, 24:]
    assert np.abs(np.corrcoef(stretches) - np.eye(20)).max() < 0.7, "none is another again"


def test_a_sound_shorter_than_a_stretch_is_not_changed_by_folding():
    for count in (1, 10, 11, 13):
        frames = sound(count, 8)
        folded, whole = vocoder_of(fold=0.08, **MIXING), vocoder_of(**MIXING)
        np.testing.assert_allclose(made(folded, frames), made(whole, frames), atol=1e-6)
        assert folded.rows(count) == 1


def test_a_fold_longer_than_the_sound_makes_no_more_than_the_sound_needs(monkeypatch):
    vocoder, blocks = vocoder_of(fold=60.0), []
    program = vocoder.program
    monkeypatch.setattr(vocoder, "program", lambda *given: blocks.append(1) or program(*given))
    assert len(made(vocoder, sound(100, 8))) == 800
    assert len(blocks) == -(-100 // vocoder.block)


@pytest.mark.parametrize(("most", "wanted", "rows"), [(64, 33, 33), (64, 64, 64), (64, 65, 33), (4, 9, 3), (4, 1, 1)])
def test_groups_of_stretches_are_even(monkeypatch, most, wanted, rows):
    monkeypatch.setattr(vocode, "ROWS", most)
    vocoder = vocoder_of(fold=0.08)
    assert vocoder.rows(10 * wanted + 3) == rows
    monkeypatch.setattr(vocode, "ROWS_SECONDS", 0.24)
    assert vocoder.rows(10_003) <= 3, "there is no room for more"


@pytest.mark.parametrize("count", [14, 127, 128, 129, 700])
def test_folded_sound_is_as_long_as_asked_for_and_its_programs_are_few(count):
    vocoder = vocoder_of(fold=0.08, **MIXING)
    assert len(made(vocoder, sound(count, 8), 8 * count - 3)) == 8 * count - 3
    assert vocoder.program._cache_size() == 1


@pytest.mark.parametrize("fold", [0.0, -1.0, float("nan"), float("inf"), 0.01, 61.0])
def test_a_stretch_that_can_not_be_is_refused(tmp_path, fold):
    given = run_of(Still(), tmp_path)
    with pytest.raises(InputError, match="fold is .*: it is 0.024 s, by which stretches overlap, to 60 s; without"):
        of_recordings(vocode, given, [tmp_path / "none.npy"], tmp_path / "out", fold=fold)
    with pytest.raises(InputError, match="fold is 0.5, but .* is no vocoder: leave --fold away"):
        of_recordings(reconstruct, toy(tmp_path), [tmp_path / "none.wav"], tmp_path / "out", fold=0.5)


# ----------------------------------------------------------------------------------------------------------- bad input

WRONG = {
    "other bands": (
        np.zeros((9, 7), np.float32),
        r"its shape is \(9, 7\), this run wants float \[frames, 8\], a frame",
    ),
    "turned": (np.zeros((8, 9), np.float32), r"its shape is \(8, 9\), .* per 8 samples at 1000 Hz: transpose it"),
    "a batch": (np.zeros((1, 9, 8), np.float32), r"its shape is \(1, 9, 8\)"),
    "one frame": (np.zeros(8, np.float32), r"its shape is \(8,\)"),
    "a number": (np.zeros((), np.float32), r"its shape is \(\)"),
    "codes": (np.zeros((9, 8), np.int32), "it holds int32, this run wants float"),
    "complex": (np.zeros((9, 8), np.complex64), "it holds complex64"),
    "NaN": (np.full((9, 8), np.nan), "its frames hold NaN, infinity or numbers beyond float32"),
    "too large": (np.full((9, 8), 1e300), "beyond float32"),
    "no frame": (np.zeros((0, 8), np.float32), r"empty|its shape is \(0, 8\)"),
    "objects": (np.array([{}, {}]), "no .npy file of numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_features_of_another_configuration_are_refused_with_what_the_run_wants(case, tmp_path):
    array, words = WRONG[case]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=words) as caught:
        of_recordings(vocode, run_of(Still(), tmp_path), [tmp_path / "a.npy"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["float16", "float64", ">f4"])
def test_any_float_will_do_in_any_order(tmp_path, kind):
    given, frames = run_of(Still(), tmp_path), sound(70, 8)
    np.save(tmp_path / "a.npy", np.asfortranarray(frames.astype(kind)))
    out = of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "out")
    np.testing.assert_allclose(audio.read(out / "a.wav", 1000, 1)[:, 0], frames.ravel(), atol=1e-3)


def test_a_damaged_file_of_features_gives_one_line_and_the_others_go_on(tmp_path, capsys):
    given = run_of(Still(), tmp_path)
    np.save(tmp_path / "a.npy", sound(70, 8))
    content, rng, reasons = (tmp_path / "a.npy").read_bytes(), np.random.default_rng(0), []
    bad = tmp_path / "bad.npy"
    for i in range(300):
        damaged = bytearray(content[: rng.integers(len(content))] if i % 3 else content)
        for at in rng.integers(0, max(1, min(len(damaged), 128)), min(len(damaged), 4)):
            damaged[at] = rng.integers(256)
        bad.write_bytes(damaged)
        try:
            frames.opened(bad, frames.Wanted(8, 8, 1000))
        except audio.Unusable as reason:
            reasons.append(str(reason))
    assert len(reasons) > 150
    assert not any("\n" in reason for reason in reasons)
    bad.write_bytes(content[:100])
    np.savez(tmp_path / "b.npz", latent=sound(70, 8))
    of_recordings(vocode, given, [tmp_path / "b.npz", bad, tmp_path / "none.npy", tmp_path / "a.npy"], tmp_path / "out")
    out, err = capsys.readouterr()
    assert out.count("left out: damaged, empty, or no .npy file of numbers") == 2
    assert "left out: No such file or directory" in out
    assert err == "3 of 4 files were left out\n"


@pytest.mark.parametrize("shape", [(8, 70), (1, 8, 70), (8, 8)])
def test_files_that_are_transposed_are_turned_when_it_is_said(tmp_path, shape):
    given, mels = run_of(Still(), tmp_path), sound(8 * shape[-1], 1).reshape(shape)
    np.save(tmp_path / "a.npy", mels)
    out = of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "out", transposed=True)
    np.testing.assert_allclose(audio.read(out / "a.wav", 1000, 1)[:, 0], mels.reshape(8, -1).T.ravel(), atol=2e-5)
    if shape[-1] != 8:
        with pytest.raises(InputError, match="its shape is"):
            of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "new")
    np.save(tmp_path / "b.npy", np.zeros((70, 8), np.float32))
    with pytest.raises(InputError, match=r"its shape is \(70, 8\), .* Hz: leave --transposed away"):
        of_recordings(vocode, given, [tmp_path / "b.npy"], tmp_path / "new", transposed=True)


class Logged(Still):
    """Its features are a tenth of the logarithms of magnitudes, -0.5 at least."""

    faintest = -0.5

    def from_log(self, frames):
        return frames / 10


@pytest.mark.parametrize(
    ("log", "power", "made"),
    [
        ("ln", False, np.log),
        ("ln", True, lambda x: np.log(x**2)),
        ("log10", False, np.log10),
        ("log10", True, lambda x: np.log10(x**2)),
        ("db", False, lambda x: 20 * np.log10(x)),
    ],
)
def test_mels_of_any_logarithm_become_the_models_own(tmp_path, log, power, made):
    magnitudes = np.random.default_rng(0).uniform(1e-4, 9.0, (70, 8))
    np.save(tmp_path / "a.npy", made(magnitudes))
    given = run_of(Logged(), tmp_path)
    out = of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "out", log=log, power=power)
    own = np.maximum(np.log(magnitudes) / 10, -0.5)
    np.testing.assert_allclose(audio.read(out / "a.wav", 1000, 1)[:, 0], own.ravel(), atol=2e-5)


def test_numbers_that_can_not_be_the_models_own_are_refused_and_a_little_beyond_is_not(tmp_path):
    given, mels = run_of(Logged(), tmp_path), np.linspace(-0.55, 0.5, 80).reshape(10, 8)
    np.save(tmp_path / "a.npy", mels)
    of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "out")
    np.save(tmp_path / "a.npy", 4 * mels)
    rule = r"its numbers go down to -2.2, this run's features to -0.5: tell what they are with --log"
    with pytest.raises(InputError, match=rule):
        of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "new")
    for log in ("own", "db"):
        with pytest.raises(InputError, match=f"whose log is ln or log10, and log is {log}: leave --power away"):
            of_recordings(vocode, given, [tmp_path / "a.npy"], tmp_path / "new", log=log, power=True)


def test_what_is_no_regular_file_is_left_out_and_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.npy")
    np.save(tmp_path / "a.npy", sound(70, 8))
    of_recordings(vocode, run_of(Still(), tmp_path), [tmp_path / "pipe.npy", tmp_path / "a.npy"], tmp_path / "out")
    assert "left out: not a regular file" in capsys.readouterr().out


def test_sound_that_is_not_finite_is_left_out(tmp_path):
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    given = run_of(Still(), tmp_path)._replace(params={"loud": np.float32("nan")})
    with pytest.raises(InputError, match="what the model makes is not finite: name an earlier --checkpoint"):
        of_recordings(reconstruct, given, [tmp_path / "a.wav"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.wav"))


def test_a_vocoder_has_no_latent_space_and_an_autoencoder_draws_no_samples(tmp_path):
    given = run_of(Still(), tmp_path)
    for verb in (reconstruct, encode):
        with pytest.raises(InputError, match="fidelity is 0.9, but .* has no latent space: leave --fidelity away"):
            of_recordings(verb, given, [tmp_path / "none.wav"], tmp_path, fidelity=0.9)
    with pytest.raises(InputError, match="temperature is 0.9, but .* does not draw sample by sample"):
        of_recordings(reconstruct, toy(tmp_path), [tmp_path / "none.wav"], tmp_path, temperature=0.9)


# ---------------------------------------------------------------------------------------------- while it learns, after


def test_while_it_learns_a_vocoder_shows_what_comes_back_even_of_one_that_diverged(tmp_path):
    wave = np.stack([sound(501), sound(501, seed=1)])
    show = reconstruct.Showcase(Still(), wave, ["a", "b"])
    for step in (1, 2):
        waves, sheet = show({"loud": np.float32(step)}, jax.random.key(0), tmp_path, f"{step}")
        np.testing.assert_allclose(waves, step * wave, atol=1e-6)
    assert sheet.ndim == 3
    assert (tmp_path / "2-001-b.wav").exists()
    waves, _ = show({"loud": np.float32("nan")}, jax.random.key(0), tmp_path, "3")
    assert not waves.any()
    for segment, longest, wanted in ((64, 300, 304), (64, 9000, 2000), (64, 0, 64), (4000, 9000, 4000)):
        assert reconstruct.audible(Still(segment=segment), longest).segment == wanted


def test_a_trained_vocoder_encodes_vocodes_and_reconstructs_alike(vocoder, tmp_path):
    for name, length in (("long", 9003), ("brief", 7)):
        audio.write(tmp_path / "in" / f"{name}.wav", sound(length), 16000)

    def files(verb, given, name, *words):
        assert run(sample.main, verb, vocoder, given, "--out", tmp_path / name, "--seed", 5, *words)[0] == 0
        return {path.stem: soundfile.read(path)[0] for path in (tmp_path / name).glob("*.wav")}

    same = files("reconstruct", tmp_path / "in", "same")
    files("encode", tmp_path / "in", "frames")
    new = files("vocode", tmp_path / "frames", "new")
    assert {name: len(wave) for name, wave in same.items()} == {"long": 9003, "brief": 7}
    assert {name: len(wave) for name, wave in new.items()} == {"long": 9008, "brief": 16}
    for name, wave in same.items():
        np.testing.assert_array_equal(new[name][: len(wave)], wave)
    assert np.abs(same["long"]).max() > 0
    files("reconstruct", tmp_path / "in", "again")
    for path in (tmp_path / "same").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    folded = files("vocode", tmp_path / "frames", "folded", "--fold", 0.1)
    np.testing.assert_array_equal(folded["long"][:1600], new["long"][:1600])
    assert len(folded["long"]) == 9008
    assert not np.array_equal(folded["long"], new["long"])
    likely = [files("vocode", tmp_path / "frames", f"{i}", "--temperature", 0, "--seed", i)["long"] for i in (1, 2)]
    np.testing.assert_array_equal(*likely)


def test_a_trained_vocoder_made_in_blocks_is_what_it_makes_at_once(vocoder, monkeypatch):
    given = trained(vocoder)
    frames = np.random.default_rng(0).uniform(0, 1, (300, given.model.mels)).astype(np.float32)
    whole = vocode.Vocoder(given.model, given.params, 3)
    expected = at_once(whole, frames)
    for seconds in (0.003, 0.05):
        monkeypatch.setattr(vocode, "BLOCK_SECONDS", seconds)
        wave = made(vocode.Vocoder(given.model, given.params, 3), frames)
        assert np.mean(np.abs(wave - expected) > 1e-6) < 0.02, "a rounding may make a draw another one"


def test_a_run_of_a_vocoder_leaves_what_comes_back_of_held_out_recordings(vocoder):
    waves = sorted((vocoder / "samples").glob("0000002-*.wav"))
    assert len(waves) == 2
    assert {soundfile.info(path).frames for path in waves} == {512}, "a whole recording, not a segment of 160"
    assert (vocoder / "samples" / "real.png").exists()


def test_what_a_trained_vocoder_can_not_do_is_one_line(vocoder, coder, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((9, 80), np.float32))
    for words, message in (
        (
            ("vocode", vocoder, tmp_path),
            "its shape is (9, 80), this run wants float [frames, 8], a frame per 16 samples",
        ),
        (("vocode", vocoder, tmp_path / "none.npy"), "No such file"),
        (("vocode", vocoder), "no file of features given"),
        (("vocode", vocoder, tmp_path, "--fold", "0.001"), "fold is 0.001: it is 0.025 s"),
        (("vocode", vocoder, tmp_path, "--temperature", "-1"), "temperature is -1.0"),
        (("decode", vocoder, tmp_path), "can't decode: it can encode, reconstruct, vocode"),
        (("generate", vocoder), "can't generate: it can encode, reconstruct, vocode"),
        (("vocode", coder, tmp_path), "can't vocode: it can decode, encode, generate"),
    ):
        code, _, err = run(sample.main, *words, "--out", tmp_path / "out", capsys=capsys)
        assert code == 2, err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
