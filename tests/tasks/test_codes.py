"""The verbs encode, decode and reconstruct of a codec: its codes as streams of bytes, of one model and checkpoint."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import InputError
from jaxaudio.data import audio, bitstream, coder
from jaxaudio.tasks import decode, encode, reconstruct
from tests.still import steps
from tests.toy import sound, toy

MIXING = {"around": 0.25, "offset": 0.125, "hiss": 0.2}
ODD = {"encoder_rates": (3, 2), "encoder_widths": (3, 6, 12), "decoder_rates": (2, 3), "decoder_widths": (12, 6, 3)}
ODD |= {"segment": 1026, "latent": 12}  # two stages, one of an odd stride


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Parts and blocks of 38 frames."""
    monkeypatch.setattr(coder, "PART_SECONDS", 0.3)
    monkeypatch.setattr(bitstream, "BLOCK_SECONDS", 0.304)


def encoded(given, files, out, **options):
    return encode.perform(given, encode.Options(files=tuple(files), **options), 3, out)


def decoded(given, files, out, **options):
    return decode.perform(given, decode.Options(files=tuple(files), **options), 3, out)


def codes_at_once(given, wave):
    """In one piece, with silence behind it."""
    model = given.model
    frames = -(-(len(wave) + model.delay) // model.hop)
    whole = np.pad(wave, ((0, (frames + model.reach) * model.hop - len(wave)), (0, 0)))
    return np.asarray(model.codes(given.params, jnp.asarray(whole[None])))[0, :frames]


def stream_of(path, given):
    found = bitstream.look(path)
    tables = bitstream.tabled(given.params["usage"])
    return found, np.concatenate(list(bitstream.codes_of(path, found, tables)))


@pytest.mark.parametrize("length", [1, 9, 303, 304, 305, 1000, 1337])
@pytest.mark.parametrize("fields", [MIXING, {**MIXING, "delay": 13, "channels": 2}], ids=["mono", "late stereo"])
def test_codes_of_parts_are_those_of_the_whole_and_none_is_lost_on_the_way(tmp_path, monkeypatch, fields, length):
    given = steps(tmp_path, **fields)
    wave = sound(length, given.model.channels)
    audio.write(tmp_path / "a.wav", wave, 1000)
    encoded(given, [tmp_path / "a.wav"], tmp_path)
    found, result = stream_of(tmp_path / "a.jaz", given)
    whole = codes_at_once(given, wave)
    np.testing.assert_array_equal(result, whole)
    assert found.header.length == length
    for most in (1, 100, 999):
        codec = coder.Codec(given.model, given.params, 3)
        codec.most = max(most, 4 * (2 * given.model.reach + 1))
        np.testing.assert_array_equal(np.concatenate(list(codec.codes([wave], length))), whole)


@pytest.mark.parametrize("fields", [{}, ODD, {**ODD, "causal": True}], ids=["tiny", "odd", "causal"])
def test_codes_and_sound_of_a_network_do_not_depend_on_the_parts(fields):
    model = dataclasses.replace(zoo.load("dac:tiny"), **fields)
    params = jax.jit(lambda key: model.weights(model.init(key, model.measure([]))))(jax.random.key(0))
    codec, length = coder.Codec(model, params, 0), 500 * model.hop + 5
    wave, codes, sounds = sound(length, model.channels), [], []
    for most in (1000, 4 * (2 * model.reach + 1), 97):
        codec.most = most
        codes.append(np.concatenate(list(codec.codes([wave], length))))
        sounds.append(np.concatenate(list(codec.sound_of([codes[0]], length, 1.0))))
    assert len(codes[0]) == codec.frames(length)
    assert len(np.unique(codes[0])) > 5, "too few codes to tell"
    assert sounds[0].shape == wave.shape
    for other in (1, 2):
        np.testing.assert_array_equal(codes[0], codes[other])
        np.testing.assert_allclose(sounds[other], sounds[0], atol=1e-4 * np.abs(sounds[0]).max())


def test_latents_of_a_network_do_not_depend_on_the_parts():
    model = zoo.load("rave:tiny")
    params = jax.jit(lambda key: model.weights(model.init(key, model.measure([]))))(jax.random.key(0))
    codec, length = coder.Codec(model, params, 0), 90 * model.hop + 5
    wave, seen = sound(length, model.channels), []
    for most in (128, 4 * (2 * model.reach + 1)):
        codec.most = most
        seen.append(np.concatenate(list(codec.latents([wave], length))))
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-5 * np.abs(seen[0]).max())


