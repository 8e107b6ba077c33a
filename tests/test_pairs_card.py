"""The scorecard of pairs, as a user runs it."""

import json
import shutil

import numpy as np
import pytest

from benchmarks import pairs
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.metrics import pairs as P
from tests.commands import run

RATE = 16000


@pytest.fixture(autouse=True)
def without_listeners(monkeypatch):
    """What other packages rate takes seconds, and they may be absent."""
    monkeypatch.setattr(P, "METRICS", {name: entry for name, entry in P.METRICS.items() if not entry.extra})


def noise(seed, seconds=1.0):
    return (0.1 * np.random.default_rng(seed).standard_normal((round(seconds * RATE), 1))).astype(np.float32)


def rows_of(card):
    return {row.metric: row for row in card.rows}


def test_pairs_are_scored_by_name_and_silence_and_unreadable_files_are_left_out(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    for i in range(3):
        audio.write(a / f"{i}.wav", noise(i), RATE)
        audio.write(b / f"{i}.flac", 0.5 * noise(i), RATE)
    audio.write(a / "alone.wav", noise(9), RATE)
    for folder in (a, b):
        audio.write(folder / "quiet.wav", 1e-3 * noise(9), RATE)
        (folder / "text.wav").write_text("no sound")
    code, out, err = run(pairs.main, a, b, "--json", tmp_path / "scores.jsonl", capsys=capsys)
    assert code == 0, err
    card = json.loads((tmp_path / "scores.jsonl").read_text())
    rows = {row["metric"]: row for row in card["rows"]}
    assert rows["si_sdr"]["value"] > 60, "16 bits of a copy at half the level"
    assert rows["si_sdr"]["n"] == 3
    assert rows["mel_distance"]["n"] == 4
    assert rows["loudness_difference"]["value"] == pytest.approx(20 * np.log10(0.5), abs=0.01)
    has = lambda *words: any(all(word in reason for word in words) for reason in card["left_out"])
    assert has("1 files")
    assert has("si_sdr", "undefined on 1 of 4")
    assert has("1 of 5 pairs, which can't be read", "text")
    assert not has("mel_distance")
    assert out.splitlines()[-1].endswith("scores.jsonl")


def test_pairs_of_one_length_are_measured_at_once_and_the_card_says_what_was_cut(tmp_path, monkeypatch):
    lengths = [(1.0, 1.25), (1.0, 1.004), (0.5, 0.5), (0.501, 0.502), (0.003, 0.003)]
    for i, (one, other) in enumerate(lengths):
        audio.write(tmp_path / "a" / f"{i}.wav", noise(i, one), RATE)
        audio.write(tmp_path / "b" / f"{i}.wav", noise(i, other), RATE)
    honest, shapes = P.measure, []

    def measure(name, reference, estimate, rate):
        shapes.append((name, reference.shape))
        return honest(name, reference, estimate, rate)

    monkeypatch.setattr(P, "measure", measure)
    card = pairs.score(tmp_path / "a", tmp_path / "b", RATE)
    assert [shape for name, shape in shapes if name == "si_sdr"] == [(1, 0), (2, 8000), (2, 16000)]
    assert rows_of(card)["si_sdr"].n == 4
    has = lambda *words: any(all(word in reason for word in words) for reason in card.left_out)
    assert has("longer sound", "3 of 5 pairs", "0.25 s at most")
    assert has("10 ms", "2 of 5 pairs", "0.003 s at most")
    assert has("si_sdr: undefined on 1 of 5")
    assert rows_of(card)["mel_distance"].value == pytest.approx(0, abs=1e-6), "what they share is the same"


def test_names_that_no_terminal_can_show_are_escaped(tmp_path, capsys):
    audio.write(tmp_path / "a" / "x.wav", noise(0), RATE)
    audio.write(tmp_path / "b" / "x.wav", noise(0), RATE)
    for name in ("a\nb.wav", "c\udcff.wav"):
        for folder in "ab":
            (tmp_path / folder / name).write_text("no sound")
    code, out, err = run(pairs.main, tmp_path / "a", tmp_path / "b", "--json", tmp_path / "s.jsonl", capsys=capsys)
    assert code == 0, err
    assert "2 of 3 pairs" in next(line for line in out.splitlines() if "can't be read" in line and "a\\nb" in line)
    out.encode("utf-8")
    (tmp_path / "s.jsonl").read_bytes().decode("ascii")


def test_what_cannot_be_paired_is_refused_in_one_line(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    audio.write(a / "x.wav", noise(0), RATE)
    audio.write(b / "y.wav", noise(0), RATE)
    twice = shutil.copytree(a, tmp_path / "twice")
    audio.write(twice / "x.flac", noise(0), RATE)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "x.wav").write_text("no sound")
    cases = [
        ((a, b), "has one of the same name"),
        ((a, tmp_path / "missing"), "is no folder"),
        ((a, a, "--resamples", 3), "resamples is 3"),
        ((a, a, "--sample-rate", 0), "sample_rate is 0"),
        ((a, texts), "none of 1 pairs can be read"),
    ]
    for words, message in cases:
        code, _, err = run(pairs.main, *words, capsys=capsys)
        assert code == 2, words
        assert message in err
        assert len(err.strip().splitlines()) == 1
    with pytest.raises(InputError, match=r"x\.flac and .*x\.wav have one name"):
        pairs.score(twice, a, RATE)
