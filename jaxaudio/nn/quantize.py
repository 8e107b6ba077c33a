"""Quantisation: latent frames become codes, a few small whole numbers per frame, and codes become latent frames again.

Residual vector quantisation: each codebook takes the row nearest to what the codebooks before it left over, and the
frame is the sum of the rows; so the leading codes of a frame are a coarser frame. `Factorised` learns its codebooks by
gradient (Kumar et al. 2023, the Descript codec), `Averaged` by moving averages of what fell to each row (Zeghidour et
al. 2021, SoundStream; Défossez et al. 2022, EnCodec), and `Scalar` has none to learn (Mentzer et al. 2023).

All three are called with a latent, with how many codebooks count in each example (`kept`, the quantiser dropout; None:
all), and with the shard. `restored` makes codes, or the leading ones of each frame, a latent again: bit for bit the one
that the call with these codes gave. Gradients pass straight through: as if nothing had been rounded.

Everything here is float32, and so are its products on every device: an accelerator's own, of two or three digits, would
take a row that is not the nearest for 1.2 % of the codes in bfloat16 and 0.1 % in TF32 (Gaussian queries, 1024 rows of
8 dimensions), each time leaving more to the codebooks behind.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxaudio.core import Codes, Latent, Shard
from jaxaudio.nn.conv import normalised
from jaxaudio.nn.stream import INIT

Kept = Int[Array, "batch"] | None
Rows = Float[Array, "rows latent"]
Tables = Mapping[str, Array]  # "embedding" and "average" [codebooks, size, latent], "count" [codebooks, size]

COUNTED = ("latent", "commitment", "codebook")  # what leaves out the codebooks that do not count
product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Quantised(NamedTuple):
    """A latent made of codes, and two losses of equal value, summed over the codebooks that count."""

    latent: Latent
    codes: Codes
    commitment: Float[Array, "batch"]  # how far the latent is from its codes: pulls at the encoder
    codebook: Float[Array, "batch"]  # how far the codes are from the latent: pulls at the codebooks


class Factorised(nn.Module):
    """The Descript codec's residual quantiser: each codebook looks up in a space of few dimensions of its own, by
    angle. All codebooks run for every example; what `kept` leaves out is missing in the sum and in the losses."""

    codebooks: int
    size: int
    dim: int

    def setup(self):
        self.codebook = [Codebook(self.size, self.dim) for _ in range(self.codebooks)]

    def __call__(self, z: Latent, kept: Kept, shard: Shard) -> Quantised:
        del shard
        left, found = z.astype(jnp.float32), []
        for i, codebook in enumerate(self.codebook):
            part = codebook(left)
            left = left - part.latent
            found.append(part._replace(**{name: counted(getattr(part, name), i, kept) for name in COUNTED}))
        return joined(found)

    def restored(self, codes: Codes) -> Latent:
        return sum(self.codebook[i].restored(codes[..., i]) for i in range(codes.shape[-1]))


class Codebook(nn.Module):
    """One codebook of `Factorised`. The row that is taken is the one whose direction is nearest, at its own length."""

    size: int
    dim: int

    def setup(self):
        self.into, self.out = Projection(), Projection()
        self.rows = self.param("rows", nn.initializers.normal(1.0), (self.size, self.dim))

    def __call__(self, left: Latent) -> Quantised:
        query = self.into(left, self.dim)
        fixed, rows = jax.lax.stop_gradient((query, self.rows))
        length = jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        codes = largest(product(fixed, (rows / length).T))  # the query's own length does not move its largest
        taken = row(self.rows, codes)
        commitment, codebook = apart(query, jax.lax.stop_gradient(taken)), apart(taken, fixed)
        return Quantised(self.out(through(query, taken), left.shape[-1]), codes[..., None], commitment, codebook)

    def restored(self, codes: Int[Array, "batch frames"]) -> Latent:
        return self.out(row(self.rows, codes), self.into.variables["params"]["kernel"].shape[0])


class Projection(nn.Module):
    """A convolution of one tap with weight norm: [batch, frames, in] -> [batch, frames, features]."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames inner"], features: int) -> Float[Array, "batch frames outer"]:
        kernel = normalised(self, self.param("kernel", INIT, (x.shape[-1], features)), -1)
        return product(x, kernel) + self.param("bias", nn.initializers.zeros, (features,)).reshape(1, 1, -1)