def test_no_more_of_a_long_recording_is_read_than_its_codes_need(tmp_path):
    given, read = steps(tmp_path, **MIXING), 0
    codec = coder.Codec(given.model, given.params, 3)

    def recording():
        nonlocal read
        for _ in range(1000):
            read += 10
            yield sound(10)

    heard = 0
    for part in codec.codes(recording(), 10_000):
        heard += 8 * len(part)
        assert read - heard < 3 * codec.most * given.model.hop
    assert heard == 10_000


@pytest.mark.parametrize("fields", [{}, {"gain": "peak", "delay": 3}], ids=str)
def test_decoding_a_stream_is_reconstructing_bit_for_bit(tmp_path, fields):
    given = steps(tmp_path, **MIXING, **fields)
    audio.write(tmp_path / "a.wav", sound(1003), 1000)
    for words in ({}, {"codebooks": 2}, {"kbps": 0.6}):
        encoded(given, [tmp_path / "a.wav"], tmp_path / "codes", force=True, **words)
        decoded(given, [tmp_path / "codes"], tmp_path / "new", force=True)
        options = reconstruct.Options(files=(tmp_path / "a.wav",), **words)
        reconstruct.perform(given, options, 3, tmp_path / "same")
        assert (tmp_path / "new" / "a.wav").read_bytes() == (tmp_path / "same" / "a.wav").read_bytes()
        assert len(audio.read(tmp_path / "new" / "a.wav", 1000, 1)) == 1003


def test_the_sound_of_a_stream_is_what_its_codes_tell(tmp_path):
    given, wave = steps(tmp_path, codebook_size=8), sound(400)
    audio.write(tmp_path / "a.wav", wave, 1000)
    encoded(given, [tmp_path / "a.wav"], tmp_path, codebooks=2, method="raw")
    decoded(given, [tmp_path / "a.jaz"], tmp_path / "new")
    means = wave.reshape(-1, 8).mean(1)
    expected = np.floor((means + 1) / 2 * 64) / 64 * 2 - 1
    result = audio.read(tmp_path / "new" / "a.wav", 1000, 1)
    np.testing.assert_allclose(result[:, 0], np.repeat(expected, 8), atol=1e-4)


def test_the_rate_chooses_the_codebooks_and_the_row_says_what_it_took(tmp_path, capsys):
    given = steps(tmp_path)  # 125 frames per second and 4 bits: 0.5 kbps a codebook
    audio.write(tmp_path / "a.wav", sound(2000), 1000)
    for words, used in (({}, 3), ({"kbps": 0.99}, 1), ({"kbps": 1.49}, 2), ({"kbps": 1.5}, 3), ({"kbps": 1e9}, 3)):
        encoded(given, [tmp_path / "a.wav"], tmp_path, force=True, **words)
        size = (tmp_path / "a.jaz").stat().st_size
        assert bitstream.look(tmp_path / "a.jaz").header.codebooks == used
        row = capsys.readouterr().out.splitlines()[0]
        assert f"2.00 s, {used} codebook{'s' * (used > 1)}, {size} bytes, {8 * size / 2000:.3g} kbps, " in row
    encoded(given, [tmp_path / "a.wav"], tmp_path, force=True, method="raw")
    assert " kbps, no saving by entropy coding -> a.jaz" in capsys.readouterr().out
    for words, rule in (
        ({"kbps": 0.49}, "kbps is 0.49: a codebook of .* takes 0.5; ask for that at least"),
        ({"kbps": float("nan")}, "kbps is nan"),
        ({"codebooks": 0}, "codebooks is 0: .* has 1 to 3"),
        ({"codebooks": 4}, "codebooks is 4: .* has 1 to 3"),
        ({"codebooks": 1, "kbps": 1.0}, "kbps is 1 and codebooks 1: give one of them"),
        ({"fidelity": 0.5}, "fidelity is 0.5, but .* has codes: choose by --codebooks or --kbps"),
    ):
        with pytest.raises(InputError, match=rule):
            encoded(given, [tmp_path / "a.wav"], tmp_path, **words)
        with pytest.raises(InputError, match=rule):
            reconstruct.perform(given, reconstruct.Options(files=(tmp_path / "a.wav",), **words), 3, tmp_path)


