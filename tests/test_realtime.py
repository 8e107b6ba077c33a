"""Real time: what is made of the numbers, and a run as a user starts it."""

import json
import mmap

import numpy as np
import pytest

from benchmarks import realtime
from jaxaudio.dsp.pqmf import PAST
from tests.commands import run


def test_latencies_are_told_in_milliseconds():
    times = np.full(1000, 0.002)
    times[::200], times[7] = 0.030, 0.5  # six of a thousand
    assert realtime.latencies(times) == pytest.approx(
        {"mean_ms": 2 + 5 * 0.028 + 0.498, "median_ms": 2, "p99_ms": 2, "worst_ms": 500}
    )
    times[:20] = 0.030
    assert realtime.latencies(times)["p99_ms"] == pytest.approx(30), "more than one in a hundred"


def test_growth_is_that_from_the_second_tenth_of_the_chunks_to_the_last():
    chunks = np.arange(1001.0)
    held = 1e6 + 2048 * chunks
    assert realtime.growth(held) == pytest.approx(2000)
    assert realtime.growth(held[:501]) == pytest.approx(2000), "whatever their number"
    assert realtime.growth(np.where(chunks < 100, 0, 5e6)) == 0, "what a start takes does not count"
    once = np.full(1001, 5e6)
    once[[0, 150, -1]] = 9e6
    assert realtime.growth(once) == 0, "nor what one chunk finds"


def test_the_memory_of_this_process_is_told_in_bytes():
    before = realtime.resident()
    held = np.frombuffer(mmap.mmap(-1, 2**26), np.uint8)  # never memory that was freed before
    held[:] = 1
    assert realtime.resident() - before == pytest.approx(held.nbytes, rel=0.2)


def test_a_row_tells_what_was_measured_and_its_latency_is_that_of_chunk_and_filters(tmp_path, capsys):
    words = ("--json", tmp_path / "rows.jsonl", "--seconds", 0.1, "--chunks", 12, "--chunk-hops", 2, "--windows", 1)
    code, out, _ = run(realtime.main, "rave:tiny", "--model.causal", *words, capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1].endswith("rows.jsonl")
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    rate, bands, hop = 16000, 4, 16
    stream = row["stream"]
    assert stream["latency_ms"] == pytest.approx(1000 * (2 * hop + PAST * bands) / rate)
    assert stream["chunk_ms"] == pytest.approx(1000 * 2 * hop / rate)
    assert stream["compilations_while_it_ran"] == 0
    assert 0 < stream["resident_mib"] <= row["peak_memory_mib"]
    assert "back to back" in out
    assert stream["factor"] == pytest.approx(stream["chunk_ms"] / stream["mean_ms"])
    assert 0 < stream["median_ms"] <= stream["p99_ms"] <= stream["worst_ms"]
    assert [whole["batch"] for whole in row["offline"]] == [1, 8]
    for whole in row["offline"]:
        assert whole["seconds"] == pytest.approx(0.1), "a whole number of hops"
        assert all(0 < low <= middle <= high for low, middle, high in whole["factors"].values())
    assert row["fields"]["causal"]


def test_a_vocoder_is_measured_from_sound_to_features_and_back(tmp_path, capsys):
    words = ("--json", tmp_path / "rows.jsonl", "--seconds", 0.2, "--windows", 1)
    code, out, _ = run(realtime.main, "hifigan:tiny", *words, capsys=capsys)
    assert code == 0
    assert "this model looks ahead" in out
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert [list(whole["factors"]) for whole in row["offline"]] == [["features", "vocode", "both"]] * 2


def test_a_model_that_looks_ahead_is_measured_offline_and_one_that_does_not_encode_is_refused(capsys):
    words = ("--seconds", 0.05, "--windows", 1)
    code, out, _ = run(realtime.main, "rave:tiny", *words, capsys=capsys)
    assert code == 0
    assert "this model looks ahead" in out
    code, _, err = run(realtime.main, "wavegan:tiny", *words, capsys=capsys)
    assert code == 2
    assert "wavegan neither encodes nor vocodes" in err
    for wrong, message in (
        (("--chunk-hops", 0), "chunks of 0 hops"),
        (("--seconds", "nan"), "nan seconds"),
        (("--seconds", "1e9"), "at most 600 s"),
        (("--windows", -1), "-1 windows"),
        (("--chunks", 9), "9 chunks"),
    ):
        code, _, err = run(realtime.main, "rave:tiny", *wrong, capsys=capsys)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_the_weights_are_those_of_a_trained_model_with_its_noise_on():
    model = realtime.zoo.load("rave:tiny")
    params = realtime.fresh(model)
    assert params["step"] > model.warm_up
