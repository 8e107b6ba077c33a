"""The sounds of a run's report: players, each under the spectrogram of what it plays."""

import functools
import io
import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import soundfile

from jaxaudio.runtime.report_page import data_uri, text

FLOOR_DB, CEILING_DB = -90.0, -10.0  # of every spectrogram in the page; a sine at full scale is at 0 dB
COLUMNS, ROWS = 192, 128  # of a spectrogram's picture, at most
MAGMA = """000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779
d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf"""
LEVELS = 64  # colours: more cost room, and nobody sees them
EARLIER_STEPS, EARLIER_SOUNDS = 24, 4  # embedded, at most; of the last step as many as there is room for
LAST_SHARE = 0.6  # of the room, for the sounds of the last step
SHEET_SHARE = 0.2  # of the room, for each of the two sheets
OVERHEAD = 28_000  # bytes of a player beside its recording, at most: picture and text


class Sound(NamedTuple):
    """samples/STEP-INDEX-TITLE.wav"""

    step: int
    index: int
    title: str
    path: Path
    size: int  # bytes

    def cost(self) -> int:
        """Bytes that it takes in the page, at most."""
        return self.size * 4 // 3 + OVERHEAD


class Sampled(NamedTuple):
    """What one evaluation left in samples/."""

    step: int
    sounds: list[Sound]
    sheet: Path | None


def find(folder: Path) -> list[Sampled]:
    """All evaluations whose samples lie in this folder, the first one first."""
    found: dict[int, Sampled] = {}
    try:
        entries = list(os.scandir(folder))
    except OSError:  # not there yet
        return []
    for entry in entries:
        match = re.fullmatch(r"(\d{1,15})(?:\.png|-(\d{1,9})(?:-(.*))?\.wav)", entry.name, re.DOTALL)
        if match is None or not entry.is_file():
            continue
        step, path, size = int(match[1]), folder / entry.name, _size(entry)
        sampled = found.setdefault(step, Sampled(step, [], None))
        if match[2] is None:
            found[step] = sampled._replace(sheet=path)
        else:
            sampled.sounds.append(Sound(step, int(match[2]), match[3] or "", path, size))
    for sampled in found.values():
        sampled.sounds.sort()
    return [found[step] for step in sorted(found)]


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # deleted since it was listed: reading it will say so
        return 0


def section(folder: Path, room: int) -> str:
    """Players for the sounds in samples/, in at most `room` bytes: the last step's, real recordings beside it, and some
    of the earlier steps', evenly spread. What there is no room for is named."""
    sampled = find(folder)
    if not sampled:
        return "<p>No samples yet: they come with the first evaluation.</p>"
    *earlier, last = sampled
    sheets, spent = _sheets(last, folder, int(SHEET_SHARE * room))
    room -= spent
    players, spent = _players(last.sounds, int(LAST_SHARE * room) if earlier else room)
    chosen, per = choose(earlier, room - spent)
    rows, embedded, room = [], {last.step}, room - spent
    for one in reversed(chosen):
        row, spent = _players(one.sounds[:per], room)
        room -= spent
        if row:
            embedded.add(one.step)
            of = "" if len(row) == len(one.sounds) else f" <small>{len(row)} of {len(one.sounds)}</small>"
            rows.append(f'<h3>Step {one.step:,}{of}</h3><div class="players">{"".join(row)}</div>')
    parts = [_last(last, players), sheets]
    if rows:
        parts.append(f"<details><summary>Earlier steps ({len(rows)})</summary>{''.join(rows)}</details>")
    return "".join(parts) + _listed([one for one in sampled if one.step not in embedded], embedded)


