"""Audio files: any format, rate and channel count in, float32 [frames, channels] at one rate out; and back."""

import contextlib
import os
import stat
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from jaxaudio.core import InputError
from jaxaudio.runtime import store

# What libsndfile reads by its content; headerless data (raw) is not among it: its rate and width would be guesses.
_READABLE = """wav wave bwf rf64 w64 flac ogg oga opus mp1 mp2 mp3 aif aiff aifc au snd caf voc nist sph sf ircam paf
svx 8svx iff avr pvf wve xi sds"""
SUFFIXES = frozenset(f".{name}" for name in _READABLE.split())
UNREADABLE = frozenset({".m4a", ".aac", ".wma", ".ape", ".wv", ".tta", ".amr", ".ac3"})  # audio too: named as unusable
WRITTEN = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".oga": ("OGG", "VORBIS")}

BLOCK = 1 << 17  # frames decoded at a time: fewer, and threads wait for each other; more, and the cache overflows
RATES = (1_000, 768_000)  # Hz; a header outside of it is damaged, and would make resampling explode
SILENT = 2 / 32768  # peak-to-peak range, of full scale: one bit of 16
CANCELLED = 0.01  # range of the mean over range of the channels: -40 dB
MOST_EXPECTED = 1 << 24  # frames for which a header is believed; beyond that, room doubles as samples come
MOST_CHUNKS = 1000  # looked at before the samples
UNKNOWN_LENGTH = 1 << 62  # libsndfile declares 2^63 - 1 frames where a header does not say
MOST_WAV = 4_000_000_000  # bytes of samples; its sizes are of 32 bits
MP3_SLACK = 2 * 1152  # frames by which MP3 tags of honest encoders overstate the length


class Unusable(Exception):
    """A file that can't be used; `str` of it is the reason: one short line, without the path."""


class Silent(Unusable):
    """A file that holds nothing but silence: no use to learn from, but it can be processed."""


class Recording(NamedTuple):
    """What one pass over a file told; `blocks` gives its samples by another."""

    path: str | Path
    sample_rate: int  # Hz, wanted
    channels: int  # wanted
    frames: int  # at the wanted rate
    peak: float  # of what `blocks` gives: at most 1
    scale: np.float32  # that its samples are divided by, so that the peak is at most 1
    file_rate: int  # Hz, as it is
    file_channels: int  # as they are


def shown(path: str | Path) -> str:
    """A path for a one-line message: as it is, or escaped where it holds line breaks or invalid characters."""
    text = store.shown(path)
    return text if text.isprintable() else ascii(text)


def read(path: str | Path, sample_rate: int, channels: int) -> np.ndarray:
    """The whole recording as float32 [frames, channels], |x| <= 1, at `sample_rate` Hz. Raises `Unusable`.

    Format: by content, not by name. Never allocates more than 64 MB per channel by the header.
    Channels: the same count as it is; 1 to many repeated; 2 to 1 by their mean; anything else is unusable, and so are
    two channels that cancel: their mean falls 40 dB below them.
    Rate: soxr, high quality; a file at `sample_rate` keeps its samples bit for bit. Rates outside of 1..768 kHz are
    unusable.
    Level: a recording whose peak is above 1 after all that (floats above full scale or the size of integers, overshoot
    of codecs and of the resampler) is scaled down to a peak of 1 as a whole; all others keep their level and offset.
    Unusable are silence (a range of at most one bit of 16 around any constant: denormals, an offset alone, a single
    sample), NaN or infinity anywhere, and files that are cut off: WAV, RF64, W64, AIFF, CAF and AU by their own chunk
    sizes (all ones is a stream's "unknown" and is read to the end; a size of 0 with samples behind it is refused), the
    others where fewer frames come out than the header declares. Ogg, and MP3 without a length tag, declare nothing:
    what is there is read.
    """
    if sample_rate <= 0 or channels <= 0:
        raise InputError(f"sample_rate is {sample_rate} and channels {channels}: both are at least 1")
    with _opened(path, channels) as (file, sound):
        heard = _Range()
        mixed = _mixed(_decoded(sound, file, heard), min(channels, sound.channels), heard)
        parts = _resampled(mixed, sound.samplerate, sample_rate)
        wave = _levelled(_joined(parts, sound.frames * sample_rate / sound.samplerate))
    return wave if wave.shape[1] == channels else np.repeat(wave, channels, axis=1)


