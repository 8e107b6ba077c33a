"""Files in, float32 [frames, channels] out: exact where it can be, refused with a reason where it can't be used."""

import os
import resource
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from jaxaudio.core import InputError
from jaxaudio.data import audio

RATE = 16_000


def noise(frames, channels=1, level=0.2, seed=0):
    return (np.random.default_rng(seed).standard_normal((frames, channels)) * level).clip(-1, 1).astype(np.float32)


def sine(rate, seconds, hz, level=0.5):
    return level * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def save(path, wave, rate=RATE, subtype="FLOAT", **options):
    soundfile.write(os.fsencode(path), wave, rate, subtype=subtype, **options)
    return path


def refusal(path, channels=1):
    with pytest.raises(audio.Unusable) as caught:
        audio.read(path, RATE, channels)
    reason = str(caught.value)
    assert reason
    assert "\n" not in reason
    assert str(path) not in reason
    return reason


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sixteen_bit_files_survive_bit_for_bit(tmp_path, suffix):
    samples = np.random.default_rng(0).integers(-32768, 32768, (50_000, 2), dtype=np.int16)
    samples[:3, 0] = -32768, 32767, 0
    path = save(tmp_path / f"a.{suffix}", samples, subtype="PCM_16")
    wave = audio.read(path, RATE, 2)
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave, samples / np.float32(32768))
    np.testing.assert_array_equal(audio.to_int16(wave), samples)
    audio.write(tmp_path / f"b.{suffix}", wave, RATE)
    np.testing.assert_array_equal(soundfile.read(tmp_path / f"b.{suffix}", dtype="int16")[0], samples)


def test_rounding_is_to_the_nearest_and_clips():
    wave = np.array([[0.5 / 32768 + 1e-6], [-1.4 / 32768], [1.0], [-1.0], [2.0], [-2.0]], np.float32)
    np.testing.assert_array_equal(audio.to_int16(wave)[:, 0], [1, -1, 32767, -32768, 32767, -32768])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone_and_the_duration(tmp_path, rate):
    path = save(tmp_path / "a.wav", sine(rate, 5, 440), rate)
    wave = audio.read(path, RATE, 1)[:, 0]
    assert len(wave) == 5 * RATE
    np.testing.assert_allclose(wave[2000:-2000], sine(RATE, 5, 440)[2000:-2000], atol=1e-4)


def test_resampling_in_blocks_equals_resampling_at_once(tmp_path):
    wave = noise(5 * audio.BLOCK + 123, 2)
    path = save(tmp_path / "a.wav", wave, 44100)
    np.testing.assert_allclose(audio.read(path, RATE, 2), soxr.resample(wave, 44100, RATE), atol=1e-5)


def test_a_recording_longer_than_a_header_is_believed_comes_out_whole(tmp_path, monkeypatch):
    path = save(tmp_path / "a.wav", noise(9 * audio.BLOCK + 5, 2), subtype="PCM_16")
    whole = audio.read(path, RATE, 2)
    monkeypatch.setattr(audio, "MOST_EXPECTED", 10)
    np.testing.assert_array_equal(audio.read(path, RATE, 2), whole)
    assert len(whole) == 9 * audio.BLOCK + 5


def test_what_lies_above_the_new_range_does_not_fold_back(tmp_path):
    path = save(tmp_path / "a.wav", sine(96000, 1, 30_000) + sine(96000, 1, 440, 0.01), 96000)
    assert np.abs(audio.read(path, RATE, 1)[2000:-2000, 0] - sine(RATE, 1, 440, 0.01)[2000:-2000]).max() < 1e-4
    assert refusal(save(tmp_path / "b.wav", sine(96000, 1, 30_000)[:48000] * np.hanning(48000), 96000)) == "silent"


