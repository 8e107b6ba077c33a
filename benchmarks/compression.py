"""What a codec's streams cost and how they sound: a card of benchmarks.quality.

Scored are the stretches of recordings that the autoencoder's card is about, each a stream of its own. Rates are those
of the codes alone; what a file costs on top is a row of its own.
"""

import tempfile
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks.reconstruction import averaged, finite, heard, score
from benchmarks.recordings import clips_of, cut_into, in_batches, stretch
from benchmarks.scorecard import Card, Row
from jaxaudio.core import InputError
from jaxaudio.data import audio, bitstream
from jaxaudio.data.coder import Codec, known
from jaxaudio.data.pack import Pack
from jaxaudio.metrics import pairs as P
from jaxaudio.runtime.folder import Trained

CODED = 200  # recordings at most: each is coded, and decoded at every rate
PARTS = 3  # of the recording that is coded in parts, and at once: that takes memory
MOST_COST = 0.03  # of a container, over the codes
DISTANCES = ("mel_distance", "stft_distance", "si_sdr")  # of `P.METRICS`, at every rate


def of_codec(run: Trained, pack: Pack, split: str, n: int, how: Mapping[str, int]) -> Card:
    """Recordings as streams and back, `n` and CODED at most; how: `resamples` and `seed` of intervals, and of noise."""
    clips = clips_of(cut_into(run, stretch(run, pack, split, run.model.segment)), pack, split)
    real, left_out = heard(clips, min(n, CODED))
    model, codes, tables = run.model, coded(run, real), bitstream.tabled(np.asarray(run.params["usage"]))
    about = (model.sample_rate, model.channels, clips.segment, model.hop, model.codebooks, model.codebook_size)
    header, seconds = bitstream.Header("context", bytes(8), run.step, *about), clips.segment / model.sample_rate
    static = np.stack([static_bits(each, tables) for each in codes])
    context = np.stack([context_bits(each, tables, header.per_block) for each in codes])
    rows = rate_rows(header, {"static": static, "context": context}, seconds, how)
    rows += container_rows(header, codes, tables, context.sum(1) / 8, how)
    for books in counts(model.codebooks):
        made = sound_of(run, codes[..., :books], real.shape[1], how["seed"])
        listened = books == model.codebooks
        rows += distance_rows(real, made, model.sample_rate, named(books), listened, left_out, how)
    rows.append(parts_row(run, real))
    return Card("compressed", f"{len(real)} recordings ({split}) as codes, {seconds:.3g} s of each", rows, left_out)