class Averaged(nn.Module):
    """A residual quantiser whose codebooks follow the latent: no gradient reaches them, and the codebook loss is 0.

    Its tables are the collection "codebooks", which a call only reads. `start` makes them of a batch, and `follow`
    takes them a batch further: once before the first step, and once in every step.
    """

    codebooks: int
    size: int

    @nn.compact
    def __call__(self, z: Latent, kept: Kept, shard: Shard) -> Quantised:
        del shard
        shape = (self.codebooks, self.size, z.shape[-1])
        tables = self.variable("codebooks", "embedding", lambda: jax.random.normal(self.make_rng("params"), shape))
        self.variable("codebooks", "average", jnp.zeros, shape)
        self.variable("codebooks", "count", jnp.zeros, shape[:2])
        z = z.astype(jnp.float32)
        left, found = z, []
        for i, table in enumerate(jax.lax.stop_gradient(tables.value)):
            codes = nearest(jax.lax.stop_gradient(left), table)
            taken = row(table, codes)
            commitment = counted(apart(left, taken), i, kept)
            found.append(Quantised(counted(taken, i, kept), codes[..., None], commitment, jnp.zeros(len(z))))
            left = left - taken
        whole = joined(found)
        return whole._replace(latent=through(z, whole.latent))

    def restored(self, codes: Codes) -> Latent:
        tables = self.get_variable("codebooks", "embedding")
        return sum(row(tables[i], codes[..., i]) for i in range(codes.shape[-1]))


class Scalar(nn.Module):
    """Finite scalar quantisation. Every codebook has len(levels) components of the latent to itself, and rounds each to
    one of so many levels; its code counts all their combinations, the first component fastest.

    So all codebooks are of one size, the product of the levels, and the latent has codebooks * len(levels) components.
    A codebook that does not count gives zeros, which are levels too. There are no losses.
    """

    codebooks: int
    levels: Sequence[int]  # each from 2 on

    def __call__(self, z: Latent, kept: Kept, shard: Shard) -> Quantised:
        del shard
        levels, half, scale = self.sizes()
        bound = (levels - 1) * (1 - 1e-3) / 2
        offset = np.where(levels % 2 == 1, 0.0, 0.5)
        shift, bound, offset = (x.astype(np.float32) for x in (np.tan(offset / bound), bound, offset))
        grouped = z.astype(jnp.float32).reshape(*z.shape[:2], self.codebooks, -1)
        bounded = jnp.tanh(grouped + shift) * bound - offset
        whole = jnp.round(jax.lax.stop_gradient(bounded))
        codes = jnp.sum((whole.astype(jnp.int32) + half) * scale, -1)
        latent = through(bounded, whole) / half.astype(np.float32)
        if kept is not None:
            latent = jnp.where(jnp.arange(self.codebooks).reshape(1, 1, -1, 1) < kept.reshape(-1, 1, 1, 1), latent, 0)
        nothing = jnp.zeros(len(z))
        return Quantised(latent.reshape(z.shape), codes, nothing, nothing)

    def restored(self, codes: Codes) -> Latent:
        levels, half, scale = self.sizes()
        whole = codes[..., None] // scale % levels - half
        latent = whole.astype(jnp.float32) / half.astype(np.float32)
        missing = ((0, 0), (0, 0), (0, self.codebooks - codes.shape[-1]), (0, 0))
        return jnp.pad(latent, missing).reshape(*codes.shape[:2], -1)

    def sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The levels, the level that is zero, and what one level adds to the code, each [1, 1, 1, components]."""
        levels = np.asarray(self.levels, np.int32).reshape(1, 1, 1, -1)
        scale = np.concatenate([[1], np.cumprod(self.levels[:-1])]).astype(np.int32)
        return levels, levels // 2, scale.reshape(levels.shape)


def start(z: Latent, codebooks: int, size: int, shard: Shard, key: Key[Array, ""], rounds: int = 50) -> Tables:
    """Tables for `Averaged`: k-means, codebook by codebook, of the latent frames of a batch. Every device does all."""
    rows = shard.gather(flat(z))

    def one(left: Rows, key: Key[Array, ""]) -> tuple[Rows, Tables]:
        def refined(_, table: Rows) -> Rows:
            average, count = tally(left, nearest(left, table), size)
            return jnp.where(count[:, None] > 0, average / jnp.maximum(count, 1)[:, None], table)

        table = jax.lax.fori_loop(0, rounds, refined, drawn(left, size, key))
        codes = nearest(left, table)
        average, count = tally(left, codes, size)
        return left - row(table, codes), {"embedding": table, "average": average, "count": count}

    return jax.lax.scan(one, rows, jax.random.split(key, codebooks))[1]


def follow(tables: Tables, z: Latent, decay: float, shard: Shard, key: Key[Array, ""], least: float = 2.0) -> Tables:
    """The tables of `Averaged`, one batch further: moving averages of the rows of the whole batch that fell to each
    code, and of their count. (The papers' decay is 0.99.)

    A code whose average count falls below `least` (2: the papers') becomes a row drawn from the batch, with the average
    count of all codes to begin with. That average is rows / size: where half of it is less than `least`, it is the
    limit, or a small batch would draw all codes anew in every step. (The public code of EnCodec keeps the old averages
    of such a code, so that its next line undoes the draw, and starts sums as if every code had come up once.)
    """
    size = tables["count"].shape[1]

    def one(left: Rows, given: tuple[Tables, Key[Array, ""]]) -> tuple[Rows, Tables]:
        table, key = given
        codes, everyones = nearest(left, table["embedding"]), shard.gather(left)
        share = len(everyones) / len(left)
        sums = [share * x for x in shard.mean(tally(left, codes, size))]
        average, count = (decay * table[n] + (1 - decay) * x for n, x in zip(("average", "count"), sums, strict=True))
        total = jnp.sum(count)
        smooth = (count + 1e-5) / (total + size * 1e-5) * total
        fair = len(everyones) / size
        dead, fresh = count < min(least, fair / 2), drawn(everyones, size, key)
        new = {
            "embedding": jnp.where(dead[:, None], fresh, average / smooth[:, None]),
            "average": jnp.where(dead[:, None], fresh * fair, average),
            "count": jnp.where(dead, fair, count),
        }
        return left - row(table["embedding"], codes), new

    return jax.lax.scan(one, flat(z), (dict(tables), jax.random.split(key, len(tables["count"]))))[1]


def nearest(rows: Float[Array, "*rows latent"], table: Float[Array, "size latent"]) -> Int[Array, "*rows"]:
    """Which row of the table is nearest to each row. |a - b|^2 = |a|^2 - 2 (a . b - |b|^2 / 2): no differences."""
    half = jnp.sum(table**2, 1) / 2
    return largest(product(rows, table.T) - half.reshape((1,) * (rows.ndim - 1) + (-1,)))


def largest(scores: Float[Array, "*rows size"]) -> Int[Array, "*rows"]:
    """Where the largest score lies, the first of equals. XLA's own argmax on a CPU is six times as slow, one number at
    a time; these two passes are vectors. Where a score is not a number: -1, which is no place."""
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32).reshape((1,) * (scores.ndim - 1) + (-1,))
    best = jnp.max(scores, -1, keepdims=True)
    first = jnp.min(jnp.where(scores == best, places, scores.shape[-1]), -1)
    return jnp.where(first < scores.shape[-1], first, -1)


def row(table: Float[Array, "size latent"], codes: Int[Array, "*rows"]) -> Float[Array, "*rows latent"]:
    """The rows of the table that codes stand for; of a code beyond its ends the row at that end."""
    return jnp.take(table, codes, 0, mode="clip")


def through(x: Float[Array, "*shape"], value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The value, exactly, with the gradient of x."""
    return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))


