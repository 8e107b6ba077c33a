"""Simple predictors of quantised sound, in bits per sample: what a network that predicts codes is compared with.

A linear predictor whose residuals are Laplace-distributed, with one scale or with a scale that follows them, and a
table of how often a code comes after another. All work on the codes of a `Quantiser`, integers [clips, time]: a sample
is foretold from the codes before it in its clip alone, and zeros come before the first. What is fitted to some clips
is scored on others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.signal import lfilter

from jaxaudio.core import InputError
from jaxaudio.dsp.companding import linear_decode, linear_encode, mu_law_decode, mu_law_encode

TAPS = 16  # past samples that a linear predictor weights
SHARES = (1e-4, 0.5)  # bounds of a predictor's `uniform`: what nothing foretold costs a finite price
NARROW = 1e-2  # of the narrowest cell: no scale is less
SMOOTHING = 0.5  # added to the count of every pair of codes (Krichevsky and Trofimov 1981)
MOST_LEVELS = 4096  # whose table of pairs is made: 128 MiB
BLOCK = 2**16  # samples worked on at once, which stay in the processor's cache
TRIAL = 2**19  # samples that scales are fitted to

Codes = Int[np.ndarray, "clips time"]
Bits = Float[np.ndarray, "clips"]


@dataclass(frozen=True)
class Quantiser:
    """`levels` codes of amplitudes by a law of `jaxaudio.dsp.companding`."""

    levels: int
    law: Literal["mu_law", "linear"]

    def __post_init__(self) -> None:
        if self.law not in ("mu_law", "linear"):
            raise InputError(f"law is {self.law!r}: it is mu_law or linear")
        if not 2 <= self.levels <= 2**16:
            raise InputError(f"levels is {self.levels}: pass 2 to {2**16}, 256 for 8 bits")

    def encode(self, wave: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Codes 0 to levels - 1 of amplitudes in [-1, 1], clipped to that."""
        encode = mu_law_encode if self.law == "mu_law" else linear_encode
        return np.asarray(encode(jnp.asarray(wave, jnp.float32), self.levels))

    @cached_property
    def zero(self) -> int:
        """The code of an amplitude of 0."""
        return int(self.encode(np.zeros(1, np.float32))[0])

    @cached_property
    def values(self) -> Float[np.ndarray, "levels"]:
        """The amplitude that each code is decoded to."""
        decode = mu_law_decode if self.law == "mu_law" else linear_decode
        return np.asarray(decode(jnp.arange(self.levels), self.levels), np.float64)

    @cached_property
    def edges(self) -> Float[np.ndarray, "edges"]:
        """[levels + 1], ascending: code k is what lies between edges k and k + 1. The outermost are infinite."""
        steps = self.levels - 1
        inner = (2 * np.arange(steps) + 1 - steps) / steps
        if self.law == "mu_law":
            inner = np.sign(inner) * np.expm1(np.abs(inner) * np.log1p(steps)) / steps
        return np.concatenate([[-np.inf], inner, [np.inf]])


class Linear(NamedTuple):
    """A linear predictor of amplitudes, and how its residuals are distributed.

    A residual is Laplace-distributed with a mean magnitude of floor + multiplier m. m is an average of the magnitudes
    before: `start` at first, and after a residual r decay m + (1 - decay) |r|. Of one scale: the multiplier is 0.
    """

    taps: Float[np.ndarray, "taps"]  # weights of the sample before, of that before it, ...
    floor: float  # amplitude
    multiplier: float
    decay: float  # per sample
    start: float  # amplitude
    uniform: float  # share of the probability that is spread evenly over the cells


# ------------------------------------------------------------------------------------------------- linear prediction


