"""Every awkward file of the collection is used rightly or rejected with a reason; every faulty table is refused."""

import csv
import re
import shutil
import tarfile

import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.data import audio, layouts, pack

RATE = 16_000
PASSED_OVER = {  # by a scan: hidden, without a suffix, not audio by its suffix, a folder
    "names/.hidden.wav",
    "names/no_extension",
    "formats/headerless.raw",
    "corrupt/directory_named.wav",
}
SAME_SAMPLES = """control/reference_16k.flac corrupt/wrong_md5.flac corrupt/streamed_sizes_ffffffff.wav
corrupt/wrong_block_align.wav formats/wav_renamed.flac formats/chunks_before_data.wav formats/chunks_after_data.wav
formats/garbage_after_riff.wav duplicates/dup_a.wav duplicates/dup_b.wav duplicates/dup_as.flac"""
ROUNDED_DOWN = """formats/rf64.wav formats/wave64.w64 formats/big_endian_rifx.wav formats/aiff_16.aiff formats/au_16.au
formats/caf_16.caf"""  # the same floats in 16 bits as channels/dual_mono.wav, at most one below those of the control
NEAR = {  # least signal to noise against the control, in dB
    "formats/pcm_u8.wav": 20,
    "formats/pcm_24.wav": 60,
    "formats/pcm_32.wav": 60,
    "formats/float_32.wav": 60,
    "formats/float_64.wav": 60,
    "formats/extensible_24in32.wav": 60,
    "formats/flac_24.flac": 60,
    "formats/alaw.wav": 8,
    "formats/ulaw.wav": 8,
    "formats/ima_adpcm.wav": 15,
    "formats/vorbis.ogg": 8,
    "formats/opus.ogg": 8,
    "formats/mpeg_l3.mp3": 8,
    "formats/mp3_renamed.wav": 8,
    "rates/rate_22050.wav": 30,
    "rates/rate_32000.wav": 30,
    "rates/rate_44100.wav": 30,
    "rates/rate_48000.wav": 30,
}
REASONS = {  # what the reason has to tell; any reason will do for the others
    "corrupt/truncated_data.wav": "truncated",
    "corrupt/truncated_mid_sample.wav": "truncated",
    "corrupt/header_only_44_bytes.wav": "truncated",
    "corrupt/huge_declared_length.wav": "truncated",
    "corrupt/streamed_sizes_zero.wav": "0 bytes",
    "corrupt/unknown_length.flac": "how long",
    "corrupt/zero_samples.wav": "no samples",
    "corrupt/text_renamed.wav": "Format not recognised",
    "channels/surround_5_1.wav": "6 channels",
    "channels/stereo_antiphase.wav": "cancel",
    "values/nan.wav": "NaN",
    "values/inf.wav": "infinite",
    "values/all_silence.wav": "silent",
    "values/denormals.wav": "silent",
    "values/one_lsb_noise.wav": "silent",
    "values/dc_only.wav": "silent",
}


@pytest.fixture(scope="module")
def broken(recordings, tmp_path_factory):
    archive = recordings / "broken" / "broken.tar.gz"
    if not archive.is_file():
        pytest.skip("no broken.tar.gz among the recordings")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "broken"


