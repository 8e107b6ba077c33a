"""The verb restore: in parts or in one piece, as long as the recording, and where only a gap is filled, only there."""

import jax
import numpy as np
import pytest
import soundfile

from jaxaudio import zoo
from jaxaudio.core import Batch, InputError
from jaxaudio.data import audio
from jaxaudio.tasks import restore
from tests.mended import mended
from tests.toy import sound

RATE = 8000
MIXING = {"around": 0.25, "hiss": 0.1}


def made(trained, files, out, *gaps, **options):
    asked = tuple((words,) for words in gaps)
    return restore.perform(trained, restore.Options(files=tuple(files), gap=asked, **options), 3, out)


def write(path, wave, rate=RATE):
    audio.write(path, wave, rate)
    return path


def at_once(trained, wave):
    """Restored in one piece."""
    model = trained.model
    hops = -(-len(wave) // model.hop)
    beyond = (hops + model.reach) * model.hop - len(wave)
    whole = np.pad(wave, ((0, beyond), (0, 0)), "reflect")[None]
    return np.asarray(jax.jit(model.restore)(trained.params, whole, None, jax.random.key(3)))[0, : len(wave)]


def bridge(before, after, count):
    """`count` samples [count, channels] on the line between two."""
    share = (np.arange(1, count + 1, dtype=np.float32) / (count + 1))[:, None]
    return (1 - share) * before + share * after


@pytest.mark.parametrize(("channels", "length"), [(1, 1601), (2, 2400), (1, 4003)])
def test_parts_are_the_whole_and_so_is_what_is_random(tmp_path, monkeypatch, channels, length):
    monkeypatch.setattr(restore, "PART_SECONDS", 0.05)
    trained, wave = mended(tmp_path, channels=channels, **MIXING), sound(length, channels)
    restorer = restore.Restorer(trained.model, trained.params, 3)
    assert length > 2 * restorer.most * trained.model.hop, "else there is one part"
    rng = np.random.default_rng(length)
    blocks = np.split(wave, np.sort(rng.integers(0, length, 30)))
    parts = np.concatenate(list(restorer.whole(blocks, length, 1.0)))
    np.testing.assert_allclose(parts, at_once(trained, wave), atol=1e-6)
    assert restorer.program._cache_size() == 1


@pytest.mark.parametrize("gain", ["none", "peak"])
def test_wet_is_the_share_of_what_is_restored(tmp_path, gain):
    trained, wave = mended(tmp_path, gain=gain, around=0.25), sound(2001)
    path = write(tmp_path / "a.wav", wave)
    for wet in (0.0, 0.25, 1.0):
        out = made(trained, [path], tmp_path / f"{wet}", wet=wet)
        want = wet * at_once(trained, wave) + (1 - wet) * wave
        np.testing.assert_allclose(audio.read(out / "a.wav", RATE, 1), want, atol=2e-5)
    np.testing.assert_array_equal(audio.read(tmp_path / "0.0" / "a.wav", RATE, 1), wave)
    assert (tmp_path / "1.0" / "sheet.png").stat().st_size > 5000


@pytest.mark.parametrize("gain", ["none", "peak"])
@pytest.mark.parametrize("channels", [1, 2])
def test_gaps_are_filled_and_all_else_is_bit_for_bit_as_it_was(tmp_path, gain, channels):
    trained, wave = mended(tmp_path, gain=gain, channels=channels, **MIXING), sound(4001, channels)
    gaps = [(2, 12), (800, 816), (816, 830), (1600, 1601), (3990, 4000)]
    words = [f"{start / RATE:.6f}:{end / RATE:.6f}" for start, end in gaps]
    path = write(tmp_path / "a.wav", wave)
    result = audio.read(made(trained, [path], tmp_path / "out", *words[::-1]) / "a.wav", RATE, channels)
    inside = np.concatenate([np.arange(*gap) for gap in gaps])
    want = wave.copy()
    want[inside] = 0
    for start, end in gaps:  # the second of two that touch starts from the end of the first, filled
        want[start:end] = bridge(want[start - 1], want[end], end - start)
    np.testing.assert_allclose(result[inside], want[inside], atol=3e-5)
    outside = np.setdiff1d(np.arange(len(wave)), inside)
    np.testing.assert_array_equal(result[outside], wave[outside])


def test_what_is_in_a_gap_is_not_heard_and_wet_is_a_share_there_too(tmp_path):
    wave = sound(3000)
    loud = wave.copy()
    loud[1000:1016] = 0.9
    paths = [write(tmp_path / f"{name}.wav", given) for name, given in (("quiet", wave), ("loud", loud))]
    filled = [made(mended(tmp_path, **MIXING), [path], tmp_path / path.stem, "0.125:0.127") for path in paths]
    one, other = (audio.read(out / path.name, RATE, 1) for out, path in zip(filled, paths, strict=True))
    np.testing.assert_array_equal(one, other)
    half = made(mended(tmp_path, **MIXING), paths[1:], tmp_path / "half", "0.125:0.127", wet=0.5)
    np.testing.assert_allclose(audio.read(half / "loud.wav", RATE, 1), 0.5 * other + 0.5 * loud, atol=3e-5)


def test_gaps_that_are_yet_to_be_filled_are_silent_in_the_window_of_another(tmp_path):
    trained, wave = mended(tmp_path), sound(3000)
    restorer, told = restore.Restorer(trained.model, trained.params, 3), []
    restorer.program = lambda params, part, gap, key, first: told.append(part) or np.full_like(part, 0.5)
    gaps = [restore.Stretch(1000, 1010, ""), restore.Stretch(1040, 1050, "")]
    list(restorer.filled(np.split(wave, 30), gaps, 3000, 1.0))
    start = restorer.first(gaps[0], 3000)
    assert not told[0][0, 1000 - start : 1010 - start].any()
    assert not told[0][0, 1040 - start : 1050 - start].any()
    second = restorer.first(gaps[1], 3000)
    assert (told[1][0, 1000 - second : 1010 - second] == 0.5).all(), "what was filled is heard"


@pytest.mark.parametrize("gain", ["none", "peak"])
def test_a_quiet_recording_is_as_loud_as_the_model_wants_it(tmp_path, gain):
    trained, wave = mended(tmp_path, gain=gain), sound(500)
    restorer, told = restore.Restorer(trained.model, trained.params, 3), []
    restorer.program = lambda params, part, gap, key, first: told.append(np.abs(part).max()) or part
    path = write(tmp_path / "a.wav", 0.01 * wave / np.abs(wave).max())
    quiet = restorer.survey(path)
    list(restorer.whole(audio.blocks(quiet), 500, restore.level(trained.model, quiet.peak)))
    assert told[0] == pytest.approx(1.0 if gain == "peak" else 0.01, rel=1e-3)


def test_the_window_has_the_gap_in_its_middle_and_the_whole_context_around_it(tmp_path):
    for fields in ({}, {"segment": 40, "reach": 3, "longest": 24}, {"segment": 44}):
        model = mended(tmp_path, **fields).model
        restorer = restore.Restorer(model, {}, 0)
        assert restorer.size >= model.segment
        for start, length in ((0, 5000), (1, 5000), (777, 5000), (4990, 5001), (3, 30), (2501, 5000)):
            for count in (1, 7, model.longest):
                gap = restore.Stretch(start, min(start + count, length), "")
                first = restorer.first(gap, length)
                assert first % model.hop == 0
                assert 0 <= first <= max(0, gap.start - model.reach * model.hop)
                assert gap.end <= first + restorer.size
                if restorer.size < start < length - restorer.size:
                    middle = first + restorer.size / 2
                    assert abs(middle - (gap.start + gap.end) / 2) <= model.hop
                    assert gap.end + model.reach * model.hop <= first + restorer.size


def test_the_model_is_given_a_window_with_silence_in_the_gap_and_the_number_of_its_first_hop(tmp_path):
    trained, wave = mended(tmp_path), sound(4001)
    restorer, told = restore.Restorer(trained.model, trained.params, 3), []
    restorer.program = lambda params, part, gap, key, first: told.append((part, gap, first)) or part
    list(restorer.filled([wave], [restore.Stretch(2000, 2010, ""), restore.Stretch(3990, 4001, "")], 4001, 1.0))
    (one, lost, first), (last, lost_last, first_last) = told
    want = wave.copy()
    want[2000:2010] = 0
    np.testing.assert_array_equal(one[0], want[8 * first :][: restorer.size])
    assert np.flatnonzero(lost).tolist() == list(range(2000 - 8 * first, 2010 - 8 * first))
    want[3990:] = 0
    np.testing.assert_array_equal(last[0, : 4001 - 8 * first_last], want[8 * first_last :])
    assert np.flatnonzero(lost_last).tolist() == list(range(3990 - 8 * first_last, 4001 - 8 * first_last))
    assert first_last == -(-(4001 - restorer.size) // 8)


def test_no_more_of_a_long_recording_is_held_than_a_window_needs(tmp_path):
    trained, read, heard = mended(tmp_path), 0, 0
    restorer = restore.Restorer(trained.model, trained.params, 3)

    def recording():
        nonlocal read
        for _ in range(5000):
            read += 10
            yield np.zeros((10, 1), np.float32)

    gaps = [restore.Stretch(at, at + 9, "") for at in (10, 20_000, 49_000)]
    for block in restorer.filled(recording(), gaps, 50_000, 1.0):
        heard += len(block)
        assert read - heard <= restorer.size + 20
    assert heard == 50_000


def test_any_recording_fits_and_what_was_done_is_said(tmp_path, capsys):
    soundfile.write(tmp_path / "in.wav", sound(44100, 2), 44100)
    (tmp_path / "text.wav").write_text("no sound")
    out = made(mended(tmp_path), [tmp_path], tmp_path / "out")
    said = capsys.readouterr().out
    assert "1.00 s, resampled from 44100 to 8000 Hz, mono by the mean of its two channels -> in.wav" in said
    assert "left out: Format not recognised" in said
    assert soundfile.info(out / "in.wav").frames == 8000
    for name, wave in {"one": np.ones(1), "silence": np.zeros(700)}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE, subtype="FLOAT")
        out = made(mended(tmp_path), [tmp_path / f"{name}.wav"], tmp_path / "other")
        assert soundfile.info(out / f"{name}.wav").frames == len(wave)


def test_what_is_not_finite_is_not_written(tmp_path):
    path = write(tmp_path / "a.wav", sound(900))
    with pytest.raises(InputError, match="what the model makes is not finite: name an earlier --checkpoint"):
        made(mended(tmp_path, loud=float("nan")), [path], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.wav"))


def test_nothing_is_overwritten_but_by_force(tmp_path):
    path = write(tmp_path / "a.wav", sound(500))
    before = path.read_bytes()
    made(mended(tmp_path), [path], tmp_path)
    assert path.read_bytes() == before
    first = (tmp_path / "a-2.wav").read_bytes()
    with pytest.raises(InputError, match=r"a-2.wav is there already: give another --out, or --force"):
        made(mended(tmp_path, loud=0.25), [path], tmp_path)
    assert (tmp_path / "a-2.wav").read_bytes() == first
    made(mended(tmp_path, loud=0.25), [path], tmp_path, force=True)
    assert (tmp_path / "a-2.wav").read_bytes() != first
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        (["1.2"], r"gap is '1.2': it is START:END in seconds, as 1.20:1.28"),
        (["a:b"], r"gap is 'a:b': it is START:END"),
        (["-1:0.1"], r"gap is '-1:0.1': it is START:END"),
        (["0:nan"], r"gap is '0:nan': it is START:END"),
        (["0:1e9"], r"gap is '0:1e9': it is START:END"),
        (["0:" + "9" * 400], r"it is START:END"),
        (["0.2:0.1"], r"gap is 0.2:0.1: it ends a sample or more behind its start"),
        (["0.1:0.1"], r"gap is 0.1:0.1: it ends a sample or more behind its start"),
        (["0.1:0.10001"], r"it ends a sample or more behind its start"),
        (["0.1:0.11"], r"gap is 0.1:0.11: this run fills 0.0025 s at most; name a shorter one"),
        (["0.49:0.4901", "0.5:0.5001"], r"gap is 0.5:0.5001, but .*a.wav ends at 0.5000 s: name a gap within it"),
        (["0.1:0.102", "0.3:0.301", "0.101:0.103"], r"gaps 0.1:0.102 and 0.101:0.103 overlap: name the lost"),
    ],
)
def test_a_gap_that_can_not_be_filled_is_one_line(gaps, message, tmp_path):
    path = write(tmp_path / "a.wav", sound(4000))
    with pytest.raises(InputError, match=message) as told:
        made(mended(tmp_path), [path], tmp_path / "out", *gaps)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_what_else_can_not_be_asked_for_is_one_line(tmp_path):
    paths = [write(tmp_path / name, sound(4000)) for name in ("a.wav", "b.wav")]
    with pytest.raises(InputError, match="gap is 0:0.001, but 2 recordings are given: name the one that it is in"):
        made(mended(tmp_path), paths, tmp_path / "out", "0:0.001")
    with pytest.raises(InputError, match="gap is 0:0.001, but .* fills no gaps: leave --gap away"):
        made(mended(tmp_path, longest=0), paths[:1], tmp_path / "out", "0:0.001")
    with pytest.raises(InputError, match="--gap names no gap: it is START:END in seconds"):
        restore.perform(mended(tmp_path), restore.Options(files=tuple(paths[:1]), gap=((),)), 3, tmp_path / "out")
    for wet in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=f"wet is {wet:g}: it is a share, 0 .* to 1"):
            made(mended(tmp_path), paths[:1], tmp_path / "out", wet=wet)
    assert not (tmp_path / "out").exists()