def fit_taps(codes: Codes, quantiser: Quantiser, taps: int = TAPS) -> Float[np.ndarray, "taps"]:
    """The weights that foretell the decoded amplitudes with the least squared error over all samples.

    The covariance method of linear prediction (Makhoul 1975) with zeros before each clip: two samples i and j back have
    the moment of those i - 1 and j - 1 back but for the clips' last samples. Raises InputError for codes that are none.
    """
    _check(codes, quantiser)
    values, moments = quantiser.values, np.zeros((taps + 1, taps + 1))
    last = np.zeros((taps, taps))
    for block in _blocks(codes):
        x = np.pad(values[block], ((0, 0), (taps, 0)))
        time = x.shape[1]
        moments[0] += [np.einsum("ct,ct->", x[:, lag:], x[:, : time - lag]) for lag in range(taps + 1)]
        ends = x[:, : -taps - 1 : -1]
        last += ends.T @ ends
    moments[:, 0] = moments[0]
    for i in range(taps):
        moments[i + 1, 1:] = moments[i, :-1] - last[i]
    return np.linalg.lstsq(moments[1:, 1:], moments[1:, 0], rcond=None)[0]


def fit_scale(codes: Codes, quantiser: Quantiser, taps: Float[np.ndarray, "taps"], follows: bool) -> Linear:
    """The predictor with these taps to which the codes are likeliest; `follows`: its scale does.

    All that `Linear` has beside the taps is fitted, to at most TRIAL samples of clips evenly spread, by the method of
    Nelder and Mead. Raises InputError for codes that are none.
    """
    _check(codes, quantiser)
    clips = max(1, TRIAL // codes.shape[1])
    trial = codes[np.linspace(0, len(codes) - 1, min(clips, len(codes))).astype(np.int64)]
    residuals = [_residuals(block, quantiser, taps) for block in _blocks(trial)]
    least = NARROW * np.diff(quantiser.values).min()
    start = max(least, float(sum(np.abs(r).sum() for r, _, _ in residuals)) / trial.size)

    def predictor(given: np.ndarray) -> Linear:
        uniform = float(np.clip(np.exp(given[0]), *SHARES))
        floor = max(least, float(np.exp(np.clip(given[1], -50, 50))))
        if not follows:
            return Linear(taps, floor, 0.0, 0.0, start, uniform)
        multiplier, odds = (float(np.exp(np.clip(x, -15, 15))) for x in given[2:])
        return Linear(taps, floor, multiplier, 1 / (1 + odds), start, uniform)

    def cost(given: np.ndarray) -> float:
        made = predictor(given)
        return sum(_bits(*parts, quantiser.levels, made).sum() for parts in residuals) / trial.size

    begin = [np.log(1e-2), np.log(start / 10), 0.0, np.log(0.1)] if follows else [np.log(1e-2), np.log(start)]
    return predictor(_least(cost, np.asarray(begin)))


def linear_bits(codes: Codes, quantiser: Quantiser, predictor: Linear) -> Bits:
    """Bits per sample of each clip: the mean of -log2 of what the predictor gives to the cells that came.

    Raises InputError for codes that are none.
    """
    _check(codes, quantiser)
    bits = []
    for block in _blocks(codes):
        bits.append(_bits(*_residuals(block, quantiser, predictor.taps), quantiser.levels, predictor).mean(1))
    return np.concatenate(bits)


def laplace_log_probability(lower: np.ndarray, upper: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    """ln of the probability of lower < x < upper, x Laplace-distributed about 0 with a mean magnitude of `scale`.

    Exact to rounding in the tails and for narrow cells: neither does a small probability come from the difference of
    large ones. lower < upper, either may be infinite; -inf where the cell has no width.
    """
    near = np.maximum(np.maximum(lower, -upper), 0) / scale
    with np.errstate(divide="ignore"):
        beside = np.log(-np.expm1((lower - upper) / scale)) - near
        around = np.log(-np.expm1(np.minimum(lower, 0) / scale) - np.expm1(np.minimum(-upper, 0) / scale))
    return np.where((lower < 0) & (upper > 0), around, beside) - np.log(2)


def _residuals(block: Codes, quantiser: Quantiser, taps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the decoded amplitudes, and the edges of the cells, all relative to what was foretold; [clips, time] each."""
    x, edges = quantiser.values[block], quantiser.edges
    foretold = lfilter(np.concatenate([[0.0], taps]), [1.0], x)
    return x - foretold, edges[block] - foretold, edges[block + 1] - foretold


def _bits(residual: np.ndarray, lower: np.ndarray, upper: np.ndarray, levels: int, predictor: Linear) -> np.ndarray:
    """-log2 of the probability of each sample's cell [clips, time]."""
    scale = predictor.floor
    if predictor.multiplier:
        begin = np.full((len(residual), 1), predictor.start)
        recent, _ = lfilter([0.0, 1 - predictor.decay], [1.0, -predictor.decay], np.abs(residual), zi=begin)
        scale = scale + predictor.multiplier * recent
    foretold = laplace_log_probability(lower, upper, scale) + np.log1p(-predictor.uniform)
    return -np.logaddexp(foretold, np.log(predictor.uniform / levels)) / np.log(2)


def _least(cost: Callable[[np.ndarray], float], begin: np.ndarray) -> np.ndarray:
    """Where the cost, in bits, is within about 0.001 of a minimum."""
    corners = np.concatenate([begin[None], begin + np.eye(len(begin))])
    found = minimize(
        cost, begin, method="Nelder-Mead", options={"initial_simplex": corners, "xatol": 0.02, "fatol": 2e-4}
    )
    return found.x


# ------------------------------------------------------------------------------------------------------ pairs of codes


def fit_bigram(codes: Codes, quantiser: Quantiser, smoothing: float = SMOOTHING) -> Float[np.ndarray, "before code"]:
    """log2 P(code | code before), [levels, levels]; `smoothing` is added to every count.

    Raises InputError for more than MOST_LEVELS levels, a smoothing that is not positive, and codes that are none.
    """
    levels = quantiser.levels
    if levels > MOST_LEVELS:
        raise InputError(f"levels is {levels}: a table of pairs of codes has {MOST_LEVELS} at most")
    if not smoothing > 0:
        raise InputError(f"smoothing is {smoothing}: it is above 0, so that no pair is impossible")
    _check(codes, quantiser)
    counts = np.zeros(levels**2)
    for block in _blocks(codes, levels**2):
        counts += np.bincount((_before(block, quantiser) * levels + block).ravel(), minlength=levels**2)
    counts = counts.reshape(levels, levels) + smoothing
    return np.log2(counts / counts.sum(1, keepdims=True))


def bigram_bits(codes: Codes, quantiser: Quantiser, table: Float[np.ndarray, "before code"]) -> Bits:
    """Bits per sample of each clip by the table of `fit_bigram`. Raises InputError for codes that are none."""
    _check(codes, quantiser)
    return np.concatenate([-table[_before(block, quantiser), block].mean(1) for block in _blocks(codes)])


def _before(block: Codes, quantiser: Quantiser) -> Codes:
    """The code before each."""
    return np.pad(block, ((0, 0), (1, 0)), constant_values=quantiser.zero)[:, :-1].astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- both


def _blocks(codes: Codes, size: int = BLOCK) -> Iterator[Codes]:
    """Clips of about `size` samples together, at least BLOCK."""
    rows = max(1, max(size, BLOCK) // codes.shape[1])
    return (codes[i : i + rows] for i in range(0, len(codes), rows))


def _check(codes: Codes, quantiser: Quantiser) -> None:
    if codes.ndim != 2 or not codes.size:
        raise InputError(f"codes are {list(codes.shape)}: pass [clips, time], 1 clip of 1 sample at least")
    if codes.min() < 0 or codes.max() >= quantiser.levels:
        raise InputError(f"codes are {codes.min()} to {codes.max()}: {quantiser.levels} levels have 0 and up to that")