def test_a_model_without_codes_writes_latents_and_has_no_rate(tmp_path):
    audio.write(tmp_path / "a.wav", sound(400), 1000)
    for given in (toy(tmp_path), steps(tmp_path, continuous=True)):
        encoded(given, [tmp_path / "a.wav"], tmp_path, force=True)
        assert (tmp_path / "a.npz").exists()
        for words in ({"kbps": 4.0}, {"codebooks": 1}, {"method": "raw"}, {"method": "context"}):
            ((name, value),) = words.items()
            with pytest.raises(InputError, match=f"{name} is {value:{'g' * (name == 'kbps')}}, but .* has no codes: "):
                encoded(given, [tmp_path / "a.wav"], tmp_path, force=True, **words)
    encoded(steps(tmp_path), [tmp_path / "a.wav"], tmp_path)
    with pytest.raises(InputError, match="holds codes, but this model has none: decode it with its own run"):
        decoded(toy(tmp_path), [tmp_path / "a.jaz"], tmp_path / "new")


@pytest.fixture
def file(tmp_path):
    """A codec and a stream of four blocks."""
    given = steps(tmp_path, **MIXING)
    audio.write(tmp_path / "a.wav", sound(1000), 1000)
    encoded(given, [tmp_path / "a.wav"], tmp_path / "codes")
    return given, tmp_path / "codes" / "a.jaz"


def refusal(given, path):
    with pytest.raises(InputError) as caught:
        decoded(given, [path], path.parent / "new")
    assert "\n" not in str(caught.value)
    assert not (path.parent / "new").exists()
    return str(caught.value)


def test_a_stream_of_another_codec_is_refused_by_what_differs(file):
    given, path = file
    other = lambda **fields: given._replace(model=dataclasses.replace(given.model, **fields))
    for fields, words in (
        ({"sample_rate": 2000}, "sample_rate is 1000 there and 2000 here; decode it with its own run"),
        ({"channels": 2}, "channels is 1 there and 2 here"),
        ({"codebook_size": 8}, "codebook_size is 16 there and 8 here"),
        ({"codebooks": 2}, "it has 3 codebooks, this one 2"),
    ):
        assert words in refusal(other(**fields), path)
    params = {"usage": given.params["usage"] + 1}
    words = "of another run or checkpoint: its fingerprint differs (step 2 there, step 7 here); see --checkpoint"
    assert words in refusal(given._replace(params=params, step=7), path)
    decoded(given._replace(step=7), [path], path.parent)  # the same parameters are the same codec


def test_a_stream_is_of_what_was_saved_and_not_of_how_a_machine_rounds(tmp_path):
    given, made = steps(tmp_path), {}
    saved = given._replace(params=given.params | {"folded": np.float32(1.3)}, fingerprint="5a" * 32)
    rounded = saved._replace(params=saved.params | {"folded": np.nextafter(np.float32(1.3), np.float32(2))})
    audio.write(tmp_path / "a.wav", sound(1000), 1000)
    for name, of in (("codes", saved), ("same", rounded)):
        made[name] = encoded(of, [tmp_path / "a.wav"], tmp_path / name) / "a.jaz"
    assert made["codes"].read_bytes() == made["same"].read_bytes()
    decoded(rounded, [made["codes"]], tmp_path / "new")
    assert "its fingerprint differs" in refusal(saved._replace(fingerprint="5b" * 32), made["same"])


