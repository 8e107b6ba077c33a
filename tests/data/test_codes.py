"""Codes are made once, kept whole or not at all, and cut where sound would be cut."""

import dataclasses

import numpy as np
import pytest

from jaxaudio import zoo
from jaxaudio.core import InputError
from jaxaudio.data import audio, layouts
from jaxaudio.data.clips import Clips
from jaxaudio.data.codes import CodeClips, open_codes
from jaxaudio.data.pack import open_pack
from jaxaudio.runtime.parallel import Devices

MODEL = zoo.load("tokengru:tiny")  # 3 codebooks of 40, 8 frames of 8 samples
HOP, FRAMES, ZERO = MODEL.hop, MODEL.segment // MODEL.hop, 17  # ZERO: the first code of silence
LENGTHS = (8 * 64 + 5, 3 * 8, 64, 200, 3)


class Recordings:
    """One of each length; two classes and two speakers, every fourth one held out."""

    def __init__(self, lengths=LENGTHS, key="recordings"):
        split = ("train", "train", "train", "valid")
        entries = (layouts.Entry(f"{i}.wav", "ba"[i % 2], split[i % 4], f"s{i % 2}") for i in range(len(lengths)))
        self.layout, self.lengths = layouts.Layout("made", tuple(entries)), lengths
        self.key, self.sample_rate, self.channels = key, MODEL.sample_rate, 1

    def read(self, i):
        return np.random.default_rng(i).integers(-9000, 9000, (self.lengths[i], 1)).astype(np.float32) / 32768


