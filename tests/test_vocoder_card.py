"""The card of vocoders: of some whose scores are known, and of a trained run as a user sees it."""

import csv
import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import quality, recordings
from benchmarks import reconstruction as R
from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data.pack import Folder, open_pack
from jaxaudio.metrics import pairs as P
from tests.commands import run
from tests.still import Still, run_of
from tests.three import RATE

HOW = {"resamples": 40, "seed": 0}
LENGTH = 9000
LISTENERS = ("pesq wide", "stoi", "visqol audio", "visqol speech")


@pytest.fixture
def without_listeners(monkeypatch):
    """What other packages rate takes seconds, and they may be absent."""
    monkeypatch.setattr(P, "METRICS", {name: entry for name, entry in P.METRICS.items() if not entry.extra})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight held-out noises, each of a pitch of its own and swelling; two more for training."""
    folder, rng = tmp_path_factory.mktemp("pitches"), np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = [(f"{i}.wav", "any", "train" if i > 7 else "valid") for i in range(10)]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    for i in range(10):
        tone = np.sin(2 * np.pi * (300 + 400 * i) * np.arange(LENGTH) / RATE + rng.uniform(0, 6))
        sound = (0.05 * rng.standard_normal(LENGTH) + 0.3 * tone) * (1 + np.sin(np.arange(LENGTH) / 500)) / 2
        audio.write(folder / f"{i}.wav", sound[:, None], RATE)
    return folder


@pytest.fixture(scope="module")
def pack(folder):
    return open_pack(Folder(folder, RATE, 1))


def still(loud=1.0, **fields):
    """A vocoder that keeps all, unless the fields say otherwise, as a trained run."""
    model = Still(**{"sample_rate": RATE, "segment": 640, "hop": 64, **fields})
    return run_of(model, "still")._replace(params={"loud": np.float32(loud)})


def card_of(trained, pack, n=8):
    card = R.of_vocoder(trained, pack, "valid", n, HOW)
    return card, {row.metric: row for row in card.rows}


def test_a_vocoder_that_loses_nothing_is_at_no_distance(pack, without_listeners):
    for fields in ({}, {"reach": 3, "hop": 128}):
        card, rows = card_of(still(**fields), pack)
        assert not card.left_out
        assert rows[R.STFT].value < 1e-5
        assert rows["right over other"].value < 1e-5
        assert rows["mel distance"].value < 1e-5
        assert rows["loudness difference"].value == pytest.approx(0, abs=1e-5)
        assert "nearer in 100%" in rows[f"{R.STFT}, noise vocoder of 64 bands"].note
        assert rows[f"{R.STFT}, random other"].value > rows[f"{R.STFT}, noise vocoder of 16 bands"].value > 0.5
        assert rows["numbers per second"].value == RATE
        assert f"{RATE / rows['numbers per second'].n:.4g} frames" in rows["numbers per second"].note
        assert not any("fidelity" in name for name in rows), "it has no latent space"


def test_beside_it_stands_griffin_lim_from_as_many_mel_bands(pack, without_listeners):
    card, rows = card_of(still(hop=16), pack)
    plain = "Griffin-Lim of 16 bands"
    assert not card.left_out
    real, _ = R.heard(R.clips_of(R.cut_into(still(hop=16), LENGTH // 16 * 16), pack, "valid"), 8)
    made = R.griffin_lims(real, RATE, 16, 16)
    assert made.shape == real.shape
    far = lambda one, other: P.multi_resolution_stft(jnp.asarray(one[..., 0]), jnp.asarray(other[..., 0]), RATE)
    assert rows[f"{R.STFT}, {plain}"].value == pytest.approx(far(real, made).mean(), rel=1e-5)
    levels = [np.log(np.abs(np.fft.rfft(wave[:, 0])).sum()) for wave in (real[0], made[0])]
    assert levels[1] == pytest.approx(levels[0], abs=0.5), "as loud"
    assert f"mel distance, {plain}" in rows
    assert rows["features"].value == 0
    assert rows[f"features, {plain}"].value == pytest.approx(np.abs(made - real).mean(), rel=1e-4), (
        "still's are samples"
    )
    with pytest.raises(InputError, match="of 400 mel bands hold no bin"):
        R.griffin_lims(real[:, :64], RATE, 16, 400)


def test_a_stretch_is_a_whole_number_of_hops_and_the_title_tells_it(pack, without_listeners, monkeypatch):
    card, _ = card_of(still(segment=6400), pack)
    assert card.title == f"8 recordings (valid, {R.DRAWN} at most) as features and back, 0.56 s of each"
    assert R.stretch(still(), pack, "valid", 64) == LENGTH // 64 * 64
    monkeypatch.setattr(recordings, "SECONDS", 0.25)
    assert R.stretch(still(), pack, "valid", 64) == 62 * 64


def test_a_wrong_vocoder_is_as_far_as_what_it_makes_is(pack, without_listeners):
    _, rows = card_of(still(loud=0.5), pack)
    assert rows["loudness difference"].value == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert rows[R.STFT].value == pytest.approx(0.5 + np.log(2), abs=0.02)
    hissing = still(hiss=0.2)
    _, rows = card_of(hissing, pack)
    real, _ = R.heard(R.clips_of(R.cut_into(hissing, LENGTH // 64 * 64), pack, "valid"), 8)
    made, bands = R.vocoded(hissing, real, 0)
    assert bands == 64
    assert np.std(made - real) == pytest.approx(0.2 / np.sqrt(12), rel=0.02)
    assert np.abs(np.corrcoef((made - real)[..., 0]) - np.eye(8)).max() < 0.1, "noise of its own for each"
    far = lambda one, other: P.multi_resolution_stft(jnp.asarray(one[..., 0]), jnp.asarray(other[..., 0]), RATE)
    assert rows[R.STFT].value == pytest.approx(far(real, made).mean(), rel=1e-5)
    assert rows[R.STFT].value > 0.1
    other = R.derangement(8, 0)
    assert rows[f"{R.STFT}, random other"].value == pytest.approx(far(real[other], made).mean(), rel=1e-5)


def test_sounds_of_no_whole_number_of_hops_come_back_in_time_and_as_long(pack):
    waves = (0.1 * np.random.default_rng(0).standard_normal((3, 1001, 2))).astype(np.float32)
    made, bands = R.vocoded(still(channels=2), waves, 0)
    assert bands == 128
    np.testing.assert_allclose(made, waves, atol=1e-6)


def test_few_recordings_are_vocoded_however_many_are_asked_for(pack, without_listeners, monkeypatch):
    monkeypatch.setattr(R, "DRAWN", 3)
    card, rows = card_of(still(), pack)
    assert rows[R.STFT].n == rows["mel distance"].n == 3
    assert card.title.startswith("3 recordings (valid, 3 at most)")


def test_listeners_rate_a_vocoder_where_they_can_and_say_why_where_not(pack, monkeypatch):
    rated = {}

    def rating(reference, estimate, sample_rate):
        rated.update(shape=reference.shape, rate=sample_rate)
        return np.linspace(1, 2, len(reference))

    def absent(*sounds):
        raise InputError("it needs the package visqol, which is not here")

    wanted = {"pesq_wide": rating, "stoi": rating, "visqol_audio": absent, "visqol_speech": absent}
    entries = {name: entry._replace(metric=wanted.get(name, entry.metric)) for name, entry in P.METRICS.items()}
    monkeypatch.setattr(P, "METRICS", entries)
    card, rows = card_of(still(), pack)
    for name in LISTENERS[:2]:
        assert (rows[name].value, rows[name].better, rows[name].n) == (pytest.approx(1.5), "higher", 8)
    assert rows["pesq wide"].unit == "MOS-LQO"
    assert rated == {"shape": (8, LENGTH // 64 * 64), "rate": RATE}
    assert card.left_out == [f"{name}: it needs the package visqol, which is not here" for name in LISTENERS[2:]]
    assert "si sdr" not in rows, "a vocoder does not know the phase"


def test_sound_that_is_not_finite_is_refused_by_name(pack):
    with pytest.raises(InputError, match="still makes 8 of 8 recordings into sound that is not finite"):
        R.of_vocoder(still(loud=np.nan), pack, "valid", 8, HOW)


def test_the_sheet_has_the_recordings_what_is_made_of_them_and_both_noises(pack, without_listeners, monkeypatch):
    card, _ = card_of(still(), pack)
    drawn = {}
    monkeypatch.setattr(R, "draw", lambda sounds, rate, titles, path: drawn.update(sounds=sounds, titles=titles))
    card.pictures["vocoded.png"](None)
    noises = (f"noise vocoder of {bands} bands" for bands in R.BANDS)
    kinds = ("recording", "reconstruction", *noises, "Griffin-Lim of 64 bands")
    assert drawn["titles"] == [f"{kind} {i}" for kind in kinds for i in (1, 2, 3, 4)]
    np.testing.assert_allclose(drawn["sounds"][4:8], drawn["sounds"][:4], atol=1e-5)
    assert not np.allclose(drawn["sounds"][8:12], drawn["sounds"][:4], atol=0.05)


def test_a_trained_vocoder_gets_its_card_and_no_other(vocoder, folder, capsys):
    code, out, err = run(quality.main, vocoder, "--data", folder, "--n", 4, "--resamples", 40, capsys=capsys)
    assert code == 0, err
    assert [path.stem for path in (vocoder / "scores").glob("*.json")] == ["vocoded"]
    card = json.loads((vocoder / "scores" / "vocoded.json").read_text(), parse_constant=pytest.fail)
    rows = {row["metric"]: row for row in card["rows"]}
    assert {R.STFT, "right over other", "mel distance", f"{R.STFT}, random other", "numbers per second"} <= set(rows)
    assert rows[R.STFT]["n"] == 4
    assert rows[R.STFT]["value"] > rows[f"{R.STFT}, noise vocoder of 64 bands"]["value"], "after two steps"
    assert rows["numbers per second"]["value"] == 8 * 1000, "mel bands, frames"
    for name, package in zip(LISTENERS[:2], ("pesq", "pystoi"), strict=True):
        told = name in rows or any(reason.startswith(f"{name}: ") for reason in card["left_out"])
        assert told
        if importlib.util.find_spec(package) is None:
            assert name not in rows
    assert (vocoder / "scores" / "vocoded.png").read_bytes().startswith(b"\x89PNG")
    assert "as features and back" in (vocoder / "report.html").read_text()
    assert "random other" in out


def test_what_follows_the_end_of_a_shorter_recording_does_not_count_as_features():
    trained, rng = still(), np.random.default_rng(1)
    real = (0.1 * rng.standard_normal((2, 640, 1))).astype(np.float32)
    made = 0.5 * real
    real[1, 320:] = 0
    real[1, 128:192] = 0  # silence between sounds counts
    (short,) = R.feature_rows(trained, real, {"features": made}, HOW)
    features = trained.model.features
    apart = np.abs(np.asarray(features(jnp.asarray(real)) - features(jnp.asarray(made)))).mean(2)
    assert short.value == pytest.approx((apart[0].mean() + apart[1, :5].mean()) / 2, rel=1e-5)
    assert apart[1, 5:].mean() > 0
