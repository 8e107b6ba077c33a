"""Features beside recordings: which belong to which example, and which can't be used."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.data import audio, frames
from jaxaudio.data.pack import Folder, open_pack
from tests.still import Still

LENGTHS = {"a.wav": 400, "b/c.wav": 173, "b/d.wav": 64, "e.flac": 40}


@pytest.fixture
def model():
    return Still(batch_size=4)


@pytest.fixture
def folder(tmp_path):
    """Recordings, and of each the features that tell the hop's number and the recording's first letter but one."""
    for i, (name, length) in enumerate(LENGTHS.items()):
        wave = np.random.default_rng(i).uniform(-0.5, 0.5, (length, 1))
        audio.write(tmp_path / "data" / name, wave, 1000)
        save(tmp_path, name, told(i, -(-length // 8)))
    return tmp_path


def told(recording, count):
    return np.broadcast_to(100 * recording + np.arange(count, dtype=np.float32)[:, None], (count, 8))


def save(folder, name, array):
    path = (folder / "mels" / name).with_suffix(".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def made(folder, model):
    pack = open_pack(Folder(folder / "data", 1000, 1), folder / "cache")
    return frames.framed(pack, model, folder / "mels")


def test_an_example_has_the_frames_of_its_own_hops(folder, model):
    clips = frames.FramedClips(made(folder, model), model, 0)
    assert clips.pack.names == ("a.wav", "b/c.wav", "b/d.wav", "e.flac")
    starts = set()
    for step in range(20):
        plan = clips.plan(step)
        batch = clips.gather(plan)
        assert (batch.given.shape, batch.given.dtype) == ((4, 8, 8), np.float32)
        for wave, given, start, length in zip(batch.wave, batch.given, plan.start, plan.length, strict=True):
            i = np.searchsorted(clips.pack.start, start, side="right") - 1
            offset = start - clips.pack.start[i]
            assert offset % 8 == 0
            starts.add((i, offset))
            count = -(-length // 8)
            np.testing.assert_array_equal(given[:count], told(i, 60)[offset // 8 :][:count])
            assert not given[count:].any(), "behind it are the features of silence"
            np.testing.assert_array_equal(wave[:length, 0] * 32768, clips.samples[start : start + length, 0])
    assert len(starts) > 30


def test_the_features_of_silence_are_the_models_own(folder):
    model = Still(batch_size=4, segment=64)
    object.__setattr__(model, "features", lambda wave: wave.reshape(len(wave), -1, 8) - 7.0)
    clips = frames.FramedClips(made(folder, Still()), model, 0)
    short = next(plan for step in range(9) for plan in [clips.plan(step)] if (plan.length == 40).any())
    given = clips.gather(short).given[list(short.length).index(40)]
    np.testing.assert_array_equal(given[5:], -7.0)


def test_held_out_recordings_are_surveyed_with_their_frames(folder, model):
    clips = frames.FramedClips(made(folder, model), model, 0)
    found = [(plan.start[0], clips.gather(plan).given[0, 0, 0]) for plan, _ in clips.survey(99)]
    for start, first in found:
        i = np.searchsorted(clips.pack.start, start, side="right") - 1
        assert first == 100 * i + (start - clips.pack.start[i]) // 8


def test_a_frame_more_or_less_will_do_and_the_last_one_is_repeated(folder, model):
    for count in (4, 5, 6):
        save(folder, "e.flac", told(3, count))
        pack = made(folder, model)
        assert not pack.rejected
        clips = frames.FramedClips(dataclasses.replace(pack, split=np.int8([1, 1, 1, 0])), model, 0)
        wanted = [300, 301, 302, 303, 303 if count == 4 else 304, 0, 0, 0]
        np.testing.assert_array_equal(clips.gather(clips.plan(0)).given[0, :, 0], wanted)


BAD = {
    "missing": (None, "No such file"),
    "other bands": (np.zeros((22, 7), np.float32), r"its shape is \(22, 7\), this run wants float \[frames, 8\]"),
    "turned": (np.zeros((8, 22), np.float32), "per 8 samples at 1000 Hz: transpose it"),
    "another hop": (told(1, 44), r"it has 44 frames, but the recording's 173 samples have 21.6 hops of 8"),
    "too few": (told(1, 20), "it has 20 frames"),
    "NaN": (np.full((22, 8), np.nan), "its frames hold NaN"),
    "whole numbers": (np.zeros((22, 8), int), "it holds int64"),
}


@pytest.mark.parametrize("fault", BAD)
def test_recordings_whose_features_can_not_be_used_are_left_out_by_name(folder, model, fault):
    array, words = BAD[fault]
    (folder / "mels" / "b" / "c.npy").unlink()
    if array is not None:
        save(folder, "b/c.wav", array)
    pack = made(folder, model)
    ((name, reason),) = pack.rejected
    assert name == "b/c.wav"
    assert reason.startswith(f"mels: {folder / 'mels' / 'b' / 'c.npy'}: ")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reason)
    assert pack.names == ("a.wav", "b/d.wav", "e.flac")
    assert [path.stem for path in pack.frames] == ["a", "d", "e"]
    clips = frames.FramedClips(pack, model, 0)
    first = clips.gather(jax.tree.map(lambda x: x, clips.plan(0))).given[:, 0, 0] // 100
    assert set(first) <= {0, 2, 3}


def test_where_none_can_be_used_the_first_reason_is_told_and_a_folder_must_be_there(folder, model):
    with pytest.raises(InputError, match="segment is 60: with mels given it is a whole number of hops of 8"):
        made(folder, Still(segment=60))
    (folder / "mels").rename(folder / "elsewhere")
    with pytest.raises(InputError, match="mels: no such folder; name one with a .npy for each recording"):
        made(folder, model)
    (folder / "mels").mkdir()
    with pytest.raises(InputError, match="none of 4 recordings has mels that can be used; the first: .*a.npy: No such"):
        made(folder, model)


def test_the_fingerprint_follows_the_features_and_not_their_place(folder, model):
    first = made(folder, model)
    assert made(folder, model).framed == first.framed
    (folder / "mels").rename(folder / "other")
    pack = open_pack(Folder(folder / "data", 1000, 1), folder / "cache")
    assert frames.framed(pack, model, folder / "other").framed == first.framed
    assert first.fingerprint == pack.fingerprint
    (folder / "other").rename(folder / "mels")
    save(folder, "a.wav", told(0, 50) + np.float32(1e-3))
    assert made(folder, model).framed != first.framed
