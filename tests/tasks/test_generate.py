"""The verb generate of models that go on for ever: any length, block by block, many at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import sample
from jaxaudio.core import InputError
from jaxaudio.data import coder
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import generate
from tests.coded import composed, decoded
from tests.commands import run
from tests.still import PARAMS, Walk, run_of
from tests.toy import toy


def made(given, out, seed=3, **options):
    """The sounds in the order of their files."""
    generate.perform(given, generate.Options(**options), seed, out)
    return [soundfile.read(path, dtype="float32", always_2d=True)[0] for path in sorted(out.glob("*.wav"))]


def at_once(model, n, length, label=None, seed=3, group=0):
    """In one piece."""
    carry = model.begin(PARAMS, n, label)
    key = jax.random.fold_in(jax.random.key(seed), group)
    return np.asarray(model.extend(PARAMS, carry, key, -(-length // model.frame))[1])[:, :length]


@pytest.mark.parametrize("fields", [{}, {"channels": 2}, {"frame": 7}, {"frame": 3000}], ids=str)
def test_a_long_sound_is_that_of_one_piece_and_a_shorter_one_its_beginning(tmp_path, fields):
    given = run_of(Walk(**fields), tmp_path)
    long = made(given, tmp_path / "long", n=2, seconds=3.301)
    np.testing.assert_allclose(np.stack(long), at_once(given.model, 2, 3301), atol=3e-5)
    short = made(given, tmp_path / "short", n=2, seconds=0.5)
    np.testing.assert_array_equal(np.stack(short), np.stack(long)[:, :500])
    assert (tmp_path / "long" / "sheet.png").stat().st_size > 5000
    assert len(list((tmp_path / "long").iterdir())) == 3


@pytest.mark.parametrize("seconds", [0.008, 0.1, 0.37, 50.0])
def test_blocks_of_any_size_give_the_same_sound_by_one_program(monkeypatch, seconds):
    monkeypatch.setattr(generate, "BLOCK_SECONDS", seconds)
    model = Walk(channels=2)
    sampler = generate.Sampler(model, PARAMS)
    key = jax.random.fold_in(jax.random.key(3), 0)
    blocks = list(sampler.on(sampler.begin(sampler.params, 3, None), key, 999))
    np.testing.assert_allclose(np.concatenate(blocks, 1), at_once(model, 3, 999), atol=1e-6)
    assert sampler.extend._cache_size() == 1
    assert max(block.shape[1] for block in blocks) <= max(8, 1000 * seconds), "memory is that of a block"


def test_more_sounds_than_fit_side_by_side_come_in_groups_that_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "STREAMS", 2)
    given = run_of(Walk(classes=3), tmp_path, ("a", "b/c", "d"))
    waves = made(given, tmp_path / "out", n=5, seconds=0.2)
    label = jnp.arange(5) % 3
    for group, rows in enumerate((range(2), range(2, 4), range(4, 5))):
        expected = at_once(given.model, len(rows), 200, label[rows.start : rows.stop], group=group)
        np.testing.assert_allclose(np.stack(waves[rows.start : rows.stop]), expected, atol=3e-5)
    names = [path.name for path in sorted((tmp_path / "out").glob("*.wav"))]
    assert names == ["000-a.wav", "001-b_c.wav", "002-d.wav", "003-a.wav", "004-b_c.wav"]
    assert len({wave.tobytes() for wave in waves}) == 5


def test_temperature_and_top_p_are_those_of_the_model_unless_asked_for(tmp_path):
    given = run_of(Walk(temperature=0.5), tmp_path)
    own = np.stack(made(given, tmp_path / "own", n=2, seconds=0.1))
    other = np.stack(made(given, tmp_path / "other", n=2, seconds=0.1, temperature=1.0))
    np.testing.assert_allclose(other, 2 * own, atol=6e-5)
    assert not np.stack(made(given, tmp_path / "still", n=2, seconds=0.1, temperature=0.0)).any()
    assert generate.drawing(given, None, 0.3).model == dataclasses.replace(given.model, top_p=0.3)
    for options, words in (
        ({"temperature": -1.0}, "temperature is -1.0: it is at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0: it is a probability"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ):
        with pytest.raises(InputError, match=words):
            made(given, tmp_path / "out", **options)
    for name in ("temperature", "top_p"):
        with pytest.raises(
            InputError, match=f"{name} is 0.5, but .* sample by sample: leave --{name.replace('_', '-')}"
        ):
            generate.drawing(toy(tmp_path), **{"temperature": None, "top_p": None, name: 0.5})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": 1e6}, "36000 s at most in all"),
        ({"seconds": 3601.0, "n": 10}, "n is 10 and seconds 3601"),
        ({"seconds": float("inf")}, "seconds inf"),
        ({"seconds": 0.0001}, "each of a sample or more"),
        ({"n": 0}, "n is 0: ask for 1 to 100000 sounds$"),
        ({"n": 1_000_000, "seconds": 0.004}, "n is 1000000: ask for 1 to 100000 sounds$"),
        ({"n": 40_000}, "n is 40000 and a sound 1 s without --seconds: .* 36000 s at most in all"),
    ],
)
def test_impossible_lengths_and_numbers_are_refused(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        made(run_of(Walk(), tmp_path), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_behind_by_files_that_were_not_finished(tmp_path):
    def blocks():
        yield np.zeros((2, 10, 1), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate.write_streams([tmp_path / "out" / f"{i}.wav" for i in range(2)], blocks(), 1000, 1, 20)
    assert not list((tmp_path / "out").iterdir())


def test_sound_that_is_not_finite_is_told_with_its_remedy(tmp_path):
    given = run_of(Walk(), tmp_path)._replace(params={"loud": np.float32("nan")})
    with pytest.raises(InputError, match="at step 2: what the model makes is not finite: name an earlier --checkpoint"):
        made(given, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_a_length_and_while_it_learns_a_model_makes_sounds_that_can_be_listened_to(tmp_path):
    for segment, length in ((64, 1000), (2500, 2500), (80_000, 4000)):
        show = generate.Showcase(Walk(segment=segment), (), 2)
        waves, _ = show(PARAMS, jax.random.key(0), tmp_path / str(segment), "0000001")
        assert waves.shape == (2, length, 1)
        (wave,) = made(run_of(Walk(segment=segment), tmp_path), tmp_path / f"made-{segment}", n=1)
        assert wave.shape == (length, 1)


def test_a_trained_model_gives_the_same_files_for_the_same_seed_and_any_length(singer, tmp_path):
    def sounds(name, *words):
        code, _, _ = run(sample.main, "generate", singer, "--n", 3, *words, "--out", tmp_path / name)
        assert code == 0
        return [soundfile.read(path)[0] for path in sorted((tmp_path / name).glob("*.wav"))]

    whole = sounds("a", "--seconds", 1.1, "--seed", 5)
    assert [len(wave) for wave in whole] == [17600] * 3
    assert [path.name for path in sorted((tmp_path / "a").glob("*.wav"))] == [
        f"00{i}-{name}.wav" for i, name in enumerate(trained(singer).labels)
    ]
    sounds("again", "--seconds", 1.1, "--seed", 5)
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    for short, long in zip(sounds("short", "--seconds", 0.3, "--seed", 5), whole, strict=True):
        np.testing.assert_array_equal(short, long[:4800])
    other = sounds("other", "--seconds", 0.3, "--seed", 6)
    assert not any(np.array_equal(a, b[:4800]) for a, b in zip(other, whole, strict=True))
    likely = sounds("likely", "--seconds", 0.1, "--label", "hum", "--temperature", 0)
    np.testing.assert_array_equal(likely[0], likely[1], err_msg="nothing is drawn")


def test_a_trained_model_refuses_what_it_can_not_do_in_one_line(singer, maker, tmp_path, capsys):
    for words, message in (
        (("generate", singer, "--temperature", "-1"), "temperature is -1.0: it is at least 0"),
        (("generate", singer, "--top-p", "0"), "top_p is 0.0"),
        (("generate", singer, "--seconds", "1e9"), "36000 s at most"),
        (("generate", singer, "--label", "no"), "there is no label 'no'"),
        (("generate", maker, "--temperature", "0.5"), "does not draw sample by sample: leave --temperature away"),
        (("reconstruct", singer, tmp_path), "can't reconstruct: it can continue, generate"),
    ):
        code, _, err = run(sample.main, *words, "--out", tmp_path / "out", capsys=capsys)
        assert code == 2, err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------- through a codec


@pytest.mark.parametrize("fields", [{}, {"delay": 3}], ids=str)
def test_codes_become_sound_of_any_length_in_parts_as_at_once(tmp_path, monkeypatch, fields):
    monkeypatch.setattr(generate, "BLOCK_SECONDS", 0.1)
    monkeypatch.setattr(coder, "PART_SECONDS", 0.2)
    given, codec = composed(tmp_path, monkeypatch, labels=("a", "b"), **fields)
    waves = made(given, tmp_path / "out", n=3, seconds=1.205)
    key = jax.random.fold_in(jax.random.key(3), 0)
    begin = given.model.begin(given.params, 3, jnp.arange(3) % 2)
    _, codes = given.model.extend(given.params, begin, key, 151)
    expected = decoded(codec, codes)
    assert [wave.shape for wave in waves] == [(1205, 1)] * 3
    for wave, whole in zip(waves, expected, strict=True):
        np.testing.assert_allclose(wave, whole[:1205], atol=4e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000-a.wav", "001-b.wav", "002-a.wav", "sheet.png"}


def test_codes_of_many_sounds_are_held_for_a_part_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "BLOCK_SECONDS", 0.1)
    monkeypatch.setattr(coder, "PART_SECONDS", 0.2)
    given, codec = composed(tmp_path, monkeypatch)
    sampler, drawn = generate.Composer(given, codec, 0), 0
    extend = sampler.extend

    def counted(*words):
        nonlocal drawn
        drawn += words[3]
        return extend(*words)

    sampler.extend, heard = counted, 0
    for block in sampler.on(sampler.begin(given.params, 4, None), jax.random.key(0), 8000):
        heard += block.shape[1]
        assert 8 * drawn - heard < 3 * 8 * sampler.codec.most
    assert heard == 8000


def test_while_it_learns_a_model_of_codes_shows_them_through_the_codec(tmp_path, monkeypatch):
    given, codec = composed(tmp_path, monkeypatch, delay=3)
    show = generate.Showcase(given.model, (), 2, codec)
    waves, _ = show(given.params, jax.random.key(0), tmp_path / "out", "0000001")
    assert waves.shape == (2, 1000, 1)
    _, codes = given.model.extend(given.params, given.model.begin(given.params, 2, None), jax.random.key(0), 126)
    np.testing.assert_allclose(waves[:, :980], decoded(codec, codes)[:, :980], atol=1e-6)
    broken = show({"wide": np.float32(-1)}, jax.random.key(0), tmp_path / "out", "0000002")[0]
    assert np.isfinite(broken).all(), "diverging is no reason to stop"


def test_another_codec_is_refused_and_what_to_name_is_told(tmp_path, monkeypatch):
    given, codec = composed(tmp_path, monkeypatch)
    assert generate.codec_of(given, None).folder == tmp_path / "codec"
    assert generate.codec_of(given, tmp_path / "moved").folder == tmp_path / "moved"
    for other in (codec._replace(params={"loud": np.float32(2)}), codec._replace(fingerprint="5" * 64)):
        monkeypatch.setattr(generate, "codec_at", lambda where, step, other=other: other)
        rule = f"elsewhere is not the codec that .* has learned: name the run that was {tmp_path}/codec at step 7, as"
        with pytest.raises(InputError, match=rule):
            made(given, tmp_path / "out", codec=tmp_path / "elsewhere")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"its codec, but .*codec is not a run's folder \(no m.*\): name the run"):
        made(given, tmp_path / "out")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="names no codec .*: train it anew"):
        made(given, tmp_path / "out")
    with pytest.raises(InputError, match="elsewhere, but .* makes no codes: leave --codec away"):
        made(run_of(Walk(), tmp_path), tmp_path / "out", codec=tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()


def test_codes_that_are_none_are_told_with_their_remedy(tmp_path, monkeypatch):
    given, _ = composed(tmp_path, monkeypatch, wide=-1.0)
    with pytest.raises(InputError, match="at step 2: what the model makes is not finite: name an earlier --checkpoint"):
        made(given, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