def test_codes_that_are_none_are_not_written_and_what_to_do_is_said(tmp_path):
    given = steps(tmp_path, offset=float("nan"))
    audio.write(tmp_path / "a.wav", sound(1000), 1000)
    for method in bitstream.METHODS:
        with pytest.raises(InputError, match="a.wav: what the model makes is not finite: name an earlier --checkpoint"):
            encoded(given, [tmp_path / "a.wav"], tmp_path / "codes", method=method)
    with pytest.raises(InputError, match="a.wav: what the model makes is not finite: name an earlier --checkpoint"):
        reconstruct.perform(given, reconstruct.Options(files=(tmp_path / "a.wav",)), 3, tmp_path / "codes")
    assert not any((tmp_path / "codes").rglob("*"))


def test_a_stream_that_is_cut_off_is_decoded_up_to_there_and_that_is_said(file, tmp_path, capsys):
    given, path = file
    decoded(given, [path], tmp_path / "whole")
    whole, content = audio.read(tmp_path / "whole" / "a.wav", 1000, 1), path.read_bytes()
    third = bitstream.look(path).blocks[2]
    path.write_bytes(content[: third.offset + 5])
    capsys.readouterr()
    decoded(given, [path], tmp_path / "new")
    out, err = capsys.readouterr()
    assert "0.61 s, 3 of 3 codebooks (of 1.00 s: cut off in block 3, at 0.61 s) -> a.wav" in out
    assert err.endswith("a.jaz: cut off in block 3, at 0.61 s; what comes before is decoded\n")
    part = audio.read(tmp_path / "new" / "a.wav", 1000, 1)
    assert len(part) == 2 * 38 * 8
    sure = len(part) - 8 * given.model.reach
    np.testing.assert_array_equal(part[:sure], whole[:sure])
    path.write_bytes(content[:40])
    assert "cut off in block 1, at 0.00 s: nothing can be decoded" in refusal(given, path)


def test_damaged_streams_are_left_out_by_name_and_the_others_go_on(file, tmp_path, capsys):
    given, path = file
    content = bytearray(path.read_bytes())
    content[bitstream.look(path).blocks[1].offset] ^= 1
    (tmp_path / "codes" / "flipped.jaz").write_bytes(content)
    (tmp_path / "codes" / "empty.jaz").write_bytes(b"")
    content[3] = 9
    (tmp_path / "codes" / "new.jaz").write_bytes(content)
    os.mkfifo(tmp_path / "codes" / "pipe.jaz")
    decoded(given, [tmp_path / "codes"], tmp_path / "out")
    out, err = capsys.readouterr()
    row = {name: next(row for row in out.splitlines() if f"{name}.jaz" in row) for name in ("flipped", "empty", "new")}
    assert "left out: damaged: block 2, 0.30 to 0.61 s, has another checksum" in row["flipped"]
    assert row["empty"].endswith("left out: an empty file")
    assert "left out: of version 9 of the format, not 1" in row["new"]
    assert out.count("left out: not a regular file") == 1
    assert "4 of 5 files were left out" in err
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["a.wav"]


def test_a_stream_of_a_wrong_number_of_frames_is_refused(file):
    given, path = file
    found, codes = stream_of(path, given)
    tables = bitstream.tabled(given.params["usage"])
    for some in (codes[:-1], np.concatenate([codes, codes[:1]])):
        with open(path, "wb") as out:
            bitstream.write(out, found.header, [some], tables)
        assert f"it has {len(some)} frames, not 125 as 1000 samples want" in refusal(given, path)


def test_a_failed_recording_leaves_no_stream_behind(file, tmp_path):
    given, path = file
    before = path.read_bytes()
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(InputError, match="none of 1 files can be used"):
        encoded(given, [tmp_path / "text.wav"], tmp_path / "codes")
    with pytest.raises(InputError, match="a.jaz is there already: give another --out, or --force to overwrite"):
        encoded(given, [tmp_path / "a.wav"], tmp_path / "codes")
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("a.jaz", before)]