def test_mono_is_repeated_and_two_channels_become_their_mean(tmp_path):
    one, two = noise(4000), noise(4000, 2)
    assert np.array_equal(audio.read(save(tmp_path / "1.wav", one), RATE, 3), np.repeat(one, 3, axis=1))
    np.testing.assert_allclose(
        audio.read(save(tmp_path / "2.wav", two), RATE, 1), two.mean(1, keepdims=True), atol=1e-7
    )
    assert np.array_equal(audio.read(tmp_path / "2.wav", RATE, 2), two)
    dual = audio.read(save(tmp_path / "d.wav", np.repeat(one, 2, axis=1)), RATE, 1)
    assert np.array_equal(dual, one)


def test_other_channel_counts_are_refused_by_number(tmp_path):
    path = save(tmp_path / "6.wav", noise(4000, 6))
    assert "6 channels, wanted 1: only 1 to many and 2 to 1 are converted, mix it to 1 first" in refusal(path, 1)
    assert "6 channels, wanted 2" in refusal(path, 2)
    assert audio.read(path, RATE, 6).shape == (4000, 6)


def test_channels_that_cancel_are_refused_in_mono_only(tmp_path):
    one = noise(2 * audio.BLOCK)
    path = save(tmp_path / "a.wav", np.hstack([one, -one + 1e-5]), subtype="PCM_16")
    assert "cancel" in refusal(path, 1)
    assert audio.read(path, RATE, 2).shape == (2 * audio.BLOCK, 2)
    audio.read(save(tmp_path / "b.wav", np.hstack([one, -0.9 * one])), RATE, 1)


@pytest.mark.parametrize("size", [1.5, 4.0, 20_000.0, 3e38])
def test_a_peak_above_full_scale_scales_the_whole_recording(tmp_path, size):
    wave = noise(4000) / np.abs(noise(4000)).max()
    read = audio.read(save(tmp_path / "a.wav", wave * np.float32(size)), RATE, 1)
    np.testing.assert_allclose(read, wave, rtol=1e-6)
    assert np.abs(read).max() == 1


def test_overshoot_of_the_resampler_stays_in_range(tmp_path):
    square = np.sign(sine(48000, 1, 100))
    wave = audio.read(save(tmp_path / "a.wav", square, 48000), RATE, 1)
    assert np.abs(wave).max() == 1
    assert 0.85 < np.median(np.abs(wave)) < 0.95


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_not_finite_spoils_the_file(tmp_path, bad):
    wave = noise(3 * audio.BLOCK, 2)
    wave[-5, 1] = bad
    path = save(tmp_path / "a.wav", wave)
    assert "NaN or infinite" in refusal(path, 1)
    assert "NaN or infinite" in refusal(path, 2)


def test_double_precision_beyond_single_is_refused(tmp_path):
    assert "infinite" in refusal(save(tmp_path / "a.wav", noise(4000).astype(float) * 1e300, subtype="DOUBLE"))


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_silence_is_refused_whatever_its_offset(tmp_path, rate):
    bit = np.random.default_rng(0).integers(-1, 2, (9000, 1)) / 32768
    for wave in (np.zeros((9000, 1)), np.full((9000, 1), 0.25), bit, bit / 2 + 0.125, np.full((9000, 1), 1e-40)):
        assert refusal(save(tmp_path / "a.wav", wave, rate)) == "silent"
    audio.read(save(tmp_path / "a.wav", bit * 2 + 0.25), RATE, 1)


def test_an_empty_recording_is_refused(tmp_path):
    assert "no samples" in refusal(save(tmp_path / "a.wav", np.zeros((0, 1)), subtype="PCM_16"))


