"""The verb stream: raw PCM in and out, each chunk as it comes."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sample
from jaxaudio.core import InputError
from jaxaudio.data.audio import to_int16
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import stream
from tests.commands import run
from tests.conftest import REPOSITORY
from tests.toy import Toy, sound, toy

CAUSAL = {"past": 0.5, "offset": 0.01, "hiss": 0.02}


@pytest.fixture
def streamed(monkeypatch, capfdbinary):
    """Bytes through the verb: samples [frames, channels], and what was said."""

    def through(given, data, chunk=1):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data) if isinstance(data, bytes) else data))
        stream.perform(given, stream.Options(chunk=chunk), 3, Path())
        out, err = capfdbinary.readouterr()
        return np.frombuffer(out, "<i2").reshape(-1, given.model.channels), err.decode()

    return through


def offline(given, wave, seed=3):
    """Of all in one, so many samples as the stream gives: as many as came, and the delay."""
    model = given.model
    length = len(wave) + model.delay
    whole = np.pad(wave, ((0, -(-length // model.hop) * model.hop - len(wave)), (0, 0)))[None]
    latent = jax.jit(model.encode)(given.params, whole)
    return to_int16(np.asarray(jax.jit(model.decode)(given.params, latent, jax.random.key(seed)))[0, :length])


def near(samples, expected):
    assert samples.shape == expected.shape
    assert np.abs(samples.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("chunk", [1, 2, 7])
@pytest.mark.parametrize("length", [8, 160, 165, 3, 1])
def test_chunks_joined_are_the_whole_and_the_rest_of_a_chunk_is_not_lost(tmp_path, streamed, chunk, length):
    for fields in ({}, {"delay": 13}, {"channels": 2, "delay": 3}):
        given = toy(tmp_path, **CAUSAL, **fields)
        wave = sound(length, given.model.channels)
        samples, said = streamed(given, to_int16(wave).astype("<i2").tobytes(), chunk)
        near(samples, offline(given, wave))
        assert ("ended within a chunk" in said) == (length % (8 * chunk) != 0)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_a_trained_model_streams_what_it_gives_offline(coder, streamed, chunk):
    given, wave = trained(coder), sound(700, level=0.2)
    samples, said = streamed(given, to_int16(wave).astype("<i2").tobytes(), chunk)
    near(samples, offline(given, wave))
    latency = 1000 * (chunk * given.model.hop + given.model.delay) / given.model.sample_rate
    assert f"latency {latency:.1f} ms" in said
    assert f"16000 Hz, mono, 16 bit little-endian, chunks of {chunk * given.model.hop} samples" in said


def test_half_a_sample_counts_as_one(tmp_path, streamed):
    given = toy(tmp_path, delay=5, channels=2)
    data = to_int16(sound(20, 2)).astype("<i2").tobytes()
    for cut in (1, 2, 3):
        samples, said = streamed(given, data[:-cut])
        filled = np.frombuffer(data[:-cut] + bytes(cut), "<i2").reshape(-1, 2)
        near(samples, np.concatenate([np.zeros((5, 2), int), filled]))
        assert f"ended within a sample, {80 - cut - 64} bytes into the last chunk" in said
    assert "3 chunks" in streamed(toy(tmp_path, channels=2), data[:-1])[1]


def test_nothing_in_gives_nothing_out(tmp_path, streamed):
    samples, said = streamed(toy(tmp_path, delay=13), b"")
    assert not len(samples)
    assert "0 chunks" in said


def test_chunks_that_take_longer_than_they_last_are_counted(tmp_path, streamed, monkeypatch):
    times = iter(np.cumsum([0, 1, 0, 7, 0, 9, 0, 20]) / 1000.0)  # begin, end, of chunks that last 8 ms
    monkeypatch.setattr(stream.time, "perf_counter", lambda: next(times))
    assert "4 chunks, 2 of them slower than real time" in streamed(toy(tmp_path), bytes(64))[1]


def test_wrong_chunks_models_that_look_ahead_and_terminals_are_refused(tmp_path, streamed, monkeypatch):
    for chunk in (0, 1251):
        with pytest.raises(InputError, match=f"chunk is {chunk}: it is 1 to 1250 latent frames of 8 samples"):
            streamed(toy(tmp_path), b"", chunk)
    with pytest.raises(InputError, match="--model.causal"):
        streamed(toy(tmp_path, ahead=0.1), b"")
    terminal = io.TextIOWrapper(io.BytesIO())
    terminal.isatty = lambda: True
    for nothing in (terminal, None):
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(InputError, match="pipe raw 16-bit PCM"):
            stream.perform(toy(tmp_path), stream.Options(), 3, Path())


def test_a_closed_standard_output_is_refused(tmp_path, streamed, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="standard output is closed"):
        streamed(toy(tmp_path), bytes(16))


@pytest.mark.parametrize("which", ["coder", "toy"])
def test_all_chunks_go_through_one_compilation(which, tmp_path, request):
    given = toy(tmp_path, delay=3) if which == "toy" else trained(request.getfixturevalue(which))
    given = given._replace(params=jax.device_put(given.params, jax.devices()[0]))
    through = stream.Through(given, 1, 3)
    for _ in range(3):
        through(bytes(2 * given.model.hop))
    assert through.program._cache_size() == 1


def test_a_chunk_that_is_not_finite_is_silence_and_the_next_one_begins_anew(tmp_path, streamed):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Fragile(Toy):
        def push(self, params, carry, wave, key):
            broken = jnp.where(wave.max() > 0.5, jnp.inf, 0)
            return super().push(params, carry | {"wave": carry["wave"] + broken}, wave, key)

    given = toy(tmp_path, **CAUSAL)
    given = given._replace(model=Fragile(**CAUSAL))
    wave = sound(24)
    wave[8] = 0.75
    samples, said = streamed(given, to_int16(wave).astype("<i2").tobytes())
    near(samples[16:], to_int16(offline(given, wave[16:]).astype(np.float32) / 32768))
    assert not samples[8:16].any()
    assert "1 chunks were not finite" in said
    assert "earlier --checkpoint" in said


@pytest.mark.parametrize(("magic", "words"), [(b"RIFF", "a WAV"), (b"fLaC", "a FLAC"), (b"OggS", "an Ogg")])
def test_files_with_a_header_are_refused_with_the_way_to_make_them_raw(tmp_path, streamed, magic, words):
    with pytest.raises(InputError, match=f"is {words} file: pipe raw PCM, as ffmpeg -f s16le -ar 1000 -ac 1 -"):
        streamed(toy(tmp_path), magic + bytes(60))
    later = bytes(16) + magic + bytes(12)
    assert len(streamed(toy(tmp_path), later)[0]) == 16


def test_a_model_that_hears_all_at_a_peak_of_one_says_that_a_stream_is_not_scaled(tmp_path, streamed):
    assert "a stream is not scaled" in streamed(toy(tmp_path, gain="peak"), bytes(16))[1]
    assert "scaled" not in streamed(toy(tmp_path), bytes(16))[1]


@pytest.mark.parametrize("waiting", [402, 400, 1])
def test_live_throws_away_what_waited_in_whole_samples(tmp_path, monkeypatch, capfdbinary, waiting):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", open(reader))  # noqa: SIM115
    rest = to_int16(sound(8)).astype("<i2").tobytes()
    second_half = threading.Timer(0.3, os.write, (writer, bytes(waiting % 2)))
    honest = stream.pump

    def pump(through):
        second_half.join()
        os.write(writer, rest)
        os.close(writer)
        honest(through)

    monkeypatch.setattr(stream, "pump", pump)
    os.write(writer, bytes(waiting))
    second_half.start()
    stream.perform(toy(tmp_path), stream.Options(live=True), 3, Path())
    sys.stdin.close()
    out, err = capfdbinary.readouterr()
    near(np.frombuffer(out, "<i2"), np.frombuffer(rest, "<i2"))
    assert f"{(waiting + waiting % 2) / 2000:.2f} s that waited were thrown away" in err.decode()


def test_live_is_refused_where_nothing_can_wait(tmp_path, monkeypatch):
    (tmp_path / "a.raw").write_bytes(bytes(16))
    with open(tmp_path / "a.raw") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(InputError, match="leave --live away"):
            stream.perform(toy(tmp_path), stream.Options(live=True), 3, Path())


def start(folder):
    words = [sys.executable, REPOSITORY / "sample.py", "stream", folder]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in a shell's background ignores it
    try:
        return subprocess.Popen(words, **pipes, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    finally:
        signal.signal(signal.SIGINT, before)


def test_each_chunk_is_answered_before_the_next_one_comes_and_ctrl_c_ends_it(coder):
    process, size = start(coder), 2 * trained(coder).model.hop
    answers = []
    for _ in range(3):
        process.stdin.write(bytes(size))
        process.stdin.flush()
        answers.append(process.stdout.read(size))
    process.send_signal(signal.SIGINT)
    process.wait(60)  # with its input open: the end of that would end it in another way
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert [len(answer) for answer in answers] == [size] * 3
    assert not out
    assert b"stream: 3 chunks" in err
    assert f"interrupted: the chunk that had begun and the last {trained(coder).model.delay} samples".encode() in err
    assert b"Traceback" not in err


def test_a_reader_that_goes_ends_it_quietly(coder):
    process = start(coder)
    process.stdout.close()
    while process.poll() is None:
        try:
            process.stdin.write(bytes(64))
            process.stdin.flush()
        except BrokenPipeError:
            break
        time.sleep(0.01)
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_the_words_of_the_command_leave_standard_output_to_the_sound(coder, monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(640))))
    assert run(sample.main, "stream", coder)[0] == 0
    out, err = capfdbinary.readouterr()
    assert len(out) == 640 + 2 * trained(coder).model.delay
    assert err.decode().splitlines()[-1] == f"stream: step 2 of {coder}"
