"""Codes of a recording as a stream of bytes: the file NAME.jaz.

A file is a header and blocks of frames, one behind the other. A varint is a whole number in groups of 7 bits, the
lowest first, a byte each, with the highest bit set in all bytes but the last. Whatever has several bytes of its own is
little-endian.

The header:
    3 bytes   "JAZ"
    1 byte    version of this format: 1
    1 byte    method by which codes are written (0 raw, 1 static, 2 context), plus 16 where a level follows
    8 bytes   fingerprint of the codec's checkpoint
    varints   step of that checkpoint, sample rate in Hz, channels, length in samples, samples per frame, codebooks
              used, values of a code
    4 bytes   the level as float32, where the first method byte says so: the peak that the recording had
    2 bytes   the lower half of the CRC-32 of everything before
A block, `per_block` frames of it (10 seconds), fewer in the last one:
    varint    twice its frames, plus 1 in the last block: what marks the end
    varint    bytes of its codes
    1 byte    the lowest of the CRC-32 of both: damage to them is told from the end of a file
    ...       the codes
    4 bytes   CRC-32 of everything in the block before
Blocks know nothing of each other, so that one that is damaged spoils no other one.

The codes of a block, by method:
    raw       frame by frame, the coarsest codebook first, each as bits, the highest first; zeros fill the last byte
    static    codebook by codebook, range coded under how often each code came in training
    context   codebook by codebook, range coded under how often each code came in training beside the same code of the
              coarsest codebook: of the same frame, and for the coarsest codebook itself of the frame before
The range coder is `constriction`'s, its words of 32 bits. How likely a code is it is told in whole numbers, as float64:
they come from counts alone, and every machine decodes what any machine encoded. With usage[k, c, x] how often code x of
codebook k came in training in context c, in 16ths, rounded down:
    static    m[x] = 1 + the sum of usage[k, c, x] over all c
    context   usage[k, c, x] * M + 300 * 16 * m[x] with M the sum of m: all codes, as in `static`, are worth 300 counts
              that are added to those of the context. In the first frame of a block the coarsest codebook has no
              context: m[x]. Of a code y the context is c = y * contexts // values of a code, rounded down.
All sums stay below 2**53, which float64 holds exactly: a count above 2**22 is taken for that, and where those of a
codebook sum to 2**26 16ths or more, they are shifted to the right by as many bits as that sum has beyond 26.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import constriction
import numpy as np
from jaxtyping import Float, Int

from jaxaudio.core import InputError
from jaxaudio.data import audio
from jaxaudio.data.files import regular

Codes = Int[np.ndarray, "frames codebooks"]
Context = Int[np.ndarray, "frames"]  # the code by which another one is expected; -1: none

model, queue = constriction.stream.model, constriction.stream.queue

MAGIC, VERSION = b"JAZ", 1
METHODS = ("raw", "static", "context")
LEVEL = 16
BLOCK_SECONDS = 10.0
MOST_VARINT = 9  # bytes
MOST_SIZE = 1 << 16  # values of a code
MOST_CODEBOOKS = 1 << 8
MOST_ROWS = 1 << 20  # numbers in the tables that the range coder is given at once

FINE, BACK = 16, 300  # parts of a count; counts that all codes are worth to those in a context
MOST_BITS = 26  # of the sum of a codebook's counts


class Header(NamedTuple):
    """What is known of a stream before its codes."""

    method: str
    fingerprint: bytes
    step: int  # of the codec's checkpoint
    sample_rate: int  # Hz
    channels: int
    length: int  # samples
    hop: int
    codebooks: int  # those used: the leading ones
    codebook_size: int
    level: float = 1.0  # the peak, of models that hear all at a peak of 1

    @property
    def per_block(self) -> int:
        """Frames of every block but the last."""
        return max(1, round(BLOCK_SECONDS * self.sample_rate / self.hop))

    @property
    def bits(self) -> int:
        """Of a code as it is."""
        return width(self.codebook_size)

    def seconds(self, frames: int) -> float:
        """How long so many frames last."""
        return frames * self.hop / self.sample_rate


class Block(NamedTuple):
    """Where the codes of a block lie."""

    frames: int
    offset: int
    size: int  # bytes


class Tables(NamedTuple):
    """How often codes came in training, in whole numbers; of at least as many codebooks as a stream has."""

    counts: Int[np.ndarray, "codebooks contexts size"]  # in 16ths
    whole: Int[np.ndarray, "codebooks size"]  # in all contexts, and 1


class Stream(NamedTuple):
    """A file that was looked through: what can be decoded of it."""

    header: Header
    blocks: list[Block]
    damage: str  # why there are no more blocks; empty where all are there

    @property
    def frames(self) -> int:
        """Of all blocks."""
        return sum(block.frames for block in self.blocks)


def width(size: int) -> int:
    """Bits of one of `size` values."""
    return max(1, (size - 1).bit_length())


def saving(share: float) -> str:
    """Of what raw codes take."""
    return f"{share:.1%} saved" if share >= 5e-4 else "no saving"


# ------------------------------------------------------------------------------------------------------ the container


def write(file: BinaryIO, header: Header, codes: Iterable[Codes], tables: Tables) -> int:
    """Writes codes that come in parts [some frames, codebooks]; how many bytes of the file are codes.

    Holds a block at a time. tables: of `tabled`. Raises InputError where `look` would refuse the codec.
    """
    for name, most in (("codebooks", MOST_CODEBOOKS), ("codebook_size", MOST_SIZE)):
        if getattr(header, name) > most:
            raise InputError(f"{name} is {getattr(header, name)}: a stream has {most} at most")
    file.write(_packed_header(header))
    held, total = np.zeros((0, header.codebooks), np.int32), 0

    def block(part: Codes, last: bool) -> int:
        payload = encoded(part, header, tables)
        content = varint(2 * len(part) + last) + varint(len(payload))
        content += _low(zlib.crc32(content)) + payload
        file.write(content + struct.pack("<I", zlib.crc32(content)))
        return len(payload)

    for part in codes:
        held = np.concatenate([held, part])
        while len(held) > header.per_block:  # not at once where they are as many: it may be the last one
            total += block(held[: header.per_block], False)
            held = held[header.per_block :]
    return total + block(held, True)


def look(path: Path) -> Stream:
    """Reads all of a file but decodes nothing. Raises `audio.Unusable` where its header is damaged or of another
    version, and where the bytes of a block are not those that were written; a file that is cut off is a `damage`."""
    try:
        regular(path)
        with open(path, "rb") as file:
            header = _read_header(file)
            return Stream(header, *_read_blocks(file, header))
    except OSError as problem:
        raise audio.Unusable(problem.strerror or "it can't be read") from problem


def codes_of(path: Path, stream: Stream, tables: Tables) -> Iterator[Codes]:
    """The codes, block by block."""
    header = stream.header
    with open(path, "rb") as file:
        for number, block in enumerate(stream.blocks):
            file.seek(block.offset)
            payload = file.read(block.size)
            try:
                yield decoded(payload, block.frames, header, tables)
            except (AssertionError, ValueError) as problem:
                raise audio.Unusable(f"block {number + 1} holds what no encoder writes: encode it again") from problem


def varint(value: int) -> bytes:
    """A whole number, 7 bits to a byte."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _low(crc: int) -> bytes:
    """The lowest byte of a checksum."""
    return bytes([crc & 255])


