"""The verb classify, as a user runs it."""

import csv

import numpy as np
import pytest

import sample
from jaxaudio.data import audio
from jaxaudio.runtime.folder import trained
from jaxaudio.tasks import classify
from tests.commands import run
from tests.three import CLASSES, RATE, SEGMENT, sound


def test_a_trained_classifier_hears_what_it_learned_and_reads_any_length(judge, tmp_path, capsys):
    rng = np.random.default_rng(1)
    for kind in CLASSES:
        audio.write(tmp_path / "new" / f"{kind}.wav", sound(kind, rng, 3 * SEGMENT + 100)[:, None], RATE)
    audio.write(tmp_path / "new" / "brief.wav", sound("hum", rng, 300)[:, None], RATE)
    (tmp_path / "new" / "broken.wav").write_text("no sound")
    table = tmp_path / "table.csv"
    words = ("classify", judge, tmp_path / "new", tmp_path / "new" / "hum.wav", "--csv", table)
    code, out, err = run(sample.main, *words, capsys=capsys)
    assert code == 0
    assert "1 of 5 files were left out" in err, "a file that is named twice is one"
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


def test_sounds_longer_than_the_classifiers_segment_are_heard_as_a_whole(judge):
    model, params, rng = trained(judge).model, trained(judge).params, np.random.default_rng(0)
    judged = classify.judge_of(model, params)
    first, second = (sound(kind, rng)[:, None] for kind in ("hum", "hiss"))
    both = np.concatenate([first / np.abs(first).max(), 0.5 * second / np.abs(second).max()])
    p, embedding = classify.hear(judged, [0.3 * both, first], model)
    logits, embeddings = judged(both.reshape(2, SEGMENT, 1).astype(np.float32))
    each = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(p[0], each.mean(0), rtol=1e-4)
    np.testing.assert_allclose(embedding[0], embeddings.mean(0), rtol=1e-4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-9)


def test_rows_of_the_verb_classify_appear_as_they_come(judge, tmp_path, monkeypatch, capsys):
    for i in range(3):
        audio.write(tmp_path / f"{i}.wav", sound("hum", np.random.default_rng(i))[:, None], RATE)
    honest, printed = classify.hear, []

    def hear(*arguments):
        printed.append(capsys.readouterr().out)
        return honest(*arguments)

    monkeypatch.setattr(classify, "hear", hear)
    assert run(sample.main, "classify", judge, tmp_path)[0] == 0
    assert ["0.wav" in printed[1], "1.wav" in printed[2]] == [True, True]
