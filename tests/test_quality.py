"""The verb classify and the scorecard, as a user runs them."""

import csv
import json

import numpy as np
import pytest

import sample
import train
from benchmarks import quality
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import classify
from tests.test_commands import run

RATE, SEGMENT = 16000, 512
CLASSES = ("hum", "hiss", "pulse")


def sound(kind, rng, length=SEGMENT):
    if kind == "hum":
        return 0.5 * np.sin(2 * np.pi * rng.uniform(300, 500) * np.arange(length) / RATE + rng.uniform(0, 6))
    if kind == "hiss":
        return 0.2 * rng.standard_normal(length).clip(-4, 4)
    return np.where(np.arange(length) % rng.integers(60, 100) < 2, 0.8, 0.0)


@pytest.fixture(scope="module")
def recordings_of_three(tmp_path_factory):
    """Three kinds of sound by four speakers, one of whom is held out."""
    folder, rng, rows = tmp_path_factory.mktemp("three"), np.random.default_rng(0), []
    for i in range(96):
        kind, speaker = CLASSES[i % 3], f"s{i // 3 % 4}"
        audio.write(folder / f"{i}.wav", sound(kind, rng)[:, None], RATE)
        rows.append((f"{i}.wav", kind, speaker, "valid" if speaker in ("s2", "s3") else "train"))
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])
    return folder


@pytest.fixture(scope="module")
def judge(recordings_of_three, tmp_path_factory):
    """A classifier that has learned them."""
    folder = tmp_path_factory.mktemp("runs") / "judge"
    words = ("classifier:tiny", "--data", recordings_of_three, "--out", folder, "--steps", 120, "--eval-every", 120)
    assert run(train.main, *words)[0] == 0
    return folder


@pytest.fixture(scope="module")
def maker(recordings_of_three, tmp_path_factory):
    """A generator that has hardly begun."""
    folder = tmp_path_factory.mktemp("runs") / "maker"
    words = ("wavegan:tiny", "--data", recordings_of_three, "--out", folder, "--steps", 2, "--eval-every", 2)
    assert run(train.main, *words)[0] == 0
    return folder