@pytest.fixture(scope="module")
def manifest(recordings):
    with open(recordings / "broken" / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    return {name: row for name, row in rows.items() if not name.startswith("tables/")}


@pytest.fixture(scope="module")
def used(broken, tmp_path_factory):
    """The pack of the whole collection."""
    return pack.open_pack(pack.Folder(broken, RATE, 1), tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="module")
def samples(used):
    """int16 [frames] of every recording that was used, by name."""
    spans = zip(used.names, used.start, used.length, strict=True)
    return {name: used.samples[start : start + length, 0] for name, start, length in spans}


def signal_to_noise_db(found, wanted):
    frames = min(len(found), len(wanted))
    found, wanted = found[:frames].astype(float), wanted[:frames].astype(float)
    return 10 * np.log10(np.sum(wanted**2) / np.sum((found - wanted) ** 2))


def test_every_file_is_used_or_rejected_with_a_reason(used, manifest):
    rejected = dict(used.rejected)
    assert set(used.names) | rejected.keys() == manifest.keys() - PASSED_OVER
    assert set(used.names).isdisjoint(rejected)
    assert all(reason and "\n" not in reason for reason in rejected.values())


def test_what_must_be_rejected_is_and_what_must_load_does(used, manifest):
    expect = {name: row["expect"] for name, row in manifest.items() if name not in PASSED_OVER}
    must_load = {name for name, wish in expect.items() if wish == "load"} - {"channels/stereo_antiphase.wav"}
    assert must_load - set(used.names) == set()
    assert {name for name, wish in expect.items() if wish == "reject"} & set(used.names) == set()


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_tells_what_is_wrong(used, name):
    assert REASONS[name] in dict(used.rejected)[name]


@pytest.mark.parametrize("name", SAME_SAMPLES.split())
def test_the_same_samples_come_out_of_every_container(samples, name):
    np.testing.assert_array_equal(samples[name], samples["control/reference_16k.wav"])


@pytest.mark.parametrize("name", ROUNDED_DOWN.split())
def test_other_byte_orders_give_the_same_samples(samples, name):
    np.testing.assert_array_equal(samples[name], samples["channels/dual_mono.wav"])
    difference = samples[name].astype(int) - samples["control/reference_16k.wav"]
    assert np.unique(difference).tolist() == [-1, 0]


@pytest.mark.parametrize("name", NEAR)
def test_other_codings_and_rates_stay_near_the_control(samples, name):
    control = samples["control/reference_16k.wav"]
    assert signal_to_noise_db(samples[name], control) > NEAR[name]


def test_the_duration_is_kept_at_every_rate(samples, manifest):
    for name, row in manifest.items():
        if name.startswith("rates/"):
            assert len(samples[name]) == round(int(row["frames"]) * RATE / int(row["rate"]))


def test_levels_are_those_of_the_file_or_scaled_to_full_scale(samples, manifest):
    control = samples["control/reference_16k.wav"]
    for name in ("values/float_over_range.wav", "values/int16_scaled_floats.wav"):
        scaled = control.astype(float) * 32767 / np.abs(control).max()
        assert signal_to_noise_db(samples[name], scaled) > 60
    assert samples["values/full_scale_negative.wav"].min() == -32768
    assert np.abs(samples["values/single_click.wav"].astype(int)).max() >= 32767
    assert samples["values/dc_offset.wav"].mean() == pytest.approx(0.4 * 32768, rel=0.01)
    for name, row in manifest.items():
        if name.startswith(("names/", "lengths/crop")) and name in samples:
            stated = float(re.search(r"peak ([0-9.]+)", row["soundfile_today"])[1])
            assert np.abs(samples[name].astype(int)).max() / 32768 == pytest.approx(stated, abs=6e-4)


def test_what_a_scan_passes_over_can_be_read_by_name(broken):
    for name in ("names/.hidden.wav", "names/no_extension"):
        assert audio.read(broken / name, RATE, 1).shape == (4000, 1)
    for name in ("formats/headerless.raw", "corrupt/directory_named.wav"):
        with pytest.raises(audio.Unusable):
            audio.read(broken / name, RATE, 1)


TABLES = {
    "good.csv": None,
    "bom_crlf.csv": None,
    "wrong_duration.csv": None,
    "missing_file.csv": "line 3: .*not_there.wav",
    "duplicate_path.csv": "line 3: .*'two'.*'one'",
    "same_file_two_splits.csv": "line 3: .*'valid'.*'train'",
    "absolute_path.csv": "line 2: .*/etc/hostname",
    "path_escape.csv": r"line 2: .*\.\./etc/hostname",
    "missing_column.csv": "line 1: .*label",
    "empty.csv": "no rows",
    "header_only.csv": "no rows",
    "latin1.csv": "line 2: .*0xe9",
    "ragged_rows.csv": "line 2: 2 fields",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_taken_or_refused_by_line(broken, tmp_path, name):
    shutil.copytree(broken / "control", tmp_path / "control")
    text = (broken / "tables" / name).read_bytes()
    (tmp_path / "metadata.csv").write_bytes(text.replace(b"../control/", b"control/"))
    if TABLES[name] is None:
        entry = layouts.Entry("control/reference_16k.wav", "one", "train", "s1")
        assert layouts.describe(tmp_path) == layouts.Layout("table", (entry,))
    else:
        with pytest.raises(InputError, match=TABLES[name]):
            layouts.describe(tmp_path)


def test_every_table_of_the_collection_is_tried(broken):
    assert {path.name for path in (broken / "tables").iterdir()} == TABLES.keys()