def survey(path: str | Path, sample_rate: int, channels: int) -> Recording:
    """Reads a recording of any length block by block, to learn how long and how loud it is. Raises `Unusable` where
    `read` does, except for silence."""
    if sample_rate <= 0 or channels <= 0:
        raise InputError(f"sample_rate is {sample_rate} and channels {channels}: both are at least 1")
    with _opened(path, channels) as (file, sound):
        frames, heard = 0, _Range()
        for block in _converted(sound, file, sample_rate, channels):
            if len(block):
                frames += len(block)
                heard.add(block)
        about = (sound.samplerate, sound.channels)
    if not frames:
        raise Unusable("too short: not one sample at the wanted rate")
    scale = max(np.float32(1), heard.peak())
    if not np.isfinite(scale):
        raise Unusable("its samples are too large for the resampler")
    return Recording(path, sample_rate, channels, frames, float(heard.peak() / scale), scale, *about)


def blocks(recording: Recording) -> Iterator[np.ndarray]:
    """The samples of `read`, a block [some frames, channels] at a time, by a second pass over the file: the first one
    found the peak, which the scale of every block depends on."""
    with _opened(recording.path, recording.channels) as (file, sound):
        for block in _converted(sound, file, recording.sample_rate, recording.channels):
            wave = block / recording.scale if recording.scale > 1 else block
            yield wave if wave.shape[1] == recording.channels else np.repeat(wave, recording.channels, axis=1)


def write(path: str | Path, wave: np.ndarray, sample_rate: int) -> None:
    """Writes float `wave` [frames] or [frames, channels], clipped to [-1, 1], as .wav or .flac (16 bit), .ogg or .oga.

    Makes the folders above; the file appears whole or not at all. Raises `InputError`.
    """
    path, wave = Path(path), np.asarray(wave)
    _refuse_unknown(path)
    if wave.ndim not in (1, 2) or not wave.size or wave.dtype.kind in "iubc":
        raise InputError(f"{shown(path)}: wave is {wave.dtype} {wave.shape}, not float [frames] or [frames, channels]")
    wave = wave.astype(np.float32).reshape(len(wave), -1)
    _refuse_not_finite(path, wave)
    with writing(path, sample_rate, wave.shape[1], len(wave)) as add:
        add(wave)


@contextlib.contextmanager
def writing(path: str | Path, sample_rate: int, channels: int, frames: int) -> Iterator[Callable[[np.ndarray], None]]:
    """What `write` does, block by block: gives the function that takes the next float32 block [some frames, channels].

    frames: how many will come, about; a WAV that 32 bits can't measure becomes an RF64, which the same readers know.
    """
    path = Path(path)
    _refuse_unknown(path)
    container, coding = WRITTEN[path.suffix.lower()]
    if container == "WAV" and 2 * frames * channels > MOST_WAV:
        container = "RF64"
    shape = {"samplerate": sample_rate, "channels": channels, "format": container, "subtype": coding}
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(temporary, "xb") as file,
            soundfile.SoundFile(file.fileno(), "w", closefd=False, **shape) as sound,
        ):

            def add(wave: np.ndarray) -> None:
                _refuse_not_finite(path, wave)
                samples = to_int16(wave) if coding == "PCM_16" else wave.clip(-1, 1)
                for start in range(0, len(samples), sample_rate):  # libsndfile's Vorbis crashes on long arrays
                    sound.write(samples[start : start + sample_rate])

            yield add
        os.replace(temporary, path)
    except (OSError, soundfile.SoundFileError, AssertionError) as e:  # AssertionError: soundfile wrote less than asked
        reason = e.strerror if isinstance(e, OSError) else _reason(e)
        raise InputError(f"{shown(path)}: cannot be written ({reason}); choose another place") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def to_int16(wave: np.ndarray) -> np.ndarray:
    """x * 32768, rounded and clipped to int16: what came from a 16-bit file survives bit for bit. Shape is kept."""
    samples = np.empty(wave.shape, np.int16)
    for start in range(0, len(wave), BLOCK):  # in blocks: fresh memory costs more than the arithmetic
        block = wave[start : start + BLOCK] * np.float32(32768)
        samples[start : start + BLOCK] = np.clip(np.rint(block, out=block), -32768, 32767, out=block)
    return samples


