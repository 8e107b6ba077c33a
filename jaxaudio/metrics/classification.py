"""Scores of a classifier, in numpy: float64 scores [n, classes], integer labels [n]."""

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxaudio.core import InputError


def accuracy(labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"]) -> float:
    """The share of rows whose predicted label is right; higher is better. Raises InputError for no rows."""
    _pair("labels", labels, "predicted", predicted)
    return float(np.mean(labels == predicted))


def mean_average_precision(
    scores: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, "n"] | Int[np.ndarray, "n classes"] | Bool[np.ndarray, "n classes"],
) -> float:
    """The mean over classes of the average precision, sum over thresholds of (recall gained) * precision; 0 to 1.

    labels: [n] class indices, or [n, classes] of 0 and 1 where a row has several labels. Scores are ranked from row to
    row, within each class, and equal ones share a threshold: of a softmax classifier pass the probabilities in float64,
    since logits are known up to a constant of each row; of a sigmoid one its logits rank alike. A class without a
    positive row has no precision and is left out of the mean. As scikit-learn's
    `average_precision_score(average="macro")`. Higher is better. Raises InputError where no class has a positive, or a
    score is not finite.
    """
    _pair("scores", scores, "labels", labels)
    if not np.isfinite(scores).all():
        raise InputError("scores are not all finite: check the classifier's output")
    if labels.ndim == 2 and (labels.shape != scores.shape or not np.isin(labels, (0, 1)).all()):
        raise InputError(f"labels {labels.shape} for scores {scores.shape}: pass the same shape, of 0 and 1")
    if labels.ndim == 1:
        _indices("labels", labels, scores.shape[1])
        labels = labels[:, None] == np.arange(scores.shape[1])
    heard = np.flatnonzero(labels.any(0))
    if not heard.size:
        raise InputError("labels have no positive in any class: average precision is undefined; pass more clips")

    order = np.argsort(-scores[:, heard], axis=0, kind="stable")
    ranked = np.take_along_axis(scores[:, heard], order, 0)
    right = np.take_along_axis(labels[:, heard], order, 0).astype(np.float64)
    precision = np.cumsum(right, 0) / np.arange(1, len(scores) + 1)[:, None]
    # Rows of one score are one threshold: each counts with the precision behind the last of them.
    ends = np.where(np.diff(ranked, axis=0, append=-np.inf) < 0, np.arange(len(scores))[:, None], len(scores))
    ends = np.minimum.accumulate(ends[::-1], 0)[::-1]
    return float(np.mean(np.sum(right * np.take_along_axis(precision, ends, 0), 0) / right.sum(0)))


def confusion(
    labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How often each label (row) was taken for each (column)."""
    _pair("labels", labels, "predicted", predicted)
    _indices("labels", labels, classes)
    _indices("predicted", predicted, classes)
    counts = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def group_accuracy(
    correct: Bool[np.ndarray, "n"] | Float[np.ndarray, "n"], groups: np.ndarray
) -> dict[str | int, tuple[float, int]]:
    """{group: (share of its rows that are correct, number of its rows)}, in the order of the groups' names.

    groups: [n], what each row belongs to (speaker, instrument, recording), integers or strings.
    """
    _pair("correct", correct, "groups", groups)
    names, index = np.unique(groups, return_inverse=True)
    counts = np.bincount(index)
    shares = np.bincount(index, weights=correct.astype(np.float64)) / counts
    return {name: (float(share), int(n)) for name, share, n in zip(names.tolist(), shares, counts, strict=True)}


def _pair(name: str, a: np.ndarray, other: str, b: np.ndarray) -> None:
    if len(a) != len(b) or not len(a):
        raise InputError(f"{name} has {len(a)} rows and {other} {len(b)}: pass one of each per clip, 1 clip at least")


def _indices(name: str, labels: np.ndarray, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{name} are {labels.min()} to {labels.max()}: {classes} classes have 0 to {classes - 1}")
