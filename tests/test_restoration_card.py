"""The cards of models that restore: of stand-ins whose scores are known, and what their draws promise."""

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gaps as G
from benchmarks import quality
from benchmarks import restoration as R
from benchmarks import stretches as S
from jaxaudio.core import InputError, Restores
from jaxaudio.data import audio
from jaxaudio.data.pack import Folder, open_pack, recordings
from jaxaudio.metrics import pairs as P
from jaxaudio.runtime.folder import Trained
from tests.commands import run

RATE = 16000
HOW = {"resamples": 40, "seed": 0}
FAST = ("log_spectral_distance",)  # of QUALITY: models of listeners take seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Restores):
    """Gives back what it gets, or what lies below a frequency, times a factor; fills gaps with what was a while ago."""

    presets: ClassVar = {}
    needs_noise = True
    sample_rate: int = RATE
    segment: int = 4096
    batch_size: int = 8
    damages: tuple[str, ...] = ("noise",)
    below: float = 1.0  # share of half the rate
    factor: float = 1.0
    back: int = 0  # samples

    hop = property(lambda self: 64)
    reach = property(lambda self: 1)
    longest = property(lambda self: 800 if self.back else 0)
    init = train_step = evaluate = weights = damaged = None

    def restore(self, params, wave, gap, key, first=0):
        assert wave.shape[1] % self.hop == 0
        if gap is not None:
            assert wave.shape[1] >= self.segment
            wave = jnp.where(gap[..., None] > 0, jnp.roll(wave, self.back, 1), wave)
        elif self.below < 1:
            keep = jnp.arange(wave.shape[1] // 2 + 1) < self.below * wave.shape[1] / 2
            wave = jnp.fft.irfft(jnp.fft.rfft(wave, axis=1) * keep[None, :, None], wave.shape[1], axis=1)
        return self.factor * wave


Toy.__abstractmethods__ = frozenset()


def toy(**fields) -> Trained:
    return Trained(Path("toy"), Toy(**fields), {}, 7, ())


def written(folder, sounds):
    """A folder of sounds by (split, group, wave), with its table."""
    folder.mkdir()
    rows = [(f"{i}.wav", "any", whose, split) for i, (split, whose, _) in enumerate(sounds)]
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "speaker", "split"), *rows])
    for i, (_, _, wave) in enumerate(sounds):
        audio.write(folder / f"{i}.wav", wave[:, None], RATE)
    return folder


def low(i, seconds=1.1):
    """What has a period of 10 ms, below 2 kHz, and swells."""
    time, rng = np.arange(round(seconds * RATE)) / RATE, np.random.default_rng(i)
    tones = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * 100 * k * time + rng.uniform(0, 6)) for k in range(1, 19))
    return 0.1 * tones


