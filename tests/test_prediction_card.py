"""The card of models that go on from sound: of one whose bits are known, and as a user sees it."""

import csv
import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import prediction as B
from benchmarks import quality, recordings
from jaxaudio.core import Continues, InputError
from jaxaudio.data import audio
from jaxaudio.data.pack import Folder, open_pack
from jaxaudio.metrics import prediction as P
from jaxaudio.metrics.bootstrap import mean_interval
from jaxaudio.runtime.folder import Trained
from tests.commands import run
from tests.three import RATE

HOW = {"resamples": 40, "seed": 0}
LENGTH = 3003
NAMES = [B.BITS, B.FOLLOWING, B.ONE, B.PAIRS, B.DIFFERENCE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teller(Continues):
    """Needs as many bits as a sound is loud, one less than its label, and refuses what is no whole frame."""

    presets: ClassVar = {}
    sample_rate: int = RATE
    segment: int = 512
    batch_size: int = 4
    levels: int = 256
    law: str = "mu_law"
    frame: int = 7

    def __post_init__(self):
        assert self.segment % 512 == 0

    init = train_step = evaluate = weights = hear = None

    def bits(self, params, wave, label):
        assert wave.shape[1] % self.frame == 0
        assert (label is None) == (self.classes == 0)
        return params["gain"] * jnp.abs(wave).mean((1, 2)) + (0 if label is None else label - 1)

    def begin(self, params, n, label):
        return jnp.zeros((n, self.frame, self.channels))

    def extend(self, params, carry, key, frames):
        shape = (len(carry), frames * self.frame, self.channels)
        return carry, 0.1 * jax.random.normal(key, shape)


Teller.__abstractmethods__ = frozenset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fourteen rustlings that swell, ten of them held out, each a little longer than the one before."""
    folder, rng = tmp_path_factory.mktemp("rustling"), np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = [(f"{i}.wav", "ab"[i % 2], "valid" if i < 10 else "train") for i in range(14)]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    for i in range(14):
        rustling = (
            rng.standard_normal((LENGTH + 10 * i, 2)) * 0.03 * (1.2 + np.sin(np.arange(LENGTH + 10 * i) / 200))[:, None]
        )
        audio.write(folder / f"{i}.wav", (rustling + np.roll(rustling, 1, 0)) * (1 + i / 10), RATE)
    return folder


@pytest.fixture(scope="module")
def pack(folder):
    return open_pack(Folder(folder, RATE, 1))


@pytest.fixture
def teller(folder, pack, tmp_path):
    """Makes a run of such a model."""

    def made(gain=20.0, labels=(), **fields):
        told = {"data": {"folder": str(folder), "fingerprint": pack.fingerprint}}
        (tmp_path / "run.json").write_text(json.dumps(told))
        return Trained(tmp_path, Teller(classes=len(labels), **fields), {"gain": jnp.float32(gain)}, 7, labels)

    return made


def card_of(trained, pack, n=10):
    card = B.of_predictor(trained, pack, "valid", n, HOW)
    return card, {row.metric: row for row in card.rows}


def recordings_in(pack, which, length, gain="none"):
    """float32 [recordings, length, channels], zeros behind."""
    waves = np.zeros((len(which), length, pack.channels), np.float32)
    for wave, i in zip(waves, which, strict=True):
        sound = pack.samples[pack.start[i] : pack.start[i] + min(pack.length[i], length)]
        wave[: len(sound)] = sound / (pack.peak[i] if gain == "peak" else np.float32(32768))
    return waves


def expected_of(trained, pack, quantiser, length, gain="none"):
    """The recordings held out, in the order in which the card takes them, and their bits by the three predictors."""
    valid, train = (recordings_in(pack, np.flatnonzero(pack.split == i), length, gain) for i in (1, 0))
    taken = B.together(B.in_turn(B.clips_of(B.cut_into(trained, length), pack, "valid"), 10)).wave
    order = [int(np.abs(valid - wave[None]).max((1, 2)).argmin()) for wave in taken]
    assert sorted(order) == list(range(10))
    held = valid[order]
    codes = quantiser.encode(train[..., 0])
    taps, held_codes = P.fit_taps(codes, quantiser), quantiser.encode(held[..., 0])
    linear = [
        P.linear_bits(held_codes, quantiser, P.fit_scale(codes, quantiser, taps, which)) for which in (True, False)
    ]
    return held, [*linear, P.bigram_bits(held_codes, quantiser, P.fit_bigram(codes, quantiser))]


@pytest.mark.parametrize(("gain", "law"), [("none", "mu_law"), ("peak", "linear")])
def test_rows_are_the_bits_of_the_same_samples_and_the_difference_is_paired(pack, teller, gain, law):
    median = int(np.median(pack.length[pack.split == 1]))
    length = median // 7 * 7
    assert length < median
    trained = teller(law=law)
    trained = trained._replace(model=dataclasses.replace(trained.model, gain=gain))
    card, rows = card_of(trained, pack)
    assert list(rows) == NAMES
    assert not card.left_out
    assert card.title == f"10 recordings (valid) foretold sample by sample, {length / RATE:.3g} s of each"
    held, (following, one, pairs) = expected_of(trained, pack, P.Quantiser(256, law), length, gain)
    own = 20 * np.abs(held.astype(np.float64)).mean((1, 2))
    for name, bits in zip(NAMES, (own, following, one, pairs, own - following), strict=True):
        row = rows[name]
        assert row.value == pytest.approx(bits.mean(), rel=1e-4, abs=1e-4), name
        assert (row.n, row.unit) == (10, "bits")
        assert (row.low, row.high) == pytest.approx(mean_interval(bits, **HOW), rel=1e-4, abs=1e-4), name
    assert (rows[B.BITS].better, rows[B.DIFFERENCE].better, rows[B.ONE].better) == ("lower", "lower", "")
    fewer = np.mean(own < following)
    assert f"in {fewer:.0%} of the recordings" in rows[B.DIFFERENCE].note
    assert "16 taps" in rows[B.FOLLOWING].note
    assert f"256 levels, {law.replace('_', '-')}" in rows[B.BITS].note


def test_a_stretch_is_of_whole_frames_three_seconds_at_most_and_one_frame_at_least(pack, teller, monkeypatch):
    assert recordings.stretch(teller(frame=100), pack, "valid", 100) == 3000
    assert recordings.stretch(teller(frame=4096), pack, "valid", 4096) == 4096
    assert recordings.stretch(teller(frame=100, segment=512 * 200), pack, "valid", 100) == 3000, "whatever it trains on"
    monkeypatch.setattr(recordings, "SECONDS", 0.05)
    assert recordings.stretch(teller(frame=100), pack, "valid", 100) == 800
    card, rows = card_of(teller(), pack, n=100)
    assert rows[B.BITS].n == 30, "a recording has three"
    assert "0.0499 s" in card.title


def test_labels_are_told_to_a_model_of_these_classes_and_one_of_others_has_no_bits(pack, teller):
    _, plain = card_of(teller(), pack)
    _, told = card_of(teller(labels=("a", "b")), pack)
    assert told[B.BITS].value == pytest.approx(plain[B.BITS].value - 0.5), "half of them are of the first class"
    card, rows = card_of(teller(labels=("x", "y")), pack)
    assert list(rows) == [B.FOLLOWING, B.ONE, B.PAIRS]
    assert [line.split(":")[0] for line in card.left_out] == [B.BITS, B.DIFFERENCE]
    assert all("the data's classes are a, b, the run's x, y" in line for line in card.left_out)


def test_a_training_set_that_is_gone_leaves_the_models_own_bits(pack, teller):
    trained = teller()
    told = {"data": {"folder": str(trained.folder / "no"), "fingerprint": "0" * 16}}
    (trained.folder / "run.json").write_text(json.dumps(told))
    card, rows = card_of(trained, pack)
    assert list(rows) == [B.BITS]
    assert card.left_out[0].startswith("simple predictors: ")
    assert "no such folder" in card.left_out[0]


def test_predictors_are_fitted_to_the_runs_own_training_recordings_and_to_few_of_them(
    pack, teller, tmp_path, monkeypatch
):
    fitted, honest = [], P.fit_taps
    monkeypatch.setattr(P, "fit_taps", lambda codes, quantiser: fitted.append(codes) or honest(codes, quantiser))
    rng = np.random.default_rng(3)
    for i in range(20):
        name = f"{('valid', 'train')[i % 2]}/{i}.wav"
        audio.write(tmp_path / "other" / name, 0.01 * rng.standard_normal((LENGTH, 1)), RATE)
    other = open_pack(Folder(tmp_path / "other", RATE, 1))
    card_of(teller(), other)
    length = LENGTH // 7 * 7
    train = recordings_in(pack, np.flatnonzero(pack.split == 0), length)
    wanted = P.Quantiser(256, "mu_law").encode(train[..., 0])
    np.testing.assert_array_equal(np.unique(fitted[0], axis=0), np.unique(wanted, axis=0))
    monkeypatch.setattr(B, "FITTED", 3)
    card_of(teller(), pack)
    monkeypatch.setattr(B, "FITTED", 1000)
    monkeypatch.setattr(B, "SAMPLES", 2 * LENGTH + 100)
    card_of(teller(), other)
    assert [len(codes) for codes in fitted] == [4, 3, 2]


def test_of_too_many_levels_the_table_alone_is_left_out(pack, teller):
    card, rows = card_of(teller(levels=2**16), pack)
    assert list(rows) == [B.BITS, B.FOLLOWING, B.ONE, B.DIFFERENCE]
    assert card.left_out == [f"{B.PAIRS}: levels is 65536: a table of pairs of codes has 4096 at most"]


def test_blocks_of_any_size_give_the_same_bits(pack, teller):
    values = [card_of(teller(batch_size=size), pack)[1][B.BITS].value for size in (1, 20, 100)]
    assert values == pytest.approx(values[:1] * 3)
    assert card_of(teller(), pack, n=5)[1][B.DIFFERENCE].n == 5


def test_of_several_channels_a_recording_has_the_mean(folder, pack, teller):
    stereo = open_pack(Folder(folder, RATE, 2))
    trained = teller(channels=2)
    told = {"data": {"folder": str(folder), "fingerprint": stereo.fingerprint}}
    (trained.folder / "run.json").write_text(json.dumps(told))
    _, rows = card_of(trained, stereo)
    assert [row.n for row in rows.values()] == [10] * 5
    wave = np.random.default_rng(0).uniform(-1, 1, (3, 8, 2)).astype(np.float32)
    quantiser = P.Quantiser(256, "linear")
    means = B.by_recording(lambda codes: quantiser.values[codes].mean(1), quantiser, wave)
    np.testing.assert_allclose(means, wave.mean((1, 2)), atol=0.01)
    codes = B.rows_of(quantiser, wave)
    np.testing.assert_array_equal(codes[3], quantiser.encode(wave[1, :, 1]))


def test_bits_that_are_not_finite_are_refused_by_name(pack, teller):
    with pytest.raises(InputError, match="needs bits for 10 of 10 recordings that are not finite: name an earlier"):
        card_of(teller(gain=np.nan), pack)


def test_a_model_that_goes_on_gets_this_card_and_the_generators(maker, folder, monkeypatch, capsys):
    own = Trained(maker, Teller(), {"gain": jnp.float32(20)}, 2, ())
    monkeypatch.setattr(quality, "trained", lambda folder, which: own)
    told = json.loads((maker / "run.json").read_text())
    words = ("--data", told["data"]["folder"], "--n", 12, "--resamples", 40)
    code, out, err = run(quality.main, maker, *words, capsys=capsys)
    assert code == 0, err
    card = json.loads((maker / "scores" / "predicted.json").read_text(), parse_constant=pytest.fail)
    assert [row["metric"] for row in card["rows"]] == NAMES
    assert {row["n"] for row in card["rows"]} == {12}
    assert (maker / "scores" / "generated.json").exists()
    page = (maker / "report.html").read_text()
    assert B.FOLLOWING in page
    assert B.FOLLOWING in out
    assert "spectral energy distance" in out
