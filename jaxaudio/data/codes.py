"""The codes of a pack's recordings, made once by a codec, and batches of them.

They lie in the cache as a pack of their own, whose samples are frames and whose channels are codebooks, under a key of
the recordings' fingerprint and the codec's identity: it is made, kept and found again as any other (data/pack.py). A
sample is a code and one more, since a recording of zeros alone counts as silent there. Example n of a run is the
stretch that `Clips` would cut, in frames; a shorter recording is followed by the codes of silence.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxaudio.core import Batch, Composes, InputError
from jaxaudio.data import audio
from jaxaudio.data.clips import Clips, Plan
from jaxaudio.data.layouts import SPLITS, Entry, Layout
from jaxaudio.data.pack import Pack, open_pack

VERSION = 1  # of what is kept here: part of every key
MOST = 2**15 - 1  # values of a code: one more than the last is an int16
QUIET = 101  # frames of silence that are coded; the one in their middle is what silence is

# A recording as the codec hears it, in blocks [some, channels], and its length in samples -> [frames, codebooks].
Code = Callable[[Iterable[np.ndarray], int], np.ndarray]


@dataclass(frozen=True, eq=False)
class CodePack(Pack):
    """Recordings as frames of codes: lengths and starts are frames, channels are codebooks, samples are codes + 1. The
    fingerprint is that of the recordings, since the last bits of a codec's sums may differ from machine to machine."""

    silence: np.ndarray  # int32 [codebooks]: the codes of a frame of silence


class Coded:
    """The codes of a pack's recordings as a source. `codec` tells the codec from others, model: what learns them."""

    def __init__(self, pack: Pack, model: Composes, codec: str, code: Code) -> None:
        if model.codebook_size > MOST:
            raise InputError(f"codebook_size is {model.codebook_size}: codes of {MOST} values at most are kept")
        self.pack, self.model, self.code = pack, model, code
        self.sample_rate, self.channels = pack.sample_rate, model.codebooks
        about = (VERSION, pack.fingerprint, codec, model.gain)
        self.key = hashlib.blake2b(repr(about).encode(), digest_size=16).hexdigest()
        self.layout = Layout(pack.layout, tuple(map(self._entry, range(len(pack.names)))))

    def __str__(self) -> str:
        return "the codes of the recordings"

    def _entry(self, i: int) -> Entry:
        pack = self.pack
        label = pack.classes[pack.label[i]] if pack.classes else None
        group = pack.groups[pack.group[i]] if pack.group[i] >= 0 else None
        return Entry(pack.names[i], label, SPLITS[pack.split[i]], group)

    def read(self, i: int) -> np.ndarray:
        """The codes of recording i, as a pack takes samples; raises `audio.Unusable`. Holds a block of its sound."""
        pack, model = self.pack, self.model
        full = pack.peak[i] if model.gain == "peak" else 32768
        wave, gain = pack.samples[pack.start[i] : pack.start[i] + pack.length[i]], np.float32(1 / full)
        blocks = (wave[first : first + audio.BLOCK] * gain for first in range(0, len(wave), audio.BLOCK))
        codes = np.asarray(self.code(blocks, len(wave)))
        if codes.ndim != 2 or codes.shape[1] != model.codebooks:
            raise InputError(f"the codec's codes are {list(codes.shape)}: wanted [frames, {model.codebooks}]")
        if codes.min() < 0 or codes.max() >= model.codebook_size:
            raise audio.Unusable(f"its codes are {codes.min()} to {codes.max()}, not 0 to {model.codebook_size - 1}")
        return ((codes + 1) / 32768).astype(np.float32)


def open_codes(pack: Pack, model: Composes, codec: str, code: Code, cache: Path | None = None) -> CodePack:
    """The codes of the recordings in `pack` by this codec, from the cache or made now, one recording at a time.

    Raises `InputError` as `open_pack` does, and where codes can't be kept.
    """
    made, nothing = (open_pack(Coded(each, model, codec, code), cache, 1) for each in (pack, quiet(pack, model)))
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(Pack)}
    fields |= {"fingerprint": pack.fingerprint, "rejected": (*pack.rejected, *made.rejected)}
    return CodePack(**fields, silence=nothing.samples[len(nothing.samples) // 2].astype(np.int32) - 1)


def quiet(pack: Pack, model: Composes) -> Pack:
    """One recording of silence."""
    samples = np.zeros((QUIET * model.hop, pack.channels), np.int16)
    one = {"start": 0, "length": len(samples), "peak": 32768, "label": 0, "group": -1, "split": 0}
    one = {name: np.full(1, value, getattr(pack, name).dtype) for name, value in one.items()}
    named = {"names": ("silence",), "classes": (), "groups": (), "layout": "silence", "rejected": ()}
    return dataclasses.replace(pack, samples=samples, fingerprint=f"silence, {samples.shape}", **one, **named)


class CodeClips(Clips):
    """The examples that one split of codes gives a model. Plans are in frames."""

    def __init__(self, pack: CodePack, model: Composes, seed: int, split: str = "train", noise: None = None):
        frames = dataclasses.replace(model, segment=model.segment // model.hop, hop=1, gain="none")
        say = lambda words: str(words).replace("samples", "frames of codes")
        try:
            super().__init__(pack, frames, seed, split, noise)
        except InputError as reason:
            raise InputError(say(reason)) from reason
        self.left_out = tuple((name, say(reason)) for name, reason in self.left_out)
        self.silence, self.waveless = pack.silence, (0, model.channels)

    def gather(self, plan: Plan) -> Batch:
        """The planned examples, on the host: given int32 [rows, frames, codebooks]."""
        rows = len(plan.start)
        given = np.tile(self.silence, (rows, self.segment, 1))
        for out, start, length in zip(given, plan.start, plan.length, strict=True):
            out[:length] = self.samples[start : start + length]
            out[:length] -= 1
        return Batch(np.zeros((rows, *self.waveless), np.float32), plan.label, given=given)
