"""Intervals of a score: how far it would move had other clips been drawn.

Of means, and of scores that are nearly so (accuracy, mean average precision, Inception and AM scores, a ratio of
medians), `mean_interval` and `interval` (percentile bootstrap). Of scores whose bias depends on how many different
clips there are (Frechet distances; `balance` near 1), `jackknife_interval`: a bootstrap resample repeats clips, which
adds the bias once more, and its interval may not even hold the score.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from jaxaudio.core import InputError

BLOCK = 2**22  # row numbers that `mean_interval` holds at once: 32 MiB


def interval(
    statistic: Callable[..., float],
    samples: tuple[np.ndarray, ...],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    *,
    independent: bool = False,
) -> tuple[float, float]:
    """(low, high): percentile bootstrap of `statistic(*samples)` over rows, which are drawn with replacement.

    independent False: the arrays describe the same clips (probabilities and labels) and one draw serves them all.
    True: they are different sets (real and generated clips), each with a draw of its own. The draws depend on the
    seed alone. Raises InputError for fewer than 2 rows, arrays of one set with unequal rows, too few resamples for the
    level, and a statistic that is not finite.
    """
    _check(samples, level, independent)
    _enough(resamples, level)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        if independent:
            drawn = [rng.integers(len(x), size=len(x)) for x in samples]
        else:
            drawn = [rng.integers(len(samples[0]), size=len(samples[0]))] * len(samples)
        values.append(_finite(statistic(*(x[rows] for x, rows in zip(samples, drawn, strict=True)))))
    return _percentiles(values, level)


def mean_interval(
    values: Float[np.ndarray, "n"], resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """`interval(np.mean, (values,))`, the same draws, many resamples at a time."""
    _check((values,), level, False)
    _enough(resamples, level)
    _finite(np.sum(values))
    rng, n = np.random.default_rng(seed), len(values)
    rows = max(1, BLOCK // n)
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = [values[rng.integers(n, size=(count, n))].mean(1) for count in counts]
    return _percentiles(np.concatenate(means), level)


def jackknife_interval(
    statistic: Callable[..., float],
    samples: tuple[np.ndarray, ...],
    blocks: int = 20,
    level: float = 0.95,
    *,
    independent: bool = False,
) -> tuple[float, float]:
    """(low, high): the statistic, plus and minus normal quantiles of its standard error by the block jackknife.

    The statistic is computed `blocks` times, each time without every `blocks`-th row: of all arrays if these describe
    the same clips, and if they are independent sets too, since then what leaving rows out of each does adds up. No row
    is ever repeated. `independent` True allows unequal numbers of rows. Raises InputError as `interval`, and for fewer
    than 2 rows per block. Source: Efron and Tibshirani 1993, ch. 11 (delete-d jackknife).
    """
    _check(samples, level, independent)
    if blocks < 2 or min(map(len, samples)) < 2 * blocks:
        raise InputError(
            f"{blocks} blocks of {min(map(len, samples))} rows: the jackknife needs 2 blocks, and 2 rows of each; "
            "pass more clips or fewer blocks"
        )
    kept = [[np.arange(len(x)) % blocks != b for x in samples] for b in range(blocks)]
    values = [_finite(statistic(*(x[k] for x, k in zip(samples, keep, strict=True)))) for keep in kept]
    error = np.sqrt((blocks - 1) * np.var(values))
    score, width = _finite(statistic(*samples)), NormalDist().inv_cdf(0.5 + level / 2) * float(error)
    return score - width, score + width


def _check(samples: tuple[np.ndarray, ...], level: float, independent: bool) -> None:
    sizes = [len(x) for x in samples]
    if not sizes or min(sizes) < 2:
        raise InputError(f"samples have {sizes} rows: an interval needs 2 of each at least")
    if not independent and len(set(sizes)) > 1:
        raise InputError(f"samples have {sizes} rows: those of one set have as many each; or pass independent=True")
    if not 0 < level < 1:
        raise InputError(f"level is {level}: it lies between 0 and 1")


def _enough(resamples: int, level: float) -> None:
    needed = round(2 / (1 - level))
    if resamples < needed:
        raise InputError(f"resamples is {resamples}: a level of {level} needs {needed} at least")


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise InputError(f"the statistic is {value} on these clips: an interval needs a finite one; check its input")
    return float(value)


def _percentiles(values: list[float] | np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