def _packed_header(header: Header) -> bytes:
    first = METHODS.index(header.method) + (LEVEL if header.level != 1 else 0)
    content = MAGIC + bytes([VERSION, first]) + header.fingerprint
    content += b"".join(varint(value) for value in header[2:-1])
    content += struct.pack("<f", header.level) if header.level != 1 else b""
    return content + struct.pack("<H", zlib.crc32(content) & 0xFFFF)


class _Cut(Exception):
    """The file ends."""


class _Reader:
    """Reads a file and keeps the checksum of what it read."""

    def __init__(self, file: BinaryIO):
        self.file, self.crc = file, 0

    def take(self, count: int) -> bytes:
        content = self.file.read(count)
        self.crc = zlib.crc32(content, self.crc)
        if len(content) < count:
            raise _Cut
        return content

    def varint(self) -> int:
        """Raises `audio.Unusable` where it has too many bytes."""
        value = 0
        for i in range(MOST_VARINT):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value
        raise audio.Unusable("damaged: a number in it has no end; encode the recording again")


def _read_header(file: BinaryIO) -> Header:
    reader = _Reader(file)
    try:
        start = reader.file.read(4)
        if not start:
            raise audio.Unusable("an empty file")
        if not start.startswith(MAGIC[: len(start)]):
            raise audio.Unusable("no stream of codes: it does not begin with JAZ")
        if start[3:] and start[3] != VERSION:
            raise audio.Unusable(f"of version {start[3]} of the format, not {VERSION}: decode it with its own program")
        reader.crc = zlib.crc32(start)
        first, fingerprint = reader.take(1)[0], reader.take(8)
        values = [reader.varint() for _ in range(7)]
        level = struct.unpack("<f", reader.take(4))[0] if first & LEVEL else 1.0
        crc = reader.crc & 0xFFFF
        right = struct.unpack("<H", reader.take(2))[0] == crc
    except _Cut:
        raise audio.Unusable("cut off within its header: nothing of it can be decoded") from None
    if not right:
        raise audio.Unusable("damaged: its header has another checksum; encode the recording again")
    known = first & ~LEVEL < len(METHODS)
    header = Header(METHODS[first & ~LEVEL if known else 0], fingerprint, *values, level)
    small = header.codebooks <= MOST_CODEBOOKS and 2 <= header.codebook_size <= MOST_SIZE
    if not (known and small and min(values[1:]) > 0 and max(values) < 1 << 48 and 0 < level <= 1):
        raise audio.Unusable("damaged: its header holds what no encoder writes; encode the recording again")
    return header


