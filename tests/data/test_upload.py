"""A pack in a store stands for the recordings where there are none."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jaxaudio.core import InputError
from jaxaudio.data import pack, upload
from jaxaudio.runtime import store as stores
from tests.commands import run

RATE = 16_000


@pytest.fixture
def folder(tmp_path):
    """Four recordings of two classes, and a file that is none."""
    where = tmp_path / "set"
    for i, name in enumerate(["1/a.wav", "1/b.wav", "2/c.wav", "2/d.wav"]):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(where / name, np.random.default_rng(i).integers(-9000, 9000, 1000 + i, np.int16), RATE)
    (where / "2" / "text.wav").write_text("not audio")
    return where


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_pack_in_a_store_stands_for_the_recordings(folder, cache, tmp_path, capsys):
    url = f"file://{tmp_path / 'bucket'}"
    for _ in range(2):
        code, out, _ = run(upload.main, url, "--data", folder, "--sample-rate", RATE, capsys=capsys)
        assert code == 0
        assert f"4 recordings, 1 left out -> {url}" in out
    here = pack.open_pack(pack.recordings([folder], RATE, 1), cache)
    there = pack.open_pack(pack.recordings([Path(url)], RATE, 1), cache)
    assert there.fingerprint == here.fingerprint
    assert (there.names, there.classes, there.rejected) == (here.names, here.classes, here.rejected)
    assert np.array_equal(there.samples, here.samples)
    assert isinstance(there.samples, np.memmap)
    assert "fetching" in capsys.readouterr().out
    pack.open_pack(pack.recordings([Path(url)], RATE, 1), cache)
    assert "fetching" not in capsys.readouterr().out, "once"


def test_of_a_pack_in_a_store_only_what_is_there_and_whole_is_taken(folder, cache, tmp_path):
    url = f"memory:/{tmp_path}"
    with pytest.raises(
        InputError, match=f"{url} has no pack of 16000 Hz, 1 channels .*data.upload {url} --data FOLDER"
    ):
        pack.recordings([Path(url)], RATE, 1)
    made = pack.open_pack(pack.recordings([folder], RATE, 1), cache)
    upload.upload(made, stores.Store(url), "label")
    with pytest.raises(InputError, match="no pack of 8000 Hz"):
        pack.recordings([Path(url)], 8000, 1)
    with pytest.raises(InputError, match="no pack .*--label pitch"):
        pack.recordings([Path(url)], RATE, 1, "pitch")
    with pytest.raises(InputError, match="given beside other folders"):
        pack.recordings([folder, Path(url)], RATE, 1)
    place = stores.Store(url)
    place.write([(f"{pack.below(RATE, 1, 'label')}samples.i16", b"short")])
    source = pack.recordings([Path(url)], RATE, 1)
    with pytest.raises(InputError, match="samples.i16 is shorter than its manifest says"):
        pack.open_pack(source, cache)
    assert not (cache / source.key).exists()
    place.kv.write(pack.below(RATE, 1, "label") + stores.WHOLE, None).result()
    with pytest.raises(InputError, match="has no pack"):
        pack.recordings([Path(url)], RATE, 1)


def test_what_can_not_be_uploaded_is_told(folder, capsys):
    for words, message in (
        (("bucket", "--data", folder, "--sample-rate", RATE), "no store: name one as gs://"),
        (("gs://a/b", "--data", "gs://c/d", "--sample-rate", RATE), "data is gs://c/d, in a store already"),
        (("gs://a/b", "--data", folder, "--sample-rate", 0), "sample_rate is 0: it is at least 1"),
    ):
        code, _, err = run(upload.main, *words, capsys=capsys)
        assert code == 2
        assert message in err
