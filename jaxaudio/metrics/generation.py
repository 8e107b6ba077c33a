"""Scores of a generator: its sounds against recordings, through a classifier's probabilities and embeddings.

numpy in float64: probabilities [n, classes] whose rows sum to 1, embeddings [n, features], one row per clip. The
numbers depend on the classifier that made these, so only scores through one classifier can be compared. Every function
raises `InputError` for what it cannot score: fewer than 2 rows, values that are not finite, rows that do not sum to 1,
widths that differ.
"""

import itertools

import numpy as np
from jaxtyping import Float, Int

from jaxaudio.core import InputError

Probabilities = Float[np.ndarray, "n classes"]

TINY = 2.0**-126  # the smallest normal float32: logarithms of less, which a float32 softmax cannot hold, are taken here
PARTS = 4  # the smallest subsets of `frechet_distance_unbiased` are a fourth of the clips
BLOCK = 2**22  # distances that `nearest_distances` holds at once: 32 MiB


def inception_score(probabilities: Probabilities, splits: int = 10) -> float:
    """exp(mean KL(p_i || mean p)), the mean over `splits` of consecutive rows; 1 to classes, higher is better.

    Order matters, since each split has a mean of its own: shuffle the rows where clips were made class by class.
    A split of fewer rows than classes cannot reach the best score, so `splits * classes` rows are needed at least. It
    sees neither copies nor a lack of variety within a class. Source: Salimans et al. 2016. WaveGAN's and SpecGAN's
    scores have 10 splits of 50,000 clips; those of the SC09 leaderboard (Goel et al. 2022) take p_i from one half of
    the clips and the mean from the other, which `splits=1` comes close to.
    """
    p = _probabilities("probabilities", probabilities)
    rows, classes = p.shape
    if not 0 < splits * classes <= rows:
        raise InputError(
            f"probabilities have {rows} rows: {splits} splits of {classes} classes need 1 split and "
            f"{splits * classes} rows at least; make more clips or use fewer splits"
        )
    edges = np.arange(splits + 1) * rows // splits
    parts = [p[start:end] for start, end in itertools.pairwise(edges)]
    return float(np.mean([np.exp(_entropy(part.mean(0)) - _entropy(part).mean()) for part in parts]))


def modified_inception_score(probabilities: Probabilities) -> float:
    """exp(mean KL(p_i || p_j)) over all pairs of rows; at least 1, higher is better: sure of each clip, and various.

    The mean splits into two of single rows, so that no pair is formed. Logarithms of less than 2^-126 count as that
    one's; a classifier that is surer of the same clips scores higher. Source: Gurumurthy et al. 2017; on SC09 the mean
    of 10,000 random pairs estimates it.
    """
    p = _probabilities("probabilities", probabilities)
    return float(np.exp(-_entropy(p).mean() - p.mean(0) @ _log(p).mean(0)))


def am_score(probabilities: Probabilities, train_marginal: Float[np.ndarray, "width"]) -> float:
    """KL(train marginal || mean p) + mean entropy of p, in nats; at least 0, lower is better.

    train_marginal: the mean of the same classifier's probabilities over the training set, summing to 1. Unlike the
    Inception Score it allows classes of unequal size. Source: Zhou et al. 2018.
    """
    p = _probabilities("probabilities", probabilities)
    _same_width("probabilities", p, "train_marginal", train_marginal)
    train = _sums_to_one("train_marginal", np.asarray(train_marginal, np.float64)[None])[0]
    return float(train @ (_log(train) - _log(p.mean(0))) + _entropy(p).mean())


