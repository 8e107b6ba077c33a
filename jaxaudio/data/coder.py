"""Recordings of any length through a codec or another autoencoder: to latents or codes, and back."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxaudio.core import Encodes, InputError, Params, Quantizes
from jaxaudio.data.parts import FADE, Recorder, finite, through
from jaxaudio.runtime.folder import Trained

PART_SECONDS = 20.0  # of a recording that are processed at once


def why_no_codes(trained: Trained) -> str:
    """Why the model turns no sound into codes; empty where it does. A codec may also have a continuous latent."""
    model = trained.model
    if not isinstance(model, Quantizes):
        return "this model makes no codes"
    try:
        jax.eval_shape(model.codes, trained.params, jax.ShapeDtypeStruct((1, model.hop, model.channels), jnp.float32))
    except InputError as reason:
        return str(reason)
    return ""


def has_codes(trained: Trained) -> bool:
    """Whether the model turns sound into codes."""
    return not why_no_codes(trained)


def known(codes: np.ndarray) -> np.ndarray:
    """The same codes. Raises `audio.Unusable` where some are none, as what is not finite gives: less than 0."""
    finite(np.where(codes < 0, np.nan, 0))
    return codes


class Codec(Recorder):
    """A model that encodes and its parameters, for recordings of any length, in parts: beyond the end of a recording
    are zeros, beyond the end of latents and codes their last frame."""

    def __init__(self, model: Encodes, params: Params, seed: int):
        super().__init__(model)
        self.params, self.key = params, jax.random.key(seed)
        self.encode, self.decode = jax.jit(model.encode), jax.jit(model.decode)
        if isinstance(model, Quantizes):
            tell = lambda params, codes, key, first: model.decode(params, model.frames_of(params, codes), key, first)
            self.quantize, self.tell = jax.jit(model.codes), jax.jit(tell)
        self.most = max(-(-round(PART_SECONDS * model.sample_rate) // model.hop), 4 * (2 * model.reach + FADE))

    def frames(self, length: int) -> int:
        """Latent frames of so many samples: the last ones are for what comes out late."""
        return -(-(length + self.model.delay) // self.model.hop)

    def latents(self, blocks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
        """The latent frames [some, n] of sound that comes in blocks [some, channels], `length` samples in all."""
        encode, rows = lambda start, part: self.encode(self.params, part), (self.model.hop, 1)
        return through(encode, blocks, self.frames(length), rows, self.most, self.model.reach, "constant")

    def codes(self, blocks: Iterable[np.ndarray], length: int, used: int | None = None) -> Iterator[np.ndarray]:
        """The codes [some, codebooks] of such sound, those of the `used` leading codebooks. Raises `audio.Unusable`
        where some are none."""
        quantize, rows = lambda start, part: self.quantize(self.params, part), (self.model.hop, 1)
        parts = through(quantize, blocks, self.frames(length), rows, self.most, self.model.reach, "constant", fade=0)
        return (known(part)[:, :used] for part in parts)

    def sound(self, latents: Iterable[np.ndarray], length: int, loud: float) -> Iterator[np.ndarray]:
        """The sound of latent frames [some, n], in time with what was encoded, times `loud`."""
        return self.back(self.decode, latents, length, loud)

    def sound_of(self, codes: Iterable[np.ndarray], length: int, loud: float) -> Iterator[np.ndarray]:
        """The same of codes [some, codebooks]."""
        return self.back(self.tell, codes, length, loud)

    def back(
        self, program: Callable[..., jax.Array], frames: Iterable[np.ndarray], length: int, loud: float
    ) -> Iterator[np.ndarray]:
        """The sound that `program` makes of frames."""
        decode, rows = lambda start, part: program(self.params, part, self.key, start), (1, self.model.hop)
        late, left = self.model.delay, length
        for block in through(decode, frames, self.frames(length), rows, self.most, self.model.reach, "edge"):
            wave = block[min(late, len(block)) :][:left]
            late, left = max(0, late - len(block)), left - len(wave)
            if len(wave):
                yield wave * np.float32(loud)
