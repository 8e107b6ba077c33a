"""The scorecard, as a user runs it."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

import sample
from benchmarks import quality
from benchmarks.recordings import clips_of, in_turn, together, trained_on
from benchmarks.scorecard import deliver
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data.clips import Clips
from jaxaudio.runtime.folder import trained
from tests.commands import run
from tests.three import RATE, SEGMENT, sound


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
    assert "held-out recordings" in rows["label accuracy"][0]["note"]
    heard = [row for row in rows["Frechet distance"] if "own.npz" not in row["note"]]
    assert "held-out against 60 training clips" in heard[0]["note"]
    assert "Inception Score" in (maker / "report.html").read_text()
    again = run(quality.main, maker, *words, capsys=capsys)[1]
    strip = lambda text: [line for line in text.splitlines() if not line.startswith("scored")]
    assert strip(out) == strip(again), "the same seed gives the same scores"


def opened(run_folder, **options):
    """What the scorecard works on."""
    return quality.opened(quality.Options(run=run_folder, **options))


def known_to(given):
    """The clips that the run was trained on."""
    return Clips(trained_on(given.run, given.pack), given.run.model, 0, "train")


def taken(given, split, most=1000):
    return together(in_turn(clips_of(given.run, given.pack, split), most))


def write_recordings(folder, labels, length=SEGMENT):
    """Hums, as a table: (file, label, split), each with an optional speaker."""
    rng = np.random.default_rng(5)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split", "speaker"), *labels])
    for name, *_ in labels:
        audio.write(folder / name, sound("hum", rng, length)[:, None], RATE)


def card_of(folder, name="generated"):
    card = json.loads((folder / "scores" / f"{name}.json").read_text())
    return {row["metric"]: row for row in card["rows"]}, card["left_out"]


def test_copies_of_any_training_recording_are_told_whatever_n_is(maker, monkeypatch):
    given = opened(maker, n=2)
    train_set, held = taken(given, "train").wave, taken(given, "valid").wave
    assert len(train_set) == 96, "two clips of each"
    rows = lambda fake: {row.metric: row for row in quality.memory_rows(given, held, fake, known_to(given), "", [])}
    copies, fresh = rows(train_set), rows(held)
    assert copies["memorisation"].value < 0.01
    assert fresh["memorisation"].value == pytest.approx(1)
    assert fresh["diversity, log-mel"].value == pytest.approx(1)
    assert "nearest of 96 training clips" in fresh["memorisation"].note
    monkeypatch.setattr(quality, "KNOWN", 5)
    by_blocks = rows(np.roll(held, 1, 0) * 0.7)
    monkeypatch.setattr(quality, "KNOWN", 10**6)
    at_once = rows(np.roll(held, 1, 0) * 0.7)
    assert by_blocks["memorisation"].value == pytest.approx(at_once["memorisation"].value, rel=1e-9)


def test_memorisation_is_left_out_where_recordings_are_the_training_set_itself(maker, capsys):
    code, _, _ = run(quality.main, maker, "--n", 12, "--split", "train", capsys=capsys)
    rows, left_out = card_of(maker)
    assert code == 0
    assert "memorisation" not in rows
    assert any(reason.startswith("memorisation") and "--split" in reason for reason in left_out)
    assert "training recordings" in rows["diversity, log-mel"]["note"]


def test_groups_of_sounds_whose_energy_distance_is_averaged_share_none_and_leave_no_lone_row():
    rng = np.random.default_rng(0)
    real, fake = (0.3 * rng.standard_normal((401, SEGMENT, 1)).astype(np.float32) for _ in range(2))
    before, n = quality.energies(real, fake)
    assert n == 400
    assert len(before) == 40
    for i in (0, 9, 10, 399):
        changed = fake.copy()
        changed[i] = 0
        after, _ = quality.energies(real, changed)
        np.testing.assert_array_equal(np.flatnonzero(~np.isclose(before, after, atol=1e-6)), [i // 10])
    assert quality.energies(real[:5], fake[:7])[1] == 4
    with pytest.raises(InputError, match="4 of both"):
        quality.energies(real[:3], fake)


def test_other_recordings_are_compared_with_and_the_training_set_stays_the_runs_own(maker, judge, tmp_path, capsys):
    labels = [(f"{i}.wav", "abc"[i % 3], "valid", "") for i in range(12)]
    write_recordings(tmp_path, labels)
    words = ("--data", tmp_path, "--classifier", judge, "--n", 12)
    code, _, err = run(quality.main, maker, *words, capsys=capsys)
    assert code == 0, err
    rows, _ = card_of(maker)
    assert "nearest of 96 training clips" in rows["memorisation"]["note"]
    assert "AM score" in rows
    assert "training clips" in rows["Frechet distance"]["note"]
    assert "recordings " not in rows["label accuracy"]["note"], "its classes are others"


def test_a_training_set_that_is_gone_or_changed_leaves_its_rows_out(
    maker, judge, recordings_of_three, tmp_path, capsys
):
    gone = shutil.copytree(maker, tmp_path / "maker")
    about = json.loads((gone / "run.json").read_text())
    for changes, reason in [({"folder": str(tmp_path / "no")}, "no such folder"), ({}, "not those any more")]:
        data = about["data"] | {"fingerprint": "0" * 16} | changes
        (gone / "run.json").write_text(json.dumps(about | {"data": data}))
        words = ("--data", recordings_of_three, "--classifier", judge, "--n", 12)
        assert run(quality.main, gone, *words, capsys=capsys)[0] == 0
        rows, left_out = card_of(gone)
        assert not {"memorisation", "AM score"} & set(rows)
        for name in ("memorisation", "AM score"):
            assert any(line.startswith(name) and reason in line for line in left_out)
        assert "training clips" not in rows["Frechet distance"]["note"]
        assert "held-out recordings" in rows["label accuracy"]["note"]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_recordings_leave_scores_out_with_their_reason(maker, judge, tmp_path, capsys, count):
    write_recordings(tmp_path, [(f"{i}.wav", "hum", "valid", "") for i in range(count)])
    words = ("--data", tmp_path, "--classifier", judge, "--n", count, "--resamples", 40)
    code, _, err = run(quality.main, maker, *words, capsys=capsys)
    assert code == 0, err
    rows, left_out = card_of(maker)
    for name in ("diversity, log-mel", "class balance", "spectral energy distance", "Frechet distance"):
        assert (name in rows) == (count > 3)
        assert (name in rows) != any(reason.startswith(f"{name}:") for reason in left_out)


def test_a_classifier_of_one_class_leaves_balance_out(maker, judge, monkeypatch):
    given = opened(maker, classifier=judge, n=8)
    one = lambda wave: (np.zeros((len(wave), 1)), np.random.default_rng(0).standard_normal((len(wave), 3)))
    monkeypatch.setattr(quality, "judge_of", lambda model, params: one)
    left_out, real = [], taken(given, "valid", 8)
    rows = quality.classifier_rows(given, real, real.wave, None, known_to(given), "", left_out)
    assert "class balance" not in [row.metric for row in rows]
    assert any(reason.startswith("class balance: classes is 1") for reason in left_out)


def test_a_classifier_of_another_gain_is_told(maker, judge):
    given = opened(maker, classifier=judge, n=8)
    real = taken(given, "valid", 8)
    for gain, other in (("none", "peak"), ("peak", "none")):
        judged = given.judge._replace(model=dataclasses.replace(given.judge.model, gain=gain))
        made = given.run._replace(model=dataclasses.replace(given.run.model, gain=other))
        left_out = []
        quality.classifier_rows(given._replace(judge=judged, run=made), real, real.wave, None, None, "gone", left_out)
        assert any("level" in reason for reason in left_out)


def test_average_precision_ranks_probabilities_and_the_classifier_hears_a_batch_at_a_time(judge, monkeypatch):
    given, honest, sizes = opened(judge), quality.judge_of, []
    before = {row.metric: row.value for row in quality.of_classifier(given).rows}

    def shifted(model, params):
        def judged(wave):
            sizes.append(len(wave))
            logits, embedding = honest(model, params)(wave)
            return logits + 20 * np.random.default_rng(0).standard_normal((len(wave), 1)), embedding

        return judged

    monkeypatch.setattr(quality, "judge_of", shifted)
    after = {row.metric: row.value for row in quality.of_classifier(given).rows}
    assert after["mAP"] == pytest.approx(before["mAP"], abs=1e-6), "a softmax knows no constant of a row"
    assert max(sizes) <= given.run.model.batch_size < 48


def test_speakers_of_any_name_have_their_row_and_one_alone_has_none(judge, tmp_path, monkeypatch, capsys):
    given = opened(judge)
    hostile = ("a\nb", "c\udcff")
    named = given._replace(pack=dataclasses.replace(given.pack, groups=(*given.pack.groups[:2], *hostile)))
    card = quality.of_classifier(named)
    deliver(card, {"step": 1}, tmp_path, tmp_path / "lines.jsonl")
    out = capsys.readouterr().out
    out.encode("utf-8")
    assert len(out.splitlines()) == 1 + len(card.rows) + len(card.left_out)
    (tmp_path / "lines.jsonl").read_text("ascii").encode("ascii")
    assert [row.metric for row in card.rows if row.metric.startswith("accuracy, ")]
    monkeypatch.setattr(quality, "SEVERAL", 1)
    assert any("2 groups, the worst is '" in reason for reason in quality.of_classifier(named).left_out)
    alone = given._replace(pack=dataclasses.replace(given.pack, group=np.zeros_like(given.pack.group)))
    card = quality.of_classifier(alone)
    assert not any("group" in reason for reason in card.left_out)
    assert not any(row.metric.startswith("accuracy, ") for row in card.rows)


def test_recordings_keep_their_label_and_speaker(maker):
    given = opened(maker)
    found = taken(given, "valid")
    assert set(found.group) == {"s2", "s3"}
    level = np.sqrt((found.wave**2).mean((1, 2)))
    assert np.median(level[found.label == given.pack.classes.index("hum")]) > 0.65
    assert np.median(level[found.label == given.pack.classes.index("pulse")]) < 0.3


def test_what_cannot_be_scored_is_refused_in_one_line_before_a_sound_is_made(
    maker, judge, recordings_of_three, tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(0)
    for i in range(40):
        audio.write(tmp_path / "other" / "xy"[i % 2] / f"{i}.wav", 0.1 * rng.standard_normal((SEGMENT, 1)), RATE)
    np.savez(tmp_path / "no.npz", other=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros((9, 3)))
    np.savez(tmp_path / "widths.npz", real=np.zeros((9, 3)), fake=np.zeros((9, 4)))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez_compressed(tmp_path / "whole.npz", real=rng.standard_normal((99, 9)), fake=rng.standard_normal((99, 9)))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bent.npz").write_bytes(whole[:200] + bytes(100) + whole[300:])
    monkeypatch.setattr(quality, "sounds_of", None)
    data = ("--data", recordings_of_three)
    broken = ("no.npz", "array.npy", "empty.npz", "cut.npz", "bent.npz", "missing.npz")
    cases = [
        ((maker, *data, "--classifier", maker), "is no classifier's run"),
        ((maker, *data, "--classifier", tmp_path / "missing"), "is not a run's folder"),
        ((maker, *data, "--n", 1), "scores need 2 sounds"),
        ((maker, *data, "--seed", -1), "seed is -1"),
        ((maker, *data, "--resamples", 5), "resamples is 5"),
        ((maker, *data, "--split", "test"), "0 recordings in the split test"),
        *[((maker, *data, "--embeddings", tmp_path / name), "arrays real and fake") for name in broken],
        ((maker, *data, "--embeddings", tmp_path / "widths.npz"), "of as many features"),
        ((judge, "--data", tmp_path / "other"), "the data's classes are x, y"),
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
    other = trained(judge)
    model = type(other.model)(**{**vars(other.model), "sample_rate": 32000})
    with pytest.raises(InputError, match="train a classifier of that rate"):
        quality.judge_for(trained(maker), other._replace(model=model))


def test_a_classifier_of_other_classes_leaves_label_accuracy_out(maker, judge):
    given = opened(maker, classifier=judge)
    given = given._replace(judge=given.judge._replace(labels=("x", "y", "z")))
    real, left_out = taken(given, "valid"), []
    asked = np.arange(len(real.wave)) % 3
    rows = quality.classifier_rows(given, real, real.wave, asked, known_to(given), "", left_out)
    assert "label accuracy" not in [row.metric for row in rows]
    assert any(reason.startswith("label accuracy") and "x, y, z" in reason for reason in left_out)