CUT = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAVEX", "PCM_24"),
    ("WAV", "IMA_ADPCM"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
]
CUT += [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")]
CUT = [(*form, "FILE") for form in CUT] + [("WAV", "PCM_16", "BIG")]


@pytest.mark.parametrize(("container", "subtype", "endian"), CUT)
def test_a_file_that_is_cut_off_is_refused(tmp_path, container, subtype, endian):
    whole = save(tmp_path / "whole", noise(100_000), RATE, subtype, format=container, endian=endian)
    assert abs(len(audio.read(whole, RATE, 1)) - 100_000) < 1200
    content = whole.read_bytes()
    for share in (0.3, 0.6, 0.95 if container == "MP3" else 0.99):
        (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
        refusal(tmp_path / "cut")


def wav(data, declared, riff=36, rate=RATE, before=b"", after=b""):
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return head + before + struct.pack("<4sI", b"data", declared) + data + after


def test_a_stream_of_unknown_length_is_read_to_its_end_and_one_of_length_zero_refused(tmp_path):
    samples, path = audio.to_int16(noise(5000)), tmp_path / "a.wav"
    path.write_bytes(wav(samples.tobytes(), 0xFFFFFFFF, 0xFFFFFFFF))
    np.testing.assert_array_equal(audio.to_int16(audio.read(path, RATE, 1)), samples)
    path.write_bytes(wav(samples.tobytes(), 0, 0))
    assert "0 bytes of samples, 10000 follow" in refusal(path)
    path.write_bytes(wav(b"", 0, after=struct.pack("<4sI8s", b"LIST", 8, b"INFOabcd")))
    assert "no samples" in refusal(path)
    path.write_bytes(wav(samples.tobytes(), 0xFFFFFFFE))
    assert refusal(path) == "truncated: its header declares 4294967294 bytes of samples, 10000 are there"


def test_chunks_around_the_samples_are_not_samples(tmp_path):
    samples, path = audio.to_int16(noise(5000)), tmp_path / "a.wav"
    odd = struct.pack("<4sI3sx", b"JUNK", 3, b"abc")
    path.write_bytes(wav(samples.tobytes(), 10_000, 36 + 2 * len(odd) + 10_000, before=odd, after=odd + b"ID3 garbage"))
    np.testing.assert_array_equal(audio.to_int16(audio.read(path, RATE, 1)), samples)
    path.write_bytes(wav(samples.tobytes()[:-100], 10_000, before=odd))
    assert "truncated" in refusal(path)


def test_a_header_does_not_decide_how_much_memory_is_taken(tmp_path):
    samples = audio.to_int16(noise(2 * audio.BLOCK))
    for rate in (1, 999, 2_000_000):  # at 1 Hz, 128 kB would become 4 GB
        (tmp_path / "a.wav").write_bytes(wav(samples.tobytes(), 2 * len(samples), rate=rate))
        assert "Hz" in refusal(tmp_path / "a.wav")
    flac = bytearray(save(tmp_path / "a.flac", samples, subtype="PCM_16").read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)  # the count of samples: 0 stands for unknown, as streams have it
    (tmp_path / "a.flac").write_bytes(flac)
    assert "how long" in refusal(tmp_path / "a.flac")
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4  # 50 days, 256 GiB
    (tmp_path / "a.flac").write_bytes(flac)
    tracemalloc.start()
    refusal(tmp_path / "a.flac")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_an_mp3_may_lack_what_it_did_not_promise_or_its_last_frame(tmp_path):
    wave = np.concatenate([np.zeros((64_000, 1)), noise(64_000), np.zeros((64_000, 1))])
    path = save(tmp_path / "a.mp3", wave, 44100, "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5)
    content = path.read_bytes()
    untagged = content[content.find(content[:2], 4) :]
    path.write_bytes(untagged)
    with soundfile.SoundFile(path) as sound:
        assert sound.frames > 250_000  # else this file does not show what it is for
    assert abs(len(audio.read(path, 44100, 1)) - 192_000) < 3 * 1152
    (tmp_path / "tagged.mp3").write_bytes(content[:-1])
    assert 0 < 192_000 - len(audio.read(tmp_path / "tagged.mp3", 44100, 1)) < 2 * 1152
    (tmp_path / "tagged.mp3").write_bytes(b"ID3\3\0\0\0\0\x10\0" + bytes(2048) + content[: len(content) // 2])
    assert "truncated" in refusal(tmp_path / "tagged.mp3")


def test_content_decides_and_not_the_name(tmp_path):
    wave = noise(4000)
    for name in ("a.mp3", "noname", "a\nb [0-9]{x}.wav", "caf\udce9.wav", "-rf.wav"):
        path = save(tmp_path / name, wave, format="WAV")
        assert np.array_equal(audio.read(path, RATE, 1), wave)
    (tmp_path / "text.wav").write_text("this is not audio" * 100)
    assert refusal(tmp_path / "text.wav") == "Format not recognised"
    (tmp_path / "empty.flac").touch()
    refusal(tmp_path / "empty.flac")


def test_what_is_not_a_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert refusal(tmp_path / "pipe.wav") == "not a regular file"
    assert refusal(tmp_path) == "not a regular file"
    assert refusal(tmp_path / "none.wav") == "No such file or directory"


@pytest.mark.parametrize(
    ("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "FLOAT")]
)
def test_damaged_bytes_give_a_sound_in_range_or_a_reason(tmp_path, container, subtype):
    rng = np.random.default_rng(0)
    content = save(tmp_path / "good", noise(3000), RATE, subtype, format=container).read_bytes()
    path, read = tmp_path / "bad", 0
    for _ in range(100):
        bad = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        for at in rng.integers(0, min(len(bad), rng.choice([60, len(bad)])), 3):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try:
            wave = audio.read(path, RATE, 1)
        except audio.Unusable:
            continue
        read += 1
        assert wave.shape[1] == 1
        assert np.abs(wave).max() <= 1
    assert read < 100
    assert read or container == "OGG"  # whose every page has a checksum


@pytest.mark.parametrize("suffix", [".ogg", ".oga"])
def test_a_long_vorbis_file_is_written_in_one_piece(tmp_path, suffix):
    wave = sine(RATE, 120, 440, 1.5)  # clipped; libsndfile crashes where such an array is written at once
    audio.write(tmp_path / "new" / "folder" / f"a{suffix}", wave, RATE)
    read = audio.read(tmp_path / "new" / "folder" / f"a{suffix}", RATE, 1)
    assert len(read) == len(wave)
    assert np.sqrt(np.mean((read[:, 0] * np.abs(wave.clip(-1, 1)).max() - wave.clip(-1, 1)) ** 2)) < 0.1


def test_writing_takes_finite_floats_of_known_names_only(tmp_path):
    wave = noise(4000)[:, 0]
    for name, bad in [("a.xyz", wave), ("a", wave), ("a.mp3", wave), ("a.wav", wave.astype(np.int16))]:
        with pytest.raises(InputError, match="a"):
            audio.write(tmp_path / name, bad, RATE)
    for bad in (np.append(wave, np.nan), np.append(wave, np.inf), wave[:0], wave.reshape(2, 2, -1)):
        with pytest.raises(InputError, match=r"a\.wav"):
            audio.write(tmp_path / "a.wav", bad, RATE)
    assert list(tmp_path.iterdir()) == []
    audio.write(tmp_path / "A.WAV", wave * 9, RATE)
    assert np.abs(soundfile.read(tmp_path / "A.WAV", dtype="int16")[0].astype(int)).max() == 32768


def test_a_write_that_fails_leaves_nothing_and_the_old_file_as_it_was(tmp_path):
    audio.write(tmp_path / "a.wav", noise(100), RATE)
    before = (tmp_path / "a.wav").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            audio.write(tmp_path / "a.wav", noise(500_000), RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == before
    with pytest.raises(InputError, match="cannot be written"):
        audio.write(tmp_path / "a.wav" / "b.wav", noise(100), RATE)


def test_rates_and_channels_of_the_caller_are_checked(tmp_path):
    path = save(tmp_path / "a.wav", noise(100))
    for rate, channels in [(0, 1), (-1, 1), (RATE, 0)]:
        with pytest.raises(InputError):
            audio.read(path, rate, channels)


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize(("there", "wanted"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("size", [1.0, 3.0])
def test_blocks_of_a_recording_are_what_reading_it_gives(tmp_path, rate, there, wanted, size):
    path = save(tmp_path / "a.wav", size * noise(3 * audio.BLOCK + 5, there), rate)
    whole = audio.read(path, RATE, wanted)
    recording = audio.survey(path, RATE, wanted)
    blocks = list(audio.blocks(recording))
    assert max(map(len, blocks)) <= audio.BLOCK
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (recording.frames, recording.peak) == (len(whole), np.abs(whole).max())
    assert (recording.file_rate, recording.file_channels) == (rate, there)


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_silence_comes_in_blocks_where_it_is_not_learned_from(tmp_path, rate):
    for wave in (np.zeros((9000, 2)), np.full((9000, 2), 0.25), np.zeros((3, 2))):
        path = save(tmp_path / "a.wav", wave, rate)
        recording = audio.survey(path, RATE, 1)
        given = np.concatenate(list(audio.blocks(recording)))
        assert given.shape == (recording.frames, 1) == (-(-len(wave) * RATE // rate), 1)
        np.testing.assert_allclose(given[500:-500], wave[0, 0], atol=1e-5)


def test_what_is_wrong_with_a_recording_is_found_before_its_first_block(tmp_path):
    one = noise(2 * audio.BLOCK)
    spoiled = np.append(one, [[np.nan]], axis=0)
    cut = save(tmp_path / "whole.wav", one).read_bytes()[:-10]
    (tmp_path / "cut.wav").write_bytes(cut)
    files = {
        save(tmp_path / "c.wav", np.hstack([one, -one])): "cancel",
        save(tmp_path / "nan.wav", spoiled): "NaN",
        save(tmp_path / "six.wav", noise(4000, 6)): "6 channels",
        save(tmp_path / "empty.wav", one[:0]): "no samples",
        save(tmp_path / "brief.wav", noise(1), 768_000): "too short",
        tmp_path / "cut.wav": "truncated",
        tmp_path / "none.wav": "No such file",
    }
    for path, reason in files.items():
        with pytest.raises(audio.Unusable, match=reason):
            audio.survey(path, RATE, 1)
    with pytest.raises(InputError):
        audio.survey(tmp_path / "c.wav", 0, 1)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_written_in_blocks_is_that_written_at_once(tmp_path, suffix):
    wave = noise(50_000, 2, level=0.5)
    audio.write(tmp_path / f"whole{suffix}", wave, RATE)
    with audio.writing(tmp_path / "new" / f"parts{suffix}", RATE, 2, len(wave)) as add:
        for start in range(0, len(wave), 777):
            add(wave[start : start + 777])
        assert not (tmp_path / "new" / f"parts{suffix}").exists(), "it appears whole or not at all"
    assert (tmp_path / "new" / f"parts{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_writing_in_blocks_that_fails_leaves_nothing(tmp_path):
    def written(bad, name="a.wav"):
        with audio.writing(tmp_path / name, RATE, 1, 200) as add:
            add(noise(100))
            add(bad)

    for bad, error in ((noise(100) * np.nan, InputError), (noise(100, 3), ValueError)):
        with pytest.raises(error):
            written(bad)
    with pytest.raises(InputError, match="cannot write"):
        written(noise(100), "a.mp3")
    assert list(tmp_path.iterdir()) == []


def test_what_a_wav_has_no_size_for_becomes_an_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MOST_WAV", 20_000)
    for frames, container in ((10_000, "WAV"), (10_001, "RF64")):
        wave = noise(frames)
        audio.write(tmp_path / "a.wav", wave, RATE)
        assert soundfile.info(tmp_path / "a.wav").format == container
        np.testing.assert_allclose(audio.read(tmp_path / "a.wav", RATE, 1), wave, atol=2e-5)