def test_while_it_learns_damaged_recordings_come_back_restored_even_of_one_that_diverged(tmp_path):
    wave = np.stack([sound(250), sound(250, seed=1)])
    model = mended(tmp_path).model
    show = restore.Showcase(model, Batch(wave, np.zeros(2, np.int32), 0 * wave), ["a", "b"])
    lost = (show.damaged == 0) & (wave != 0)
    assert lost.sum(1).tolist() == [[20], [20]]
    for step in (1, 2):
        waves, sheet = show({"loud": np.float32(step)}, jax.random.key(0), tmp_path, f"{step}")
        np.testing.assert_allclose(waves[~lost], step * wave[~lost], atol=1e-6)
        assert np.abs(waves[lost]).max() > 0
    assert sheet.ndim == 3
    assert {path.name for path in tmp_path.iterdir()} == {"damaged.png"} | {
        f"{step}{end}" for step in (1, 2) for end in (".png", "-000-a.wav", "-001-b.wav")
    }
    waves, _ = show({"loud": np.float32("nan")}, jax.random.key(0), tmp_path, "3")
    assert not waves[~lost].any()


def test_an_odd_number_of_recordings_is_shown_though_babble_is_made_of_pairs(tmp_path):
    model = zoo.load("restorer:tiny")
    wave = np.stack([sound(model.segment, seed=i) for i in range(3)])
    show = restore.Showcase(model, Batch(wave, np.zeros(3, np.int32), wave[::-1]), ["a", "b", "c"])
    assert show.damaged.shape == wave.shape