def counts(codebooks: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
    return [*(1 << i for i in range((codebooks - 1).bit_length())), codebooks]


def named(books: int) -> str:
    """Of so many codebooks."""
    return f"{books} codebook{'s' * (books > 1)}"


def coded(run: Trained, waves: np.ndarray) -> np.ndarray:
    """All codes [recordings, frames, codebooks]; behind a recording are zeros. Raises InputError where one is none."""
    model, length = run.model, waves.shape[1]
    frames = -(-(length + model.delay) // model.hop)
    missing = (frames + model.reach) * model.hop - length
    program = jax.jit(lambda params, wave: model.codes(params, jnp.pad(wave, ((0, 0), (0, missing), (0, 0)))))
    most = max(1, model.batch_size * model.segment // length)  # what a training step has room for
    codes = in_batches(partial(program, run.params), waves, most=most)[:, :frames]
    try:
        return known(codes)
    except audio.Unusable as reason:
        raise InputError(f"{run.folder} at step {run.step}: {reason}") from reason


def sound_of(run: Trained, codes: np.ndarray, length: int, seed: int) -> np.ndarray:
    """The sound of codes, in time with what was encoded."""
    model = run.model

    @jax.jit
    def decode(params, codes, row):
        key = jax.random.fold_in(jax.random.key(seed), row[0])
        return model.decode(params, model.frames_of(params, codes), key)[:, model.delay : model.delay + length]

    most = max(1, model.batch_size * model.segment // length)
    return finite(run, in_batches(partial(decode, run.params), codes, np.arange(len(codes)), most=most))


# --------------------------------------------------------------------------------------------------------------- rates


def rate_rows(
    header: bitstream.Header, bits: Mapping[str, np.ndarray], seconds: float, how: Mapping[str, int]
) -> list[Row]:
    """Of 1, 2, 4, ... codebooks: as they are, and by each method.

    bits: of each recording and codebook. A codebook is coded knowing the coarser ones alone, so that the leading ones
    cost by themselves what they cost among all.
    """
    rows, n, each = [], len(bits["static"]), header.bits / header.seconds(1) / 1000
    for books in counts(header.codebooks):
        of = named(books)
        rows.append(Row(f"raw, {of}", each * books, None, None, n, "kbps", "", "codes as they are"))
        for name, cost in bits.items():
            values = cost[:, :books].sum(1) / seconds / 1000
            note = bitstream.saving(1 - values.mean() / (each * books))
            rows.append(averaged(f"{name}, {of}", values, how, "kbps", "lower", note))
    saved = 1 - bits["context"].sum(1) / seconds / 1000 / (each * header.codebooks)
    rows.append(averaged("saved by entropy coding", saved, how, "", "higher", "of raw codes; context, all codebooks"))
    return rows


def static_bits(codes: np.ndarray, tables: bitstream.Tables) -> Float[np.ndarray, "codebooks"]:
    """What the codes [frames, codebooks] of each codebook cost under its table."""
    share = tables.whole / tables.whole.sum(1, keepdims=True)
    return np.array([-np.log2(share[k, column]).sum() for k, column in enumerate(codes.T)])


def context_bits(codes: np.ndarray, tables: bitstream.Tables, per_block: int) -> Float[np.ndarray, "codebooks"]:
    """The same as the method context has it."""
    bits = np.zeros(codes.shape[1])
    for start in range(0, len(codes), per_block):
        block = codes[start : start + per_block]
        for k, column in enumerate(block.T):
            likely = bitstream.likely(tables, k, bitstream.behind(block, k))
            bits[k] -= np.log2(likely[np.arange(len(column)), column] / likely.sum(1)).sum()
    return bits


# ----------------------------------------------------------------------------------------------------------- container


def container_rows(
    header: bitstream.Header, codes: np.ndarray, tables: bitstream.Tables, worth: np.ndarray, how: Mapping[str, int]
) -> list[Row]:
    """What files take over the bytes that their codes are `worth`, and from which length on that is little."""
    spare = np.array([file_size(header, each, tables) for each in codes]) - worth
    seconds = header.length / header.sample_rate
    note = f"{spare.mean():.1f} bytes of {np.mean(worth + spare):.0f} in a file of {seconds:.3g} s, all codebooks"
    cost = averaged("container over codes", spare / worth, how, "", "lower", note)
    enough = spare.mean() / MOST_COST / (worth.mean() / seconds)
    note = f"from which on the container costs less than {MOST_COST:.0%}, at this rate"
    return [cost, Row("length of a cheap container", enough, None, None, len(codes), "s", "lower", note)]


def file_size(header: bitstream.Header, codes: np.ndarray, tables: bitstream.Tables) -> int:
    """Bytes of a stream."""
    with tempfile.TemporaryFile() as file:
        bitstream.write(file, header, [codes.astype(np.int32)], tables)
        return file.tell()


# ---------------------------------------------------------------------------------------------------------------- sound


def distance_rows(
    real: np.ndarray,
    made: np.ndarray,
    sample_rate: int,
    of: str,
    listened: bool,
    left_out: list[str],
    how: Mapping[str, int],
) -> list[Row]:
    """How far sounds are from the recordings and, if they are to be `listened` to, what models of listeners say."""
    rows, listeners = [], [name for name, entry in P.METRICS.items() if entry.extra]
    for metric in (*DISTANCES, *(listeners if listened else ())):
        name, entry = f"{metric.replace('_', ' ')}, {of}", P.METRICS[metric]
        try:
            values = score(metric, real, made, sample_rate)
            rows.append(averaged(name, values, how, entry.unit, entry.better, entry.convention))
        except InputError as reason:
            left_out.append(f"{name}: {reason}")
    return rows


def parts_row(run: Trained, real: np.ndarray) -> Row:
    """Whether a long recording, all stretches one behind the other, has the same codes in parts and at once."""
    codec = Codec(run.model, run.params, 0)
    most = PARTS * codec.most * run.model.hop
    wave = real.reshape(-1, real.shape[2])
    wave = np.tile(wave, (-(-most // len(wave)), 1))[:most]
    parts = np.concatenate(list(codec.codes([wave], len(wave))))
    differing = int(np.sum(parts != coded(run, wave[None])[0]))
    seconds = len(wave) / run.model.sample_rate
    note = f"of {parts.size} codes of {seconds:.3g} s: in parts of {codec.most} frames, and at once"
    return Row("codes that parts change", differing, None, None, parts.size, "", "lower", note)
