"""Streams of codes: what comes back, what it costs, and what damage is told of."""

import hashlib
import os
import re
import struct
import zlib

import numpy as np
import pytest

from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data import bitstream as B


def header(**fields):
    """Of a codec of 25 frames per second and block."""
    known = {"method": "context", "fingerprint": b"12345678", "step": 7, "sample_rate": 800, "channels": 1}
    return B.Header(**known | {"length": 1600, "hop": 32, "codebooks": 3, "codebook_size": 64} | fields)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(B, "BLOCK_SECONDS", 1.0)


def usage(size=64, books=4, seed=0):
    """Of larger codebooks, with fewer contexts than codes."""
    rng, contexts = np.random.default_rng(seed), min(size, 64)
    return (1e4 * rng.dirichlet(np.full(size, 0.3), (books, contexts))).astype(np.float32)


def draws(frames, given, seed=1):
    """Codes as often as `usage` has them in their contexts."""
    rng, size = np.random.default_rng(seed), given.codebook_size
    share = usage(size, max(given.codebooks, 4)).astype(np.float64)
    share /= share.sum(2, keepdims=True)
    codes = np.zeros((frames, given.codebooks), np.int32)
    for i in range(frames):
        for k in range(given.codebooks):
            context = codes[i, 0] if k else codes[i - 1, 0]
            codes[i, k] = rng.choice(size, p=share[k, context * share.shape[1] // size])
    return codes


def in_parts(codes, rng):
    while len(codes):
        size = int(rng.integers(0, 40))
        yield codes[:size]
        codes = codes[size:]


def written(path, codes, given, table=None):
    table = B.tabled(usage(given.codebook_size, max(given.codebooks, 4))) if table is None else table
    with open(path, "wb") as file:
        return B.write(file, given, in_parts(codes, np.random.default_rng(0)), table), table


def back(path, table):
    stream = B.look(path)
    return stream, np.concatenate([np.zeros((0, stream.header.codebooks), np.int32), *B.codes_of(path, stream, table)])


@pytest.mark.parametrize("method", B.METHODS)
def test_any_codes_come_back_whatever_their_number_and_size(method, tmp_path):
    rng = np.random.default_rng(2)
    for frames in (1, 2, 24, 25, 26, 50, 51, 137):
        size, books = int(rng.choice([2, 3, 64, 1000, 1024])), int(rng.integers(1, 6))
        given = header(method=method, codebooks=books, codebook_size=size, length=frames * 32)
        for codes in (draws(frames, given), rng.integers(0, size, (frames, books), np.int32)):
            count, table = written(tmp_path / "a.jaz", codes, given)
            stream, result = back(tmp_path / "a.jaz", table)
            np.testing.assert_array_equal(result, codes)
            assert stream.header == given
            assert stream.damage == ""
            assert [block.frames for block in stream.blocks[:-1]] == [25] * ((frames - 1) // 25)
            assert sum(block.size for block in stream.blocks) == count


def test_extreme_codes_and_tables_come_back(tmp_path):
    given = header(codebooks=2, codebook_size=1024)
    flat, lonely = np.zeros((2, 512, 1024), np.float32), np.zeros((2, 512, 1024), np.float32)
    lonely[:, :, 1] = 3e38
    for counts in (flat, lonely, -lonely):
        for codes in (np.zeros((60, 2), np.int32), np.full((60, 2), 1023, np.int32)):
            _, table = written(tmp_path / "a.jaz", codes, given, B.tabled(counts))
            np.testing.assert_array_equal(back(tmp_path / "a.jaz", table)[1], codes)


def test_the_file_is_as_the_head_of_the_module_says(tmp_path):
    given = header(method="raw", step=200, length=300, level=0.5, codebooks=2, codebook_size=1000)
    codes = draws(30, given)
    written(tmp_path / "a.jaz", codes, given)
    content = (tmp_path / "a.jaz").read_bytes()
    head = b"JAZ\x01\x10" + b"12345678" + bytes([0xC8, 1, 0xA0, 6, 1, 0xAC, 2, 32, 2, 0xE8, 7]) + struct.pack("<f", 0.5)
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    assert content.startswith(head)
    rest = content[len(head) :]
    for part, last in ((codes[:25], 0), (codes[25:], 1)):
        bits = "".join(f"{code:010b}" for code in part.ravel())
        bits += "0" * (-len(bits) % 8)
        block = bytes([2 * len(part) + last, len(bits) // 8])
        block += bytes([zlib.crc32(block) & 255]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
        block += struct.pack("<I", zlib.crc32(block))
        assert rest.startswith(block)
        rest = rest[len(block) :]
    assert rest == b""


def test_streams_of_this_version_stay_the_same_bytes(tmp_path):
    """If this fails the format or the range coder has changed, and what was encoded before can't be decoded."""
    codes = (np.arange(180).reshape(60, 3) ** 2 // 7 % 64).astype(np.int32)
    table = B.tabled((np.arange(4 * 64 * 64).reshape(4, 64, 64) ** 2 % 13).astype(np.float32))
    sums = []
    for method in B.METHODS:
        written(tmp_path / "a.jaz", codes, header(method=method), table)
        sums.append(hashlib.sha256((tmp_path / "a.jaz").read_bytes()).hexdigest()[:12])  # a CRC of CRCs sees no codes
    assert sums == ["a45bc0dfffce", "acd3afc0bf8d", "ec339275177a"]


def entropy(codes, counts, blocks=25):
    """Bytes by the definitions of the methods static and context, in floating point, of counts of training."""
    static = context = 0.0
    for start in range(0, len(codes), blocks):
        for i, frame in enumerate(codes[start : start + blocks].tolist()):
            for k, code in enumerate(frame):
                whole = counts[k].sum(0) + 1 / 16
                share = whole / whole.sum()
                static -= np.log2(share[code])
                behind = frame[0] if k else codes[start + i - 1, 0]
                row = counts[k, behind * counts.shape[1] // counts.shape[2]]
                context -= np.log2((row[code] + 300 * share[code]) / (row.sum() + 300) if k or i else share[code])
    return static / 8, context / 8


def test_the_static_method_costs_what_the_table_says_and_the_container_little(tmp_path):
    about = {"step": 400_000, "sample_rate": 16000, "hop": 320, "codebooks": 8, "codebook_size": 1024}
    given = header(method="static", length=3 * 16000, **about)
    codes = draws(150, given)
    count, _ = written(tmp_path / "a.jaz", codes, given)
    ideal = entropy(codes, usage(1024, 8).astype(np.float64), 50)[0]
    assert ideal <= count < ideal + 4 * 4, "a block a second, whose words are of 4 bytes"
    head, block = 4 + 1 + 8 + (3 + 2 + 1 + 3 + 2 + 1 + 2) + 2, 1 + 2 + 1 + 4
    assert (tmp_path / "a.jaz").stat().st_size - count == head + 3 * block
    assert head + block < 0.03 * 4000 / 8 * 3, "of a file of 3 s at 4 kbps"


def test_the_context_method_costs_what_its_definition_says_and_pays(tmp_path):
    for size in (64, 200):
        given = header(codebook_size=size)
        codes = draws(200, given)
        count, tables = written(tmp_path / "a.jaz", codes, given)
        static, context = entropy(codes, usage(size).astype(np.float64))
        assert context < 0.9 * static
        assert context < count < context + 8 * 4, "8 blocks, of which each ends a word"
        bits = 0.0
        for start in range(0, 200, 25):
            block = codes[start : start + 25]
            for k in range(3):
                rows = B.likely(tables, k, B.behind(block, k))
                assert (rows == np.rint(rows)).all()
                assert rows.min() > 0
                bits -= np.log2(rows[np.arange(25), block[:, k]] / rows.sum(1)).sum()
        assert bits / 8 == pytest.approx(context, rel=1e-3), "counts are rounded down to 16ths"


def test_rows_are_the_counts_of_the_context_and_all_codes_as_300_more():
    counts = np.array([[[0, 1], [2, 0.5 + 1 / 32]], [[7, 0], [0, 0]]], np.float32)
    tables = B.tabled(counts)
    np.testing.assert_array_equal(tables.counts, [[[0, 16], [32, 8]], [[112, 0], [0, 0]]])
    np.testing.assert_array_equal(tables.whole, [[33, 25], [113, 1]])
    rows = B.likely(tables, 0, np.array([-1, 0, 1], np.int32))
    np.testing.assert_array_equal(
        rows, [[33, 25], [4800 * 33, 16 * 58 + 4800 * 25], [32 * 58 + 4800 * 33, 8 * 58 + 4800 * 25]]
    )
    np.testing.assert_array_equal(B.behind(np.array([[3, 1], [4, 0], [5, 2]]), 0), [-1, 3, 4])
    np.testing.assert_array_equal(B.behind(np.array([[3, 1], [4, 0], [5, 2]]), 1), [3, 4, 5])


def test_sums_of_any_counts_are_exact_in_float64():
    rng = np.random.default_rng(0)
    for loud in (1e3, 1e5, 1e20, 3e38):
        counts = (loud * rng.random((2, 64, 256))).astype(np.float32)
        counts[1] /= 1e3
        tables = B.tabled(counts)
        assert tables.counts.sum((1, 2)).max() < 2**26
        rows = B.likely(tables, 0, np.arange(0, 256, 4))
        assert all(sum(map(int, row)) < 2**53 for row in rows)
        first, heard = tables.counts[0, 0], np.minimum(counts[0, 0].astype(np.float64), 2**22)
        np.testing.assert_allclose(first / first.sum(), heard / heard.sum(), atol=2 / first.sum(), rtol=0.2)


def test_counts_that_are_not_finite_or_of_an_older_form_are_refused():
    with pytest.raises(InputError, match="not finite: name an earlier --checkpoint"):
        B.tabled(usage() * np.nan)
    for older in (usage()[:, 0], usage().swapaxes(1, 2)[:, :, :32]):
        with pytest.raises(InputError, match=r"counts of codes \[4, 64.*\], not of .*train the codec anew"):
            B.tabled(older)


def test_a_reader_that_takes_the_context_beside_does_not_get_the_codes(monkeypatch):
    given, tables = header(), B.tabled(usage())
    codes = draws(25, given)
    payload, likely = B.encoded(codes, given, tables), B.likely
    np.testing.assert_array_equal(B.decoded(payload, 25, given, tables), codes)
    beside = lambda tables, k, context: likely(tables, k, np.where(context < 0, context, (context + 1) % 64))
    monkeypatch.setattr(B, "likely", beside)
    with pytest.raises((AssertionError, ValueError)):
        B.decoded(payload, 25, given, tables)


def test_a_block_is_coded_alike_whatever_fits_into_memory(monkeypatch):
    given = header()
    codes, tables = draws(25, given), B.tabled(usage())
    payload = B.encoded(codes, given, tables)
    monkeypatch.setattr(B, "MOST_ROWS", 7 * 64 + 1)
    assert B.encoded(codes, given, tables) == payload
    np.testing.assert_array_equal(B.decoded(payload, 25, given, tables), codes)


def test_blocks_know_nothing_of_each_other(tmp_path):
    given = header()
    codes = draws(100, given)
    _, table = written(tmp_path / "a.jaz", codes, given)
    stream = B.look(tmp_path / "a.jaz")
    alone = stream._replace(blocks=stream.blocks[2:3])
    np.testing.assert_array_equal(next(B.codes_of(tmp_path / "a.jaz", alone, table)), codes[50:75])


def reason_of(path):
    with pytest.raises(audio.Unusable) as caught:
        B.look(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def stream(tmp_path):
    """A file of four blocks, its codes and its table."""
    codes = draws(90, header())
    _, table = written(tmp_path / "a.jaz", codes, header())
    return tmp_path / "a.jaz", codes, table


def test_a_file_that_is_cut_off_gives_all_whole_blocks_and_says_where_it_ends(stream):
    path, codes, table = stream
    content, blocks = path.read_bytes(), B.look(path).blocks
    ends = [block.offset + block.size + 4 for block in blocks]
    begin = blocks[0].offset - 3
    for length in range(begin, len(content)):
        path.write_bytes(content[:length])
        found, result = back(path, table)
        whole = sum(end <= length for end in ends)
        np.testing.assert_array_equal(result, codes[: 25 * whole])
        assert found.damage == f"cut off in block {whole + 1}, at {whole:.2f} s"
    for length in range(1, begin):
        path.write_bytes(content[:length])
        assert reason_of(path) == "cut off within its header: nothing of it can be decoded"
    path.write_bytes(b"")
    assert reason_of(path) == "an empty file"
    path.write_bytes(content + b"\0")
    assert "bytes follow its last block, which ends at 3.60 s" in reason_of(path)


def test_every_flipped_bit_is_noticed_and_its_block_and_second_are_named(stream):
    path, _, _ = stream
    content, blocks = path.read_bytes(), B.look(path).blocks
    begin, named = blocks[0].offset - 3, 0
    for at in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        where = sum(at // 8 >= block.offset + block.size + 4 for block in blocks)
        words = reason_of(path)
        if at // 8 >= begin:
            head = blocks[where].offset - 3 <= at // 8 < blocks[where].offset
            until = f"at {where:.2f} s" if head else f"{where:.2f} to {min(where + 1, 3.6):.2f} s"
            assert f"damaged: block {where + 1}, {until}, " in words
            named += "has another checksum" in words
    assert named == 8 * sum(block.size + 4 for block in blocks)


def test_a_damaged_file_is_decoded_up_to_the_byte_that_its_message_names(stream):
    path, codes, table = stream
    content, block = path.read_bytes(), B.look(path).blocks[2]
    flipped = bytearray(content)
    flipped[block.offset] ^= 4
    path.write_bytes(flipped)
    count = int(re.search(r"first (\d+) bytes", reason_of(path))[1])
    path.write_bytes(flipped[:count])
    np.testing.assert_array_equal(back(path, table)[1], codes[:50])


def resealed(content, at, value):
    """A header with another byte and the checksum of that."""
    end = content.index(b"12345678") + 8 + 1 + 2 + 1 + 2 + 1 + 1 + 1
    head = bytearray(content[:end])
    head[at] = value
    return bytes(head) + struct.pack("<H", zlib.crc32(head) & 0xFFFF) + content[end + 2 :]


def test_headers_of_other_formats_and_of_no_encoder_are_refused(stream, tmp_path):
    path, _, _ = stream
    content = path.read_bytes()
    path.write_bytes(resealed(content, 4, 2))
    B.look(path)  # the same bytes
    for at, value, words in (
        *((3, 2, "of version 2 of the format, not 1"), (0, 0x52, "it does not begin with JAZ")),
        *((4, 3, "holds what no encoder writes"), (4, 0x42, "holds what no encoder writes")),
        *((16, 0, "holds what no encoder writes"), (19, 0, "holds what no encoder writes")),
        *((20, 0, "holds what no encoder writes"), (21, 1, "holds what no encoder writes")),
    ):
        path.write_bytes(resealed(content, at, value))
        assert words in reason_of(path), at
    path.write_bytes(b"RIFF")
    assert "it does not begin with JAZ" in reason_of(path)
    for bad in (0.0, 2.0, float("nan")):
        written(path, draws(3, header()), header(level=bad))
        assert "holds what no encoder writes" in reason_of(path)
    path.write_bytes(content[:13] + b"\xff" * 20)
    assert "a number in it has no end" in reason_of(path)


def test_a_codec_that_no_reader_would_take_is_not_written(tmp_path):
    codes = np.zeros((2, 1), np.int32)
    for fields, words in (
        ({"codebook_size": 65537, "codebooks": 1}, "codebook_size is 65537: a stream has 65536 at most"),
        ({"codebooks": 257}, "codebooks is 257: a stream has 256 at most"),
    ):
        with pytest.raises(InputError, match=words):
            written(tmp_path / "a.jaz", codes, header(method="raw", **fields), B.tabled(np.ones((1, 2, 2), np.float32)))
        assert (tmp_path / "a.jaz").read_bytes() == b""
    for fields in ({"codebook_size": 65536, "codebooks": 1}, {"codebooks": 256, "step": 0}):
        given = header(method="raw", **fields)
        written(
            tmp_path / "a.jaz",
            np.zeros((2, given.codebooks), np.int32),
            given,
            B.tabled(np.ones((1, 2, 2), np.float32)),
        )
        assert B.look(tmp_path / "a.jaz").header == given


def test_a_saving_is_told_where_there_is_one():
    assert [B.saving(share) for share in (0.123, -0.01, 0.0, 0.0004)] == ["12.3% saved", *["no saving"] * 3]


def test_payloads_of_no_encoder_are_refused(stream):
    path, _, table = stream
    content, found = bytearray(path.read_bytes()), B.look(path)
    block = found.blocks[0]
    content[block.offset : block.offset + block.size] = b"\xff" * block.size
    path.write_bytes(content)
    with pytest.raises(audio.Unusable, match="block 1 holds what no encoder writes"):
        list(B.codes_of(path, found, table))
    codes = np.full((25, 3), 63, np.int32)
    raw = header(method="raw", codebook_size=60)
    for payload in (B.encoded(codes, raw._replace(codebook_size=64), table), b"\0" * 5, b""):
        with pytest.raises(ValueError, match="no codes give these bytes|cannot reshape"):
            B.decoded(payload, 25, raw, table)
    with pytest.raises(InputError, match="gives codes from 63 to 63: they are 0 to 59"):
        B.encoded(codes, raw, table)
    with pytest.raises(InputError, match="gives codes from -1 to -1: they are 0 to 59"):
        B.encoded(0 * codes - 1, raw, table)


def test_what_is_no_file_is_refused_and_no_pipe_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jaz")
    assert reason_of(tmp_path / "pipe.jaz") == reason_of(tmp_path) == "not a regular file"
    assert reason_of(tmp_path / "none.jaz") == "No such file or directory"
    assert reason_of(tmp_path / ("n" * 300)) == "File name too long"