def apart(a: Latent, b: Latent) -> Float[Array, "batch"]:
    """The mean square of the difference, per example."""
    return jnp.mean((a - b) ** 2, (1, 2))


def counted(x: Float[Array, "batch *more"], i: int, kept: Kept) -> Float[Array, "batch *more"]:
    """x, but 0 in the examples in which codebook i does not count."""
    return x if kept is None else jnp.where(i < kept.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)


def joined(found: Sequence[Quantised]) -> Quantised:
    """What all codebooks found."""
    latents, codes, commitments, codebooks = zip(*found, strict=True)
    return Quantised(sum(latents), jnp.concatenate(codes, -1), sum(commitments), sum(codebooks))


def flat(z: Latent) -> Rows:
    """The latent frames of all examples as rows, without a gradient."""
    return jax.lax.stop_gradient(z).astype(jnp.float32).reshape(-1, z.shape[-1])


def drawn(rows: Rows, count: int, key: Key[Array, ""]) -> Float[Array, "count latent"]:
    """So many of the rows, no row twice where there are enough."""
    return rows[jax.random.choice(key, len(rows), (count,), replace=len(rows) < count)]


def tally(rows: Rows, codes: Int[Array, "rows"], size: int) -> tuple[Float[Array, "size latent"], Float[Array, "size"]]:
    """The sum of the rows of each code, and their count. A product, as a scatter adds in no fixed order on a GPU."""
    hot = jax.nn.one_hot(codes, size, dtype=jnp.float32)
    return product(hot.T, rows), jnp.sum(hot, 0)