def choose(earlier: Sequence[Sampled], room: int) -> tuple[list[Sampled], int]:
    """Which of the earlier steps fit into `room` bytes, and how many sounds of each: rather fewer sounds than steps."""
    candidates = [one for one in earlier if one.sounds]
    chosen, per = [], 0
    for per in (EARLIER_SOUNDS, 2, 1):
        cost = max((sum(sound.cost() for sound in one.sounds[:per]) for one in candidates), default=1)
        count = min(len(candidates), EARLIER_STEPS, max(0, room) // cost)
        # The last step comes behind them: all spread evenly from the first to that one.
        at = np.linspace(0, len(candidates), count + 1)[:-1].round().astype(int)
        chosen = [candidates[i] for i in at]
        if count >= min(len(candidates), 8):
            break
    return chosen, per


def player(sound: Sound, content: bytes) -> str:
    """One sound [a WAV file's bytes] to play, with its picture. Raises soundfile.SoundFileError where it is damaged."""
    wave, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    seconds = max(len(wave), 1) / rate
    title = sound.title or f"sound {sound.index}"
    name = text(f"{title}, sound {sound.index} of step {sound.step}")
    picture = data_uri(spectrogram(np.nan_to_num(wave).mean(1), rate), "image/png")
    length = f"{seconds * 1000:.3g} ms" if seconds < 0.1 else f"{seconds:.2f} s"
    kilohertz = f"{rate / 2000:.4g} kHz"
    return (
        f'<figure class="player" data-seconds="{seconds:.6f}" data-name="{name}">'
        f'<div class="spectrum"><div class="axis kilohertz"><span>{kilohertz}</span><span>0</span></div>'
        f'<div class="view" role="slider" tabindex="0" aria-label="Position in {name}" aria-valuemin="0" '
        f'aria-valuemax="{seconds:.2f}" aria-valuenow="0"><img src="{picture}" decoding="async" '
        f'alt="Spectrogram of {name}: 0 to {length}, 0 to {kilohertz}"><span class="cursor"></span></div>'
        f'<div class="axis seconds"><span>0</span><span>{length}</span></div></div>'
        f'<figcaption><button class="play" type="button" aria-label="Play {name}"></button>'
        f"<span>{text(title)} <small>{sound.index:03d}</small></span><output></output></figcaption>"
        f'<audio controls preload="none" aria-label="{name}" src="{data_uri(content, "audio/wav")}"></audio></figure>'
    )


def spectrogram(wave: np.ndarray, sample_rate: int) -> bytes:
    """A PNG of a mono wave [time]: time to the right, frequency up to half the sample rate, colour from FLOOR_DB to
    CEILING_DB. Windows of about 20 ms, all of the wave in them; a pixel of a long one is a mean over several."""
    size = 1 << max(5, min(round(np.log2(0.02 * sample_rate)), int(np.log2(max(len(wave), 64) / 4))))
    columns = max(1, min(COLUMNS, len(wave)))
    pool = max(1, -(-2 * len(wave) // (columns * size)))  # windows per column, half overlapping at least
    centres = (np.arange(columns * pool) + 0.5) * len(wave) / (columns * pool)
    padded = np.pad(wave, size)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
    cut = padded[(centres.astype(int) + size // 2)[:, None] + np.arange(size)] * window
    spectrum = np.fft.rfft(cut)[:, : size // 2]
    power = (spectrum.real**2 + spectrum.imag**2).reshape(columns, pool, -1).mean(1)
    rows = min(ROWS, size // 2)
    if rows < size // 2:  # both are powers of two; the highest in a pixel, so that a sine keeps its level
        power = power.reshape(columns, rows, -1).max(2)
    level = 10 * np.log10(power / (window.sum() / 2) ** 2 + 1e-20)
    shade = np.clip((level - FLOOR_DB) / (CEILING_DB - FLOOR_DB), 0, 1) * (LEVELS - 1)
    return _png(np.ascontiguousarray(shade.round().astype(np.uint8).T[::-1]))


@functools.cache
def colours() -> np.ndarray:
    """The scale of all spectrograms [LEVELS, RGB], dark to bright."""
    anchors = np.frombuffer(bytes.fromhex(MAGMA), np.uint8).reshape(-1, 3)
    at = np.linspace(0, len(anchors) - 1, LEVELS)
    scale = [np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.stack(scale, 1).round().astype(np.uint8)


def _png(shades: np.ndarray) -> bytes:
    """A picture [height, width] of indices into `colours`."""
    height, width = shades.shape
    rows = np.pad(shades, ((0, 0), (1, 0)))  # each row begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)  # for noise half the time of the default, and smaller
    packed = packer.compress(rows.tobytes()) + packer.flush()
    chunks = {b"IHDR": header, b"PLTE": colours().tobytes(), b"IDAT": packed, b"IEND": b""}
    framed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _players(sounds: Sequence[Sound], room: int) -> tuple[list[str], int]:
    """Players for these sounds as far as there is room, and the bytes that they take."""
    made, spent = [], 0
    for sound in sounds:
        if spent + sound.cost() > room:
            break
        try:
            made.append(player(sound, sound.path.read_bytes()))
            spent += len(made[-1].encode())
        except (OSError, soundfile.SoundFileError):
            made.append(f'<p class="bad">{text(sound.path.name)} can\'t be read.</p>')
    return made, spent


def _last(last: Sampled, players: Sequence[str]) -> str:
    if not last.sounds:
        return f"<h3>Step {last.step:,}</h3>"
    count = f"all {len(players)} sounds" if len(players) == len(last.sounds) else (
        f"{len(players)} of {len(last.sounds)} sounds; the others lie in <code>samples/</code>"
    )  # fmt: skip
    stops = ", ".join(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours()[::9].tolist())
    play_all = '<button class="all" type="button" data-of="last-step">Play all</button>' if len(players) > 1 else ""
    return (
        f"<h3>Step {last.step:,} <small>{count}</small> {play_all}</h3>"
        f'<p class="scale soft"><small>{FLOOR_DB:.0f} dB</small>'
        f'<i style="background:linear-gradient(90deg,{stops})"></i>'
        f"<small>{CEILING_DB:.0f} dB</small></p>"
        f"<p><small>One scale for all sounds here: 0 dB is a sine at full scale. Click a spectrogram to hear it "
        f"from there.</small></p>"
        f'<div class="players" id="last-step">{"".join(players)}</div>'
    )


def _sheets(last: Sampled, folder: Path, room: int) -> tuple[str, int]:
    """The last step's sheet and the real recordings', side by side, and the bytes that they take; of a model that
    restores between them what it was given."""
    figures = ""
    wanted = [(last.sheet, f"Made, step {last.step:,}")]
    wanted += [(folder / "damaged.png", "Damaged, as it was given"), (folder / "real.png", "Real, held out")]
    for path, title in wanted:
        if path is not None and path.is_file():
            figures += (
                f"<figure><figcaption>{title}</figcaption>{picture(path, f'Spectrograms: {title}', room)}</figure>"
            )
    note = '<p class="soft">Spectrograms, each sheet in decibels below its own loudest bin.</p>'
    block = f'<div class="sheets">{figures}</div>{note}' if figures else ""
    return block, len(block.encode())


def picture(path: Path, title: str, room: int) -> str:
    """A picture file embedded, to be enlarged by a click; where it takes more than `room` bytes, a link to it."""
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
    address = f"{quote(path.parent.name, errors='surrogateescape')}/{quote(path.name, errors='surrogateescape')}"
    try:
        if path.stat().st_size * 4 // 3 + 500 > room or path.suffix.lower() not in kinds:
            return f'<p><a href="{address}">{text(path.name)}</a> lies beside this page.</p>'
        source = data_uri(path.read_bytes(), kinds[path.suffix.lower()])
    except OSError:
        return f'<p class="bad">{text(path.name)} can\'t be read.</p>'
    return (
        f'<button class="zoom" type="button" aria-expanded="false" aria-label="Enlarge: {text(title)}">'
        f'<img class="picture" src="{source}" alt="{text(title)}"></button>'
    )


def _listed(others: Sequence[Sampled], embedded: set[int]) -> str:
    """Every step that is not embedded, with a link to its sheet; says which are."""
    if not others:
        return '<p class="soft">Every evaluation is embedded; all files lie in <code>samples/</code>.</p>'
    links = [
        f'<a href="samples/{quote(one.sheet.name)}">{one.step:,}</a>' if one.sheet else f"{one.step:,}"
        for one in others
    ]
    steps = ", ".join(f"{step:,}" for step in sorted(embedded))
    return (
        f'<p class="soft">Embedded in this page: steps {steps}. The others lie in <code>samples/</code> '
        f"beside it:</p><details><summary>{len(others)} more evaluations</summary><p>{', '.join(links)}</p></details>"
    )