def _read_blocks(file: BinaryIO, header: Header) -> tuple[list[Block], str]:
    """The blocks that are whole, and what is wrong behind them."""
    blocks, done = [], 0
    while True:
        number, begin, reader = len(blocks) + 1, file.tell(), _Reader(file)
        at = f"block {number}, at {header.seconds(done):.2f} s"
        try:
            twice, size = reader.varint(), reader.varint()
            frames, last, crc = twice // 2, twice % 2, reader.crc
            if reader.take(1) != _low(crc):
                raise audio.Unusable(_broken(at, begin, "the checksum of its head is another"))
            offset = file.tell()
            if not 0 < frames <= header.per_block or (frames < header.per_block and not last):
                raise audio.Unusable(_broken(at, begin, "holds an impossible number of frames"))
            for start in range(0, size, audio.BLOCK):  # never more than is there, whatever the size says
                reader.take(min(audio.BLOCK, size - start))
            crc = reader.crc
            if struct.unpack("<I", reader.take(4))[0] != crc:
                until = f"block {number}, {header.seconds(done):.2f} to {header.seconds(done + frames):.2f} s"
                raise audio.Unusable(_broken(until, begin, "has another checksum"))
        except _Cut:
            return blocks, f"cut off in {at}"
        blocks.append(Block(frames, offset, size))
        done += frames
        if last:
            if file.read(1):
                raise audio.Unusable(
                    f"damaged: bytes follow its last block, which ends at {header.seconds(done):.2f} s"
                )
            return blocks, ""


def _broken(where: str, begin: int, how: str) -> str:
    """What is wrong, and what can be done."""
    rest = f", or cut it to its first {begin} bytes to decode what comes before"
    return f"damaged: {where}, {how}: encode the recording again{rest}"


# ---------------------------------------------------------------------------------------------------------- the codes