def test_a_trained_classifier_hears_what_it_learned_and_reads_any_length(judge, tmp_path, capsys):
    rng = np.random.default_rng(1)
    for kind in CLASSES:
        audio.write(tmp_path / "new" / f"{kind}.wav", sound(kind, rng, 3 * SEGMENT + 100)[:, None], RATE)
    audio.write(tmp_path / "new" / "brief.wav", sound("hum", rng, 300)[:, None], RATE)
    (tmp_path / "new" / "broken.wav").write_text("no sound")
    table = tmp_path / "table.csv"
    code, out, _ = run(sample.main, "classify", judge, tmp_path / "new", "--csv", table, capsys=capsys)
    assert code == 0
    assert out.splitlines()[-1].endswith(f"-> {table}")
    assert "left out" in next(line for line in out.splitlines() if "broken" in line)
    with open(table, newline="") as file:
        rows = {row["path"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    for kind in CLASSES:
        assert rows[f"{kind}.wav"]["class"] == kind
        line = next(line for line in out.splitlines() if f"{kind}.wav" in line)
        assert line.split("  ")[1].strip().startswith(kind), "the most probable class comes first"
        assert abs(sum(float(rows[f"{kind}.wav"][name]) for name in CLASSES) - 1) < 1e-4
    assert rows["broken.wav"]["class"] == ""
    assert rows["broken.wav"]["left_out"]


def test_parts_cover_a_long_recording_and_fill_a_short_one(judge):
    model = trained(judge).model
    long = np.linspace(-1, 1, 2 * SEGMENT + 10, dtype=np.float32)[:, None]
    parts = classify.parts_of(long, model)
    assert parts.shape == (3, SEGMENT, 1)
    np.testing.assert_allclose(parts[1, :, 0], long[SEGMENT : 2 * SEGMENT, 0])
    np.testing.assert_allclose(parts[2, :, 0], long[-SEGMENT:, 0])
    short = classify.parts_of(0.25 * long[:100] / 0.25 * 0.5, model)
    assert short.shape == (1, SEGMENT, 1)
    assert np.abs(short).max() == pytest.approx(1), "a model of gain peak hears recordings at a peak of 1"
    assert not short[0, 100:].any()


def test_batches_are_as_large_as_they_come_and_change_nothing(judge):
    model, params = trained(judge).model, trained(judge).params
    wave = np.random.default_rng(0).standard_normal((classify.ROWS + 3, SEGMENT, 1)).astype(np.float32)
    logits, embedding = classify.judge_of(model, params)(wave)
    alone, _ = classify.judge_of(model, params)(wave[-1:])
    assert logits.shape == (classify.ROWS + 3, 3)
    assert len(embedding) == classify.ROWS + 3
    np.testing.assert_allclose(logits[-1:], alone, rtol=1e-4, atol=1e-5)


def test_a_classifiers_card_has_accuracy_per_speaker_and_a_confusion(judge, tmp_path, capsys):
    code, out, _ = run(quality.main, judge, "--json", tmp_path / "scores.jsonl", capsys=capsys)
    assert code == 0
    card = json.loads((tmp_path / "scores.jsonl").read_text())
    rows = {row["metric"]: row for row in card["rows"]}
    assert rows["accuracy"]["value"] > 0.9
    assert rows["accuracy"]["n"] == 48
    assert rows["accuracy"]["low"] <= rows["accuracy"]["value"] <= rows["accuracy"]["high"]
    speakers = [rows[f"accuracy, {name}"] for name in ("s2", "s3")]
    assert [row["n"] for row in speakers] == [24, 24]
    assert np.mean([row["value"] for row in speakers]) == pytest.approx(rows["accuracy"]["value"])
    assert rows["mAP"]["value"] > 0.9
    assert (judge / "scores" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    page = (judge / "report.html").read_text()
    assert "mAP" in page
    assert out.splitlines()[-1].endswith("report.html")


def test_a_generators_card_has_every_score_and_its_interval(maker, judge, recordings_of_three, tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {"real": rng.standard_normal((60, 3)), "fake": rng.standard_normal((60, 3)) + np.eye(3)[:1] * 2}
    np.savez(tmp_path / "own.npz", **arrays)
    words = ("--data", recordings_of_three, "--classifier", judge, "--n", 60, "--embeddings", tmp_path / "own.npz")
    code, out, _ = run(quality.main, maker, *words, capsys=capsys)
    assert code == 0
    card = json.loads((maker / "scores" / "generated.json").read_text())
    rows = {}
    for row in card["rows"]:
        rows.setdefault(row["metric"], []).append(row)
    expected = {"spectral energy distance", "memorisation", "diversity, log-mel", "Inception Score", "modified IS"}
    expected |= {"AM score", "Frechet distance", "Frechet distance, unbiased", "class balance", "label accuracy"}
    assert expected <= set(rows)
    assert all(np.isfinite(row["value"]) for each in rows.values() for row in each)
    assert rows["Inception Score"][0]["value"] < 3.01
    own = [row for row in rows["Frechet distance"] if "own.npz" in row["note"]]
    assert own[0]["value"] == pytest.approx(4, abs=1.5), "the means are 2 apart"
    assert rows["label accuracy"][0]["n"] == 60
    assert "Inception Score" in (maker / "report.html").read_text()
    again = run(quality.main, maker, *words, capsys=capsys)[1]
    strip = lambda text: [line for line in text.splitlines() if not line.startswith("scored")]
    assert strip(out) == strip(again), "the same seed gives the same scores"


def test_copies_of_the_training_set_are_told(maker, recordings_of_three):
    run_of = trained(maker)
    pack = quality.data_of(run_of, quality.Options(run=maker, data=recordings_of_three))
    train_set, held = (quality.clips_of(run_of, pack, split, 1000).wave for split in ("train", "valid"))
    how = {"resamples": 50, "seed": 0}
    copies = {row.metric: row for row in quality.memory_rows(run_of, held, train_set, train_set, how)}
    fresh = {row.metric: row for row in quality.memory_rows(run_of, held, held, train_set, how)}
    assert copies["memorisation"].value < 0.01
    assert fresh["memorisation"].value == pytest.approx(1)
    assert fresh["diversity, log-mel"].value == pytest.approx(1)


def test_recordings_keep_their_label_and_speaker(maker, recordings_of_three):
    run_of = trained(maker)
    pack = quality.data_of(run_of, quality.Options(run=maker, data=recordings_of_three))
    taken = quality.clips_of(run_of, pack, "valid", 1000)
    assert set(taken.group) == {"s2", "s3"}
    level = np.sqrt((taken.wave**2).mean((1, 2)))
    assert np.median(level[taken.label == pack.classes.index("hum")]) > 0.65
    assert np.median(level[taken.label == pack.classes.index("pulse")]) < 0.3


def test_pairs_are_scored_by_name_and_silence_is_left_out_by_name(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        wave = 0.1 * rng.standard_normal((RATE, 1))
        audio.write(tmp_path / "a" / f"{i}.wav", wave, RATE)
        audio.write(tmp_path / "b" / f"{i}.flac", (0.5 * wave).astype(np.float32), RATE)
    audio.write(tmp_path / "a" / "alone.wav", wave, RATE)
    audio.write(tmp_path / "a" / "quiet.wav", 1e-4 * wave, RATE)
    audio.write(tmp_path / "b" / "quiet.wav", 1e-4 * wave, RATE)
    words = ("--pairs", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "scores.jsonl")
    code, out, _ = run(quality.main, *words, capsys=capsys)
    assert code == 0, out
    card = json.loads((tmp_path / "scores.jsonl").read_text())
    rows = {row["metric"]: row for row in card["rows"]}
    assert rows["si_sdr"]["value"] > 60, "16 bits of a copy at half the level"
    assert rows["si_sdr"]["n"] == 3
    assert rows["mel_distance"]["n"] == 4
    assert rows["loudness_difference"]["value"] == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert any("1 files" in reason for reason in card["left_out"])
    assert any("si_sdr" in reason and "1 of 4" in reason for reason in card["left_out"])


def test_what_cannot_be_scored_is_refused_in_one_line(maker, judge, recordings_of_three, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(40):
        audio.write(tmp_path / "other" / "xy"[i % 2] / f"{i}.wav", 0.1 * rng.standard_normal((SEGMENT, 1)), RATE)
    np.savez(tmp_path / "no.npz", other=np.zeros(3))
    data = ("--data", recordings_of_three)
    cases = [
        ((), "name a run's folder, or two folders with --pairs"),
        ((maker, *data, "--classifier", maker), "is no classifier's run"),
        ((maker, *data, "--n", 1), "scores need 2 sounds"),
        ((maker, *data, "--split", "test"), "0 recordings in the split test"),
        ((maker, *data, "--embeddings", tmp_path / "no.npz"), "real and fake"),
        ((judge, "--data", tmp_path / "other"), "the data's classes are x, y"),
        (("--pairs", tmp_path / "other" / "x", tmp_path / "other" / "y"), "has one of the same name"),
    ]
    for words, message in cases:
        code, _, err = run(quality.main, *words, capsys=capsys)
        assert code == 2, words
        assert message in err
        assert len(err.strip().splitlines()) == 1
    code, _, err = run(sample.main, "classify", maker, tmp_path, capsys=capsys)
    assert code == 2
    assert "can't classify: it can generate, morph" in err
    code, _, err = run(sample.main, "classify", judge, recordings_of_three / "metadata.csv", capsys=capsys)
    assert code == 2
    assert "none of 1 recordings can be used" in err


def test_a_classifier_of_another_rate_is_refused(maker, judge):
    run_of, other = trained(maker), trained(judge)
    model = type(other.model)(**{**vars(other.model), "sample_rate": 32000})
    with pytest.raises(InputError, match="train a classifier of that rate"):
        quality.listener(other._replace(model=model), run_of)


def test_a_classifier_of_other_classes_leaves_label_accuracy_out(maker, judge, recordings_of_three):
    run_of, other = trained(maker), trained(judge)._replace(labels=("x", "y", "z"))
    pack = quality.data_of(run_of, quality.Options(run=maker, data=recordings_of_three))
    taken = quality.clips_of(run_of, pack, "valid", 1000)
    left_out = []
    how = {"resamples": 50, "seed": 0}
    asked = np.arange(len(taken.wave)) % 3
    rows = quality.classifier_rows(other, run_of, taken, taken, taken.wave, asked, how, left_out)
    assert "label accuracy" not in [row.metric for row in rows]
    assert any(reason.startswith("label accuracy") and "x, y, z" in reason for reason in left_out)