class Coder:
    """A frame's codes are sums of its samples; `calls`: of what lengths they were wanted."""

    def __init__(self, model=MODEL):
        self.model, self.calls, self.peaks = model, [], []

    def __call__(self, wave):
        self.calls.append(len(wave))
        self.peaks.append(np.abs(wave).max())
        padded = np.pad(wave[:, 0], (0, -len(wave) % HOP)).reshape(-1, HOP)
        total = np.rint(padded * 32768).astype(np.int64).sum(1)
        return np.stack([total + ZERO, 3 * total, total // 7], 1)[:, : self.model.codebooks] % self.model.codebook_size


@pytest.fixture
def recordings(tmp_path):
    return open_pack(Recordings(), tmp_path / "cache")


def opened(recordings, cache, coder=None, codec="codec", model=MODEL):
    """coder: of a whole recording, which comes in blocks."""
    code = coder or Coder()

    def heard(blocks, length):
        wave = np.concatenate([block for block in blocks if len(block) <= audio.BLOCK])
        assert len(wave) == length
        return code(wave)

    return open_codes(recordings, model, codec, heard, cache)


def codes_of(recordings, i, coder=None):
    start, length = recordings.start[i], recordings.length[i]
    return (coder or Coder())(recordings.samples[start : start + length] / np.float32(32768))


def test_a_pack_of_codes_is_as_the_recordings_are_and_holds_the_codes_of_each(recordings, tmp_path):
    pack = opened(recordings, tmp_path)
    for name in ("names", "classes", "groups", "layout", "fingerprint"):
        assert getattr(pack, name) == getattr(recordings, name), name
    for name in ("label", "group", "split"):
        np.testing.assert_array_equal(getattr(pack, name), getattr(recordings, name), err_msg=name)
    assert pack.channels == MODEL.codebooks
    for i, start in enumerate(pack.start):
        np.testing.assert_array_equal(
            pack.samples[start : start + pack.length[i]].astype(int) - 1, codes_of(recordings, i)
        )
    np.testing.assert_array_equal(pack.silence, [ZERO, 0, 0])


def test_a_recording_is_heard_in_blocks(recordings, tmp_path, monkeypatch):
    whole = opened(recordings, tmp_path / "whole")
    monkeypatch.setattr(audio, "BLOCK", 100)
    np.testing.assert_array_equal(opened(recordings, tmp_path / "blocks").samples, whole.samples)


def test_codes_are_made_once_for_each_codec_and_all_recordings(recordings, tmp_path):
    coder = Coder()
    opened(recordings, tmp_path, coder)
    assert coder.calls[: len(LENGTHS)] == list(LENGTHS)
    assert len(coder.calls) == len(LENGTHS) + 1, "and silence"
    wave = open_pack(Recordings(LENGTHS[:2], "others"), tmp_path / "cache")
    for given, codec, times in ((recordings, "codec", 0), (recordings, "another", 6), (wave, "codec", 2)):
        again = Coder()
        pack = opened(given, tmp_path, again, codec)
        assert len(again.calls) == times
        np.testing.assert_array_equal(pack.silence, [ZERO, 0, 0])


def test_a_codec_of_gain_peak_hears_each_recording_at_a_peak_of_one(recordings, tmp_path):
    coder = Coder()
    opened(recordings, tmp_path, coder, model=dataclasses.replace(MODEL, gain="peak"))
    np.testing.assert_allclose(coder.peaks[:-1], 1, atol=1e-6)
    assert coder.peaks[-1] == 0


def test_an_example_is_the_codes_of_its_stretch_and_silence_follows_a_shorter_one(recordings, tmp_path):
    clips = CodeClips(opened(recordings, tmp_path), MODEL, 3)
    all_codes = {i: codes_of(recordings, i) for i in range(len(LENGTHS))}
    seen = set()
    for step in range(6):
        plan = clips.plan(step)
        batch = clips.gather(plan)
        assert (batch.given.shape, batch.given.dtype) == ((MODEL.batch_size, FRAMES, 3), np.int32)
        assert batch.wave.shape == (MODEL.batch_size, 0, 1)
        for given, start, length, label in zip(batch.given, plan.start, plan.length, batch.label, strict=True):
            which = int(np.searchsorted(clips.pack.start, start, side="right")) - 1
            first = start - clips.pack.start[which]
            np.testing.assert_array_equal(given[:length], all_codes[which][first : first + length])
            np.testing.assert_array_equal(given[length:], np.tile([ZERO, 0, 0], (FRAMES - length, 1)))
            assert label == clips.pack.label[which]
            seen.add((which, int(first)))
    assert {which for which, _ in seen} == {0, 1, 2, 4}, "all that are trained on, but for the one held out"
    assert len({first for which, first in seen if which == 0}) > 8, "anywhere in the long one"


def test_the_plan_is_that_of_the_sound_in_frames_and_the_split_is_surveyed_once(recordings, tmp_path):
    pack = opened(recordings, tmp_path)
    clips, same = CodeClips(pack, MODEL, 3), dataclasses.replace(MODEL, segment=FRAMES, hop=1)
    for a, b in zip(clips.plan(4)[:4], Clips(pack, same, 3).plan(4)[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    held_out = CodeClips(pack, MODEL, 3, "valid")
    (plan, count), *more = held_out.survey(100)
    assert (count, more) == (LENGTHS[3] // MODEL.segment, [])
    found = held_out.gather(plan).given[:count]
    whole = codes_of(recordings, 3)[: count * FRAMES].reshape(count, FRAMES, 3)
    assert sorted(found.tolist()) == sorted(whole.tolist())
    assert [len(batch.given) for batch in clips.batches()] == [8, 3]


def test_batches_are_spread_over_the_devices_as_they_are(recordings, tmp_path):
    from jaxaudio.data.clips import fetcher

    clips = CodeClips(opened(recordings, tmp_path), MODEL, 3)
    (batch,) = fetcher([clips], Devices("jit", 4), "host")(2)
    np.testing.assert_array_equal(batch.given, clips.gather(clips.plan(2)).given)


def test_recordings_whose_codes_are_all_zero_are_kept(recordings, tmp_path):
    pack = opened(recordings, tmp_path, lambda wave: np.zeros((-(-len(wave) // HOP), 3), np.int32))
    assert pack.names == recordings.names
    assert not CodeClips(pack, MODEL, 0).gather(CodeClips(pack, MODEL, 0).plan(0)).given.any()


def test_what_is_too_short_or_can_not_be_coded_is_named(recordings, tmp_path):
    def picky(wave):
        if len(wave) == LENGTHS[2]:
            raise audio.Unusable("not to be coded")
        return Coder()(wave) + 40 * (len(wave) == LENGTHS[1])

    pack = opened(recordings, tmp_path, picky)
    assert dict(pack.rejected) == {"2.wav": "not to be coded", "1.wav": "its codes are 46 to 75, not 0 to 39"}
    long = dataclasses.replace(MODEL, segment=64 * 8)
    ((name, reason),) = CodeClips(pack, long, 0).left_out
    assert (name, reason) == ("4.wav", "1 frames of codes: shorter than 1/16 of a segment of 64")
    with pytest.raises(InputError, match="the longest has 65 of 2048 frames of codes: add longer ones"):
        CodeClips(pack, dataclasses.replace(MODEL, segment=2048 * 8), 0)


def test_codes_that_do_not_fit_the_model_are_refused(recordings, tmp_path):
    with pytest.raises(InputError, match=r"the codec's codes are \[65, 2\]: wanted \[frames, 3\]"):
        opened(recordings, tmp_path, lambda wave: Coder()(wave)[:, :2])
    with pytest.raises(InputError, match="codebook_size is 65536: codes of 32767 values at most are kept"):
        opened(recordings, tmp_path, model=dataclasses.replace(MODEL, codebook_size=65536))
    most = dataclasses.replace(MODEL, codebook_size=32767)
    pack = opened(recordings, tmp_path, lambda wave: np.full((-(-len(wave) // HOP), 3), 32766), model=most)
    assert (CodeClips(pack, most, 0).gather(CodeClips(pack, most, 0).plan(0)).given == 32766).all()


def test_a_coding_that_is_broken_off_leaves_nothing_and_starts_anew(recordings, tmp_path):
    def killed(wave):
        if len(wave) == LENGTHS[2]:
            raise KeyboardInterrupt
        return Coder()(wave)

    with pytest.raises(KeyboardInterrupt):
        opened(recordings, tmp_path / "new", killed)
    assert not list((tmp_path / "new").iterdir())
    coder = Coder()
    opened(recordings, tmp_path / "new", coder)
    assert len(coder.calls) == len(LENGTHS) + 1