def high(i, seconds=0.9):
    """Noise above 4 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(i).standard_normal(round(seconds * RATE)))
    spectrum[: len(spectrum) // 2] = 0
    return 0.1 * np.fft.irfft(spectrum, round(seconds * RATE))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    sounds = [("valid" if i < 6 else "train", f"s{i}", low(i, 1.1 if i % 2 else 0.6)) for i in range(8)]
    return written(tmp_path_factory.mktemp("low") / "speech", sounds)


@pytest.fixture(scope="module")
def hiss(tmp_path_factory):
    """Two groups, of one and of four recordings."""
    sounds = [("valid", "one" if i == 0 else "four", high(i)) for i in range(5)] + [("train", "other", high(9))]
    return written(tmp_path_factory.mktemp("high") / "hiss", sounds)


@pytest.fixture(scope="module")
def pack(speech):
    return open_pack(Folder(speech, RATE, 1))


@pytest.fixture(scope="module")
def noise(hiss):
    return open_pack(Folder(hiss, RATE, 1))


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(R, "QUALITY", FAST)


def card_of(trained, pack, noise=None, n=12):
    (card,) = R.of_restorer(trained, pack, "valid", n, HOW, noise)
    return card, {row.metric: row for row in card.rows}


def test_a_model_that_changes_nothing_improves_nothing_and_is_as_far_behind_as_the_filter_is_ahead(pack, noise):
    card, rows = card_of(toy(), pack, noise)
    assert rows[R.IMPROVEMENT].value == rows[R.IMPROVEMENT].low == rows[R.IMPROVEMENT].high == 0
    for snr in R.SNRS_DB:
        assert rows[f"{R.IMPROVEMENT} at {snr} dB"].value == 0
        assert rows[f"{R.IMPROVEMENT} at {snr} dB"].n == 4
    filtered = rows[f"{R.IMPROVEMENT}, {R.WIENER}"].value
    assert rows[f"{R.IMPROVEMENT}, model minus {R.WIENER}"].value == pytest.approx(-filtered)
    name = "log spectral distance"
    assert rows[name].value == rows[f"{name}, noisy"].value
    gap = rows[name].value - rows[f"{name}, {R.WIENER}"].value
    assert rows[f"{name}, model minus {R.WIENER}"].value == pytest.approx(gap)
    assert rows["noise recordings below 0 dB"].value == 0
    assert rows["noise recordings below 0 dB"].n == 2
    assert rows[f"{R.IMPROVEMENT}, noise one"].n == rows[f"{R.IMPROVEMENT}, noise four"].n == 6
    assert f"{R.WIENER} " in rows[f"{R.IMPROVEMENT} at 5 dB"].note
    assert not card.left_out
    for row in card.rows:
        assert row.low is None or row.low <= row.value <= row.high


def test_a_model_that_keeps_what_is_not_noise_is_far_ahead(pack, noise):
    _, rows = card_of(toy(below=0.3), pack, noise)
    assert rows[R.IMPROVEMENT].value > 25
    assert rows[f"{R.IMPROVEMENT}, model minus {R.WIENER}"].low > 10
    assert "ahead in 100%" in rows[f"{R.IMPROVEMENT}, model minus {R.WIENER}"].note
    assert rows["log spectral distance, model minus Wiener filter"].high < 0


def test_a_model_that_gives_silence_is_worst_and_one_that_gives_no_numbers_is_refused(pack, noise):
    card, rows = card_of(toy(factor=0.0), pack, noise)
    assert rows[R.IMPROVEMENT].value == pytest.approx(S.LEAST_DB - 5, abs=0.5)
    assert rows[R.IMPROVEMENT].n == 12
    assert rows["noise recordings below 0 dB"].value == 2
    assert "the worst, " in rows["noise recordings below 0 dB"].note
    assert not card.left_out
    with pytest.raises(InputError, match="toy: what the model makes is not finite: name an earlier --checkpoint"):
        card_of(toy(factor=float("nan")), pack, noise)


def test_mixtures_have_the_ratio_that_they_say_and_follow_from_the_seed(pack, noise):
    mixed = R.mixtures(toy(), pack, noise, "valid", 12, 0)
    for clean, noisy, snr in zip(mixed.clean, mixed.noisy, mixed.snr_db, strict=True):
        assert 10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2)) == pytest.approx(snr, abs=0.01)
    assert {len(clean) for clean in mixed.clean} == {8000, 16000}, "multiples of 0.25 s; noise is repeated"
    assert sorted(mixed.source) == ["four"] * 6 + ["one"] * 6
    same, other = (R.mixtures(toy(), pack, noise, "valid", 12, seed) for seed in (0, 1))
    assert all((a == b).all() for a, b in zip(mixed.noisy, same.noisy, strict=True))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(mixed.noisy, other.noisy, strict=True))


def test_every_folder_gives_as_much_and_has_its_row(speech, hiss, tmp_path):
    few = written(tmp_path / "few", [("valid", "x", low(50)), ("train", "y", low(51))])
    rain = written(tmp_path / "rain", [("valid", "z", high(60))])
    both = open_pack(recordings([speech, few], RATE, 1))
    noises = open_pack(recordings([hiss, rain], RATE, 1))
    mixed = R.mixtures(toy(), both, noises, "valid", 24, 0)
    for snr in R.SNRS_DB:
        for name in ("speech", "few"):
            for kind in ("hiss", "rain"):
                assert np.sum((mixed.snr_db == snr) & (mixed.speech == name) & (mixed.noise == kind)) == 2
    _, rows = card_of(toy(), both, noises, 24)
    assert rows[f"{R.IMPROVEMENT} of few"].n == rows[f"{R.IMPROVEMENT} in noise of rain"].n == 12
    assert S.folders_of(open_pack(Folder(speech, RATE, 1)))[1] == [""]


def test_silence_is_never_drawn_and_noise_without_a_split_is_that_of_training(speech, tmp_path, noise):
    burst = np.where(np.arange(32000) < 20000, 0.5 * np.sin(np.arange(32000)), 1e-5 * np.cos(np.arange(32000)))
    sounds = [("train", "burst", burst), ("train", "quiet", 1e-4 * np.sin(np.arange(16000)))]
    bursts = open_pack(Folder(written(tmp_path / "bursts", sounds), RATE, 1))
    mixed = R.mixtures(toy(), open_pack(Folder(speech, RATE, 1)), bursts, "valid", 12, 0)
    assert set(mixed.source) == {"burst"}
    quiet = open_pack(Folder(written(tmp_path / "quiet", [("valid", "q", 1e-4 * np.sin(np.arange(9000)))]), RATE, 1))
    with pytest.raises(InputError, match="all is below -70 dB"):
        R.mixtures(toy(), quiet, noise, "valid", 4, 0)
    with pytest.raises(InputError, match="0 recordings in the split test: choose another --split"):
        R.mixtures(toy(), quiet, noise, "test", 4, 0)


def test_without_the_packages_of_listeners_the_card_says_what_it_leaves_out(pack, noise, monkeypatch):
    monkeypatch.setattr(R, "QUALITY", ("pesq_wide", "stoi", *FAST))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("pesq", "pystoi") else found(name))
    card, rows = card_of(toy(), pack, noise)
    assert [line.split(":")[0] for line in card.left_out] == ["pesq wide", "stoi"]
    assert all("pip install" in line for line in card.left_out)
    assert "log spectral distance" in rows


def test_a_model_that_knows_the_period_fills_gaps_and_nothing_gets_zero_decibels(pack):
    card, rows = card_of(toy(damages=("gap",), back=800), pack)
    for ms in G.GAPS_MS:
        assert rows[f"{ms} ms: SNR"].value > 50
        assert rows[f"{ms} ms: SNR"].n == 12
        assert rows[f"{ms} ms: log-spectral distance"].value < 0.5
        assert rows[f"{ms} ms: SNR, zeros"].value == 0
        assert rows[f"{ms} ms: SNR, linear prediction"].value > 20, "its tones are as predictable"
        assert rows[f"{ms} ms: SNR, noise-excited LP"].value < 3
        paired = rows[f"{ms} ms: SNR, model minus linear prediction"].value
        assert paired == pytest.approx(rows[f"{ms} ms: SNR"].value - rows[f"{ms} ms: SNR, linear prediction"].value)
    assert not card.left_out
    assert set(card.pictures) == {"filled-20ms.png", "filled-50ms.png"}


def test_a_wrong_period_is_heard_and_a_model_that_fills_less_says_so(pack, monkeypatch):
    _, rows = card_of(toy(damages=("gap",), back=1000), pack)
    assert rows["20 ms: SNR"].value < 5
    assert rows["20 ms: SNR, model minus linear prediction"].high < -10
    monkeypatch.setattr(Toy, "longest", property(lambda self: 320))
    card, rows = card_of(toy(damages=("gap",), back=800), pack)
    assert "gaps of 50 ms: the model fills 20 ms at most" in card.left_out
    assert "20 ms: SNR" in rows


def test_a_gap_lies_in_sound_and_is_scored_inside_alone(pack):
    wave = np.zeros((16000, 1), np.float32)
    wave[6000:9000] = 0.1
    wave[6000:9000:2] *= -1
    places = G.active(wave, 320, 2048, 320)
    assert places.min() == 6000 + 1, "beside it lies sound: a sample of 20 ms at full level is -25 dB"
    assert places.max() == 9000 - 320 - 1
    assert len(G.active(wave[:3000], 320, 2048, 320)) == 0
    everywhere = G.active(np.full((16000, 1), 0.1, np.float32), 320, 2048, 320)
    np.testing.assert_array_equal(everywhere, np.arange(2048, 16000 - 2048 - 320 + 1))
    gaps = G.holes(toy(), pack, "valid", 5, 0, 320)
    made = gaps.around(0)
    np.testing.assert_array_equal(G.inside_ratio(made, made), 100)
    np.testing.assert_array_equal(G.inside_distance(gaps, made, RATE), 0)
    halved = G.inside_ratio(made, 0.5 * made)
    np.testing.assert_allclose(halved, 20 * np.log10(2), atol=1e-4)
    size, hop = 256, 64
    real, other = gaps.around(size // 2), gaps.around(size // 2)
    other[:, size // 2 : -size // 2] = 0.01
    taper = np.hanning(size + 1)[:-1]
    expected = []
    for centre in range(hop // 2, 320, hop):
        parts = [np.abs(np.fft.rfft(x[0, centre : centre + size, 0] * taper)) ** 2 for x in (real, other)]
        r, e = (10 * np.log10(np.maximum(part, P.POWER_FLOOR)) for part in parts)
        expected.append(np.sqrt(np.mean((r - e) ** 2)))
    measured = G.inside_distance(gaps, np.full_like(made, 0.01), RATE)
    assert len(expected) == 5
    assert measured[0] == pytest.approx(np.mean(expected), rel=1e-6)


def test_other_damages_are_scored_one_by_one_beside_what_undoes_them(pack):
    card, rows = card_of(toy(damages=("clip", "band", "reverb")), pack, n=4)
    names = [*(f"clipped at {s}" for s in R.CLIPPED), "up to 4000 Hz", f"reverberation of {R.RT60_S} s"]
    for name in names:
        assert rows[f"{name}: si sdr"].value == rows[f"{name}: si sdr, damaged"].value < 60
        assert rows[f"{name}: si sdr, model minus damaged"].value == 0
    assert rows["clipped at 0.5: si sdr, cubic spline"].value > rows["clipped at 0.5: si sdr, damaged"].value + 1
    assert rows["clipped at 0.3: si sdr"].value < rows["clipped at 0.5: si sdr"].value
    assert rows["up to 2000 Hz: distance above"].n == 4
    assert len(card.pictures) == 5
    clean = [low(0)[:, None].astype(np.float32)]
    assert S.distance(clean[0].T, clean[0].T, 512, 128).tolist() == [0]
    assert R.distance_above(clean, [clean[0] * 10], RATE, 2000)[0] < 20 - 1e-6, "floors"


def test_what_restores_nothing_that_is_scored_is_refused(pack):
    with pytest.raises(InputError, match="toy restores hum: that is not scored"):
        list(R.of_restorer(toy(damages=("hum",)), pack, "valid", 4, HOW, None))
    assert R.damages_of(Toy()) == ("noise",)


def test_a_run_that_restores_gets_its_cards_and_their_sheets(tmp_path, speech, hiss, monkeypatch, capsys):
    trained = toy(damages=("noise", "gap"), back=800)._replace(folder=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"data": {"folder": str(speech), "fingerprint": ""}}))
    monkeypatch.setattr(quality, "trained", lambda folder, which="latest": trained)
    words = (tmp_path, "--noise", hiss, "--n", 6, "--resamples", 40)
    code, out, err = run(quality.main, *words, capsys=capsys)
    assert code == 0, err
    assert f"{R.IMPROVEMENT}, model minus {R.WIENER}" in out
    for name in ("denoised", "filled"):
        card = json.loads((tmp_path / "scores" / f"{name}.json").read_text(), parse_constant=pytest.fail)
        for picture in card["pictures"]:
            assert (tmp_path / "scores" / picture).read_bytes().startswith(b"\x89PNG")
    assert "20 ms: SNR" in (tmp_path / "report.html").read_text()
    code, _, err = run(quality.main, tmp_path, "--n", 6, capsys=capsys)
    assert code == 2
    assert "was trained without noise: name a folder of it" in err


def test_noise_is_no_matter_of_a_run_that_restores_nothing():
    with pytest.raises(InputError, match="restores nothing: leave --noise away"):
        quality.noise_for(Trained(Path("run"), object(), {}, 0, ()), Path("rain"))
    assert quality.noise_for(Trained(Path("run"), object(), {}, 0, ()), None) is None
