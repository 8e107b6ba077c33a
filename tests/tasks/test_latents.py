"""The verbs encode and decode: latents as files, of one model and checkpoint."""

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest

import sample
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data import coder as through
from jaxaudio.runtime import folder
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import decode, encode, reconstruct
from tests.commands import run
from tests.toy import MIXING, sound, toy


def encoded(given, files, out, **options):
    return encode.perform(given, encode.Options(files=tuple(files), **options), 3, out)


def decoded(given, files, out):
    return decode.perform(given, decode.Options(files=tuple(files)), 3, out)


def test_decoding_what_was_encoded_is_reconstructing_bit_for_bit(coder, tmp_path):
    for name, length in (("long", 3000), ("brief", 1500)):
        audio.write(tmp_path / "in" / f"{name}.wav", sound(length), 16000)
    words = ("--out", tmp_path / "out", "--seed", 5)
    assert run(sample.main, "encode", coder, tmp_path / "in", *words)[0] == 0
    assert run(sample.main, "decode", coder, tmp_path / "out", *words)[0] == 0
    assert run(sample.main, "reconstruct", coder, tmp_path / "in", *words[:1], tmp_path / "same", *words[2:])[0] == 0
    for name in ("long", "brief"):
        same = (tmp_path / "same" / f"{name}.wav").read_bytes()
        assert (tmp_path / "out" / f"{name}.wav").read_bytes() == same
    model = trained(coder).model
    with np.load(tmp_path / "out" / "long.npz") as file:
        assert file["latent"].dtype == np.float32
        assert file["latent"].shape == (-(-(3000 + model.delay) // model.hop), model.latent)
        assert (int(file["length"]), int(file["sample_rate"])) == (3000, 16000)


@pytest.mark.parametrize("gain", ["none", "peak"])
def test_parts_noise_and_level_survive_the_file(tmp_path, monkeypatch, gain):
    monkeypatch.setattr(through, "PART_SECONDS", 0.3)
    given = toy(tmp_path, **MIXING, delay=3, gain=gain)
    audio.write(tmp_path / "a.wav", sound(1000), 1000)
    encoded(given, [tmp_path / "a.wav"], tmp_path)
    decoded(given, [tmp_path / "a.npz"], tmp_path / "new")
    options = reconstruct.Options(files=(tmp_path / "a.wav",))
    reconstruct.perform(given, options, 3, tmp_path / "same")
    assert (tmp_path / "new" / "a.wav").read_bytes() == (tmp_path / "same" / "a.wav").read_bytes()
    decode.perform(given, decode.Options(files=(tmp_path / "a.npz",)), 4, tmp_path / "other")
    assert (tmp_path / "other" / "a.wav").read_bytes() != (tmp_path / "same" / "a.wav").read_bytes(), "another seed"


def altered(path, **values):
    """The same file with other fields."""
    with np.load(path) as file:
        fields = {name: file[name] for name in file.files} | values
    np.savez(path.with_name("altered.npz"), **fields)
    return path.with_name("altered.npz")


@pytest.fixture
def file(tmp_path):
    """A toy and a file of its latents."""
    given = toy(tmp_path)
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    return given, encoded(given, [tmp_path / "a.wav"], tmp_path / "latents") / "a.npz"


def refusal(given, path):
    with pytest.raises(InputError) as caught:
        decoded(given, [path], path.parent)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fewer_components_are_decoded_the_others_at_their_mean(file, tmp_path, capsys):
    given, path = file
    with np.load(path) as fields:
        latent = fields["latent"]
    decoded(given, [altered(path, latent=latent[:, :3])], tmp_path)
    assert "3 of 8 components" in capsys.readouterr().out
    expected = (latent[:, :3] @ given.model.basis.T[:3]).reshape(-1, 1)
    np.testing.assert_allclose(audio.read(tmp_path / "altered.wav", 1000, 1), expected, atol=2e-5)


def test_latents_of_another_model_are_refused_by_what_differs(file, tmp_path):
    given, path = file
    other = given._replace(model=dataclasses.replace(given.model, past=0.5, sample_rate=2000))
    words = refusal(other, path)
    assert "past is 0.0 there and 0.5 here; sample_rate is 1000 there and 2000 here" in words
    assert "segment" not in words


def test_latents_of_another_checkpoint_are_refused_by_its_step(file):
    given, path = file
    assert "step 2 there, step 7 here" in refusal(
        given._replace(params={"spread": given.params["spread"] + 1}, step=7), path
    )
    decoded(given._replace(step=7), [path], path.parent)  # the same parameters are the same model


def test_latents_are_of_what_was_saved_and_not_of_how_a_machine_rounds(coder):
    there = trained(coder)
    nudged = jax.tree.map(lambda x: np.nextafter(x, np.float32(9)), jax.tree.map(np.asarray, there.params))
    rounded = there._replace(params=nudged)
    assert folder.digest(rounded.params) != folder.digest(there.params)
    assert encode.identity(rounded) == encode.identity(there)
    assert len(there.fingerprint) == 64
    saved = {"params": {"net": np.float32(1)}, "extra": {"mean": np.zeros(2, np.float32)}}
    others = [
        *({**saved, "params": {"net": np.nextafter(np.float32(1), np.float32(2))}},),
        *({**saved, "extra": {"mean": np.zeros((2, 1), np.float32)}}, {**saved, "extra": {"mean": np.zeros(2, int)}}),
        *({**saved, "extra": {"other": np.zeros(2, np.float32)}}, {**saved, "extra": {"mean": np.zeros(1, int)}}),
    ]
    assert len({folder.digest(tree) for tree in (saved, *others)}) == 6


def test_a_field_that_a_later_version_added_counts_with_its_default(file, tmp_path):
    given, path = file
    with np.load(path) as fields:
        about = json.loads(fields["model"].item())
    older = {name: value for name, value in about.items() if name != "past"}
    decoded(given, [altered(path, model=json.dumps(older))], tmp_path / "new")
    mixes = given._replace(model=dataclasses.replace(given.model, past=0.5))
    assert "past is 0.0 there and 0.5 here" in refusal(mixes, altered(path, model=json.dumps(older)))
    newer = altered(path, model=json.dumps({**about, "later": 1}))
    assert "of another version, whose model has later: encode the recording again" in refusal(given, newer)
    assert "model is rave there and toy here" in refusal(given, altered(path, model=json.dumps({"model": "rave"})))


def test_latents_of_a_wrong_shape_or_content_are_refused(file):
    given, path = file
    frames = np.zeros((50, 8), np.float32)
    assert "(49, 8)" in refusal(given, altered(path, latent=frames[:49]))
    assert "(50, 9)" in refusal(given, altered(path, latent=np.zeros((50, 9), np.float32)))
    assert "(50, 0)" in refusal(given, altered(path, latent=frames[:, :0]))
    assert "(400,)" in refusal(given, altered(path, latent=frames.ravel()))
    assert "float64" in refusal(given, altered(path, latent=frames.astype(float)))
    assert "NaN" in refusal(given, altered(path, latent=frames * np.nan))
    for rate in (0, 44100):
        assert f"its sample_rate is {rate} Hz, the model's 1000 Hz" in refusal(given, altered(path, sample_rate=rate))
    for wrong in ({"length": 0}, {"length": -400}, {"length": 400.0}, {"level": np.nan}, {"model": "[]"}):
        assert "damaged" in refusal(given, altered(path, **wrong))
    for wrong in ({"length": [400, 1]}, {"latent": np.array([{}])}, {"model": "{"}, {"level": 1e9}):
        assert "damaged" in refusal(given, altered(path, **wrong))


def test_a_damaged_file_of_latents_gives_one_line_and_the_others_go_on(file, tmp_path, capsys):
    given, path = file
    content, rng = path.read_bytes(), np.random.default_rng(0)
    bad = tmp_path / "bad.npz"
    codec, own = through.Codec(given.model, given.params, 0), encode.identity(given)
    reasons = []
    for _ in range(200):
        damaged = bytearray(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        for at in rng.integers(0, max(1, len(damaged)), min(len(damaged), 4)):
            damaged[at] = rng.integers(256)
        bad.write_bytes(damaged)
        try:
            encode.load(bad, codec, own, 8)
        except audio.Unusable as reason:
            reasons.append(str(reason))
    assert len(reasons) > 100
    assert not any("\n" in reason for reason in reasons)
    bad.write_bytes(content[:100])
    decoded(given, [bad, path, tmp_path / "none.npz", tmp_path / "a.wav"], tmp_path / "new")
    out = capsys.readouterr().out
    assert out.count("left out: damaged") == 1
    assert "a.wav  left out: decode takes .jaz and .npz, which encode writes" in out
    assert "left out: No such file or directory" in out
    assert [found.name for found in (tmp_path / "new").iterdir()] == ["a.wav"]


def test_latents_whose_sound_is_not_finite_are_left_out_and_the_others_go_on(file, tmp_path, capsys):
    given, path = file
    huge = altered(path, latent=np.full((50, 8), 3e38, np.float32))
    decoded(given, [huge, path], tmp_path / "new")
    row = next(row for row in capsys.readouterr().out.splitlines() if "altered" in row)
    assert "left out: what the model makes is not finite: name an earlier --checkpoint" in row
    assert [found.name for found in (tmp_path / "new").iterdir()] == ["a.wav"]


def test_a_model_that_diverged_writes_no_latents(tmp_path):
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    given = toy(tmp_path, offset=float("nan"))
    with pytest.raises(InputError, match="not finite: name an earlier --checkpoint"):
        encoded(given, [tmp_path / "a.wav"], tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(file, tmp_path, monkeypatch):
    given, path = file
    (path.parent / "a.new").write_text("mine")
    before = path.read_bytes()

    def savez(file, **fields):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(InputError, match=r"a.npz: cannot be written \(No space left on device\); choose another place"):
        encoded(given, [tmp_path / "a.wav"], path.parent, force=True)
    assert {each.name for each in path.parent.iterdir()} == {"a.npz", "a.new"}
    assert (path.read_bytes(), (path.parent / "a.new").read_text()) == (before, "mine")


def test_only_as_many_components_are_written_as_hold_the_fidelity(file, tmp_path, capsys):
    given, path = file
    encoded(given, [tmp_path / "a.wav"], tmp_path / "few", fidelity=0.5)  # 8 + 7 of 36 are less, 8 + 7 + 6 are more
    assert "fidelity 0.5: 3 of 8 components" in capsys.readouterr().out
    with np.load(path) as whole, np.load(tmp_path / "few" / "a.npz") as few:
        np.testing.assert_array_equal(few["latent"], whole["latent"][:, :3])
    decoded(given, [tmp_path / "few" / "a.npz"], tmp_path / "new")
    assert "3 of 8 components" in capsys.readouterr().out
    with pytest.raises(InputError, match="fidelity is 2"):
        encoded(given, [tmp_path / "a.wav"], tmp_path / "few", fidelity=2.0)


def test_no_file_is_overwritten_but_by_force(file, tmp_path):
    given, path = file
    (tmp_path / "a.wav").replace(tmp_path / "b.wav")
    (tmp_path / "a.wav").write_text("mine")
    with pytest.raises(InputError, match=r"a.wav is there already: give another --out, or --force to overwrite"):
        decoded(given, [path], tmp_path)
    (path.parent / "b.npz").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"b.npz is there already"):
        encoded(given, [tmp_path / "b.wav"], path.parent)
    assert (tmp_path / "a.wav").read_text() == "mine"
    decode.perform(given, decode.Options(files=(path,), force=True), 3, tmp_path)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav", 1000, 1), audio.read(tmp_path / "b.wav", 1000, 1))


def test_out_may_be_the_file_of_the_only_result(file, tmp_path):
    given, path = file
    assert encoded(given, [tmp_path / "a.wav"], tmp_path / "deep" / "x.npz") == tmp_path / "deep" / "x.npz"
    decoded(given, [tmp_path / "deep" / "x.npz"], tmp_path / "y.flac")
    np.testing.assert_array_equal(audio.read(tmp_path / "y.flac", 1000, 1), audio.read(tmp_path / "a.wav", 1000, 1))
    with pytest.raises(InputError, match=r"out is the file .*z.wav, but 2 files are given: name a folder"):
        decoded(given, [path, tmp_path / "deep" / "x.npz"], tmp_path / "z.wav")
    (tmp_path / "z.wav").mkdir()
    decoded(given, [path], tmp_path / "z.wav")
    for act, name, words in (
        *((encoded, "b.jaz", "end it in .npz, or make that folder"), (encoded, "a.wav", "end it in .npz, or name")),
        (decoded, "d.mp3", "end it in .flac or .oga or .ogg or .wav, or make that folder first"),
    ):
        source = tmp_path / "a.wav" if act is encoded else path
        with pytest.raises(InputError, match=f"out is .*{name}, .* that is there: {words}"):
            act(given, [source], tmp_path / name)
    encoded(given, [tmp_path / "a.wav"], tmp_path / "fidelity0.5")
    assert (tmp_path / "fidelity0.5" / "a.npz").exists()
    assert (tmp_path / "z.wav" / "a.wav").exists()


def test_a_pipe_of_latents_is_left_out_and_not_waited_for(file, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert "pipe.npz: not a regular file" in refusal(file[0], tmp_path / "pipe.npz")
