"""The card of codecs: of one whose codes and sound are known."""

import csv
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compression as C
from benchmarks.scorecard import deliver
from jaxaudio.core import InputError
from jaxaudio.data import audio, bitstream, coder
from jaxaudio.data.pack import Folder, open_pack
from jaxaudio.metrics import pairs as P
from tests.still import steps

HOW = {"resamples": 40, "seed": 0}
RATE, LENGTH = 8000, 9000


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Eight noises of low frequencies, the last one silent, and one for training."""
    folder, rng = tmp_path_factory.mktemp("low"), np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = [(f"{i}.wav", "any", "train" if i == 8 else "valid") for i in range(9)]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    for i in range(9):
        walk = np.convolve(rng.standard_normal(LENGTH + 400), np.hanning(400), "valid")[:LENGTH]
        level = 1e-4 if i == 7 else 0.3
        audio.write(folder / f"{i}.wav", (level * walk / np.abs(walk).max())[:, None], RATE)
    return open_pack(Folder(folder, RATE, 1))


@pytest.fixture(scope="module")
def card(pack):
    given = steps(Path("codec"), sample_rate=RATE, segment=1024, batch_size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "PART_SECONDS", 0.5)
        return C.of_codec(given, pack, "valid", 100, HOW)


@pytest.fixture(scope="module")
def rows(card):
    return {row.metric: row for row in card.rows}


def test_every_rate_has_its_cost_and_its_distances(card, rows):
    assert card.title == "7 recordings (valid) as codes, 1.02 s of each"
    assert "1 of 8 recordings, which are silent" in card.left_out
    for books, of in ((1, "1 codebook"), (2, "2 codebooks"), (3, "3 codebooks")):
        assert rows[f"raw, {of}"].value == pytest.approx(4 * books)
        for method in ("static", "context"):
            row = rows[f"{method}, {of}"]
            assert row.low <= row.value <= row.high
            share = 1 - row.value / (4 * books)
            assert row.note == (f"{share:.1%} saved" if share > 0 else "no saving")
    assert rows["context, 1 codebook"].value < 0.7 * rows["static, 1 codebook"].value, "its codes stay"
    values = [rows[f"si sdr, {of}"].value for of in ("1 codebook", "2 codebooks", "3 codebooks")]
    assert values == sorted(values)
    assert values[2] > 25
    assert rows["codes that parts change"].value == 0
    assert rows["codes that parts change"].n == C.PARTS * RATE // 2 // 8 * 3
    heard = [row for row in (*card.left_out, *rows) if "pesq" in row or "stoi" in row]
    assert heard
    assert all("3 codebooks" in row for row in heard), "what listeners say, of all codebooks alone"


def test_costs_are_those_of_the_streams(pack, rows):
    rng = np.random.default_rng(0)
    tables = bitstream.tabled((100 * rng.random((3, 16, 16)) ** 4).astype(np.float32))
    codes = rng.integers(0, 16, (70, 3)).astype(np.int32)
    codes[10:40] = codes[10]
    known = bitstream.Header("context", bytes(8), 300, 1000, 1, 560, 8, 3, 16)
    for method, bits in (
        ("static", C.static_bits(codes, tables)),
        ("context", C.context_bits(codes, tables, known.per_block)),
    ):
        size = len(bitstream.encoded(codes, known._replace(method=method), tables))
        assert bits.sum() / 8 - 0.01 <= size <= bits.sum() / 8 + 4.01
    apart = C.context_bits(codes[:35], tables, 100) + C.context_bits(codes[35:], tables, 100)
    np.testing.assert_allclose(C.context_bits(codes, tables, 35), apart)
    leading = C.context_bits(codes[:, :2], tables, 100)
    np.testing.assert_allclose(leading, C.context_bits(codes, tables, 100)[:2])
    spare = C.file_size(known, codes, tables) - len(bitstream.encoded(codes, known, tables))
    assert spare == 4 + 1 + 8 + (2 + 2 + 1 + 2 + 1 + 1 + 1) + 2 + (2 + 1 + 1 + 4)


def test_the_container_is_cheap_from_the_length_on_that_is_named(rows):
    share, enough = rows["container over codes"].value, rows["length of a cheap container"].value
    assert share * 1.024 / C.MOST_COST == pytest.approx(enough, rel=0.05)
    assert "bytes of" in rows["container over codes"].note


def test_the_distances_are_the_metrics_of_the_decoded_codes(pack):
    given = steps(Path("codec"), sample_rate=RATE, segment=1024, delay=5, around=0.125)
    real = np.stack([0.5 * np.sin(np.arange(4000) / (30 + i))[:, None] for i in range(4)]).astype(np.float32)
    codes = C.coded(given, real)
    assert codes.shape == (4, -(-4005 // 8), 3)
    made = C.sound_of(given, codes[..., :2], 4000, 0)
    assert made.shape == real.shape
    assert np.abs(made - real).max() < 0.3
    found = C.distance_rows(real, made, RATE, "2 codebooks", False, [], HOW)
    values, pair = {row.metric: row.value for row in found}, (jnp.asarray(x[..., 0]) for x in (real, made))
    assert set(values) == {"mel distance, 2 codebooks", "stft distance, 2 codebooks", "si sdr, 2 codebooks"}
    assert values["si sdr, 2 codebooks"] == pytest.approx(P.si_sdr(*pair, RATE).mean(), rel=1e-4)


def test_what_parts_change_is_counted(monkeypatch):
    given = steps(Path("codec"), sample_rate=RATE, around=0.125, offset=0.125)
    real = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4000, 1)).astype(np.float32)
    monkeypatch.setattr(coder, "PART_SECONDS", 0.2)
    whole = C.coded
    monkeypatch.setattr(C, "coded", lambda run, waves: whole(run, waves) + (np.arange(600) == 5).reshape(1, -1, 1))
    assert C.parts_row(given, real).value == 3


def test_a_diverged_codec_is_refused_and_the_card_is_written(card, pack, tmp_path):
    deliver(card, {"step": 1}, tmp_path, None)
    written = json.loads((tmp_path / "compressed.json").read_text(), parse_constant=pytest.fail)
    assert len(written["rows"]) == len(card.rows)
    given = steps(Path("codec"), sample_rate=RATE, segment=1024)
    broken = given._replace(params={"usage": given.params["usage"] * np.nan})
    with pytest.raises(InputError, match="not finite: name an earlier --checkpoint"):
        C.of_codec(broken, pack, "valid", 3, HOW)
    broken = steps(Path("codec"), sample_rate=RATE, segment=1024, offset=float("nan"))
    with pytest.raises(InputError, match="codec at step 2: what the model makes is not finite: name an earlier"):
        C.of_codec(broken, pack, "valid", 3, HOW)