def frechet_distance(a: Float[np.ndarray, "n features"], b: Float[np.ndarray, "m width"]) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances; symmetric, at least 0, lower is better.

    Biased upwards by about a constant over the number of clips: compare sets of one size, against recordings of the
    same number as a floor, or use `frechet_distance_unbiased`. Source: Dowson and Landau 1982, Heusel et al. 2017.
    """
    a, b = _embeddings("a", a), _embeddings("b", b)
    _same_width("a", a, "b", b)
    shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    spread = np.sum(a**2) + np.sum(b**2)  # the traces of A = a' a and of B = b' b
    return float(max(shift + spread - 2 * _overlap(a, b), 0.0))


def frechet_distance_unbiased(
    real: Float[np.ndarray, "n features"], fake: Float[np.ndarray, "m width"], seed: int = 0
) -> float:
    """The Frechet distance extrapolated to infinitely many clips of both sets; lower is better.

    The bias is to first order a / n + b / m. So both sets are cut alike into k = 1, 2, 3, 4 disjoint parts, the
    distance of parts averaged over the k pairs of them, and the straight line through these over k read off at k = 0.
    The shuffle before the cut depends on the seed alone. It may come out slightly below 0 where the sets are alike.

    k goes only so far as each part has 7/8 as many rows as features, since the law fails below (measured on Gaussians);
    k = 2 is needed: both sets have 1.75 times as many rows as features. Source: the extrapolation of Chong and Forsyth
    2020 (FID-infinity), who vary one set's size, by overlapping subsets.
    """
    real, fake = _embeddings("real", real), _embeddings("fake", fake)
    _same_width("real", real, "fake", fake)
    features, rows = real.shape[1], min(len(real), len(fake))
    parts = min(PARTS, int(rows // max(2, 7 / 8 * features)))
    if parts < 2:
        raise InputError(
            f"real and fake have {len(real)} and {len(fake)} rows of {features} features: extrapolating needs "
            f"{max(4, int(np.ceil(1.75 * features)))} of both; make more clips or use frechet_distance"
        )
    rng = np.random.default_rng(seed)
    real, fake = rng.permutation(real), rng.permutation(fake)
    counts = np.arange(1, parts + 1)
    means = [np.mean([frechet_distance(real[i::k], fake[i::k]) for i in range(k)]) for k in counts]
    return float(np.polyfit(counts, means, 1)[1])


def nearest_distances(
    queries: Float[np.ndarray, "n features"], references: Float[np.ndarray, "m width"]
) -> Float[np.ndarray, "n"]:
    """Euclidean distance of each query to the nearest reference; exactly 0 for a copy. Memory stays within 100 MiB."""
    queries, references = _embeddings("queries", queries), _embeddings("references", references)
    _same_width("queries", queries, "references", references)
    centre = references.mean(0)  # the closer to 0, the less is lost in |q|^2 - 2 q r + |r|^2
    queries, references = queries - centre, references - centre
    squares = np.sum(references**2, 1)
    rows = max(1, BLOCK // len(references))
    distances = []
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        nearest = np.argmin(squares - 2 * (block @ references.T), 1)
        distances.append(np.linalg.norm(block - references[nearest], axis=1))
    return np.concatenate(distances)


def memorisation(generated: Float[np.ndarray, "n"], held_out: Float[np.ndarray, "k"]) -> float:
    """Median distance of generated clips to the nearest training clip, over that of held-out recordings.

    Both are `nearest_distances` to the whole training set (of its blocks in turn, the smallest). About 1: as new as
    recordings it has not seen. Well below 1: copies of the training set. Above 1: far from recordings of any kind, or
    at least from these. An interval: `bootstrap.interval` with independent=True. Source: the similarity |D|_train of
    Donahue et al. 2019 (WaveGAN), which has means in place of medians and no held-out set to compare with.
    """
    usual = float(np.median(held_out)) if len(held_out) else 0.0
    if usual == 0:
        raise InputError("the median held_out clip is in train: pass recordings that the model was not trained on")
    return float(np.median(generated)) / usual


def diversity(embeddings: Float[np.ndarray, "n features"]) -> float:
    """Root of the mean squared distance of two different clips; to be compared with that of recordings: less is poorer.

    It is (2 tr covariance)^(1/2), so that no pair is formed, and unbiased in its square: sets of unequal size compare.
    """
    x = _embeddings("embeddings", embeddings)
    return float(np.sqrt(2 * np.var(x, axis=0, ddof=1).sum()))


def balance(labels: Int[np.ndarray, "n"], classes: int) -> float:
    """Entropy of the histogram of class labels in units of log(classes): 1 is even, 0 is one class only."""
    _two_rows("labels", labels)
    if classes < 2:
        raise InputError(f"classes is {classes}: balance needs 2 at least")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels are {labels.min()} to {labels.max()}: {classes} classes have 0 to {classes - 1}")
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return float(_entropy(shares) / np.log(classes))


def agreement(predicted: Int[np.ndarray, "n"], asked: Int[np.ndarray, "m"]) -> Float[np.ndarray, "n"]:
    """1 where the classifier hears the label that was asked of a conditional generator, else 0; higher is better."""
    if predicted.shape != asked.shape:
        raise InputError(f"predicted has {len(predicted)} labels and asked {len(asked)}: pass one of each per clip")
    return (predicted == asked).astype(np.float64)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """tr (A B)^(1/2) of A = a' a, B = b' b. By rows or by columns, whichever matrix is the smaller: a b' has the roots
    of the eigenvalues of A B as singular values, so that no covariance is formed of few wide rows."""
    if len(a) * len(b) < a.shape[1] ** 2:
        return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    # (A B)^(1/2) has the trace of (S B S)^(1/2), S the root of A: symmetric, so that no complex number arises.
    values, vectors = np.linalg.eigh(a.T @ a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ (b.T @ b) @ root
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum())


def _log(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, TINY))


def _entropy(p: np.ndarray) -> np.ndarray | np.float64:
    """Of each row, in nats."""
    return 0.0 - np.sum(p * _log(p), -1)  # not -sum, which is -0.0 for a sure row


def _probabilities(name: str, p: np.ndarray) -> np.ndarray:
    _two_rows(name, p)
    return _sums_to_one(name, np.asarray(p, np.float64))


def _sums_to_one(name: str, p: np.ndarray) -> np.ndarray:
    """The rows divided by their sums: a float32 softmax is off by 1e-6, and what is off by 1e-3 is no softmax."""
    totals = p.sum(1)
    wrong = np.flatnonzero(~(np.abs(totals - 1) <= 1e-3) | ~(p >= 0).all(1))
    if wrong.size:
        raise InputError(
            f"{name} row {wrong[0]} has values from {p[wrong[0]].min():.3g} with a sum of {totals[wrong[0]]:.6g}: rows "
            "are at least 0 and sum to 1; pass probabilities, not logits"
        )
    return p / totals[:, None]


def _embeddings(name: str, x: np.ndarray) -> np.ndarray:
    _two_rows(name, x)
    wrong = np.flatnonzero(~np.isfinite(x).all(1))
    if wrong.size:
        raise InputError(f"{name} row {wrong[0]} (of {wrong.size} such) is not finite: leave these clips out")
    return np.asarray(x, np.float64)


def _two_rows(name: str, x: np.ndarray) -> None:
    if len(x) < 2:
        raise InputError(f"{name} has {len(x)} row: a score needs 2 clips at least")


def _same_width(name: str, a: np.ndarray, other: str, b: np.ndarray) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise InputError(
            f"{name} is {a.shape[-1]} wide and {other} {b.shape[-1]}: both must come from the same classifier"
        )