def tabled(usage: Float[np.ndarray, "..."]) -> Tables:
    """Whole numbers of how often each code came in training.

    usage: [codebooks, contexts, values of a code], counts, which may have been averaged. Raises InputError where they
    are of another form or not finite.
    """
    if usage.ndim != 3 or not 0 < usage.shape[1] <= usage.shape[2]:
        found = f"counts of codes {list(usage.shape)}, not of [codebooks, contexts, values]"
        raise InputError(f"the checkpoint has {found}: it is of another version; train the codec anew")
    if not np.isfinite(usage).all():
        raise InputError("how often codes came in training is not finite: name an earlier --checkpoint")
    counts = np.floor(np.clip(usage, 0, (1 << MOST_BITS) / FINE) * FINE).astype(np.int32)
    for table in counts:
        table >>= max(0, int(table.sum(dtype=np.int64)).bit_length() - MOST_BITS)
    return Tables(counts, counts.sum(1, dtype=np.int64) + 1)


def behind(codes: Codes, k: int) -> Context:
    """What the codes of codebook k of a block are expected by: those of the coarsest codebook in the same frame, and
    this itself by the frame before."""
    return codes[:, 0] if k else np.concatenate([[-1], codes[:-1, 0]])


def likely(tables: Tables, k: int, context: Context) -> Float[np.ndarray, "frames size"]:
    """How likely each code of codebook k is, up to a factor; whole numbers."""
    counts, whole = tables.counts[k], tables.whole[k][None]
    number = context.astype(np.int64) * len(counts) // counts.shape[1]
    expected = counts[number].astype(np.int64) * whole.sum() + BACK * FINE * whole
    return np.where((context < 0)[:, None], whole, expected).astype(np.float64)


def encoded(codes: Codes, header: Header, tables: Tables) -> bytes:
    """The codes of a block as bytes. Raises InputError where one is out of range."""
    if codes.size and not (codes.min() >= 0 and codes.max() < header.codebook_size):
        rule = f"0 to {header.codebook_size - 1}"
        raise InputError(f"the model gives codes from {codes.min()} to {codes.max()}: they are {rule}")
    if header.method == "raw":
        return np.packbits((codes.reshape(-1, 1) >> np.arange(header.bits)[::-1]) & 1).tobytes()
    coder, family = queue.RangeEncoder(), model.Categorical(perfect=False)
    for k, column in enumerate(np.ascontiguousarray(codes.T.astype(np.int32))):
        if header.method == "static":
            coder.encode(column, static(tables, k))
            continue
        context = behind(codes, k)
        for part in parts(header, len(codes)):
            coder.encode(column[part], family, likely(tables, k, context[part]))
    return coder.get_compressed().astype("<u4").tobytes()


def decoded(payload: bytes, frames: int, header: Header, tables: Tables) -> Codes:
    """The codes of a block. Raises AssertionError or ValueError where no codes give these bytes."""
    shape = (frames, header.codebooks)
    if header.method == "raw":
        bits, count = np.unpackbits(np.frombuffer(payload, np.uint8)), frames * header.codebooks * header.bits
        values = bits[:count].reshape(*shape, header.bits) @ (1 << np.arange(header.bits)[::-1])
        if len(payload) != -(-count // 8) or values.max() >= header.codebook_size:
            raise ValueError("no codes give these bytes")
        return values.astype(np.int32)
    coder, family = (
        queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32)),
        model.Categorical(perfect=False),
    )
    codes = np.empty(shape, np.int32)
    for k in range(header.codebooks):
        if header.method == "static":
            codes[:, k] = coder.decode(static(tables, k), frames)
        elif k:
            context = behind(codes, k)
            for part in parts(header, frames):
                codes[part, k] = coder.decode(family, likely(tables, k, context[part]))
        else:
            for i in range(frames):  # each is the context of the next one
                context = behind(codes[max(0, i - 1) : i + 1], 0)[-1:]
                codes[i, 0] = coder.decode(family, likely(tables, 0, context))[0]
    if not coder.maybe_exhausted():
        raise ValueError("no codes give these bytes")
    return codes


def static(tables: Tables, k: int) -> model.Categorical:
    """How likely each code of codebook k is in any context."""
    return model.Categorical(tables.whole[k].astype(np.float64), perfect=False)


def parts(header: Header, frames: int) -> Iterator[slice]:
    """Frames whose tables fit into memory, MOST_ROWS numbers at once."""
    some = max(1, MOST_ROWS // header.codebook_size)
    return (slice(first, first + some) for first in range(0, frames, some))