@contextlib.contextmanager
def _opened(path: str | Path, channels: int) -> Iterator[tuple[BinaryIO, soundfile.SoundFile]]:
    """A file that is fit to be decoded; whatever is wrong with it, now or later, is raised as `Unusable`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Unusable("not a regular file")
        with open(path, "rb", buffering=0) as file:  # libsndfile goes on from the descriptor's position
            _refuse_truncated(file)
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                _refuse_implausible(sound, channels)
                yield file, sound
    except soundfile.SoundFileError as e:
        raise Unusable(_reason(e)) from e
    except OSError as e:
        raise Unusable(e.strerror or str(e)) from e


def _converted(sound: soundfile.SoundFile, file: BinaryIO, sample_rate: int, channels: int) -> Iterator[np.ndarray]:
    """Blocks at this rate, of 1 or `channels` channels, silence among them, at the level of the file."""
    heard = _Range()
    decoded = _even_silent(_decoded(sound, file, heard))
    yield from _resampled(_mixed(decoded, min(channels, sound.channels), heard), sound.samplerate, sample_rate)


def _even_silent(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    with contextlib.suppress(Silent):  # raised behind the last block
        yield from blocks


def _decoded(sound: soundfile.SoundFile, file: BinaryIO, heard: "_Range") -> Iterator[np.ndarray]:
    """Blocks [frames, channels], finite, their range in `heard`; raises if they were fewer than declared, or silent."""
    frames, dtype = 0, "int16" if sound.subtype == "PCM_16" else "float32"
    while len(block := sound.read(BLOCK, dtype=dtype, always_2d=True)):
        if dtype == "int16":  # the same numbers as libsndfile's own conversion, at three times its speed
            block = block * np.float32(1 / 32768)
        heard.add(block)
        if not (np.isfinite(heard.low).all() and np.isfinite(heard.high).all()):
            raise Unusable("holds NaN or infinite samples")
        frames += len(block)
        yield block
    if frames < sound.frames - (_mp3_slack(file, sound.frames) if sound.format == "MP3" else 0):
        raise Unusable(f"truncated: its header declares {sound.frames} frames, {frames} can be decoded")
    if not frames:
        raise Unusable("holds no samples")
    if heard.width() <= SILENT:  # an offset alone would not be silent any more after the resampler
        raise Silent("silent")


def _mixed(blocks: Iterable[np.ndarray], channels: int, before: "_Range") -> Iterator[np.ndarray]:
    """Blocks of `channels`: those of the file, or the mean of two; raises at the end where that cancelled them."""
    after = _Range()
    for block in blocks:
        if block.shape[1] == channels:
            yield block
            continue
        mean = 0.5 * block[:, :1] + 0.5 * block[:, 1:]
        after.add(mean)
        yield mean
    if -np.inf < after.width() < CANCELLED * before.width():
        raise Unusable("its two channels cancel: their mean is silent")


def _resampled(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    resampler = None
    for block in blocks:
        if rate == sample_rate:
            yield block
            continue
        resampler = resampler or soxr.ResampleStream(rate, sample_rate, block.shape[1], dtype="float32", quality="HQ")
        yield resampler.resample_chunk(block)
    if resampler:
        yield resampler.resample_chunk(block[:0], last=True)


def _joined(parts: Iterable[np.ndarray], expected: float) -> np.ndarray:
    """All parts end to end. Room is made for the frames that are expected, at most MOST_EXPECTED: what is not filled
    costs nothing, and to fill it once is faster than to keep all parts and join them."""
    joined, frames = None, 0
    for part in parts:
        if joined is None or frames + len(part) > len(joined):
            room = max(2 * (frames + len(part)), min(int(expected) + 1, MOST_EXPECTED))
            grown = np.empty((room, part.shape[1]), np.float32)
            grown[:frames] = joined[:frames] if frames else 0
            joined = grown
        joined[frames : frames + len(part)] = part
        frames += len(part)
    return joined[:frames]  # a file gives at least one block


def _levelled(wave: np.ndarray) -> np.ndarray:
    """The wave, scaled down to a peak of 1 where it is above; raises where nothing can be heard."""
    if not len(wave):
        raise Unusable("too short: not one sample at the wanted rate")
    heard = _Range()
    heard.add(wave)
    peak = heard.peak()
    if not np.isfinite(peak):
        raise Unusable("its samples are too large for the resampler")
    if heard.width() <= SILENT:
        raise Silent("silent")
    return wave / peak if peak > 1 else wave


class _Range:
    """Lowest and highest value of every channel, over blocks [frames, channels]."""

    low, high = np.float32(np.inf), np.float32(-np.inf)

    def add(self, block: np.ndarray) -> None:
        self.low = np.minimum(self.low, [column.min() for column in block.T])  # by column: axis=0 is four times slower
        self.high = np.maximum(self.high, [column.max() for column in block.T])

    def peak(self) -> np.float32:
        return max(-self.low.min(), self.high.max())

    def width(self) -> float:
        """Peak to peak, of the channel where it is largest."""
        return float(np.max(np.subtract(self.high, self.low, dtype=np.float64)))


def _refuse_unknown(path: Path) -> None:
    if path.suffix.lower() not in WRITTEN:
        raise InputError(f"{shown(path)}: cannot write '{path.suffix}'; name it one of {' '.join(WRITTEN)}")


def _refuse_not_finite(path: Path, wave: np.ndarray) -> None:
    if not np.isfinite(wave).all():
        raise InputError(f"{shown(path)}: the wave holds NaN or infinity")


def _refuse_implausible(sound: soundfile.SoundFile, channels: int) -> None:
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise Unusable(f"its header says {sound.samplerate} Hz, outside of {RATES[0]} to {RATES[1]} Hz")
    if sound.frames >= UNKNOWN_LENGTH:
        raise Unusable("its header does not say how long it is (written to a pipe?): convert it again, to a file")
    if sound.channels not in (1, channels) and (sound.channels, channels) != (2, 1):
        rule = f"only 1 to many and 2 to 1 are converted, mix it to {channels} first"
        raise Unusable(f"has {sound.channels} channels, wanted {channels}: {rule}")


class _Chunks(NamedTuple):
    """How a family of files lays out its chunks: an identity, a size, the content, padding."""

    first: int  # offset of the first chunk
    identity: int  # bytes of a chunk's identity
    size: str  # struct format of a chunk's size
    samples: bytes  # how the identity of the chunk of samples begins
    counts_itself: bool = False  # the size includes identity and size
    align: int = 2


_FAMILIES = {
    b"RIFF": _Chunks(12, 4, "<I", b"data"),
    b"RF64": _Chunks(12, 4, "<I", b"data"),
    b"RIFX": _Chunks(12, 4, ">I", b"data"),
    b"FORM": _Chunks(12, 4, ">I", b"SSND"),
    b"caff": _Chunks(8, 4, ">Q", b"data", align=1),
    b"riff": _Chunks(40, 16, "<Q", b"data", counts_itself=True, align=8),
}


def _refuse_truncated(file: BinaryIO) -> None:
    """Raises where the header declares more bytes of samples than there are: libsndfile shortens these silently."""
    declared, there = _samples_bytes(file)
    file.seek(0)
    if declared == 0 and there > 0:
        raise Unusable(f"its header declares 0 bytes of samples, {there} follow (written to a pipe?): convert it again")
    if declared > there:
        raise Unusable(f"truncated: its header declares {declared} bytes of samples, {there} are there")


def _samples_bytes(file: BinaryIO) -> tuple[int, int]:
    """Bytes of samples that the header declares, and that the file holds; (0, 0) where this header does not say."""
    end, magic = os.fstat(file.fileno()).st_size, file.read(4)
    if magic == b".snd" and len(head := file.read(8)) == 8:
        offset, declared = struct.unpack(">II", head)
        return (0, 0) if declared == 0xFFFFFFFF else (declared, max(0, end - offset))
    family, wide = _FAMILIES.get(magic), None
    if family is None:
        return 0, 0
    at = family.first
    head = family.identity + struct.calcsize(family.size)
    for _ in range(MOST_CHUNKS):
        if at + head > end:
            break
        file.seek(at)
        identity = file.read(family.identity)
        size = struct.unpack(family.size, file.read(head - family.identity))[0] - head * family.counts_itself
        if identity == b"ds64":
            wide = struct.unpack("<Q", file.read(16)[8:].ljust(8, b"\0"))[0]
        if identity.startswith(family.samples):
            if size == (1 << 8 * struct.calcsize(family.size)) - 1:  # a stream's mark, or RF64's: see ds64
                return (wide, end - at - head) if wide and wide < 1 << 63 else (0, 0)
            # Behind a true size of 0 other chunks may follow; behind a stream's 0 the file's own size is 0 as well.
            file.seek(4)
            streamed = size == 0 and file.read(4) == b"\0\0\0\0"
            return size, end - at - head if size or streamed else 0
        if size < 0:
            break
        at += head + size + -size % family.align
    return 0, 0


def _mp3_slack(file: BinaryIO, declared: int) -> int:
    """Frames that may be missing: without a length tag in its first frame an MP3's length is guessed by its rate."""
    file.seek(0)
    head = file.read(10)
    skip = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)) + 10
    file.seek(skip if head[:3] == b"ID3" else 0)
    first = file.read(2048)
    return MP3_SLACK if any(tag in first for tag in (b"Xing", b"Info", b"VBRI")) else declared


def _reason(error: Exception) -> str:
    """libsndfile's words as one short line."""
    words = " ".join(getattr(error, "error_string", str(error)).split()).rstrip(".")
    if "SF_INFO" in words:
        return "its header states an impossible rate or channel count"
    for noise in ("Error : ", "Internal error : "):
        words = words.removeprefix(noise)
    return words or "libsndfile cannot read it"
