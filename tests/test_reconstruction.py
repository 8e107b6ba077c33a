"""The card of autoencoders: of codecs whose scores are known, and of a trained run as a user sees it."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import quality, recordings
from benchmarks import reconstruction as R
from benchmarks.scorecard import deliver
from jaxaudio.core import Encodes, InputError
from jaxaudio.data import audio
from jaxaudio.data.pack import Folder, open_pack
from jaxaudio.dsp.noise_vocoder import noise_vocoder
from jaxaudio.metrics import pairs as P
from jaxaudio.runtime.folder import Trained
from tests.commands import run
from tests.three import RATE

HOW = {"resamples": 40, "seed": 0}
LENGTH = 9000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec(Encodes):
    """Keeps the samples of a hop, rotated, and gives them back late; noise of a level on top."""

    presets: ClassVar = {}
    sample_rate: int = RATE
    segment: int = 2048
    batch_size: int = 3
    late: int = 0
    noise: float = 0.0
    components: int = 32

    hop = property(lambda self: 32)
    reach = property(lambda self: 0)
    delay = property(lambda self: self.late)
    init = train_step = evaluate = weights = None

    def encode(self, params, wave):
        assert wave.shape[1] % self.hop == 0
        late = jnp.pad(wave, ((0, 0), (self.late, 0), (0, 0)))[:, : wave.shape[1]]
        return late.reshape(len(wave), -1, self.hop * self.channels) @ params["rotation"]

    def decode(self, params, latent, key, first=0):
        rotation = params["rotation"][:, : latent.shape[-1]]
        wave = (latent @ rotation.T).reshape(len(latent), -1, self.channels)
        return wave + self.noise * jax.random.normal(key, wave.shape)

    def spread(self, params):
        return params["spread"]


Codec.__abstractmethods__ = frozenset()


def codec(**fields) -> Trained:
    model = Codec(**fields)
    rng, size = np.random.default_rng(0), model.hop * model.channels
    rotation = np.linalg.qr(rng.standard_normal((size, size)))[0]
    spread = np.sort(rng.uniform(0.0, 1.0, size) ** 4)[::-1]
    params = {"rotation": jnp.asarray(rotation, jnp.float32), "spread": jnp.asarray(spread.copy(), jnp.float32)}
    return Trained(Path("codec"), model, params, 7, ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten noises, each of a colour of its own, the last half silent; two more for training."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "split"), *((f"{i}.wav", "any", "train" if i > 9 else "valid") for i in range(12))]
        )
    for i in range(12):
        tone = np.sin(2 * np.pi * (300 + 400 * i) * np.arange(LENGTH) / RATE + rng.uniform(0, 6))
        sound = (0.05 * rng.standard_normal(LENGTH) + 0.3 * tone) * (1 + np.sin(np.arange(LENGTH) / 500)) / 2
        audio.write(folder / f"{i}.wav", sound[:, None], RATE)
    return folder


@pytest.fixture(scope="module")
def pack(folder):
    return open_pack(Folder(folder, RATE, 1))


def card_of(trained, pack, n=10):
    card = R.of_autoencoder(trained, pack, "valid", n, HOW)
    return card, {row.metric: row for row in card.rows}


def test_a_codec_that_loses_nothing_is_at_no_distance_whatever_its_delay(pack):
    for late in (0, 45):
        card, rows = card_of(codec(late=late), pack)
        assert not card.left_out
        assert rows[R.STFT].value < 1e-3
        assert rows["right over other"].value < 1e-3
        assert rows["mel distance"].value < 1e-3
        assert rows["loudness difference"].value == pytest.approx(0, abs=1e-3)
        assert rows["numbers per second"].value == RATE
        assert card.title.startswith("10 recordings (valid) through the model and back, 0.512 s")
        assert "nearer in 100%" in rows[f"{R.STFT}, noise vocoder of 16 bands"].note
        for row in card.rows:
            assert np.isfinite([row.value, row.low or 0, row.high or 0]).all()
            assert row.low is None or row.low <= row.value <= row.high


def test_distances_are_the_metrics_of_what_the_model_and_the_vocoders_make(pack):
    trained = codec(noise=0.02)
    _, rows = card_of(trained, pack)
    clips = R.clips_of(trained._replace(model=dataclasses.replace(trained.model, segment=8192)), pack, "valid")
    real, left_out = R.heard(clips, 10)
    assert not left_out
    made = R.through(trained, real, 0)
    assert np.std(made - real) == pytest.approx(0.02, rel=0.02)
    far = lambda a, b: P.multi_resolution_stft(jnp.asarray(a[..., 0]), jnp.asarray(b[..., 0]), RATE)
    assert rows[R.STFT].value == pytest.approx(far(real, made).mean(), rel=1e-5)
    other = R.derangement(10, 0)
    assert rows[f"{R.STFT}, random other"].value == pytest.approx(far(real[other], made).mean(), rel=1e-5)
    ratio = far(real, made).mean() / far(real[other], made).mean()
    assert rows["right over other"].value == pytest.approx(ratio, rel=1e-5)
    for bands in (16, 64):
        noise = noise_vocoder(jnp.asarray(real), jax.random.key(5), RATE, bands)
        row = rows[f"{R.STFT}, noise vocoder of {bands} bands"]
        assert row.value == pytest.approx(far(real, np.asarray(noise)).mean(), rel=0.06), "but for the noise"
        assert row.n == 10


def test_a_fidelity_keeps_the_leading_components_and_costs_distance(pack):
    trained = codec()
    _, rows = card_of(trained, pack)
    held = np.cumsum(np.asarray(trained.params["spread"], np.float64))
    for fidelity in (0.95, 0.99):
        kept = int(np.sum(held < fidelity * held[-1])) + 1
        assert rows[f"components, fidelity {fidelity}"].value == kept < 32
        assert f"{kept * 500:.4g} numbers per second" in rows[f"components, fidelity {fidelity}"].note
        assert f"{kept} of 32" in rows[f"{R.STFT}, fidelity {fidelity}"].note
    low, high = (rows[f"{R.STFT}, fidelity {fidelity}"].value for fidelity in (0.95, 0.99))
    assert low > high > rows[R.STFT].value


def test_every_recording_is_compared_with_another_one_that_the_seed_tells():
    for n in (2, 3, 50):
        other = R.derangement(n, 1)
        assert (np.sort(other) == np.arange(n)).all()
        assert (other != np.arange(n)).all()
    assert (R.derangement(50, 1) != R.derangement(50, 2)).any()


def test_blocks_of_any_size_give_the_same_reconstruction_and_noise_of_their_own(pack):
    real = np.tile(R.heard(R.clips_of(codec(), pack, "valid"), 1000)[0][:1], (9, 1, 1))
    made = R.through(codec(batch_size=4, noise=0.1), real, 0) - real
    assert np.abs(np.corrcoef(made[..., 0]) - np.eye(9)).max() < 0.2
    np.testing.assert_allclose(R.through(codec(batch_size=4), real, 0), R.through(codec(batch_size=100), real, 0))


def test_silent_recordings_are_left_out_and_a_split_of_silence_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        splits = ["valid"] * 6 + ["test"] * 3 + ["train"]
        csv.writer(file).writerows(
            [("path", "label", "split"), *((f"{i}.wav", "any", split) for i, split in enumerate(splits))]
        )
    for i in range(10):
        level = 1e-4 if i in (4, 5, 6, 7) else 0.1  # of digital silence a pack has none
        audio.write(tmp_path / f"{i}.wav", level * rng.standard_normal((LENGTH, 1)), RATE)
    pack = open_pack(Folder(tmp_path, RATE, 1))
    card, rows = card_of(codec(), pack)
    assert rows[R.STFT].n == 4
    assert "2 of 6 recordings, which are silent" in card.left_out
    with pytest.raises(InputError, match="2 of 3 recordings are silent .*choose another --split"):
        R.of_autoencoder(codec(), pack, "test", 10, HOW)


def test_short_sounds_and_silent_reconstructions_leave_rows_out_with_their_reason(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "SECONDS", 0.05)
    card, rows = card_of(codec(segment=256), pack)
    assert not {R.STFT, "right over other", "mel distance", "loudness difference"} & set(rows)
    for name, reason in ((R.STFT, "needs 1025"), ("mel distance", "needs 1025"), ("loudness difference", "needs 6400")):
        assert any(line.startswith(f"{name}: ") and reason in line for line in card.left_out)
    assert rows["numbers per second"].value == RATE
    deliver(card, {"step": 1}, tmp_path, None)
    assert (tmp_path / "reconstructed.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.undo()

    mute = codec()
    mute = mute._replace(params={name: 0 * value for name, value in mute.params.items()})
    card, rows = card_of(mute, pack)
    assert "loudness difference: defined on 0 recordings: an interval needs 2" in card.left_out
    assert rows["right over other"].value == pytest.approx(1, abs=0.3)
    assert all(np.isfinite(row.value) for row in card.rows)


def test_sound_that_is_not_finite_is_refused_by_name(pack):
    broken = codec()
    broken.params["rotation"] = broken.params["rotation"] * jnp.nan
    with pytest.raises(InputError, match="codec makes 10 of 10 recordings into sound that is not finite"):
        R.of_autoencoder(broken, pack, "valid", 10, HOW)


def test_channels_are_compared_each_with_its_own(folder):
    stereo = open_pack(Folder(folder, RATE, 2))
    _, rows = card_of(codec(channels=2), stereo, n=3)
    assert rows[R.STFT].value < 1e-3
    assert rows[R.STFT].n == 3
    rng = np.random.default_rng(0)
    real, made = (0.1 * rng.standard_normal((3, 8000, 2)).astype(np.float32) for _ in range(2))
    made[:2, :, 1] = real[:2, :, 1]
    made[2, :, 1] = 0
    both = R.score("multi_resolution_stft", real, made, RATE)
    left = R.score("multi_resolution_stft", real[..., :1], made[..., :1], RATE)
    np.testing.assert_allclose(both[:2], left[:2] / 2, rtol=1e-5)
    loudness = R.score("loudness_difference", real, made, RATE)
    assert loudness[2] == pytest.approx(R.score("loudness_difference", real[2:, :, :1], made[2:, :, :1], RATE)[0])
    made[2] = 0
    assert len(R.score("loudness_difference", real, made, RATE)) == 2


def test_as_many_recordings_as_are_asked_for_are_scored_and_few_of_them_by_vocoders(pack, monkeypatch):
    monkeypatch.setattr(R, "VOCODED", 4)
    card, rows = card_of(codec(), pack, n=5)
    assert rows[R.STFT].n == 5
    assert rows[f"{R.STFT}, noise vocoder of 16 bands"].n == 4
    drawn = {}
    monkeypatch.setattr(R, "draw", lambda sounds, rate, titles, path: drawn.update(sounds=sounds, titles=titles))
    card.pictures["reconstructed.png"](None)
    assert len(drawn["sounds"]) == len(drawn["titles"]) == 16
    assert drawn["titles"][:5] == [*(f"recording {i}" for i in (1, 2, 3, 4)), "reconstruction 1"]
    np.testing.assert_allclose(drawn["sounds"][4:8], drawn["sounds"][:4], atol=1e-5)
    assert not np.allclose(drawn["sounds"][8:12], drawn["sounds"][:4], atol=0.05)


def test_a_trained_autoencoder_that_generates_gets_both_cards_and_its_sheet(coder, folder, capsys):
    code, out, err = run(quality.main, coder, "--data", folder, "--n", 6, "--resamples", 40, capsys=capsys)
    assert code == 0, err
    scores = coder / "scores"
    assert (scores / "generated.json").exists()
    card = json.loads((scores / "reconstructed.json").read_text(), parse_constant=pytest.fail)
    rows = {row["metric"]: row for row in card["rows"]}
    expected = {R.STFT, "right over other", "mel distance", "numbers per second", "components, fidelity 0.95"}
    expected |= {f"{R.STFT}, {of}" for of in ("noise vocoder of 64 bands", "random other", "fidelity 0.99")}
    assert expected <= set(rows)
    assert rows[R.STFT]["n"] == 6
    assert rows[R.STFT]["value"] > rows[f"{R.STFT}, noise vocoder of 64 bands"]["value"], "after two steps"
    assert (scores / "reconstructed.png").read_bytes().startswith(b"\x89PNG")
    page = (coder / "report.html").read_text()
    assert "right over other" in page
    assert "through the model and back" in page
    assert "random other" in out
